from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hf_early_ood import experiment, names
from hf_early_ood.callbacks.first_stage import read_first_stage
from hf_early_ood.config import RunConfig
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.evaluation.predictions import read_predictions
from hf_early_ood.results import read_run
from tests.tiny_project import make_project, run_settings

HELD_OUT = ["id_validation", "id_test", "ood/a", "ood/b"]
PLAIN = {"intervention__method": "standard"}
LP_FT = {"intervention": {"method": "gradual_unfreezing", "interval": 4, "release": "all_at_once"}}


@pytest.fixture
def project(tmp_path):
    experiment._load.cache_clear()
    return make_project(tmp_path / "project")


def run(project, folder, **changes):
    """Record and config of a run in a folder of the project."""
    config = RunConfig.from_dict(run_settings(project, output_dir=str(project / folder), **changes))
    return experiment.run(config), config


def weights(project, folder):
    return load_file(project / folder / names.MODEL_FOLDER / "model.safetensors")


def accuracies(record):
    return {name: split.metrics[names.ACCURACY].value for name, split in record.evaluation.splits.items()}


def test_the_curve_is_recorded_and_the_chosen_model_is_kept(project):
    fine_tuned, _ = run(project, "plain", **PLAIN)
    interpolation = {"alphas": [1.0, 0.0, 0.25], "alpha": 0.25}
    record, config = run(project, "wise", **PLAIN, intervention__weight_interpolation=interpolation)
    assert read_run(project / "wise" / names.RESULTS_FILE) == record
    curve = json.loads((project / "wise" / names.RESULTS_FILE).read_text())["interpolation"]
    assert (curve["metric"], curve["head"], curve["alphas"]) == ("accuracy", "final", [0.0, 0.25, 1.0])
    assert list(curve["scores"]) == HELD_OUT
    assert record.evaluation.selected_by == "last update, interpolated with alpha=0.25"

    # The middle of the curve is the model of the run, the end is the fine-tuned one.
    assert {name: scores[1] for name, scores in curve["scores"].items()} == accuracies(record)
    assert {name: scores[2] for name, scores in curve["scores"].items()} == accuracies(fine_tuned)
    assert record.training.loss_curve == fine_tuned.training.loss_curve

    # The saved weights, by hand.
    before, after = experiment.prepare(config).model.state_dict(), weights(project, "plain")
    saved, moved = weights(project, "wise"), 0
    assert saved.keys() == after.keys()
    for name, weight in saved.items():
        is_head = name.startswith(("classifier.", "bert.pooler."))
        expected = after[name] if is_head else 0.75 * before[name] + 0.25 * after[name]
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)
        moved += not is_head and not torch.equal(before[name], after[name])
    assert moved > 10

    # The start of the curve is the pretrained model under the fine-tuned head.
    model = AutoModelForSequenceClassification.from_pretrained(project / "plain" / names.MODEL_FOLDER)
    model.load_state_dict(
        {name: after[name] if name.startswith(("classifier.", "bert.pooler.")) else before[name] for name in after}
    )
    model.save_pretrained(project / "start")
    assert {name: scores[0] for name, scores in curve["scores"].items()} == evaluated(config, model)


def evaluated(config, model):
    material = experiment.prepare(config)
    found = {name: material.task.predict(model, material.tokenizer, material.splits[name]).columns for name in HELD_OUT}
    return {name: float(np.mean(part["prediction"] == np.array(part["label"]))) for name, part in found.items()}


def test_id_validation_chooses(project, monkeypatch):
    interpolation = {"alphas": [0.0, 0.5, 1.0], "alpha": "id_validation"}
    record, _ = run(project, "wise", **PLAIN, intervention__weight_interpolation=interpolation)
    curve = record.interpolation
    scores = curve.scores["id_validation"]
    chosen = curve.alphas.index(curve.chosen)
    assert scores[chosen] == max(scores)
    assert scores.index(max(scores)) == chosen  # of equals, the nearest to the pretrained weights
    assert {name: values[chosen] for name, values in curve.scores.items()} == accuracies(record)
    assert record.evaluation.selected_by == f"last update, interpolated with alpha={curve.chosen:g}"
    columns = read_predictions(project / "wise" / names.PREDICTIONS_FILE)["ood/a"].columns
    assert np.mean(columns["label"] == columns["prediction"]) == pytest.approx(curve.scores["ood/a"][chosen])


def test_head_of_the_first_stage(project):
    interpolation = {"alphas": [0.0, 0.5, 1.0], "alpha": 0.0, "head": "first_stage"}
    settings = {"intervention": {**LP_FT["intervention"], "weight_interpolation": interpolation}}
    record, config = run(project, "wise", **settings)
    head = read_first_stage(project / "wise")
    assert {name.split(".")[0] for name in head} <= {"classifier", "bert"}
    saved, before = weights(project, "wise"), experiment.prepare(config).model.state_dict()
    for name, weight in saved.items():
        assert torch.equal(weight, head.get(name, before[name])), name
    assert not torch.equal(head["classifier.weight"], before["classifier.weight"])
    assert record.interpolation.head == "first_stage"
    assert accuracies(record) == {name: scores[0] for name, scores in record.interpolation.scores.items()}
    fine_tuned, _ = run(project, "plain", **LP_FT)
    assert accuracies(fine_tuned) == {name: scores[2] for name, scores in record.interpolation.scores.items()}
    assert [stage.step for stage in record.intervention.stages] == [0, 4]


@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize("last", [3, 8, 12])
def test_a_run_that_was_stopped_ends_with_the_same_model(project, monkeypatch, last):
    """Before the first release, after it, and after training."""
    interpolation = {"alphas": [0.0, 0.5, 1.0], "alpha": 0.5, "head": "first_stage"}
    settings = {
        "intervention": {**LP_FT["intervention"], "weight_interpolation": interpolation},
        "training__save_strategy": "steps",
        "training__save_steps": 1,
        "training__save_total_limit": 12,
    }
    whole, _ = run(project, "whole", **settings)

    def killed(*arguments, **keywords):
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "interpolated_run", killed)
        with pytest.raises(MemoryError, match="killed"):
            run(project, "stopped", **settings)
    for step in range(last + 1, 13):
        (project / "stopped" / f"checkpoint-{step}" / "trainer_state.json").unlink()
    again, _ = run(project, "stopped", **settings)
    assert again.interpolation == whole.interpolation
    assert again.evaluation == whole.evaluation
    expected, got = weights(project, "whole"), weights(project, "stopped")
    assert all(torch.equal(got[name], weight) for name, weight in expected.items())


def test_the_preset_runs(project):
    record, config = run(project, "wise", preset="wortsman2022_wise_ft", intervention={})
    assert config.training["max_steps"] == 12
    assert record.interpolation.alphas == tuple(step / 10 for step in range(11))
    assert record.evaluation.selected_by == "last update, interpolated with alpha=0.5"


def test_without_interpolation_there_is_no_record(project):
    record, _ = run(project, "plain", **PLAIN)
    assert record.interpolation is None
    assert record.evaluation.selected_by == "last update"


def test_a_schedule_that_never_has_a_first_stage_alone_is_refused(project):
    interpolation = {"head": "first_stage"}
    with pytest.raises(ConfigurationError, match="training does not begin with a stage in which the head"):
        run(project, "wise", **PLAIN, intervention__weight_interpolation=interpolation)
