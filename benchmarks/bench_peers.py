"""The measures of this package against what else computes the same: cost, error and memory, and whether it runs.

    python benchmarks/bench_peers.py [--quick] [--name NAME] [--device cuda]

Same model (BERT of MiniLM-L6 geometry with random weights, no dropout), same padded batch, same labels, all parameters.
Each method is tried as it comes, then with the work-arounds that peers_*.py names, each try in a process of its own.
There it runs in turn with two training steps, of a model with the usual dropout and of one without: its cost is the
median over repetitions of the ratio to the step of the same repetition. What is not a Fisher trace takes many steps,
and has a third of the repetitions. Methods with random numbers draw new ones at each repetition: their error is that of
the mean over repetitions, and their spread is stated. Peak memory: harness.py. Prints a table and writes
benchmarks/results/NAME.json.

The peers are in the extra "bench"; one that is not installed has a row that says so. On a CPU, install CPU builds of
torch and torchvision first.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from importlib import metadata
from typing import Any

import peers_curvature
import peers_fisher
import peers_sharpness
from harness import (
    BOTH_WAYS,
    MEBIBYTE,
    STEP,
    STEP_WITHOUT_DROPOUT,
    ChildError,
    Goal,
    Job,
    bert,
    finish,
    in_fresh_process,
    interleaved,
    padded,
    parser,
    peak_memory,
    ratio,
    setting,
    start,
    training_step,
)
from peers import AS_IT_COMES, FISHER, Answer, Method, loss_of, prepare

METHODS = (*peers_fisher.METHODS, *peers_curvature.METHODS, *peers_sharpness.METHODS)
LOOP, OWN = peers_fisher.LOOP.name, peers_fisher.OWN.name
EXACT = 1e-5  # relative error up to which a method is right in float32
GPU_SPEEDUP = 15.0


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__, "bench_peers", repetitions=9, examples=16, length=64, products=12).parse_args()
    start(options)
    if options.quick:
        options.examples, options.repetitions, options.products = 4, 1, 6
    units = {name: peak_memory(one_pass, options, name) for name in (STEP_WITHOUT_DROPOUT, BOTH_WAYS)}
    for name, memory in units.items():
        print(f"{name}: peak {memory / MEBIBYTE:.0f} MiB", flush=True)
    rows: list[dict[str, Any]] = []
    print(
        f"{'':26} {'':36} {'steps':>7} {'no drop.':>8} {'value':>11} {'rel. error':>11} {'sd':>8} {'peak MiB':>9}  runs"
    )
    for number, method in enumerate(METHODS):
        truth = next((row["value"] for row in rows if row["name"] == LOOP), None)
        rows.append(measured(options, number, method, truth if method.quantity == FISHER else None))
        show(rows[-1])
        if method.package is None and not rows[-1]["right"]:
            raise SystemExit(f"{method.name} has to run and to be right")
    own, loop = (next(row for row in rows if row["name"] == name) for name in (OWN, LOOP))
    memory = own["peak_memory_bytes"] / units[STEP_WITHOUT_DROPOUT]
    goals = [Goal(f"{OWN}: peak memory, of that of a training step without dropout", memory, 1.0)]
    if options.device == "cpu":
        goals.append(Goal(f"{OWN}, full training steps", own["ratio"], 0.75))
    else:
        faster = loop["seconds"] / own["seconds"]
        goals.append(Goal(f"{OWN}: times faster than the {LOOP}", faster, GPU_SPEEDUP, at_least=True))
    finish(
        options,
        setting=setting(
            options,
            dropout=0.0,
            examples=options.examples,
            length=options.length,
            tokens=int(padded(options, options.examples, options.length)["attention_mask"].sum()),
            products=options.products,
            peak_memory_bytes=units,
        ),
        results={"methods": rows},
        goals=goals,
        packages=sorted({method.package for method in METHODS if method.package}),
    )


def one_pass(options: argparse.Namespace, name: str) -> Job:
    """For `peak_memory`: two training steps (the second one has the state of AdamW all along), or a pass both ways."""
    model, batch = bert(options, dropout=0.0), padded(options, options.examples, options.length)
    if name == STEP_WITHOUT_DROPOUT:
        return training_step(model, [batch, batch])
    return lambda: loss_of(model, batch).backward()


def measured(options: argparse.Namespace, number: int, method: Method, truth: float | None) -> dict[str, Any]:
    """One row: the first way to set the method up that runs and is right, or the last one that runs."""
    row: dict[str, Any] = {"name": method.name, "quantity": method.quantity, "package": method.package, "runs": False}
    if method.package is not None:
        try:
            metadata.version(method.package)
        except metadata.PackageNotFoundError:
            return {**row, "right": False, "failures": [{"how": AS_IT_COMES, "why": "not installed"}]}
    failures = []
    for index, attempt in enumerate(method.attempts):
        try:
            found = in_fresh_process(timed, options, number, index)
            found["peak_memory_bytes"] = peak_memory(one_attempt, options, number, index)
        except ChildError as error:
            failures.append({"how": attempt.how, "why": str(error)})
            continue
        found |= {"how": attempt.how, "truth": truth}
        found["error"] = None if truth is None else abs(found["value"] / truth - 1)
        row.update(found, runs=True)
        if not method.exact or found["error"] <= EXACT:
            break
        failures.append({"how": attempt.how, "why": f"relative error {found['error']:.1e}"})
    return {**row, "right": row["runs"] and (not method.exact or row["error"] <= EXACT), "failures": failures}


def one_attempt(options: argparse.Namespace, number: int, index: int) -> Job:
    """For `peak_memory`."""
    warnings.simplefilter("ignore")  # of the libraries, about what they do themselves
    return prepare(options, METHODS[number].attempts[index])


def timed(options: argparse.Namespace, number: int, index: int) -> dict[str, Any]:
    """Runs of a method in turn with a training step of another copy of the model."""
    start(options)
    if METHODS[number].quantity != FISHER:  # many steps long, each
        options.repetitions = math.ceil(options.repetitions / 3)
    batch = padded(options, options.examples, options.length)
    jobs = {
        STEP: training_step(bert(options), [batch]),
        STEP_WITHOUT_DROPOUT: training_step(bert(options, dropout=0.0), [batch]),
        "method": one_attempt(options, number, index),
    }
    times, answers = interleaved(jobs, options)
    found: list[Answer] = answers["method"]
    values = [answer.value for answer in found]
    if not all(math.isfinite(value) for value in values):
        raise ArithmeticError(f"not finite: {values}")
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "seconds": statistics.median(times["method"]),
        "ratio": ratio(times["method"], times[STEP]),
        "ratio_without_dropout": ratio(times["method"], times[STEP_WITHOUT_DROPOUT]),
        "value": statistics.fmean(values),
        "values": values,
        # Runs that agree to rounding have none.
        "standard_deviation": spread if spread > EXACT * abs(values[0]) else None,
        "standard_errors": [answer.standard_error for answer in found],
        "products": found[-1].products,
        "repetitions": times,
    }


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    head = f"{row['quantity']:26} {row['name']:36}"
    if row["runs"]:
        costs = f"{row['ratio']:7.2f} {row['ratio_without_dropout']:8.2f}"
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        spread = "" if row["standard_deviation"] is None else f"{row['standard_deviation']:.2g}"
        peak = row["peak_memory_bytes"] / MEBIBYTE
        how = row["how"] if row["right"] else f"{row['how']}: WRONG"
        print(f"{head} {costs} {row['value']:11.5g} {error:>11} {spread:>8} {peak:9.0f}  {how}", flush=True)
    else:
        print(f"{head} does not run")
    for failure in row["failures"]:
        print(f"{'':26}   {failure['how']}: {failure['why']}", flush=True)


if __name__ == "__main__":
    main()
