"""What the Fisher trace and the stages of gradual unfreezing cost, in full fine-tuning steps.

    python benchmarks/bench_fisher.py [--quick] [--name NAME]

MiniLM-L6 geometry with random weights, one thread. All measurements run in one process, interleaved, in CPU time;
a cost is the median over repetitions of the ratio to the full step of the same repetition, so that other load on
the machine falls out. Prints a table and writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import environment
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.probes.fisher import fisher_trace

RESULTS = Path(__file__).parent / "results"
FULL_STEP = "step, everything trains"
# Largest cost in full steps that the project promises.
GOALS = {
    "fisher_trace exact, all parameters": 0.80,
    "step, head only": 0.45,
    "step, head + top half": 0.70,
}


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test: a tiny model and two repetitions")
    parser.add_argument(
        "--name", help="of the file in benchmarks/results; default bench_fisher, quick: none is written"
    )
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 500}
    if not options.quick:
        size = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "vocab_size": 30522}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=6, num_labels=2, **size)).train()
    batch = padded(options.examples, options.length, size["vocab_size"])
    jobs = make_jobs(model, batch)
    seconds = interleaved(jobs, warmup=1, repetitions=2 if options.quick else options.repetitions)

    full = seconds[FULL_STEP]
    rows = {
        name: {
            "cpu_seconds": statistics.median(values),
            "ratio": statistics.median(value / step for value, step in zip(values, full, strict=True)),
            "goal": None if options.quick else GOALS.get(name),
            "repetitions": values,
        }
        for name, values in seconds.items()
    }
    record = {
        "benchmark": "fisher",
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
    print(f"{'':38} {'CPU s':>8} {'steps':>7} {'goal':>6}")
    for name, row in rows.items():
        goal = "" if row["goal"] is None else f"{row['goal']:.2f} {'met' if row['ratio'] <= row['goal'] else 'MISSED'}"
        print(f"{name:38} {row['cpu_seconds']:8.4f} {row['ratio']:7.3f} {goal:>6}")
    name = options.name or (None if options.quick else "bench_fisher")
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


def make_jobs(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
    """What is timed, by name; the full step first."""
    groups = find_layer_groups(model)
    stages = {
        "head only": ["head"],
        **{f"head + top {n}": ["head", *[f"block.{5 - i}" for i in range(n)]] for n in (1, 2, 4)},
        "head + top half": ["head", "block.5", "block.4", "block.3"],
        "all but embeddings": [name for name in groups.names if name != "embeddings"],
    }
    # One optimizer for all stages, as in training; fused, as in the Trainer by default.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    jobs: dict[str, Callable[[], object]] = {FULL_STEP: step(model, optimizer, batch, groups, groups.names)}
    for stage, names in stages.items():
        jobs[f"step, {stage}"] = step(model, optimizer, batch, groups, names)

    def forward() -> None:
        model.eval()
        with torch.no_grad():
            model(**batch)
        model.train()

    jobs["forward only"] = forward
    for estimator in ("exact", "rademacher", "loop"):
        jobs[f"fisher_trace {estimator}, all parameters"] = trace(model, batch, groups, groups.names, estimator)
    for stage in ("head only", "head + top half"):
        jobs[f"fisher_trace exact, {stage}"] = trace(model, batch, groups, stages[stage], "exact")
    return jobs


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    groups: LayerGroups,
    trainable: list[str] | tuple[str, ...],
) -> Callable[[], object]:
    """Forward, backward, AdamW; only the named groups train."""
    names = [name for group in trainable for name in groups[group].parameters]

    def run() -> None:
        with requires_grad_set(dict(model.named_parameters()), names):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def trace(
    model: nn.Module,
    batch: dict[str, Tensor],
    groups: LayerGroups,
    trainable: list[str] | tuple[str, ...],
    estimator: str,
) -> Callable[[], object]:
    """One measurement on the examples of the step; only the named groups are measured."""
    names = [name for group in trainable for name in groups[group].parameters]

    def run() -> None:
        with requires_grad_set(dict(model.named_parameters()), names):
            result = fisher_trace(model, [batch], estimator=estimator, groups=groups)
        if result.fallbacks:
            raise SystemExit(f"not exact: {result.fallbacks}")

    return run


def interleaved(jobs: dict[str, Callable[[], object]], warmup: int, repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of each job, each repetition running all of them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repetition in range(warmup + repetitions):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if repetition >= warmup:
                seconds[name].append(time.process_time() - start)
    return seconds


if __name__ == "__main__":
    main()
