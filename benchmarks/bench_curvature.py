"""What a product with the Hessian or the Gauss-Newton matrix costs, in full fine-tuning steps.

    python benchmarks/bench_curvature.py [--quick] [--name NAME]

MiniLM-L6 geometry with random weights, the examples of the training step. A cost is per product: that of the
measurement divided by the number of products it made, with everything that it does besides. How time and memory are
measured: harness.py. Prints a table and writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import statistics

from harness import (
    MEBIBYTE,
    STEP,
    Batch,
    Job,
    bert,
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

from hf_early_ood.probes.curvature import hessian_top_eigenvalue, hessian_trace
from hf_early_ood.probes.fisher import fisher_trace


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__, "bench_curvature", repetitions=3, examples=16, length=64, products=9).parse_args()
    start(options)
    if options.quick:
        options.products = 4
    model, batch = model_and_batch(options)
    jobs = make_jobs(options, model, batch)
    times, answers = interleaved(jobs, options)
    results = {}
    for name, values in times.items():
        products = answers[name][-1] or 1
        results[name] = {
            "seconds": statistics.median(values),
            "ratio": ratio(values, times[STEP]),
            "products": products,
            "ratio_per_product": ratio(values, times[STEP]) / products,
            "peak_memory_bytes": peak_memory(one_job, options, name),
            "repetitions": values,
        }
    print(f"{'':38} {'s':>8} {'steps':>7} {'products':>8} {'steps/product':>13} {'peak MiB':>9}")
    for name, row in results.items():
        print(
            f"{name:38} {row['seconds']:8.3f} {row['ratio']:7.2f} {row['products']:8} "
            f"{row['ratio_per_product']:13.3f} {row['peak_memory_bytes'] / MEBIBYTE:9.0f}"
        )
    finish(
        options,
        setting=setting(
            options, examples=options.examples, length=options.length, tokens=int(batch["attention_mask"].sum())
        ),
        results=results,
    )


def model_and_batch(options: argparse.Namespace) -> tuple[nn.Module, Batch]:
    """The model, and the batch of the step and of all measurements."""
    return bert(options), padded(options, options.examples, options.length)


def make_jobs(options: argparse.Namespace, model: nn.Module, batch: Batch) -> dict[str, Job]:
    """What is measured, by name, the training step first; measurements return how many products they made."""
    limit = {"num_products": options.products}

    def trace(matrix: str, method: str) -> Job:
        return lambda: hessian_trace(model, [batch], matrix=matrix, method=method, **limit).num_products

    def top(matrix: str) -> Job:
        return lambda: hessian_top_eigenvalue(model, [batch], matrix=matrix, tolerance=0.0, **limit).num_products

    def fisher() -> None:
        fisher_trace(model, [batch])

    jobs: dict[str, Job] = {STEP: training_step(model, [batch]), "fisher_trace": fisher}
    for matrix in ("hessian", "gauss_newton"):
        for method in ("hutchinson", "hutch++"):
            jobs[f"{matrix} trace, {method}"] = trace(matrix, method)
        jobs[f"{matrix} top eigenvalue"] = top(matrix)
    return jobs


def one_job(options: argparse.Namespace, name: str) -> Job:
    """For `peak_memory`. Two training steps: the second one has the state of AdamW all along."""
    model, batch = model_and_batch(options)
    return training_step(model, [batch, batch]) if name == STEP else make_jobs(options, model, batch)[name]


if __name__ == "__main__":
    main()
