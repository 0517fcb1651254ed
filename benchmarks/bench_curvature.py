"""What a product with the Hessian or the Gauss-Newton matrix costs, in full fine-tuning steps.

    python benchmarks/bench_curvature.py [--quick] [--name NAME]

MiniLM-L6 geometry with random weights, one thread, the examples of the training step. All measurements run in one
process, interleaved, in CPU time; a cost is the median over repetitions of the ratio to the step of the same
repetition, so that other load on the machine falls out. A cost is per product: that of the measurement divided by the
number of products it made, with everything that it does besides. Peak memory is that of a process of its own for each
job, above what the process held before. Prints a table and writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import environment
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from hf_early_ood.probes.curvature import hessian_top_eigenvalue, hessian_trace
from hf_early_ood.probes.fisher import fisher_trace

RESULTS = Path(__file__).parent / "results"
STEP = "training step"
_MEBIBYTE = 2**20


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test: a tiny model and two repetitions")
    parser.add_argument("--name", help="of the file in benchmarks/results; default bench_curvature, quick: none")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--products", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # run one job and print its peak memory
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 500}
    if not options.quick:
        size = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "vocab_size": 30522}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=6, num_labels=2, **size)).train()
    batch = padded(options.examples, options.length, size["vocab_size"])
    jobs = make_jobs(model, batch, options.products)
    if options.memory_of:
        before = peak_bytes()
        jobs[options.memory_of]()
        print(peak_bytes() - before)
        return

    seconds, counts = interleaved(jobs, 1, 2 if options.quick else options.repetitions)
    memory = {name: memory_of(name) for name in jobs}
    rows = {
        name: {
            "cpu_seconds": statistics.median(values),
            "ratio": statistics.median(v / step for v, step in zip(values, seconds[STEP], strict=True)),
            "products": counts[name],
            "ratio_per_product": statistics.median(
                v / step / counts[name] for v, step in zip(values, seconds[STEP], strict=True)
            ),
            "peak_memory_bytes": memory[name],
            "repetitions": values,
        }
        for name, values in seconds.items()
    }
    record = {
        "benchmark": "curvature",
        "setting": {
            "model": "BertForSequenceClassification, 6 blocks, random weights",
            **size,
            "parameters": model.num_parameters(),
            "examples": options.examples,
            "length": options.length,
            "tokens": int(batch["attention_mask"].sum()),
            "quick": options.quick,
        },
        "environment": environment(),
        "results": rows,
    }
    print(f"{'':38} {'CPU s':>8} {'steps':>7} {'products':>8} {'steps/product':>13} {'peak MiB':>9}")
    for name, row in rows.items():
        print(
            f"{name:38} {row['cpu_seconds']:8.3f} {row['ratio']:7.2f} {row['products']:8} "
            f"{row['ratio_per_product']:13.3f} {row['peak_memory_bytes'] / _MEBIBYTE:9.0f}"
        )
    name = options.name or (None if options.quick else "bench_curvature")
    if name is not None:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(path)


def padded(examples: int, length: int, vocab_size: int) -> dict[str, Tensor]:
    """Random tokens (B, T), right-padded: lengths uniform from T/3 to T, one of them T."""
    lengths = torch.randint(length // 3, length + 1, (examples,))
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(5, vocab_size, (examples, length)) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(2, (examples,))}


def make_jobs(model: nn.Module, batch: dict[str, Tensor], products: int) -> dict[str, Callable[[], int]]:
    """What is measured, by name; each returns how many products it made. The training step first."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> int:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return 1

    def fisher() -> int:
        fisher_trace(model, [batch])
        return 1

    def trace(matrix: str, method: str) -> Callable[[], int]:
        def run() -> int:
            result = hessian_trace(model, [batch], matrix=matrix, method=method, num_products=products)
            return result.num_products

        return run

    def top(matrix: str) -> Callable[[], int]:
        def run() -> int:
            result = hessian_top_eigenvalue(model, [batch], matrix=matrix, num_products=products, tolerance=0.0)
            return result.num_products

        return run

    jobs: dict[str, Callable[[], int]] = {STEP: step, "fisher_trace": fisher}
    for matrix in ("hessian", "gauss_newton"):
        for method in ("hutchinson", "hutch++"):
            jobs[f"{matrix} trace, {method}"] = trace(matrix, method)
        jobs[f"{matrix} top eigenvalue"] = top(matrix)
    return jobs


def interleaved(
    jobs: dict[str, Callable[[], int]], warmup: int, repetitions: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """CPU seconds of each job, each repetition running all of them in turn, and the products each made."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    counts: dict[str, int] = {}
    for repetition in range(warmup + repetitions):
        for name, job in jobs.items():
            start = time.process_time()
            counts[name] = job()
            if repetition >= warmup:
                seconds[name].append(time.process_time() - start)
    return seconds, counts


def memory_of(name: str) -> int:
    """Peak memory of one job in bytes, in a process of its own with the same options."""
    command = [sys.executable, *sys.argv, "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent before the start of this program
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
