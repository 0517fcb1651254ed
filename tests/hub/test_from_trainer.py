"""The card of a Trainer: no evaluation set is dropped, and what a person wrote is kept."""

from __future__ import annotations

import logging

import pytest
import torch
from huggingface_hub import ModelCard

from hf_early_ood import EarlyOODArguments, EarlyOODTrainer
from hf_early_ood.hub.card import MARKER, NOT_EVALUATED
from hf_early_ood.tasks.adapters import with_lora
from tests import families
from tests.training import Rows, make_trainer

SETS = {"id_test": Rows(12), "ood/a": Rows(9), "ood/b": Rows(16)}


def ours(folder, **arguments):
    settings = {"intervention": "standard", "max_steps": 2, **arguments}
    return make_trainer(folder, [], trainer_class=EarlyOODTrainer, arguments_class=EarlyOODArguments, **settings)


def entries(folder):
    return ModelCard.load(folder / "README.md").data.to_dict()["model-index"][0]["results"]


def test_every_set_of_a_dict_is_in_the_card(tmp_path):
    trainer = ours(tmp_path, intervention="gradual_unfreezing", unfreezing_interval="1", max_steps=6)
    trainer.train()
    metrics = trainer.evaluate(SETS)
    trainer.create_model_card(model_name="mine", language="en", license="mit", tags="toy", dataset_tags="org/data")
    card = ModelCard.load(tmp_path / "README.md")
    assert [entry["dataset"]["name"] for entry in entries(tmp_path)] == ["ID test", "OOD a", "OOD b"]
    assert len({result.unique_identifier for result in card.data.eval_results}) == 3
    accuracies = [result.metric_value for result in card.data.eval_results if result.metric_type == "accuracy"]
    assert accuracies == pytest.approx([metrics[f"eval_{name}_accuracy"] for name in SETS], abs=1e-6)
    assert (card.data.license, card.data.language, card.data.datasets) == ("mit", ["en"], ["org/data"])
    assert {"toy", "generated_from_trainer", "gradual-unfreezing"} <= set(card.data.tags)
    for text in ("# mine", "| OOD mean |", "block.2", "AdamW", "2403.15210"):
        assert text in card.text, text
    assert str(tmp_path) not in card.content


def test_one_set_without_a_name(tmp_path):
    trainer = ours(tmp_path)
    trainer.evaluate(Rows(12))
    trainer.create_model_card()
    (entry,) = entries(tmp_path)
    assert entry["dataset"]["name"] == "evaluation"
    assert {metric["type"] for metric in entry["metrics"]} == {"accuracy", "balanced_accuracy", "f1"}


def test_sets_of_a_task_without_intervals(tmp_path):
    model = families.build("bert", num_labels=1, problem_type="regression")

    class Floats(Rows):
        def __init__(self, size):
            super().__init__(size)
            self.labels = torch.rand(size)

    trainer = make_trainer(
        tmp_path, [], model=model, dataset=Floats(16), trainer_class=EarlyOODTrainer, max_steps=2,
        arguments_class=EarlyOODArguments, intervention="standard",
        compute_metrics=lambda prediction: {"size": len(prediction.label_ids), "mse": 1.5},
    )  # fmt: skip
    trainer.evaluate({"a": Floats(8), "a_b": Floats(4)})
    trainer.create_model_card()
    assert [[metric["value"] for metric in entry["metrics"]] for entry in entries(tmp_path)] == [[8, 1.5], [4, 1.5]]
    assert "| a | 8 |" in (tmp_path / "README.md").read_text()


def test_scores_of_other_weights_are_not_in_the_index(tmp_path):
    trainer = ours(tmp_path)
    trainer.evaluate(SETS)
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "model-index" not in text
    assert "The scores are those after update 0, and these weights are others." in text


def test_scores_of_an_earlier_training_of_as_many_updates_are_not_those_of_this_one(tmp_path):
    trainer = ours(tmp_path)
    trainer.train()
    trainer.evaluate(SETS)
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "model-index" not in text
    assert "these weights are others" in text


