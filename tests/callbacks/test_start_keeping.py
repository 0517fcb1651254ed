"""The trajectory along a training: without a trace, resumed exactly, and what is kept for it."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.start_keeping import StartKeeper
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import ConfigurationError, ResumeError, UnsupportedModelError
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.names import START_WEIGHTS_FILE
from hf_early_ood.probes.reference_trajectory import movement_of
from tests import families
from tests.training import Recorder, Rows, StopAfter, check_resumed_at_every_update, differences, make_trainer, outcome

PROBE = {"probe_size": 8, "probe_batch_size": 4}


def measuring(**settings) -> EarlyDynamicsCallback:
    return EarlyDynamicsCallback(["trajectory"], **{"every": 2, **PROBE, **settings})


def lora() -> torch.nn.Module:
    torch.manual_seed(2)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    return get_peft_model(families.build("bert"), config)


@pytest.mark.parametrize("on_disk", [False, True])
def test_series_is_that_of_the_weights(tmp_path, on_disk):
    """Against a recorder's copies, with layers that are released one after the other."""
    recorder, callback = Recorder(), measuring(every=1, update_direction=True, start_on_disk=on_disk)
    trainer = make_trainer(tmp_path, [callback, GradualUnfreezingCallback(2), recorder], max_steps=6)
    trainer.train()
    groups = find_layer_groups(trainer.model)
    group_of = {name: group.name for group in groups for name in group.parameters}
    assert [record["step"] for record in callback.records] == list(range(7))
    for record in callback.records:
        step = record["step"]
        previous = recorder.weights[step - 1] if step else None
        expected = movement_of(recorder.weights[step], recorder.weights[0], previous, group_of)
        assert record["value"] == pytest.approx(expected["total"]["distance"], rel=1e-11)
        quantities = record["details"]["quantities"]
        assert ("update_length" in quantities) == (step > 0)
        for name, values in quantities.items():
            for group, value in {"total": values["value"], **values["per_group"]}.items():
                exact = expected[group][name]
                assert value == (None if exact is None else pytest.approx(exact, rel=1e-11, abs=1e-15)), (name, group)
    assert callback.records[2]["per_group"]["block.2"] == 0 < callback.records[3]["per_group"]["block.2"]
    assert callback.records[1]["details"]["quantities"]["update_cosine"]["value"] == pytest.approx(1)


@pytest.mark.parametrize("make", [lambda: None, lora], ids=["whole", "lora"])
@pytest.mark.parametrize("settings", [{}, {"start_on_disk": True}, {"update_direction": True}], ids=str)
def test_leaves_no_trace(tmp_path, make, settings):
    callback = measuring(every=1, **settings)
    measured = make_trainer(tmp_path / "with", [callback], model=make(), max_steps=3)
    measured.train()
    plain = make_trainer(tmp_path / "without", [], model=make(), max_steps=3)
    plain.train()
    assert not differences(outcome(measured), outcome(plain))
    assert all(record["value"] > 0 for record in callback.records[1:])


@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize("make", [lambda: None, lora], ids=["whole", "lora"])
@pytest.mark.parametrize("settings", [{}, {"start_on_disk": True, "update_direction": True}], ids=str)
def test_resumed_after_any_update_the_series_is_the_same(tmp_path, make, settings):
    check_resumed_at_every_update(tmp_path, lambda: measuring(every=1, **settings), make, max_steps=4)


def test_resumed_in_its_own_folder_it_may_move_to_disk(tmp_path):
    whole = measuring()
    make_trainer(tmp_path / "whole", [whole]).train()
    make_trainer(tmp_path / "cut", [measuring(), StopAfter(3)]).train()
    written = (tmp_path / "cut" / START_WEIGHTS_FILE).stat().st_mtime_ns
    resumed = measuring(start_on_disk=True)
    make_trainer(tmp_path / "cut", [resumed]).train(resume_from_checkpoint=True)
    assert [record["value"] for record in resumed.records] == [record["value"] for record in whole.records]
    assert (tmp_path / "cut" / START_WEIGHTS_FILE).stat().st_mtime_ns == written


def cut(folder, step=3):
    make_trainer(folder, [measuring(), StopAfter(step)]).train()
    return folder / START_WEIGHTS_FILE


def test_without_the_start_weights_it_is_not_resumed(tmp_path):
    cut(tmp_path).unlink()
    with pytest.raises(ResumeError, match=r"start of this training are gone\. Got: no .*start\.safetensors"):
        make_trainer(tmp_path, [measuring()]).train(resume_from_checkpoint=True)


def test_start_weights_of_another_training_are_not_taken(tmp_path):
    path = cut(tmp_path)
    checkpoint = tmp_path / "checkpoint-3"
    make_trainer(tmp_path, [measuring()], model=families.build("bert", seed=9), max_steps=1).train()
    with pytest.raises(ResumeError, match=r"gone\. Got: .*which is of another training"):
        make_trainer(tmp_path, [measuring()]).train(resume_from_checkpoint=str(checkpoint))
    path.write_bytes(b"{}")
    with pytest.raises(ResumeError, match="which is of another training"):
        make_trainer(tmp_path, [measuring()]).train(resume_from_checkpoint=str(checkpoint))


