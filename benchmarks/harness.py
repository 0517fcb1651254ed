"""What all benchmarks share: model and batches, options, timing, peak memory, goals and the record.

A cost is a ratio: all jobs of a benchmark run in turn, repetition after repetition, and each time is divided by that of
the training step (or of another unit) of the same repetition; the median over repetitions is reported. Other load on
the machine falls out. On a CPU the time is that of the process, on a GPU that between two events.

Peak memory is taken in a process of its own, above what is held once the model is loaded; an example went forward and
backward through a copy of it before, which loads the code. On Linux that is the kernel's peak resident size, reset
before the job (/proc/self/clear_refs), with malloc told to give every freed block of 64 KiB back at once: a block that
was freed before does not hide one that is needed now. On a GPU it is what torch allocated at most.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import statistics
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from environment import environment
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

RESULTS = Path(__file__).parent / "results"
STEP = "training step"
# The same in a model without dropout, as many are: drawing the random numbers is a good part of a step on a CPU.
STEP_WITHOUT_DROPOUT = "training step without dropout"
BOTH_WAYS = "forward and backward"
MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "vocab_size": 30522}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 500}
MEBIBYTE = 2**20

Batch = dict[str, Tensor]
Job = Callable[[], Any]


def parser(description: str | None, name: str, *, repetitions: int, **numbers: int) -> argparse.ArgumentParser:
    """The options of every benchmark; ``numbers`` are further whole numbers of this one, with their defaults."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="smoke test: tiny model, 2 repetitions at most, no goals")
    options.add_argument("--name", help=f"of the file in benchmarks/results; default {name}, with --quick: none")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    for option, default in {"repetitions": repetitions, "threads": 1, **numbers}.items():
        options.add_argument(f"--{option.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    options.set_defaults(default_name=name)
    return options


def start(options: argparse.Namespace) -> None:
    """Threads, and what --quick means for the other options."""
    torch.set_num_threads(options.threads)
    if options.quick:
        options.repetitions = min(options.repetitions, 2)


def bert(options: argparse.Namespace, *, labels: int = 2, dropout: float = 0.1, attention: str = "sdpa") -> nn.Module:
    """BERT of MiniLM-L6 geometry (22.7 M parameters) in train mode; the same random weights at every call."""
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=6,
        num_labels=labels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation=attention,
        **(TINY if options.quick else MINILM),
    )
    return BertForSequenceClassification(config).to(options.device).train()


def examples(options: argparse.Namespace, count: int, length: int, *, labels: int = 2) -> list[Batch]:
    """Random token ids with a random class: lengths uniform from a third of ``length`` to all of it; one has all."""
    draws = torch.Generator().manual_seed(1)
    lengths = torch.randint(length // 3, length + 1, (count,), generator=draws)
    lengths[0] = length
    vocabulary = (TINY if options.quick else MINILM)["vocab_size"]
    return [
        {
            "input_ids": torch.randint(5, vocabulary, (int(size),), generator=draws),
            "labels": torch.randint(labels, (), generator=draws),
        }
        for size in lengths
    ]


def collate(items: Sequence[Batch]) -> Batch:
    """One right-padded batch (B, T) with its attention mask."""
    ids = [item["input_ids"] for item in items]
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "attention_mask": mask,
        "labels": torch.stack([item["labels"] for item in items]),
    }


