"""What the numbers of the benchmarks rest on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from harness import (
    MEBIBYTE,
    ChildError,
    Goal,
    collate,
    examples,
    in_fresh_process,
    interleaved,
    parser,
    peak_memory,
    ratio,
    training_step,
)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")


def options(*arguments):
    return parser("", "bench_test", repetitions=3).parse_args(["--quick", *arguments])


def sixty_four_mebibytes(options):
    return lambda: torch.ones(64 * MEBIBYTE // 4).sum()


def a_small_tensor_after_a_large_one_is_freed(options):
    large = torch.ones(64 * MEBIBYTE // 4)
    del large
    return lambda: torch.ones(8 * MEBIBYTE // 4).sum()


def refused(what):
    raise ValueError(f"no {what}")


@linux
@pytest.mark.parametrize(("make", "size"), [(sixty_four_mebibytes, 64), (a_small_tensor_after_a_large_one_is_freed, 8)])
def test_peak_memory_is_what_the_job_needs(make, size):
    assert peak_memory(make, options()) / MEBIBYTE == pytest.approx(size, abs=2)


def test_failures_in_the_other_process_are_told():
    with pytest.raises(ChildError, match="ValueError: no answer"):
        in_fresh_process(refused, "answer")
    with pytest.raises(ChildError, match="process ended with 3"):
        in_fresh_process(os._exit, 3)


def test_ratios_are_those_of_the_same_repetition():
    # The machine was ten times slower in the second repetition.
    assert ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.0]) == 2.0


def test_jobs_run_in_turn_and_the_first_turn_does_not_count():
    calls = []
    jobs = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    times, answers = interleaved(jobs, options())
    assert calls == ["a", "b"] * 4
    assert [len(values) for values in times.values()] == [3, 3]
    assert answers == {"a": [3, 5, 7], "b": [4, 6, 8]}


def test_goals_have_a_direction():
    assert Goal("", 0.7, 0.75).met
    assert not Goal("", 0.8, 0.75).met
    assert Goal("", 20.0, 15.0, at_least=True).met
    assert "MISSED" in str(Goal("", 14.0, 15.0, at_least=True))


def test_batches_are_padded_on_the_right_and_always_the_same():
    batch, again = (collate(examples(options(), 4, 12)) for _ in range(2))
    assert batch["input_ids"].shape == (4, 12)
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())
    assert (batch["attention_mask"].diff(dim=1) <= 0).all()
    assert batch["attention_mask"].sum(1).min() >= 4
    assert all(torch.equal(batch[key], again[key]) for key in batch)


def test_a_training_step_trains():
    model = torch.nn.Linear(2, 1)

    class WithLoss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = model

        def forward(self, x):
            return type("Output", (), {"loss": self.layer(x).square().mean()})

    before = model.weight.clone()
    training_step(WithLoss(), [{"x": torch.ones(3, 2)}])()
    assert not torch.equal(model.weight, before)
    assert model.weight.grad is None