def test_scores_of_a_resumed_training_stay(tmp_path):
    trainer = ours(tmp_path, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.evaluate(SETS)
    trainer.train(resume_from_checkpoint=True)  # of its last update: the same weights
    trainer.create_model_card()
    assert len(entries(tmp_path)) == 3


@pytest.mark.parametrize("second", [{"ood/b": SETS["ood/b"]}, "ood/b"])
def test_sets_that_were_judged_one_by_one_have_no_mean_of_some_of_them(tmp_path, second):
    trainer = ours(tmp_path, eval_dataset=SETS)
    trainer.evaluate({name: SETS[name] for name in ("id_test", "ood/a")})
    trainer.evaluate(second)
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert [entry["dataset"]["name"] for entry in entries(tmp_path)] == ["ID test", "OOD a", "OOD b"]
    assert "| OOD b | 16 |" in text
    assert "\n| OOD mean |" not in text
    assert "mean of 2 sets" not in text
    trainer.evaluate({name: SETS[name] for name in ("ood/a", "ood/b")})
    trainer.evaluate({"id_test": SETS["id_test"]})
    trainer.create_model_card()
    assert "out of distribution mean of 2 sets" in (tmp_path / "README.md").read_text()


def test_scores_of_the_best_checkpoint(tmp_path):
    """The last evaluation is of weights that are not kept."""
    trainer = ours(
        tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_id_test_accuracy", eval_dataset=SETS,
    )  # fmt: skip
    trainer.train()
    trainer.create_model_card()
    result = next(r for r in ModelCard.load(tmp_path / "README.md").data.eval_results if r.metric_type == "accuracy")
    assert result.metric_value == pytest.approx(trainer.state.best_metric, abs=1e-6)
    assert "eval_id_test_accuracy" in (tmp_path / "README.md").read_text()


def test_a_checkpoint_that_ood_data_chose_is_said(tmp_path):
    trainer = ours(
        tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, eval_dataset=SETS,
        load_best_model_at_end=True, metric_for_best_model="eval_ood/a_accuracy",
    )  # fmt: skip
    trainer.train()
    trainer.create_model_card()
    assert "this is out-of-distribution data" in (tmp_path / "README.md").read_text()


def test_what_a_person_wrote_is_kept(tmp_path, caplog):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# My words\n")
    trainer = ours(tmp_path)
    trainer.evaluate(SETS)
    with caplog.at_level(logging.WARNING, logger="hf_early_ood"):
        trainer.create_model_card()
    assert (tmp_path / "README.md").read_text().endswith("# My words\n")
    assert "was written by a person and is kept" in caplog.text


def test_a_trainer_that_did_nothing_leaves_the_results(tmp_path):
    trainer = ours(tmp_path)
    trainer.evaluate(SETS)
    trainer.create_model_card()
    before = (tmp_path / "README.md").read_text()
    assert MARKER in before
    ours(tmp_path).create_model_card()
    assert (tmp_path / "README.md").read_text() == before
    trained = ours(tmp_path)
    trained.train()
    trained.create_model_card()  # other weights: the old results are not theirs
    assert NOT_EVALUATED in (tmp_path / "README.md").read_text()


def test_adapters_and_the_card_that_peft_writes(tmp_path):
    model = with_lora(families.build("bert"), r=2)
    model.base_model.model.config._name_or_path = "/home/jane/models/secret"
    model.peft_config["default"].base_model_name_or_path = "/home/jane/models/secret"
    trainer = make_trainer(
        tmp_path, [], model=model, trainer_class=EarlyOODTrainer, arguments_class=EarlyOODArguments,
        intervention="standard", max_steps=1,
    )  # fmt: skip
    trainer.evaluate(SETS)
    trainer.save_model()
    assert "jane" in (tmp_path / "README.md").read_text()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    assert "jane" not in card.content
    assert "a local model, secret" in card.text
    assert len(entries(tmp_path)) == 3