def padded(options: argparse.Namespace, count: int, length: int, *, labels: int = 2) -> Batch:
    """One batch of `examples`, on the device."""
    batch = collate(examples(options, count, length, labels=labels))
    return {key: value.to(options.device) for key, value in batch.items()}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as the Trainer has it by default."""
    return torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


def training_step(model: nn.Module, batches: Iterable[Batch]) -> Job:
    """Forward, backward, AdamW, for each batch."""
    optimizer, data = adamw(model), list(batches)

    def run() -> None:
        for batch in data:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def seconds(job: Job, device: str) -> tuple[float, Any]:
    """Time of one run, and what it returned."""
    if device == "cpu":
        begin = time.process_time()
        result = job()
        return time.process_time() - begin, result
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    result = job()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000, result


def interleaved(
    jobs: Mapping[str, Job], options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Seconds of each job, and what it returned: after a warm-up, each repetition runs all of them in turn."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    answers: dict[str, list[Any]] = {name: [] for name in jobs}
    for repetition in range(1 + options.repetitions):
        for name, job in jobs.items():
            spent, answer = seconds(job, options.device)
            if repetition:
                times[name].append(spent)
                answers[name].append(answer)
    return times, answers


def ratio(times: Sequence[float], unit: Sequence[float]) -> float:
    """Median over repetitions of the ratio to the unit of the same repetition."""
    return statistics.median(value / price for value, price in zip(times, unit, strict=True))


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` returns in a new process that did nothing before; `ChildError` if it did not return.

    The processes are forked from one that has imported the heavy modules and has run nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers.models.bert.modeling_bert", "hf_early_ood.probes.measures"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        returned, answer = receiver.recv()
    except EOFError:
        process.join()
        raise ChildError(f"process ended with {process.exitcode}") from None
    process.join()
    if not returned:
        raise ChildError(answer)
    return answer


class ChildError(Exception):
    """What went wrong in another process, in one line."""


def _answer(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = (True, function(*arguments))
    except Exception as error:
        answer = (False, textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ..."))
    sender.send(answer)


def peak_memory(make: Callable[..., Job], options: argparse.Namespace, *which: Any) -> int:
    """Bytes that a job needs at most above the loaded model; ``make(options, *which)`` loads it and gives the job."""
    return in_fresh_process(_peak_memory, make, options, *which)


def _peak_memory(make: Callable[..., Job], options: argparse.Namespace, *which: Any) -> int:
    start(options)
    on_cpu = options.device == "cpu"
    if on_cpu:
        _give_back_freed_memory()
    bert(options)(**padded(options, 1, 8)).loss.backward()  # loads the code; this model is gone in the next line
    job = make(options, *which)
    if on_cpu:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status("VmRSS")
        job()
        return _status("VmHWM") - before
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    job()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _give_back_freed_memory() -> None:
    """Make glibc map every block from 64 KiB on by itself, so that freeing it gives it back to the system."""
    threshold = 64 * 1024
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    libc = ctypes.CDLL(None)
    if libc.mallopt(mmap_threshold, threshold) != 1 or libc.mallopt(trim_threshold, threshold) != 1:
        raise SystemExit("mallopt is refused: peak memory cannot be measured here")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Goal:
    """What the project promises about one number.

    Attributes:
        what: The promise, in words.
        value: What was measured.
        limit: What it may be at most (at least, if ``at_least``).
        at_least: Whether more is better.
    """

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        relation = ">=" if self.at_least else "<="
        return f"{self.what}: {self.value:.3g} {relation} {self.limit:g} {'met' if self.met else 'MISSED'}"


def setting(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What was measured: the model, and whatever the benchmark adds."""
    return {
        "model": "BertForSequenceClassification, 6 blocks, random weights",
        **(TINY if options.quick else MINILM),
        "parameters": bert(options).num_parameters(),
        "device": options.device,
        "quick": options.quick,
        **more,
    }


def finish(
    options: argparse.Namespace,
    *,
    setting: dict[str, Any],
    results: dict[str, Any],
    goals: Sequence[Goal] = (),
    packages: Iterable[str] = (),
) -> None:
    """Print the goals and write the record. A smoke test has no goals, and no record unless it has a name."""
    goals = [] if options.quick else goals
    for goal in goals:
        print(goal)
    name = options.name or (None if options.quick else options.default_name)
    if name is None:
        return
    record = {
        "setting": setting,
        "environment": environment(options.device, packages),
        "results": results,
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(path)
