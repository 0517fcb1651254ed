"""Promises 1, 3 and 5 with two gloo processes under torchrun, compared with this one."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from hf_early_ood.results import read_study
from tests.distributed import records, worker
from tests.distributed.drifts import PLANTED_IN, RELEASED
from tests.distributed.records import MEASURED, PROBE_SETS
from tests.distributed.worker import AUTO_DECISION, REFUSED, SCENARIOS
from tests.tiny_project import make_project, study_settings, write_yaml
from tests.training import differences

ROOT = Path(__file__).parents[2]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
REWRAPPED = [name for name in SCENARIOS if "rewrap" in name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder):
    worker.interrupt(folder / worker.BEGUN_ON_ONE, *worker.BEFORE_DECISION)
    done = subprocess.run(
        [*LAUNCHER, "--module", "tests.distributed.worker", str(folder)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What this process makes of a scenario; nothing of DDP matters to it."""
    folder = tmp_path_factory.mktemp("one")

    @cache
    def train(plain):
        return worker.train(folder, plain)

    def of(name):
        for word in (" checkpointing", " compiled", " rewrap", " with search"):
            name = name.replace(word, "")
        return train(name)

    return of


def weights(outcome):
    return {name: value for name, value in outcome.items() if name.startswith("weight/")}


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", SCENARIOS)
def test_ranks_agree_bit_for_bit(two, name):
    first, second = (rank[name] for rank in two)
    assert not [key for key in differences(first["outcome"], second["outcome"]) if key != "rng"]
    for key in ("stages", "changes", "decision", "records", "eval_loss"):
        assert first[key] == second[key]


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_equal_one_on_the_same_global_batch(one, two, name):
    ours, theirs = two[0][name], one(name)
    assert ours["stages"] == theirs["stages"]
    assert ours["changes"] == theirs["changes"]
    assert [stage for _, stage in ours["stages"]] == list(range(4 if "lora" in name else 5))  # no LoRA in embeddings
    assert ours["decision"] == theirs["decision"] == (AUTO_DECISION if name.startswith("auto ") else None)
    for key, gradient in theirs["gradient"].items():
        torch.testing.assert_close(ours["gradient"][key], gradient, rtol=1e-4, atol=1e-6)
    assert_close(weights(ours["outcome"]), weights(theirs["outcome"]))
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-4)
    assert len(ours["eval_loss"]) == 4


def test_begun_on_one_process_and_resumed_on_two(one, two):
    """Before the decision, which falls at the same update as without the interruption."""
    for rank in two:
        ours, theirs = rank["begun on one"], one(worker.BEFORE_DECISION[0])
        assert ours["stages"] == theirs["stages"]
        assert ours["decision"] == theirs["decision"] == AUTO_DECISION
        assert_close(weights(ours["outcome"]), weights(theirs["outcome"]))


def test_begun_on_two_processes_and_resumed_on_one(one, two, folder):
    ours, theirs = worker.resume(folder / worker.PARTS, *worker.MID_STAGE), one(worker.MID_STAGE[0])
    assert ours["stages"] == theirs["stages"]
    assert_close(weights(ours["outcome"]), weights(theirs["outcome"]))


@pytest.mark.parametrize("name", REWRAPPED)
def test_rewrapping_changes_what_is_communicated_and_nothing_else(two, name):
    for rank in two:
        assert not differences(rank[name]["outcome"], rank[name.split(" rewrap")[0]]["outcome"])
    ours = two[0][name]
    begins = [step for step, _ in ours["stages"]]
    updates = [end - begin for begin, end in zip(begins, [*begins[1:], 10], strict=True)]
    # What trains, once an update, whatever the accumulation.
    expected = [count * size for count, size in zip(updates, ours["bytes"], strict=True)]
    assert [sum(sizes) for sizes in ours["reduced"]] == expected


def test_rewrapping_is_harmless_in_one_process(one, tmp_path):
    rewrapped = worker.train(tmp_path, "fixed 2 rewrap")
    assert not differences(rewrapped["outcome"], one("fixed 2")["outcome"])


def test_rewrapped_training_can_be_resumed(two):
    for rank in two:
        assert not differences(rank["in two parts"]["outcome"], rank["fixed 2 rewrap"]["outcome"])
        assert rank["in two parts"]["stages"] == rank["fixed 2 rewrap"]["stages"]


def test_rewrapped_trainer_can_train_without_the_callback(two):
    first, second = (rank["again"] for rank in two)
    for moment in ("before", "after"):
        assert not differences(weights(first[moment]), weights(second[moment]))
    moved = differences(weights(first["before"]), weights(first["after"]))
    assert "weight/bert.embeddings.word_embeddings.weight" in moved


def test_learning_rates_by_layer_group(two, tmp_path):
    first, second = (rank["rates"] for rank in two)
    assert not differences(weights(first["outcome"]), weights(second["outcome"]))
    theirs = worker.train_with_rates(tmp_path)
    assert first["rates"] == second["rates"] == theirs["rates"]
    switch = next(record for record in theirs["rates"] if record["step"] == AUTO_DECISION)
    assert switch["factors"] == {"head": 1.0, "block.2": pytest.approx(1 / 6)}
    assert_close(weights(first["outcome"]), weights(theirs["outcome"]))
    assert differences(weights(first["outcome"]), weights(two[0][worker.WITH_RATES]["outcome"]))


@pytest.mark.parametrize("name", ["fixed 1", *REWRAPPED])
def test_buffers_are_those_of_the_first_rank(two, name):
    assert [rank[name]["touched"] for rank in two] == [0.0, 0.0]


