"""What an update costs at each stage of gradual unfreezing under DistributedDataParallel (DDP), in time and in bytes.

    python benchmarks/bench_ddp.py [--quick] [--name NAME] [--device cuda]

Starts two processes by itself: gloo on the CPU, NCCL with a GPU for each. BERT of MiniLM-L6 geometry with random
weights, 8 examples of 64 tokens a process. An update is forward, backward with its all-reduces, and AdamW. The stages
are: the head, the head and the top block, the head and the top half of the blocks, everything. The ways:

* unused parameters: one DDP around everything, which searches each graph for the frozen layers and goes on with
  all-reducing their buckets (``find_unused_parameters=True``, what the callback needs in a plain Trainer).
* re-wrapped: DDP built anew for the stage (``ddp_rewrap``), without a search.
* re-wrapped, with search: the same with the Trainer's default, ``find_unused_parameters=True``.
* built so: a new DDP around a model in which nothing else was trainable when it was built; for the head.

Time is that on the wall of the slower process from one barrier on: waiting for the other process is part of it. Every
repetition runs all stages and ways in turn, and each time is divided by that of full fine-tuning (or of the head that
was built so) in the same repetition; medians are reported. Before each, DDP changes to the stage, which is timed as
well, and runs two updates, after which it has settled on its buckets. All-reduced bytes are those of the buckets that a
communication hook is given in one update, plus, with search, the bitmap of 4 bytes for every parameter tensor that DDP
knows (by its source: hooks do not see it). Prints a table and writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DistributedDataParallelKwargs
from harness import MEBIBYTE, Batch, Goal, adamw, bert, finish, padded, parser, ratio, setting, start
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from hf_early_ood.callbacks.rewrapping import rewrap
from hf_early_ood.freezing import Freezer
from hf_early_ood.layers import find_layer_groups

PROCESSES, EXAMPLES, LENGTH, SETTLING, UPDATES = 2, 8, 64, 2, 3
UNUSED, REWRAPPED, SEARCHING, BUILT_SO = "unused parameters", "re-wrapped", "re-wrapped, with search", "built so"
HEAD, ALL = "head", "all"
FULL = (ALL, BUILT_SO)
HEAD_ONLY = (HEAD, BUILT_SO)
Way = tuple[str, str]


def main() -> None:
    """Start the processes, or be one of them."""
    options = parser(__doc__, "bench_ddp", repetitions=15).parse_args()
    if "RANK" not in os.environ:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(PROCESSES)]
        sys.exit(subprocess.run([sys.executable, *launcher, *sys.argv], check=False).returncode)
    start(options)
    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    measure(options)
    dist.destroy_process_group()


@dataclass
class Setup:
    """The one model that all ways train in turn, and what trains it."""

    model: nn.Module
    freezer: Freezer
    stages: dict[str, list[str]]
    optimizer: torch.optim.Optimizer
    batch: Batch

    @classmethod
    def of(cls, options: argparse.Namespace) -> Setup:
        model = bert(options)
        groups = find_layer_groups(model)
        blocks = [name for name in groups.names if name.startswith("block.")]
        stages = {
            HEAD: [HEAD],
            "top 1": [HEAD, *blocks[-1:]],
            "top half": [HEAD, *blocks[len(blocks) // 2 :]],
            ALL: list(groups.names),
        }
        torch.manual_seed(dist.get_rank())  # dropout
        batch = padded(options, EXAMPLES, LENGTH)
        return cls(model, Freezer({g.name: g.parameters for g in groups}), stages, adamw(model), batch)

    def ways(self) -> list[Way]:
        return [FULL, HEAD_ONLY, *[(stage, way) for stage in self.stages for way in (UNUSED, REWRAPPED, SEARCHING)]]

    def wrap(self, stage: str, way: str) -> tuple[DistributedDataParallel, float]:
        """DDP as the way has it at this stage, and the seconds that the change to the stage took."""
        handler = DistributedDataParallelKwargs(find_unused_parameters=way in (UNUSED, SEARCHING))
        self.freezer.train_only(self.stages[stage if way == BUILT_SO else ALL])
        ddp = DistributedDataParallel(self.model, **handler.to_kwargs())
        begin = time.perf_counter()
        self.freezer.train_only(self.stages[stage])
        if way in (REWRAPPED, SEARCHING):
            rewrap(ddp, handler)
        return ddp, time.perf_counter() - begin

    def update(self, ddp: nn.Module) -> None:
        """One update."""
        ddp(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(options: argparse.Namespace) -> None:
    """All ways in turn; rank 0 prints and records."""
    setup = Setup.of(options)
    ways = setup.ways()
    times: dict[Way, list[float]] = {way: [] for way in ways}
    changes: dict[Way, list[float]] = {way: [] for way in ways}
    for repetition in range(1 + options.repetitions):
        for stage, way in ways:
            ddp, change = setup.wrap(stage, way)
            for _ in range(SETTLING):
                setup.update(ddp)
            spent = wall(lambda ddp=ddp: [setup.update(ddp) for _ in range(UPDATES)], options)
            del ddp
            if repetition:
                times[stage, way].append(spent / UPDATES)
                changes[stage, way].append(change)
    sizes = {way: all_reduced(setup, *way) for way in ways}
    if dist.get_rank() == 0:
        report(options, times, changes, sizes)


def wall(job: Callable[[], Any], options: argparse.Namespace) -> float:
    """Seconds of the slower process."""
    dist.barrier()
    begin = time.perf_counter()
    job()
    if options.device == "cuda":
        torch.cuda.synchronize()
    spent = torch.tensor(time.perf_counter() - begin, dtype=torch.float64, device=options.device)
    dist.all_reduce(spent, op=dist.ReduceOp.MAX)
    return spent.item()


def all_reduced(setup: Setup, stage: str, way: str) -> dict[str, int]:
    """Bytes that one process gives into the all-reduces of an update."""
    ddp, _ = setup.wrap(stage, way)
    buckets: list[int] = []
    ddp.register_comm_hook(buckets, counting)
    for _ in range(SETTLING):
        setup.update(ddp)
    buckets.clear()
    setup.update(ddp)
    known = [parameter for parameter in setup.model.parameters() if way == UNUSED or parameter.requires_grad]
    return {"gradients": sum(buckets), "bitmap": 4 * len(known) if way in (UNUSED, SEARCHING) else 0}


# DDP reads the annotations of a hook, so that they cannot be words.
def counting(sizes, bucket):
    sizes.append(bucket.buffer().numel() * bucket.buffer().element_size())
    return allreduce_hook(None, bucket)


def report(
    options: argparse.Namespace,
    times: dict[Way, list[float]],
    changes: dict[Way, list[float]],
    sizes: dict[Way, dict[str, int]],
) -> None:
    """Print the table and the goals, and write the record."""
    print(f"{'stage':9} {'way':24} {'s/update':>9} {'of full':>8} {'of head':>8} {'MiB':>7} {'change, s':>10}")
    rows = []
    for stage, way in times:
        key = (stage, way)
        row = {
            "stage": stage,
            "way": way,
            "seconds": statistics.median(times[key]),
            "ratio": ratio(times[key], times[FULL]),
            "ratio_to_head_only": ratio(times[key], times[HEAD_ONLY]),
            "all_reduced_bytes": sizes[key],
            "change_seconds": statistics.median(changes[key]),
            "repetitions": times[key],
        }
        rows.append(row)
        mebibytes = sum(sizes[key].values()) / MEBIBYTE
        print(
            f"{stage:9} {way:24} {row['seconds']:9.3f} {row['ratio']:8.3f} {row['ratio_to_head_only']:8.3f}"
            f" {mebibytes:7.2f} {row['change_seconds']:10.3f}"
        )
    goals = [
        Goal(f"head, {way}, of a DDP that was built for the head", ratio(times[HEAD, way], times[HEAD_ONLY]), 1.1)
        for way in (REWRAPPED, SEARCHING)
    ]
    finish(
        options,
        setting=setting(options, processes=PROCESSES, batch_size=EXAMPLES, length=LENGTH, updates=UPDATES),
        results={"rows": rows},
        goals=goals,
    )


if __name__ == "__main__":
    main()
