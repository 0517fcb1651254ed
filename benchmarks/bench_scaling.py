"""How the cost of the Fisher trace grows: with the length of the texts, the batch size, and the size of the probe set.

    python benchmarks/bench_scaling.py [--quick] [--name NAME] [--device cuda]

BERT of MiniLM-L6 geometry with random weights and the usual dropout; lengths are uniform between a third of the maximum
and all of it. Batches come in two kinds: *as they fall*, padded to the longest of random examples, and *by length*, as
`ProbeSet` makes them. Everything is in training steps on the same examples, in batches of the first or of the second
kind, and of the same size. How time and memory are measured: harness.py. Prints tables and writes
benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from harness import (
    MEBIBYTE,
    STEP,
    STEP_WITHOUT_DROPOUT,
    Batch,
    Goal,
    Job,
    bert,
    collate,
    examples,
    finish,
    interleaved,
    padded,
    parser,
    peak_memory,
    ratio,
    setting,
    start,
    training_step,
)
from torch import nn

from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.fisher import fisher_trace

LENGTHS, LENGTH_BATCH, LENGTH_EXAMPLES = (32, 64, 128, 256, 512), 8, 32
BATCH_SIZES, PROBE_SETS, PROBE_BATCH, SHORT = (1, 2, 4, 8, 16, 32, 64), (32, 128, 512), 32, 64
BUCKETED = "training step, batches by length"
EXACT, EXACT_BUCKETED = "exact", "exact, batches by length"


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__, "bench_scaling", repetitions=5).parse_args()
    start(options)
    lengths, sizes, sets = LENGTHS, BATCH_SIZES, PROBE_SETS
    if options.quick:
        lengths, sizes, sets = (32,), (2,), (PROBE_BATCH,)
    results: dict[str, dict[str, Any]] = {"length": {}, "batch size": {}, "probe set": {}}
    for length in lengths:
        row = timed(options, LENGTH_EXAMPLES, LENGTH_BATCH, length, by_length)
        row["peak_memory_bytes"] = {
            name: peak_memory(one_job, options, LENGTH_BATCH, length, name) for name in (STEP_WITHOUT_DROPOUT, EXACT)
        }
        results["length"][str(length)] = row
        show(f"{length} tokens, batches of {LENGTH_BATCH}", row)
    for size in sizes:
        results["batch size"][str(size)] = timed(options, size, size, SHORT, one_batch)
        show(f"batch of {size}, {SHORT} tokens", results["batch size"][str(size)])
    for size in sets:
        results["probe set"][str(size)] = timed(options, size, PROBE_BATCH, SHORT, probe_set_only)
        show(f"probe set of {size}, batches of {PROBE_BATCH}, {SHORT} tokens", results["probe set"][str(size)])
    goals = []
    for length, row in results["length"].items():
        limit = 0.75 if int(length) == SHORT else 1.0
        # Like with like: each kind of batches in steps on the same batches.
        goals += [Goal(f"{name}, {length} tokens", row["ratio"][name], limit) for name in (EXACT, EXACT_BUCKETED)]
        # A measurement in use: batches as a probe set makes them, against training on these examples as they fall.
        goals.append(Goal(f"probe set, {length} tokens", row["ratio_without_dropout"][EXACT_BUCKETED], 1.0))
    finish(
        options,
        setting=setting(
            options,
            length={"examples": LENGTH_EXAMPLES, "batch_size": LENGTH_BATCH},
            batch_size={"length": SHORT},
            probe_set={"length": SHORT, "batch_size": PROBE_BATCH},
        ),
        results=results,
        goals=goals,
    )


def timed(
    options: argparse.Namespace,
    count: int,
    size: int,
    length: int,
    make: Callable[[nn.Module, list[Batch], list[Batch]], dict[str, Job]],
) -> dict[str, Any]:
    """Ratios to the step on the same batches, by name of the job."""
    fallen, bucketed = both_kinds(options, count, size, length)
    jobs = make(bert(options), fallen, bucketed)
    jobs[STEP_WITHOUT_DROPOUT] = training_step(bert(options, dropout=0.0), fallen)
    times, _ = interleaved(jobs, options)
    own = {name: BUCKETED if name.endswith("by length") and BUCKETED in times else STEP for name in times}
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratio": {name: ratio(values, times[own[name]]) for name, values in times.items()},
        "ratio_to_step_as_they_fall": {name: ratio(values, times[STEP]) for name, values in times.items()},
        "ratio_without_dropout": {name: ratio(values, times[STEP_WITHOUT_DROPOUT]) for name, values in times.items()},
        "padding": {
            "as they fall": 1 - share_of_tokens(fallen),
            "by length": 1 - share_of_tokens(bucketed),
        },
        "repetitions": times,
    }


def by_length(model: nn.Module, fallen: list[Batch], bucketed: list[Batch]) -> dict[str, Job]:
    """Everything, on both kinds of batches."""
    return {
        STEP: training_step(model, fallen),
        BUCKETED: training_step(model, bucketed),
        EXACT: trace(model, fallen, "exact"),
        EXACT_BUCKETED: trace(model, bucketed, "exact"),
        "rademacher": trace(model, fallen, "rademacher"),
        "rademacher, batches by length": trace(model, bucketed, "rademacher"),
        "loop": trace(model, fallen, "loop"),
        "loop, padding cut off": trace(model, [row for batch in fallen for row in rows_of(batch)], "loop"),
    }


def one_batch(model: nn.Module, fallen: list[Batch], bucketed: list[Batch]) -> dict[str, Job]:
    """On one batch, there is nothing to sort."""
    return {
        STEP: training_step(model, fallen),
        **{estimator: trace(model, fallen, estimator) for estimator in (EXACT, "rademacher", "loop")},
    }


def probe_set_only(model: nn.Module, fallen: list[Batch], bucketed: list[Batch]) -> dict[str, Job]:
    """What a callback does, against as many steps."""
    return {
        STEP: training_step(model, fallen),
        BUCKETED: training_step(model, bucketed),
        EXACT_BUCKETED: trace(model, bucketed, "exact"),
    }


def trace(model: nn.Module, batches: list[Batch], estimator: str) -> Job:
    """One measurement."""

    def run() -> None:
        result = fisher_trace(model, batches, estimator=estimator)
        if result.fallbacks:
            raise SystemExit(f"not exact: {result.fallbacks}")

    return run


def both_kinds(options: argparse.Namespace, count: int, size: int, length: int) -> tuple[list[Batch], list[Batch]]:
    """The same examples in batches as they fall, and by length."""
    items = examples(options, count, length)
    fallen = [collate(items[begin : begin + size]) for begin in range(0, count, size)]
    bucketed = ProbeSet.from_dataset(items, collate, size=count, batch_size=size)
    return [
        [{key: value.to(options.device) for key, value in batch.items()} for batch in batches]
        for batches in (fallen, list(bucketed))
    ]


def rows_of(batch: Batch) -> list[Batch]:
    """Batches of one without padding."""
    lengths = batch["attention_mask"].sum(1).tolist()
    return [
        {key: value[i : i + 1, :end] if value.dim() > 1 else value[i : i + 1] for key, value in batch.items()}
        for i, end in enumerate(lengths)
    ]


def share_of_tokens(batches: list[Batch]) -> float:
    """Share of positions that are not padding."""
    masks = [batch["attention_mask"] for batch in batches]
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def one_job(options: argparse.Namespace, size: int, length: int, name: str) -> Job:
    """For `peak_memory`, on one batch. Two training steps: the second one has the state of AdamW all along."""
    batch = padded(options, size, length)
    if name in (STEP, STEP_WITHOUT_DROPOUT):
        return training_step(bert(options, dropout=0.1 if name == STEP else 0.0), [batch, batch])
    return trace(bert(options), [batch], name)


def show(title: str, row: dict[str, Any]) -> None:
    """Print one point of a sweep."""
    print(f"{title}: padding " + ", ".join(f"{share:.0%} {kind}" for kind, share in row["padding"].items()))
    for name, value in row["ratio"].items():
        peak = row.get("peak_memory_bytes", {}).get(name)
        memory = "" if peak is None else f"{peak / MEBIBYTE:8.0f} MiB"
        plain = row["ratio_without_dropout"][name]
        print(f"    {name:34} {row['seconds'][name]:9.3f} s {value:7.3f} {plain:7.3f} {memory}", flush=True)


if __name__ == "__main__":
    main()
