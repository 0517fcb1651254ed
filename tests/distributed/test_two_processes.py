"""Promises 1, 3 and 5 with two gloo processes under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_early_ood.results import read_study
from tests.distributed.worker import AUTO_DECISION, REFUSED
from tests.tiny_project import make_project, study_settings, write_yaml
from tests.training import differences

ROOT = Path(__file__).parents[2]
RUNS = [(scenario, accumulation) for scenario in ("fixed", "auto") for accumulation in (1, 2)]


def launch(folder: Path, processes: int) -> list[dict]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, "-m" if processes == 1 else "--module", "tests.distributed.worker", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(processes)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("one"), 1)[0]


@pytest.mark.parametrize("run", RUNS)
def test_ranks_agree_bit_for_bit(two, run):
    first, second = (rank[run] for rank in two)
    assert not [name for name in differences(first["outcome"], second["outcome"]) if name != "rng"]
    assert first["stages"] == second["stages"]
    assert first["decision"] == second["decision"]


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_equal_one_on_the_same_global_batch(one, two, run):
    ours, theirs = two[0][run], one[run]
    assert ours["stages"] == theirs["stages"]
    assert ours["stages"] == [(2 * stage, stage) for stage in range(5)]
    assert ours["decision"] == (AUTO_DECISION if run[0] == "auto" else None)
    for name, gradient in theirs["gradient"].items():
        torch.testing.assert_close(ours["gradient"][name], gradient, rtol=1e-4, atol=1e-6)
    for name, value in theirs["outcome"].items():
        if name.startswith("weight/"):
            torch.testing.assert_close(ours["outcome"][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_probes_leave_no_trace_on_two_processes(two, accumulation):
    for rank in two:
        with_probes = rank["auto", accumulation]["outcome"]
        without = rank["auto_decision_fixed", accumulation]["outcome"]
        assert not differences(with_probes, without)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_correct_is_refused_before_the_first_update(two, name):
    message = two[0]["refused"][name]
    assert message.startswith("update 0: "), message
    expected = {
        "find_unused": "Set ddp_find_unused_parameters=True",
        "static_graph": "Remove ddp_static_graph",
        "checkpointing": "activation checkpointing (which switches the default off)",
        "reentrant": "use_reentrant",
    }[name]
    assert expected in message


def test_a_study_runs_under_a_launcher(tmp_path):
    project = make_project(tmp_path / "project")
    path = write_yaml(project / "study.yaml", study_settings(project))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "recipes/run.py", "--config", str(path), "--study.seeds", "[1]"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    record = read_study(project / "out" / "study.json")
    assert [run.status for runs in record.arms.values() for run in runs] == ["complete", "complete"]
    assert done.stdout.count("Study 'tiny'") == 1  # one rank talks
