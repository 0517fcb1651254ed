"""What a path stands for."""

from __future__ import annotations

import json

import pytest

from hf_early_ood import experiment
from hf_early_ood.config import load_run
from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.probing.checkpoints import find_saved_models, weights_sha256
from tests.tiny_project import make_project, run_settings, write_yaml


def touch(*folders):
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")


def steps(path):
    return [(model.step, model.name) for model in find_saved_models(str(path))]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    touch(*(tmp_path / f"checkpoint-{step}" for step in (1000, 20, 0, 3)))
    (tmp_path / "checkpoint-last").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [step for step, _ in steps(tmp_path)] == [0, 3, 20, 1000]
    touch(tmp_path / "checkpoint-5" / "nested")
    assert (5, "checkpoint-5") in steps(tmp_path)  # half-written is a matter of measuring


def test_model_beside_checkpoints_is_left_out(tmp_path):
    touch(tmp_path / "out", tmp_path / "out" / "checkpoint-3")
    assert steps(tmp_path / "out") == [(3, "checkpoint-3")]


def test_one_model(tmp_path):
    touch(tmp_path / "model", tmp_path / "checkpoint-30", tmp_path / "checkpoint-40")
    assert steps(tmp_path / "model") == [(0, "model")]
    assert steps(tmp_path / "checkpoint-30") == [(30, "checkpoint-30")]
    (tmp_path / "model" / "trainer_state.json").write_text(json.dumps({"global_step": 12}))
    assert steps(tmp_path / "model") == [(12, "model")]
    (tmp_path / "checkpoint-40" / "trainer_state.json").write_text('{"global_')
    assert steps(tmp_path / "checkpoint-40") == [(40, "checkpoint-40")]


def test_update_is_known_or_not(tmp_path):
    touch(tmp_path / "model", tmp_path / "checkpoint-0")
    assert not find_saved_models(tmp_path / "model")[0].step_known
    assert find_saved_models(tmp_path / "checkpoint-0")[0].step_known
    assert not find_saved_models("some/model")[0].step_known
    (tmp_path / "model" / "trainer_state.json").write_text(json.dumps({"global_step": 0}))
    assert find_saved_models(tmp_path / "model")[0].step_known


def test_hash_is_that_of_the_files_as_they_are_now(tmp_path):
    touch(tmp_path / "model")
    assert weights_sha256(str(tmp_path / "model")) is None
    weights = tmp_path / "model" / "model.safetensors"
    found = []
    for content in (b"one", b"four", b"one"):
        weights.write_bytes(content)
        found.append(weights_sha256(str(tmp_path / "model")))
    assert found[0] == found[2] != found[1]
    (tmp_path / "model" / "training_args.bin").write_bytes(b"no weights")
    assert weights_sha256(str(tmp_path / "model")) == found[0]


def test_final_model_of_a_run(tmp_path):
    project = make_project(tmp_path)
    settings = run_settings(project, intervention={"method": "standard"}, training__max_steps=6)
    settings["training"] |= {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 5}
    experiment.run(load_run(write_yaml(project / "run.yaml", settings)))
    assert steps(project / "out") == [(4, "checkpoint-4"), (6, "checkpoint-6")]
    (project / "out" / "checkpoint-6").rename(project / "elsewhere")
    assert steps(project / "out") == [(4, "checkpoint-4"), (6, "model")]
    (project / "out" / "checkpoint-4").rename(project / "away")
    assert steps(project / "out") == [(6, "model")]


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda folder: None, "", "which is empty"),
        (lambda folder: (folder / "weights.bin").write_text("x"), "", "no checkpoint. Got: .*with weights.bin"),
        (lambda folder: (folder / "a").write_text("x"), "a", "saved model is a folder"),
        (lambda folder: None, "gone", "no such folder"),
    ],
)
def test_folders_without_a_model(tmp_path, make, name, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        find_saved_models(str(tmp_path / name))


def test_names_are_left_to_the_hub():
    assert steps("some/model") == [(0, "some/model")]
    with pytest.raises(ConfigurationError, match="no such bundled model"):
        weights_sha256(find_saved_models("bundled:nonsense")[0].path)
