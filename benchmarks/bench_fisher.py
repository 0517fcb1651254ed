"""What the Fisher trace and the stages of gradual unfreezing cost, in full fine-tuning steps.

    python benchmarks/bench_fisher.py [--quick] [--name NAME]

MiniLM-L6 geometry with random weights and the usual dropout, one batch. How it is timed: harness.py.
Prints a table and writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import torch
from harness import (
    STEP,
    STEP_WITHOUT_DROPOUT,
    Batch,
    Goal,
    Job,
    adamw,
    bert,
    finish,
    interleaved,
    padded,
    parser,
    ratio,
    setting,
    start,
    training_step,
)
from torch import nn

from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.probes.fisher import fisher_trace

# Largest cost in full steps that the project promises.
LIMITS = {
    "fisher_trace exact, all parameters": 0.75,
    "step, head only": 0.45,
    "step, head + top half": 0.70,
}


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__, "bench_fisher", repetitions=9, examples=16, length=64).parse_args()
    start(options)
    model = bert(options)
    batch = padded(options, options.examples, options.length)
    jobs = make_jobs(model, batch)
    jobs[STEP_WITHOUT_DROPOUT] = training_step(bert(options, dropout=0.0), [batch])
    times, _ = interleaved(jobs, options)
    results = {
        name: {
            "seconds": statistics.median(values),
            "ratio": ratio(values, times[STEP]),
            "repetitions": values,
        }
        for name, values in times.items()
    }
    print(f"{'':42} {'s':>8} {'steps':>7}")
    for name, row in results.items():
        print(f"{name:42} {row['seconds']:8.4f} {row['ratio']:7.3f}")
    finish(
        options,
        setting=setting(
            options, examples=options.examples, length=options.length, tokens=int(batch["attention_mask"].sum())
        ),
        results=results,
        goals=[Goal(name, results[name]["ratio"], limit) for name, limit in LIMITS.items()],
    )


def make_jobs(model: nn.Module, batch: Batch) -> dict[str, Job]:
    """What is timed, by name; the full step first."""
    groups = find_layer_groups(model)
    stages = {
        "head only": ["head"],
        **{f"head + top {n}": ["head", *[f"block.{5 - i}" for i in range(n)]] for n in (1, 2, 4)},
        "head + top half": ["head", "block.5", "block.4", "block.3"],
        "all but embeddings": [name for name in groups.names if name != "embeddings"],
    }
    # One optimizer for all stages, as in training.
    optimizer = adamw(model)
    jobs: dict[str, Job] = {STEP: step(model, optimizer, batch, groups, groups.names)}
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
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, groups: LayerGroups, trainable: Iterable[str]
) -> Job:
    """Forward, backward, AdamW; only the named groups train."""
    names = [name for group in trainable for name in groups[group].parameters]

    def run() -> None:
        with requires_grad_set(dict(model.named_parameters()), names):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def trace(model: nn.Module, batch: Batch, groups: LayerGroups, trainable: Iterable[str], estimator: str) -> Job:
    """One measurement on the examples of the step; only the named groups are measured."""
    names = [name for group in trainable for name in groups[group].parameters]

    def run() -> None:
        with requires_grad_set(dict(model.named_parameters()), names):
            result = fisher_trace(model, [batch], estimator=estimator, groups=groups)
        if result.fallbacks:
            raise SystemExit(f"not exact: {result.fallbacks}")

    return run


if __name__ == "__main__":
    main()