def test_a_folder_that_was_moved_brings_them_along(tmp_path):
    cut(tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    callback = measuring()
    make_trainer(tmp_path / "new", [callback]).train(resume_from_checkpoint=True)
    assert callback.records[-1]["step"] == 10


def test_killed_while_they_were_written_there_are_none(tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_early_ood.start_weights.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, [measuring()]).train()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_was_kept_before_an_update_is_freed(tmp_path):
    class Looks(TrainerCallback):
        seen: dict[str, list[bool]] = {"step": [], "end": []}  # noqa: RUF012

        def on_optimizer_step(self, args, state, control, **kwargs):
            self.seen["step"].append(callback._keeper.before is not None)

        def on_step_end(self, args, state, control, **kwargs):
            self.seen["end"].append(callback._keeper.before is not None)

    callback = measuring(update_direction=True, until=4)
    make_trainer(tmp_path, [callback, Looks()], max_steps=6).train()
    assert Looks.seen["step"] == [False, True, False, True, False, False]
    assert not any(Looks.seen["end"])


def test_a_step_is_that_of_all_its_batches(tmp_path):
    """With accumulation, the copy is made once an update."""
    callback = measuring(every=1, update_direction=True)
    make_trainer(tmp_path, [callback], max_steps=2, gradient_accumulation_steps=3).train()
    first = callback.records[1]
    assert first["details"]["quantities"]["update_length"]["value"] == pytest.approx(first["value"])


class Breaks(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step == 1:
            model.classifier.bias.data[0] = math.nan


def test_weights_that_are_not_finite_have_no_distance_and_training_goes_on(tmp_path):
    callback = measuring()
    trainer = make_trainer(tmp_path, [callback, Breaks()], max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4
    assert callback.records[-1]["value"] is None
    assert "not finite" in callback.records[-1]["details"]["error"]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(Rows())


def test_alone_it_needs_no_probe_examples(tmp_path):
    callback = EarlyDynamicsCallback("trajectory", every=1)
    make_trainer(tmp_path, [callback], dataset=Stream(), max_steps=2).train()
    lines = [json.loads(line) for line in (tmp_path / "dynamics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["value"] == 0
    assert lines[0]["num_examples"] is None


def test_totals_of_all_quantities_are_logged(tmp_path):
    trainer = make_trainer(tmp_path, [measuring()], max_steps=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "early_ood/trajectory" in entry]
    assert [entry["step"] for entry in logged] == [0, 2]
    assert {"early_ood/trajectory/head", "early_ood/trajectory/sign_changes"} <= set(logged[1])


def test_adapters_of_another_kind_are_refused_before_the_first_update(tmp_path):
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], use_dora=True)
    model = get_peft_model(families.build("bert"), config)
    trainer = make_trainer(tmp_path / "merged", [measuring()], model=model, max_steps=2)
    with pytest.raises(UnsupportedModelError, match="adapters='raw'"):
        trainer.train()
    raw = measuring(settings={"trajectory": {"adapters": "raw"}})
    make_trainer(tmp_path / "raw", [raw], model=model, max_steps=2).train()
    assert raw.records[-1]["value"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measures": ["fisher_trace"], "start_on_disk": True}, "the trajectory, which is not measured"),
        ({"measures": ["fisher_trace"], "update_direction": True}, "the trajectory, which is not measured"),
        ({"start_on_disk": "yes"}, "start_on_disk is not usable"),
        ({"update_direction": 1}, "update_direction is not usable"),
        ({"settings": {"trajectory": {"start": 1}}}, "Unknown setting of trajectory. Got: start"),
        ({"settings": {"trajectory": {"adapters": "row"}}}, "trajectory: Unknown adapters.*Did you mean 'raw'"),
    ],
)
def test_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        EarlyDynamicsCallback(**{"measures": ["trajectory"], **settings})


def test_where_no_start_is_known_it_is_refused():
    with pytest.raises(ConfigurationError, match=r"which is not known here.*hf-early-ood trajectory"):
        GradualUnfreezingCallback(interval="auto", signal="trajectory")


def test_one_copy_in_memory_and_none_on_disk(tmp_path):
    model = families.build("bert")
    groups = find_layer_groups(model)
    keepers = [StartKeeper(groups, str(tmp_path), is_main=main, on_disk=disk) for main, disk in
               ((True, False), (True, True), (False, False))]  # fmt: skip
    for keeper in keepers:
        keeper.take(model)
    assert set(keepers[0].start) == set(keepers[1].start) == {name for group in groups for name in group.parameters}
    assert all(torch.equal(weight, keepers[1].start[name]) for name, weight in keepers[0].start.items())
    assert keepers[2].start is None