@pytest.mark.parametrize("accumulation", ["1", "2", "2 rewrap"])
def test_probes_leave_no_trace_on_two_processes(two, accumulation):
    for rank in two:
        with_probes = rank[f"auto {accumulation}"]["outcome"]
        assert not differences(with_probes, rank[f"auto_decision_fixed {accumulation}"]["outcome"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_correct_is_refused_before_the_first_update(two, name):
    message = two[0]["refused"][name]
    assert message.startswith("update 0: "), message
    assert REFUSED[name][1] in message
    fix = {"find_unused": "Set ddp_find_unused_parameters=True in TrainingArguments, or ddp_rewrap=True"}
    assert fix.get(name, "") in message


def largest_gap(two, name):
    first, second = (rank["drifts"][name]["weights"] for rank in two)
    return {
        key: (first[key] - second[key]).abs().max().item() for key in first if not torch.equal(first[key], second[key])
    }


def test_without_a_guard_ranks_drift_apart_in_silence(two):
    """In a plain Trainer: why flags must not be set before DDP wraps the model, and what the guard is for."""
    gaps = largest_gap(two, "plain")
    assert two[0]["drifts"]["plain"]["error"] == ""
    assert two[0]["drifts"]["plain"]["step"] == 4
    # The gradients of all other layers are averaged; clipping by a norm of its own on each rank is all that parts them.
    assert max(gap for key, gap in gaps.items() if key.startswith(RELEASED)) > 1e-2
    assert max(gap for key, gap in gaps.items() if not key.startswith(RELEASED)) < 1e-4
    assert largest_gap(two, "not guarded")


@pytest.mark.parametrize(
    ("name", "step", "group", "parameter"),
    [
        # Stage 1 releases the block, after update 1: noticed in its first update.
        ("guarded", 2, "block.2", RELEASED),
        ("planted", 3, "block.1", PLANTED_IN),
        ("planted late", 10, "block.1", PLANTED_IN),
    ],
)
def test_ranks_that_differ_are_stopped_together(two, name, step, group, parameter):
    first, second = (rank["drifts"][name] for rank in two)
    assert first["error"] == second["error"] != ""
    assert first["step"] == second["step"] == step
    assert f"After update {step} the ranks no longer hold the same weights" in first["error"]
    assert f"first {parameter}" in first["error"]
    assert f"of layer group {group}" in first["error"]
    assert "frozen when DistributedDataParallel wrapped" in first["error"]


def test_ranks_that_agree_are_left_alone(two):
    assert [rank["drifts"]["sound"]["error"] for rank in two] == ["", ""]
    assert not largest_gap(two, "sound")


@pytest.mark.parametrize("probe_set", PROBE_SETS)
@pytest.mark.parametrize("measured", MEASURED)
def test_two_ranks_measure_what_one_does(two, measured, probe_set):
    first, second = (rank["measured"][measured, probe_set] for rank in two)
    assert first == second  # the time, too
    expected = records.record(records.tiny(), measured, probe_set)
    del first["seconds"], expected["seconds"]
    ours, theirs = flat(first), flat(expected)
    assert ours.keys() == theirs.keys()
    assert ours["/value"] is not None
    for path, value in theirs.items():
        assert ours[path] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)


def flat(record, path=""):
    """Numbers and words of a record by their path."""
    if isinstance(record, dict):
        items = record.items()
    elif isinstance(record, (list, tuple)):
        items = enumerate(record)
    else:
        return {path: record}
    return {key: value for name, item in items for key, value in flat(item, f"{path}/{name}").items()}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("memory, fisher", "There is no memory to measure"),
        ("memory, average", "memory"),
        ("nan, fisher", "not finite"),
        ("nan, worst case", "not finite"),
        ("nan, trace", "not finite"),
    ],
)
def test_what_fails_on_one_rank_is_recorded_alike_on_all(two, name, reason):
    first, second = (rank["failed"][name] for rank in two)
    assert first == second
    assert first["value"] is None
    assert reason in first["details"]["error"]


def test_errors_on_one_rank_are_raised_on_all(two):
    first, second = (rank["failed"]["strict"] for rank in two)
    assert first == second
    assert first.startswith("ProbeError: There is no memory to measure")
    assert [rank["failed"]["bug"] for rank in two] == [
        "RuntimeError: Another rank stopped with TypeError: a bug",
        "TypeError: a bug",
    ]
    # And the next measurement finds the ranks in step.
    assert two[0]["failed"]["afterwards"]["value"] == two[1]["failed"]["afterwards"]["value"] is not None


def test_the_time_is_that_of_the_slowest_rank(two):
    first, second = (rank["failed"]["slow"]["seconds"] for rank in two)
    assert first == second >= 0.2


def test_a_study_runs_under_a_launcher(tmp_path):
    project = make_project(tmp_path / "project")
    path = write_yaml(project / "study.yaml", study_settings(project))
    done = subprocess.run(
        # Without re-wrapping, the search for unused parameters could not be switched off.
        [*LAUNCHER, "recipes/run.py", "--config", str(path), "--study.seeds", "[1]",
         "--training.ddp_rewrap", "true", "--training.ddp_find_unused_parameters", "false"],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    record = read_study(project / "out" / "study.json")
    assert [run.status for runs in record.arms.values() for run in runs] == ["complete", "complete"]
    assert done.stdout.count("Study 'tiny'") == 1  # one rank talks
