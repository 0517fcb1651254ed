"""The weights at the first release: the right ones, of the right moment, also after an interruption."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_early_ood import names
from hf_early_ood.callbacks import first_stage as module
from hf_early_ood.callbacks.first_stage import FirstStageCallback, read_first_stage
from hf_early_ood.callbacks.refreezing import AutoFreezeCallback, LISACallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import ConfigurationError, ResumeError, UnsupportedSetupError
from hf_early_ood.interventions.weight_interpolation import copied_weights, interpolated, starting_point
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.schedules import UnfreezingSchedule
from tests import families
from tests.training import Recorder, StopAfter, make_trainer

RELEASE = 3


@pytest.mark.parametrize("settings", [{}, {"release": "all_at_once"}, {"initial": ["head", "block.2"]}], ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_it_keeps_what_trained_first_as_it_is_at_the_release(tmp_path, settings, first):
    unfreezing, kept, recorder = GradualUnfreezingCallback(RELEASE, **settings), FirstStageCallback(), Recorder()
    callbacks = [kept, unfreezing, recorder] if first else [unfreezing, kept, recorder]
    model = families.build("bert")
    start = copied_weights(model)
    trainer = make_trainer(tmp_path, callbacks, model=model, gradient_accumulation_steps=2)
    trainer.train()
    weights, groups = read_first_stage(tmp_path), find_layer_groups(model)
    initial = settings.get("initial", ["head"])
    assert set(weights) == {name for group in initial for name in groups[group].parameters}
    at_release = recorder.weights[RELEASE]
    assert all(torch.equal(value, at_release[name]) for name, value in weights.items())
    # With what nothing has moved, it is the whole model of that moment.
    with interpolated(model, starting_point(model, start, first_stage=weights), 0.0):
        assert all(torch.equal(p, at_release[name]) for name, p in model.named_parameters())


def trainer(folder: Any, *more: Any) -> Trainer:
    return make_trainer(folder, [FirstStageCallback(), GradualUnfreezingCallback(RELEASE), *more], max_steps=6)


@pytest.mark.parametrize("stop", [RELEASE - 1, RELEASE, RELEASE + 1])
def test_a_resumed_training_has_them(tmp_path, stop):
    trainer(tmp_path / "whole").train()
    trainer(tmp_path / "parts", StopAfter(stop)).train()
    assert (tmp_path / "parts" / names.FIRST_STAGE_FILE).is_file() == (stop > RELEASE)
    trainer(tmp_path / "parts").train(resume_from_checkpoint=True)
    whole, parts = read_first_stage(tmp_path / "whole"), read_first_stage(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_lost_file_is_noticed(tmp_path):
    trainer(tmp_path, StopAfter(RELEASE + 1)).train()
    path = tmp_path / names.FIRST_STAGE_FILE
    path.write_bytes(b"\x08")
    with pytest.raises(ResumeError, match="is not readable"):
        read_first_stage(tmp_path)
    path.unlink()
    with pytest.raises(ResumeError, match=r"first stage are gone.*after update 3"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match=r"no weights of the first stage.*head='final'"):
        read_first_stage(tmp_path)


def test_a_training_that_ends_before_the_release_leaves_none_also_of_another_training(tmp_path, caplog):
    trainer(tmp_path).train()
    with caplog.at_level("WARNING", logger="hf_early_ood"):
        trainer(tmp_path, StopAfter(RELEASE - 1)).train()
    assert "there are no weights of a first stage" in caplog.text
    assert not (tmp_path / names.FIRST_STAGE_FILE).exists()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("staged", "message"),
    [
        (lambda: [], "all layers train from the start"),
        (lambda: [GradualUnfreezingCallback(2, initial=["/./"])], "releases nothing after embeddings, block.0"),
        (lambda: [GradualUnfreezingCallback(2, start=1)], "start=1: all layers train first"),
        (lambda: [GradualUnfreezingCallback(2, start=0.2)], "start=2: all layers train first"),
        (lambda: [LISACallback(2, 1)], "as by LISA"),
        (lambda: [AutoFreezeCallback(2)], "as by LISA and AutoFreeze"),
    ],
    ids=["standard", "no release", "late", "fraction", "lisa", "autofreeze"],
)
def test_what_has_no_first_stage_is_refused_before_the_first_update(tmp_path, staged, message, first):
    path, recorder = tmp_path / names.FIRST_STAGE_FILE, Recorder()
    path.write_bytes(b"of another training")
    callbacks = [FirstStageCallback(), *staged()] if first else [*staged(), FirstStageCallback()]
    with pytest.raises(ConfigurationError, match=rf"There is no first stage .*Got: .*{message}"):
        make_trainer(tmp_path, [*callbacks, recorder]).train()
    assert list(recorder.weights) == [0]
    assert path.exists()  # nothing was trained in its place


def test_an_edited_schedule_that_releases_nothing_is_refused(tmp_path):
    """No key of the configuration says so, only the file."""
    path = tmp_path / "schedule.yaml"
    groups = find_layer_groups(families.build("bert")).names
    path.write_text(UnfreezingSchedule(groups, interval=2, stages=[["head"]]).to_yaml())
    with pytest.raises(ConfigurationError, match="a schedule that releases nothing after head"):
        make_trainer(tmp_path, [GradualUnfreezingCallback(schedule=path), FirstStageCallback()]).train()


def test_the_main_process_says_whether_the_file_is_there(tmp_path, monkeypatch):
    trainer(tmp_path, StopAfter(RELEASE + 1)).train()
    (tmp_path / names.FIRST_STAGE_FILE).unlink()
    monkeypatch.setattr(module, "from_main_process", lambda found: not found)  # it has another folder
    trainer(tmp_path).train(resume_from_checkpoint=True)


def test_sharded_models_and_a_second_one_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="two callbacks FirstStageCallback"):
        make_trainer(tmp_path, [FirstStageCallback(), FirstStageCallback()]).train()
    monkeypatch.setattr(module, "sharded_modules", lambda model: [model])
    with pytest.raises(UnsupportedSetupError, match="cannot be kept from a sharded model"):
        make_trainer(tmp_path, [FirstStageCallback()]).train()
