"""The movement along checkpoints: the callback's numbers, from a start and to an end, and the command that shows it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from matplotlib.image import imread
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, BertModel

from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.cli import USER_ERROR, main
from hf_early_ood.dynamics import read_dynamics
from hf_early_ood.errors import ConfigurationError, DataError, NonFiniteError, ResumeError, UnsupportedModelError
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.names import START_WEIGHTS_FILE
from hf_early_ood.probes.reference_trajectory import movement_of
from hf_early_ood.probing import load_saved_model
from hf_early_ood.probing.trajectory import checkpoint_trajectory
from tests import families
from tests.training import make_trainer

SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


def train(folder, model=None, callbacks=None):
    callback = EarlyDynamicsCallback(["trajectory"], every=2)
    make_trainer(folder, [callback] if callbacks is None else callbacks, model=model, **SAVING).train()
    return callback


def lora(tmp_path):
    families.build("bert").save_pretrained(tmp_path / "base")
    model = families.build("bert")
    model.config.name_or_path = model.name_or_path = str(tmp_path / "base")
    torch.manual_seed(2)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    return get_peft_model(model, config)


@pytest.mark.parametrize("adapter", [False, True])
def test_from_the_start_it_is_what_the_callback_measured(tmp_path, adapter):
    train(tmp_path / "run", lora(tmp_path) if adapter else None)
    found = checkpoint_trajectory(tmp_path / "run")
    assert found.models == {0: "start", 2: "checkpoint-2", 4: "checkpoint-4", 6: "checkpoint-6"}
    assert found.start.endswith(START_WEIGHTS_FILE)
    measured = read_dynamics(tmp_path / "run" / "dynamics.jsonl")
    along = {(item.step, item.measure): item for item in found.measurements}
    for item in measured.measurements:
        assert along[item.step, item.measure].value == item.value, item.measure
        assert along[item.step, item.measure].per_group == item.per_group, item.measure


def test_to_the_end_and_between_it_is_a_plain_loop(tmp_path):
    train(tmp_path)
    found = checkpoint_trajectory(tmp_path)
    models = [load_saved_model(str(tmp_path / f"checkpoint-{step}")) for step in (2, 4, 6)]
    weights = [{name: p.detach() for name, p in model.named_parameters()} for model in models]
    groups = find_layer_groups(models[0])
    group_of = {name: group.name for group in groups for name in group.parameters}
    along = {(item.step, item.measure): item for item in found.measurements}
    for at, step in ((1, 4), (2, 6)):
        end = movement_of(weights[at], weights[2], None, group_of)
        back = movement_of(weights[at], weights[at - 1], None, group_of)
        way = {name: weights[2][name] - weights[at - 1][name] for name in group_of}
        moved = {name: weights[at][name] - weights[at - 1][name] for name in group_of}
        toward = movement_of(moved, way, None, group_of)
        for quantity, expected, key in (
            ("distance_to_end", end, "distance"),
            ("cosine_with_end", end, "cosine"),
            ("cosine_with_previous", back, "cosine"),
            ("update_length", back, "distance"),
            ("update_cosine_to_end", toward, "cosine"),
        ):
            item = along[step, f"trajectory/{quantity}"]
            for group, value in {"total": item.value, **item.per_group}.items():
                assert value == pytest.approx(expected[group][key], rel=1e-6, abs=1e-9), (step, quantity, group)
    assert along[6, "trajectory/distance_to_end"].value == 0
    assert along[6, "trajectory/update_cosine_to_end"].value == pytest.approx(1)
    assert along[0, "trajectory/distance_to_end"].value == pytest.approx(along[6, "trajectory"].value)


def test_without_start_weights_the_first_checkpoint_is_the_start(tmp_path):
    train(tmp_path, callbacks=[])
    found = checkpoint_trajectory(tmp_path)
    assert (found.start, list(found.models)) == ("checkpoint-2", [2, 4, 6])
    assert found.records[0]["value"] == 0
    from_other = checkpoint_trajectory(tmp_path, start=tmp_path / "checkpoint-4")
    assert list(from_other.models) == [0, 2, 4, 6]
    assert [record["value"] for record in from_other.records][0:3:2] == [0, 0]


@pytest.mark.parametrize("task", ["encoder", "fill-mask"])
def test_from_a_pretrained_model_all_but_the_new_head_is_measured(tmp_path, caplog, task):
    """What people have at hand: the model that training began with, as it was downloaded."""
    model = families.build("bert")
    pretrained = BertModel(model.config) if task == "encoder" else BertForMaskedLM(model.config)
    (pretrained if task == "encoder" else pretrained.bert).load_state_dict(model.bert.state_dict(), strict=False)
    pretrained.save_pretrained(tmp_path / "pretrained")
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(tmp_path / "run", model, callbacks=[])
    found = checkpoint_trajectory(tmp_path / "run", start=tmp_path / "pretrained")
    gone = [n for n in start if n.startswith("classifier") or (task != "encoder" and n.startswith("bert.pooler"))]
    assert f"measured without the head: {tmp_path / 'pretrained'} has no {', '.join(sorted(gone))}" in caplog.text
    assert list(found.models) == [0, 2, 4, 6]
    end = dict(load_saved_model(str(tmp_path / "run" / "checkpoint-6")).named_parameters())
    distance = math.sqrt(
        sum(float((end[n].detach() - start[n]).double().square().sum()) for n in start if n not in gone)
    )
    last = [item for item in found.measurements if item.measure == "trajectory"][-1]
    assert last.value == pytest.approx(distance, rel=1e-6)
    assert ("head" in last.per_group) == (task == "encoder")


def test_what_cannot_be_measured(tmp_path):
    train(tmp_path / "run", callbacks=[])
    with pytest.raises(DataError, match="at least two points"):
        checkpoint_trajectory(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(DataError, match="no such folder"):
        checkpoint_trajectory("nowhere")  # could be a name on the Hub, which has no checkpoints
    families.build("bert", hidden_size=8).save_pretrained(tmp_path / "small")
    for other in (tmp_path / "small", "bundled:all-MiniLM-L6-v2"):
        with pytest.raises(UnsupportedModelError, match=r"another model than the checkpoints\. Got: .*embeddings"):
            checkpoint_trajectory(tmp_path / "run", start=other)
    with pytest.raises(ConfigurationError, match="Did you mean 'merged'"):
        checkpoint_trajectory(tmp_path / "run", adapters="merge")
    with pytest.raises(ResumeError, match="not empty and holds no trajectory"):
        checkpoint_trajectory(tmp_path / "run", output=tmp_path / "small")


def test_checkpoints_of_two_trainings_in_one_folder_are_refused(tmp_path):
    train(tmp_path)
    again = make_trainer(
        tmp_path, [EarlyDynamicsCallback(["trajectory"], every=2)], model=families.build("bert", seed=8), **SAVING
    )
    again.args.max_steps = 2  # interrupted
    again.train()
    with pytest.raises(ConfigurationError, match=r"not those of the checkpoints.*Got: checkpoint-4, checkpoint-6 of"):
        checkpoint_trajectory(tmp_path)
    assert len(checkpoint_trajectory(tmp_path, start=tmp_path / "checkpoint-2").records) == 4


def test_the_checkpoint_that_is_broken_is_named(tmp_path):
    train(tmp_path)
    file = tmp_path / "checkpoint-4" / "model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"][0] = math.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match="checkpoint-4: A weight is not finite"):
        checkpoint_trajectory(tmp_path)
    families.build("roberta").save_pretrained(tmp_path / "checkpoint-4")
    with pytest.raises(ConfigurationError, match="checkpoint-4: The start weights in the folder"):
        checkpoint_trajectory(tmp_path)


def test_command_writes_a_record_and_a_picture(tmp_path, capsys):
    train(tmp_path / "run")
    for _ in range(2):  # it replaces its own
        assert main(["trajectory", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Weights along the training" in printed
    assert "checkpoint-6 by layer group" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"trajectory.json", "trajectory.png"}
    written = json.loads((tmp_path / "out" / "trajectory.json").read_text())
    assert written["command"].startswith("hf-early-ood trajectory ")
    assert imread(tmp_path / "out" / "trajectory.png").shape[1] == 1200
    assert main(["trajectory", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"][-1]["value"] == written["records"][-1]["value"]
    assert main(["trajectory", str(tmp_path / "nothing")]) == USER_ERROR


def test_probe_says_where_the_trajectory_is(tmp_path, capsys):
    words = ["probe", str(tmp_path), "--data", "bundled:vader-icwsm2014", "--measures", "trajectory"]
    assert main(words) == USER_ERROR
    assert "hf-early-ood trajectory" in capsys.readouterr().err


def test_models_are_left_as_they_are(tmp_path):
    """The start is measured with a model of the series, which has its own weights after it."""
    train(tmp_path)
    found = checkpoint_trajectory(tmp_path)
    again = checkpoint_trajectory(tmp_path)
    assert asdict(found)["records"] == asdict(again)["records"]
