"""The card says what the record says, and nothing that the record does not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from hf_early_ood.hub.card import CardOptions, Chosen, model_card
from hf_early_ood.results import DecisionRecord, InterpolationRecord, ModelRecord, SplitRecord, write_record
from tests.hub.records import CONFIG, run_record
from tests.report import records


def test_what_is_in_a_card():
    record = run_record(label_names=("bad", "good"))
    card = model_card(record, options=CardOptions(repo_id="jane/x", license="mit", tags=("toy",)))
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "text-classification")
    assert data.base_model == "google-bert/bert-base-uncased"
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert {"hf-early-ood", "gradual-unfreezing", "toy"} <= set(data.tags)
    for text in (
        "| OOD a | 500 | 70.0 [68.0, 72.0] |",
        "released from update 40 on: signal stable",
        "| betas | 0.9, 0.999 |",
        "| head |",
        "tells apart: bad, good",
        "3 nearly repeat a training text; 2 are longer than what the model was given to see",
        "another seed gives other scores",
        "hf-early-ood run config.yaml",
        "hf-early-ood run x.yaml",
        "arXiv 2403.15210",
        "arXiv 1801.06146",
        'pipeline("text-classification", model="jane/x")',
    ):
        assert text in card.text, text
    assert "jane/runs" not in card.content
    assert "secret" not in card.content


def test_a_minimal_record():
    record = run_record(config={}, sets=("ood/a",))
    bare = replace(record, model=None, training=None, intervention=None, evaluation=None, data={}, command="")
    card = model_card(bare)
    assert "These weights have not been evaluated." in card.text
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}


def test_adapters():
    config = {**CONFIG, "model": {**CONFIG["model"], "lora": {"r": 4, "target_modules": None}}}
    card = model_card(run_record(config, label_names=("a", "b", "c")), options=CardOptions(repo_id="jane/x"))
    assert card.data.library_name == "peft"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "| lora.r | 4 |" in card.text
    assert "labels = {0: 'a', 1: 'b', 2: 'c'}" in card.text
    assert "arXiv 2106.09685" in card.text


def test_a_local_base_model_is_no_base_model_on_the_hub():
    record = replace(run_record(), model=ModelRecord("models/mine", 1000, is_local=True))
    card = model_card(record)
    assert card.data.base_model is None
    assert "a local model, mine" in card.text


def test_bundled_sources_are_credited():
    data = {"train": {"source": "bundled:vader-icwsm2014", "split": "tweets/train"}}
    record = run_record({**CONFIG, "data": {**CONFIG["data"], **data}})
    record = replace(record, model=ModelRecord("bundled:all-MiniLM-L6-v2", 22_713_986, is_local=False))
    card = model_card(record)
    assert (card.data.license, card.data.language) == ("apache-2.0", ["en"])
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert "Hutto, C.J. & Gilbert, E.E. (2014)" in card.text
    assert card.data.datasets is None


def test_data_sets_and_languages_of_the_hub():
    ood = {"de": {"source": "facebook/xnli", "name": "de", "split": "test"}}
    record = run_record({**CONFIG, "data": {**CONFIG["data"], "ood": ood}}, sets=("ood/de",))
    data = {**record.data, "ood/de": SplitRecord(9, "f", language="de-AT"), "train": SplitRecord(9, "f", language="en")}
    card = model_card(replace(record, data=data))
    assert card.data.datasets == ["facebook/xnli"]
    assert card.data.language == ["en", "de"]
    assert "texts in English, German" in card.text


def test_text_from_data_is_escaped():
    evil = "<script>alert(1)</script> [x](http://evil) `code` | pipe\n# heading"
    record = run_record(label_names=(evil,), sets=("ood/a",))
    splits = {**record.evaluation.splits}
    splits["ood/a"] = replace(splits["ood/a"], notes=(evil,))
    splits[evil] = splits["ood/a"]
    text = model_card(replace(record, evaluation=replace(record.evaluation, splits=splits))).text
    assert "<script>" not in text
    assert "](http://evil)" not in text
    assert "\n# heading" not in text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"reason": "fallback"}, "the moment of release is the fallback"),
        ({"at_first_chance": True}, "may not have begun to move"),
    ],
)
def test_weak_decisions_are_said(changes, text):
    record = run_record()
    decision = replace(record.intervention.decision or DecisionRecord(1, "stable"), **changes)
    record = replace(record, intervention=replace(record.intervention, decision=decision))
    assert text in model_card(record).text


def test_ood_data_that_chose_is_said():
    record = run_record()
    evaluation = replace(record.evaluation, selected_by="ood/a accuracy")
    assert "are too good" in model_card(replace(record, evaluation=evaluation)).text
    assert "are too good" not in model_card(record).text
    decision = replace(record.intervention.decision, settings={"signals": ["fisher_trace", "eval_ood/a_loss"]})
    record = replace(record, intervention=replace(record.intervention, decision=decision))
    assert "eval_ood/a_loss chose the weights, or the moment" in model_card(record).text


def test_interpolated_weights_are_said():
    path = InterpolationRecord("accuracy", "final", (0.0, 0.5, 1.0), {"id_validation": (0.1, 0.3, 0.2)}, 0.5)
    assert "alpha = 0.5" in model_card(run_record(interpolation=path)).text


def test_all_arms_of_a_study():
    study = replace(records.study(seeds=(1, 2)), command="hf-early-ood study /home/jane/x.yaml")
    text = model_card(run_record(), chosen=Chosen(study, "Chosen by ID validation.")).text
    assert "Chosen by ID validation." in text
    assert "| standard (baseline) | 2 |" in text
    assert "gradual is better than standard" in text


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets", "peft", "accelerate"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from pathlib import Path
from hf_early_ood.hub import model_card
from hf_early_ood.results import read_run
model_card(read_run(sys.argv[1])).save(sys.argv[2])
try:
    import torch
except ModuleNotFoundError:
    print("done")
"""


def test_a_results_file_alone_is_enough(tmp_path):
    write_record(tmp_path / "results.json", run_record())
    words = [sys.executable, "-c", WITHOUT, str(tmp_path / "results.json"), str(tmp_path / "README.md")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr
    assert len(ModelCard.load(tmp_path / "README.md").data.eval_results) == 4
