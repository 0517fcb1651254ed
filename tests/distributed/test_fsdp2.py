"""Gradual unfreezing of sharded parameters, through accelerate's own path to FSDP2, with two gloo processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_early_ood.results import read_run
from tests.distributed.fsdp2_worker import INTERVAL, STATE_DICTS, STOPPED_AT
from tests.distributed.worker import AUTO_DECISION
from tests.test_recipes import launch_environment
from tests.tiny_project import make_project, run_settings, write_yaml
from tests.training import differences

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCENARIOS = (
    "at_load",
    "top_down",
    "accumulated",
    "bottom_up",
    "lora",
    "auto",
    "bf16",
    "dynamics",
    "checkpointed",
    "selected",
)
REFREEZING = ("lisa",)


def launch(*arguments: str, processes: int, **variables: str) -> None:
    # Without GPUs: PyTorch would choose them for the shards.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.distributed.fsdp2_worker", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(str(folder), processes=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    launch(str(folder), processes=1)
    return torch.load(folder / "rank0.pt", weights_only=False)


@pytest.mark.parametrize("name", [*SCENARIOS, *REFREEZING])
def test_every_update_equals_that_of_one_process(one, two, name):
    ours, theirs = two[0][name], one[name]
    assert (ours["num_sharded"], theirs["num_sharded"]) == (len(ours["final"]), 0)
    assert ours["with_gradient"] == theirs["with_gradient"]
    assert ours["stages"] == theirs["stages"]
    decides = theirs["measured"] and name not in ("dynamics", "selected")
    assert ours["decision"] == theirs["decision"] == (AUTO_DECISION if decides else None)
    assert ours["frozen_at_end"] == theirs["frozen_at_end"]
    # In bfloat16, FSDP2 averages in it as well.
    close = {"rtol": 0.0, "atol": 3e-3 if name == "bf16" else 1e-5}
    assert ours["weights"].keys() == theirs["weights"].keys() == set(range(11))
    for step, weights in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][step], weights, **close)
    torch.testing.assert_close(ours["final"], theirs["final"], **close)


@pytest.mark.parametrize("name", [*SCENARIOS, *REFREEZING])
def test_ranks_hold_parts_of_one_model(two, name):
    first, second = (rank[name]["weights"] for rank in two)
    assert not [step for step in first if differences(first[step], second[step])]


@pytest.mark.parametrize("name", SCENARIOS)
def test_frozen_layers_do_not_move_and_released_ones_do(two, name):
    """By value: with weight decay and clipping, every stage of INTERVAL updates."""
    run, released = two[0][name], 0
    steps = [step for step, _ in run["stages"]]
    assert steps == list(range(0, INTERVAL * len(steps), INTERVAL))
    for step, end in zip(steps, [*steps[1:], 10], strict=True):
        moved = differences(run["weights"][step], run["weights"][end])
        with_gradient = run["with_gradient"][step]
        assert set(moved) <= set(with_gradient)
        # Word embeddings, biases of keys and the like may have a gradient of zero.
        assert len(moved) > released
        released = len(moved)


def test_measurements_are_those_of_one_process(one, two):
    for name in ("at_load", "auto", "bf16", "checkpointed", "dynamics", "selected"):
        ours, theirs = two[0][name]["measured"], one[name]["measured"]
        assert [r["step"] for r in ours] == [r["step"] for r in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["measure"] == other["measure"]
            # Before the first update the weights are the same; later, sharpness is a difference of close numbers.
            close = 1e-6 if mine["step"] == 0 else 5e-3
            assert mine["value"] == pytest.approx(other["value"], rel=close), mine["measure"]
            assert mine["per_group"] == pytest.approx(other["per_group"], rel=close)


def test_measurements_leave_no_trace(two):
    """The interval is the same, decided or given, and so is everything else."""
    for name in ("auto", "dynamics", "checkpointed"):
        for step, weights in two[0]["top_down"]["weights"].items():
            assert not differences(two[0][name]["weights"][step], weights)


@pytest.mark.parametrize("kind", STATE_DICTS)
def test_a_resumed_training_is_the_same_bit_for_bit(two, kind):
    """Stopped before all layers were released: PyTorch would miss the optimizer state of those."""
    resumed, straight = two[0][kind], two[0]["auto"]
    assert list(resumed["weights"]) == list(range(STOPPED_AT, 11))
    for step, weights in resumed["weights"].items():
        assert not differences(weights, straight["weights"][step])
    assert resumed["stages"] == straight["stages"]


@pytest.mark.parametrize("kind", STATE_DICTS)
def test_moments_that_were_dropped_are_not_missed(two, kind):
    """LISA with a reset: at the interruption only what trains has a state in the optimizer."""
    resumed, straight = two[0][f"lisa {kind}"], two[0]["lisa"]
    for step, weights in resumed["weights"].items():
        assert not differences(weights, straight["weights"][step])
    assert resumed["stages"] == straight["stages"]


def test_sharded_checkpoints_are_not_searched_for_the_best(two):
    assert "state_dict_type: FULL_STATE_DICT" in two[0]["best refused"]


def test_what_pytorch_would_not_load_is_refused(two):
    assert "AutoFreeze cannot run under FSDP2" in two[0]["sums refused"]


def test_attempts_that_cannot_begin_alike_are_refused(two):
    assert "auto_find_batch_size=False" in two[0]["attempts refused"]


def test_a_recipe_runs_with_the_settings_of_the_launcher(tmp_path):
    project = make_project(tmp_path / "project")
    path = write_yaml(project / "run.yaml", run_settings(project))
    variables = launch_environment(ROOT / "recipes" / "accelerate" / "fsdp2.yaml")
    launch("run", str(path), processes=2, **variables)
    record = read_run(project / "out" / "results.json")
    assert record.status == "complete"
    assert record.intervention.decision is not None
    model, info = AutoModelForSequenceClassification.from_pretrained(
        project / "out" / "model", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]  # noqa: PT018
    assert model.config.architectures == ["BertForSequenceClassification"]
