"""What a measurement of the trajectory costs, in training steps.

    python benchmarks/bench_trajectory.py [--quick] [--name NAME]

MiniLM-L6 geometry with random weights that have moved. With the start weights in memory, and mapped into memory from a
file; with the update, for which the weights are copied just before it; and for LoRA on all linear layers, in steps that
train LoRA. The measures with a Hessian cost products: bench_curvature.py. How time and memory are measured: harness.py.
Prints a table and writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from harness import (
    MEBIBYTE,
    STEP,
    Goal,
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
from peft import LoraConfig, get_peft_model

from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.probes.trajectory import copied, trajectory
from hf_early_ood.start_weights import mapped_weights, write_start_weights

LORA_STEP = "training step, LoRA"
IN_MEMORY, ON_DISK, UPDATE, LORA = "in memory", "on disk", "in memory, with the update", "LoRA, in memory"
UNITS = {STEP: STEP, IN_MEMORY: STEP, ON_DISK: STEP, UPDATE: STEP, LORA_STEP: LORA_STEP, LORA: LORA_STEP}
"""Job -> the step that it is measured in."""


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__, "bench_trajectory", repetitions=9, examples=16, length=64).parse_args()
    start(options)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        jobs = {name: job(options, name) for name in UNITS}
        times, _ = interleaved(jobs, options)
        results = {
            name: {
                "seconds": statistics.median(times[name]),
                "unit": unit,
                "ratio": ratio(times[name], times[unit]),
                "peak_memory_bytes": peak_memory(job, options, name),
                "repetitions": times[name],
            }
            for name, unit in UNITS.items()
        }
    for name, row in results.items():
        print(f"{name:28} {row['seconds']:8.3f} s {row['ratio']:6.3f} {row['peak_memory_bytes'] / MEBIBYTE:6.0f} MiB")
    finish(
        options,
        setting=setting(options, examples=options.examples, length=options.length, lora_rank=8),
        results=results,
        goals=[Goal(name, row["ratio"], 0.3) for name, row in results.items() if name not in UNITS.values()],
        packages=["peft"],
    )


def job(options: argparse.Namespace, name: str) -> Job:
    """One of the jobs, with a model of its own; the start weights are there before it."""
    model = bert(options)
    if name in (LORA, LORA_STEP):
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, target_modules="all-linear"))
    if name in UNITS.values():
        batch = padded(options, options.examples, options.length)
        return training_step(model, [batch])
    groups = find_layer_groups(model).trainable()
    kept = copied(model, groups)
    moved(groups)
    if name == ON_DISK:
        path = Path(options.folder) / "start.safetensors"
        if not path.is_file():
            write_start_weights(path, kept)
        on_disk = mapped_weights(path)
        return lambda: trajectory(model, start=on_disk, groups=groups)
    if name == UPDATE:
        return lambda: trajectory(model, start=kept, before=copied(model, groups), groups=groups)
    return lambda: trajectory(model, start=kept, groups=groups)


def moved(groups: LayerGroups) -> None:
    """Move all weights a little."""
    draws = torch.Generator().manual_seed(2)
    for group in groups:
        for parameter in group.parameters.values():
            noise = torch.randn(parameter.shape, generator=draws).to(parameter)
            with torch.no_grad():
                parameter.add_(noise, alpha=1e-3)


if __name__ == "__main__":
    main()
