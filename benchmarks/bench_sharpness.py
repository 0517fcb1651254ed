"""What sharpness costs, in the passes over the probe set that it is made of.

    python benchmarks/bench_sharpness.py [--quick] [--name NAME]

MiniLM-L6 geometry with random weights. The price of the average case is its forward passes, that of the worst case its
forward and backward passes (and one forward pass): everything above is what drawing noise, moving the weights and
searching cost. How it is timed: harness.py. Prints a table and writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from harness import Batch, Goal, Job, bert, collate, examples, finish, interleaved, parser, ratio, setting, start
from torch import Tensor, nn

from hf_early_ood.probes.sharpness import average_sharpness, worst_case_sharpness

FORWARD, BOTH = "forward, all", "both ways, one batch"
# Largest cost in passes of its own that the project promises.
LIMITS = {FORWARD: 1.10, BOTH: 1.15}


def main() -> None:
    """Measure, print, record."""
    options = parser(
        __doc__, "bench_sharpness", repetitions=2, examples=128, batch_size=32, length=64, draws=4, steps=15
    ).parse_args()
    start(options)
    model = bert(options, labels=3).eval()
    items, size = examples(options, options.examples, options.length, labels=3), options.batch_size
    batches = [collate(items[begin : begin + size]) for begin in range(0, len(items), size)]
    batches = [{key: value.to(options.device) for key, value in batch.items()} for batch in batches]
    jobs = make_jobs(model, batches, options.draws, options.steps)
    times, _ = interleaved({name: job for name, (job, _, _) in jobs.items()}, options)

    results: dict[str, Any] = {}
    for name, (_, unit, passes) in jobs.items():
        # One forward pass of a batch more: the last point of the search, whose gradient nobody needs.
        own = [
            passes * each + (forward / len(batches) if unit == BOTH and passes > 1 else 0.0)
            for each, forward in zip(times[unit], times[FORWARD], strict=True)
        ]
        results[name] = {
            "seconds": statistics.median(times[name]),
            "unit": unit,
            "passes": passes,
            "ratio": ratio(times[name], own),
            "repetitions": times[name],
        }
    print(f"{'':44} {'s':>8} {'passes':>24} {'ratio':>7}")
    for name, row in results.items():
        passes = f"{row['passes']} {row['unit']}"
        print(f"{name:44} {row['seconds']:8.4f} {passes:>24} {row['ratio']:7.3f}")
    finish(
        options,
        setting=setting(
            options,
            examples=options.examples,
            batch_size=size,
            length=options.length,
            tokens=sum(int(batch["attention_mask"].sum()) for batch in batches),
        ),
        results=results,
        goals=[
            Goal(name, row["ratio"], LIMITS[row["unit"]])
            for name, row in results.items()
            if name not in (FORWARD, BOTH)
        ],
    )


def make_jobs(model: nn.Module, batches: list[Batch], draws: int, steps: int) -> dict[str, tuple[Job, str, int]]:
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

    average = partial(partial, average_sharpness, model, batches, num_draws=draws)
    worst = partial(partial, worst_case_sharpness, model, batches[:1], steps=steps)
    jobs: dict[str, tuple[Job, str, int]] = {FORWARD: (forward, FORWARD, 1), BOTH: (both, BOTH, 1)}
    for adaptive in (False, True):
        kind = "adaptive" if adaptive else "plain"
        jobs[f"average, {kind}, mirrored pairs"] = (average(adaptive=adaptive), FORWARD, draws + 1)
        for norm in ("l2", "linf"):
            jobs[f"worst case, {kind}, {norm}"] = (worst(norm=norm, adaptive=adaptive), BOTH, steps)
    jobs["average, plain, independent draws"] = (average(antithetic=False), FORWARD, draws + 1)
    return jobs


if __name__ == "__main__":
    main()
