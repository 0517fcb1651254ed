"""What sharpness costs, in the passes over the probe set that it is made of.

    python benchmarks/bench_sharpness.py [--quick] [--name NAME]

MiniLM-L6 geometry with random weights, one thread. The price of the average case is its forward passes, that of the
worst case its forward and backward passes (and one forward pass): everything above is what drawing noise, moving the
weights and searching cost. All are measured in one process, interleaved, in CPU time; a cost is the median over
repetitions of the ratio to the passes of the same repetition. Prints a table and writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_fisher import interleaved, padded
from environment import environment
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from hf_early_ood.probes.sharpness import average_sharpness, worst_case_sharpness

RESULTS = Path(__file__).parent / "results"
FORWARD, BOTH = "forward, all", "both ways, one batch"
# Largest cost in passes of its own that the project promises.
GOALS = {FORWARD: 1.10, BOTH: 1.15}


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test: a tiny model and two repetitions")
    parser.add_argument("--name", help="of the file in benchmarks/results; default bench_sharpness, quick: none")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 500}
    if not options.quick:
        size = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "vocab_size": 30522}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=6, num_labels=3, **size)).eval()
    rows = [options.batch_size] * (options.examples // options.batch_size)
    batches = [padded(count, options.length, size["vocab_size"]) for count in rows]
    jobs = make_jobs(model, batches, options.draws, options.steps)
    seconds = interleaved(
        {name: job for name, (job, _, _) in jobs.items()},
        warmup=1,
        repetitions=2 if options.quick else options.repetitions,
    )

    results: dict[str, Any] = {}
    for name, (_, unit, passes) in jobs.items():
        # One forward pass of a batch more: the last point of the search, whose gradient nobody needs.
        own = [
            passes * each + (forward / len(batches) if unit == BOTH and passes > 1 else 0.0)
            for each, forward in zip(seconds[unit], seconds[FORWARD], strict=True)
        ]
        results[name] = {
            "cpu_seconds": statistics.median(seconds[name]),
            "unit": unit,
            "passes": passes,
            "ratio": statistics.median(value / price for value, price in zip(seconds[name], own, strict=True)),
            "goal": None if options.quick or passes == 1 else GOALS[unit],
            "repetitions": seconds[name],
        }
    print(f"{'':44} {'CPU s':>8} {'passes':>22} {'ratio':>7} {'goal':>6}")
    for name, row in results.items():
        goal = "" if row["goal"] is None else f"{row['goal']:.2f} {'met' if row['ratio'] <= row['goal'] else 'MISSED'}"
        passes = f"{row['passes']} {row['unit']}"
        print(f"{name:44} {row['cpu_seconds']:8.4f} {passes:>22} {row['ratio']:7.3f} {goal:>6}")
    name = options.name or (None if options.quick else "bench_sharpness")
    if name is not None:
        record = {
            "benchmark": "sharpness",
            "setting": {
                "model": "BertForSequenceClassification, 6 blocks, random weights",
                **size,
                "parameters": model.num_parameters(),
                "examples": sum(rows),
                "batch_size": options.batch_size,
                "length": options.length,
                "tokens": sum(int(batch["attention_mask"].sum()) for batch in batches),
                "quick": options.quick,
            },
            "environment": environment(),
            "results": results,
        }
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(path)


def make_jobs(
    model: nn.Module, batches: list[dict[str, Tensor]], draws: int, steps: int
) -> dict[str, tuple[Callable[[], object], str, int]]:
    """What is timed: name to job, the pass that it is made of, and how many of them.

    The worst case is searched batch by batch, so that it is timed on the first one only.
    """
    parameters = list(model.parameters())
    shown = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]

    def loss(number: int) -> Tensor:
        return nn.functional.cross_entropy(model(**shown[number]).logits, batches[number]["labels"])

    def forward() -> None:
        with torch.no_grad():
            for number in range(len(batches)):
                loss(number)

    def both() -> None:
        torch.autograd.grad(loss(0), parameters, allow_unused=True)

    jobs: dict[str, tuple[Callable[[], object], str, int]] = {FORWARD: (forward, FORWARD, 1), BOTH: (both, BOTH, 1)}
    for adaptive in (False, True):
        kind = "adaptive" if adaptive else "plain"
        jobs[f"average, {kind}, mirrored pairs"] = (
            lambda a=adaptive: average_sharpness(model, batches, num_draws=draws, adaptive=a),
            FORWARD,
            draws + 1,
        )
        for norm in ("l2", "linf"):
            jobs[f"worst case, {kind}, {norm}"] = (
                lambda a=adaptive, n=norm: worst_case_sharpness(model, batches[:1], norm=n, steps=steps, adaptive=a),
                BOTH,
                steps,
            )
    jobs["average, plain, independent draws"] = (
        lambda: average_sharpness(model, batches, num_draws=draws, antithetic=False),
        FORWARD,
        draws + 1,
    )
    return jobs


if __name__ == "__main__":
    main()
