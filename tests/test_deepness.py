"""Prediction depth of runs and of saved models: the command and the metric of studies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hf_early_ood import experiment, names
from hf_early_ood.cli import main
from hf_early_ood.config import RunConfig, load_run, load_study
from hf_early_ood.deepness import depth_suite, measure_depth
from hf_early_ood.errors import ConfigurationError, ResumeError
from hf_early_ood.evaluating import material
from hf_early_ood.evaluation.predictions import read_predictions
from hf_early_ood.probes.depth import prediction_depth
from hf_early_ood.report.tables import run_table, study_report
from hf_early_ood.rescoring import Scoring, rescore
from hf_early_ood.results import read_run
from hf_early_ood.study import run_study
from hf_early_ood.tasks.depth import DepthReader
from hf_early_ood.tasks.loading import load_tokenizer
from hf_early_ood.tasks.sequence_classification import SequenceClassification
from tests.tiny_project import make_project, run_settings, sentences, study_settings, write_rows, write_yaml

DEPTH = {"k": 5, "support": 40}
SENTIMENT = Path(__file__).parents[1] / "recipes" / "sentiment_across_domains" / "standard.yaml"
LAYERS = ("embeddings", "block.0", "block.1", "block.2", "output")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A run with depths."""
    project = make_project(tmp_path_factory.mktemp("deepness") / "project")
    experiment._load.cache_clear()
    changes = {"training__max_steps": 3, "intervention__interval": 1, "evaluation__prediction_depth": DEPTH}
    experiment.run(RunConfig.from_dict(run_settings(project, **changes)))
    return project


def test_a_run_records_the_depth_of_every_example(project):
    record, predictions = (
        read_run(project / "out" / names.RESULTS_FILE),
        read_predictions(project / "out" / names.PREDICTIONS_FILE),
    )
    for split, part in predictions.items():
        assert part.layers == LAYERS
        assert len(part.depths) == len(part)
        value = record.evaluation.splits[split].metrics[names.PREDICTION_DEPTH]
        assert value.value == pytest.approx(part.depths.mean() / len(LAYERS))
        assert 0 <= value.low <= value.value <= value.high <= 1
    summary = record.evaluation.ood[names.PREDICTION_DEPTH]
    assert not summary.higher_is_better
    assert "Prediction depth, percent of the layers" in run_table(record)
    assert rescore(project / "out", Scoring()).evaluation == record.evaluation


def test_the_command_says_of_the_saved_model_what_its_run_says(project, tmp_path, capsys):
    """Neither the order of the examples nor how they are batched counts."""
    out = tmp_path / "depth"
    assert main(["depth", str(project / "out"), "--output", str(out), "--evaluation.batch_size", "7"]) == 0
    printed = capsys.readouterr().out
    assert "Prediction depth" in printed
    assert "OOD a" in printed
    table = pq.read_table(out / names.DEPTHS_FILE).to_pandas()
    for split, part in read_predictions(project / "out" / names.PREDICTIONS_FILE).items():
        own = table[table[names.SPLIT] == split]
        assert own[names.DEPTH].tolist() == part.depths.tolist()
        assert own[names.PREDICTION].tolist() == part.columns["prediction"].tolist()
        assert own["row"].tolist() == list(range(len(part)))
    assert list(table.columns[4:]) == [f"probe/{layer}" for layer in LAYERS]
    # It replaces what it has written, and nothing else.
    assert main(["depth", str(project / "out"), "--output", str(out), "--dry-run"]) == 0
    assert main(["depth", str(project / "out"), "--output", str(project / "model")]) == 2
    assert "not empty and holds no prediction depth" in capsys.readouterr().err
    said = json.loads((out / names.DEPTH_FILE).read_text())
    assert list(said["splits"]) == ["train", "id_validation", "id_test", "ood/a", "ood/b"]
    assert said["splits"]["train"]["num_examples"] == said["splits"]["id_test"]["num_support"] == 40
    assert said["splits"]["ood/a"]["mean"] == pytest.approx(table[table[names.SPLIT] == "ood/a"][names.DEPTH].mean())


def test_examples_keep_their_order(project):
    """Together, sorted by length and cut into batches, they have the depths that they have alone."""
    suite = depth_suite(str(project / "out"), None)
    checked = material(suite, with_train=True)
    model, tokenizer = checked.blueprint.load(), load_tokenizer(suite.model.name)
    reader = DepthReader(checked.task, model, tokenizer, checked.datasets[names.TRAIN], suite.evaluation)
    dataset = checked.datasets[names.ID_TEST]
    alone = [reader.depth(dataset.select([row])) for row in range(len(dataset))]
    together = reader.depth(dataset)
    assert together.depth.tolist() == [one.depth.item() for one in alone]
    assert together.probes.tolist() == [one.probes[0].tolist() for one in alone]
    assert len(set(together.depth.tolist())) > 1


def test_neighbors_are_what_the_run_was_trained_on(project, tmp_path):
    """Not the near-duplicates of a test set that the run has left out."""
    leaked = [json.loads(line) for line in (project / "test.jsonl").read_text().splitlines()]
    write_rows(tmp_path / "train.jsonl", [*sentences(40, 0), *leaked])
    out = tmp_path / "run"
    settings = run_settings(
        project,
        output_dir=str(out),
        data__train={"source": str(tmp_path / "train.jsonl")},
        data__drop_near_duplicates=True,
        training__max_steps=2,
        intervention={"method": "standard"},
        evaluation__prediction_depth={"k": 5, "support": None},
    )
    experiment.run(RunConfig.from_dict(settings))
    report = measure_depth(depth_suite(str(out), None))
    assert report.splits["id_test"].num_support == read_run(out / names.RESULTS_FILE).data["train"].n <= 40
    for split, part in read_predictions(out / names.PREDICTIONS_FILE).items():
        assert report.splits[split].depth.tolist() == part.depths.tolist()


def test_the_run_of_an_adapter(project, tmp_path):
    """An adapter does not say its labels; the run does."""
    out, folder = tmp_path / "run", tmp_path / "depth"
    changes = {"training__max_steps": 2, "model__lora": {}, "evaluation__prediction_depth": DEPTH}
    settings = run_settings(project, output_dir=str(out), intervention={"method": "standard"}, **changes)
    experiment.run(RunConfig.from_dict(settings))
    assert main(["depth", str(out), "--output", str(folder)]) == 0
    table = pq.read_table(folder / names.DEPTHS_FILE).to_pandas()
    for split, part in read_predictions(out / names.PREDICTIONS_FILE).items():
        assert table[table[names.SPLIT] == split][names.DEPTH].tolist() == part.depths.tolist()


def test_a_checkpoint_on_any_recipe(project, tmp_path, capsys):
    settings = run_settings(project)
    suite = write_yaml(tmp_path / "suite.yaml", {"data": settings["data"]})
    model = str(project / "out" / names.MODEL_FOLDER)
    command = ["depth", model, "--suite", str(suite)]
    assert main([*command, "--evaluation.prediction_depth", "{k: 3, pooling: first}", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["splits"]["id_test"]["pooling"] == "first"
    assert said["splits"]["id_test"]["num_support"] == 64
    assert main([*command, "--dry-run"]) == 0
    assert "ood/b: 20" in capsys.readouterr().out
    # The defaults, and what the recipe says, need as many neighbors as there are.
    assert main([*command, "--evaluation.prediction_depth", "{k: 64}"]) == 2
    assert "too few training examples" in capsys.readouterr().err


def test_what_has_no_depth(project, tmp_path):
    with pytest.raises(ConfigurationError, match=r"Nothing says which sets.*model, which is not a run that has ended"):
        depth_suite(str(project / "model"), None)
    with pytest.raises(ConfigurationError, match=r"Nothing says which sets.*nowhere, which is not there"):
        depth_suite("nowhere", None)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / names.STUDY_FILE).write_text("{}")
    with pytest.raises(ConfigurationError, match=r"Nothing says which sets.*study, which is a study"):
        depth_suite(str(tmp_path / "study"), None)
    (tmp_path / "run").mkdir()
    for file in (names.CONFIG_FILE, names.RESULTS_FILE):
        (tmp_path / "run" / file).write_bytes((project / "out" / file).read_bytes())
    with pytest.raises(ResumeError, match="kept no model"):
        depth_suite(str(tmp_path / "run"), None)
    no_train = run_settings(project)["data"]
    del no_train["train"]
    with pytest.raises(ConfigurationError, match=r"data\.train: this key is required"):
        depth_suite(str(project / "model"), write_yaml(tmp_path / "suite.yaml", {"data": no_train}))


def test_settings_are_checked_before_training(project, tmp_path):
    few = run_settings(project, output_dir=str(tmp_path / "few"), evaluation__prediction_depth={"k": 64})
    with pytest.raises(ConfigurationError, match=r"too few training examples.*k=64, 64 training"):
        experiment.check(RunConfig.from_dict(few))
    wrong = run_settings(project, evaluation__prediction_depth={}, task="multiple_choice")
    with pytest.raises(ConfigurationError, match=r"evaluation\.prediction_depth: is not defined for multiple_choice"):
        RunConfig.from_dict(wrong)
    with pytest.raises(ConfigurationError, match=r"evaluation\.prediction_depth\.k"):
        RunConfig.from_dict(run_settings(project, evaluation__prediction_depth={"k": 0}))


def test_arms_are_compared_in_depth(project, tmp_path):
    changes = {"training__max_steps": 2, "intervention__interval": 1, "evaluation__prediction_depth": DEPTH}
    settings = study_settings(project, **changes)
    settings["output_dir"] = str(tmp_path / "study")
    settings["evaluation"]["save_model"] = False
    record = run_study(load_study(write_yaml(tmp_path / "study.yaml", settings)))
    found = {item.split: item for item in record.comparisons if item.metric == names.PREDICTION_DEPTH}
    depths = {
        arm: [
            read_predictions(tmp_path / "study" / run.path / names.PREDICTIONS_FILE)["ood/a"].depths.mean()
            for run in runs
        ]
        for arm, runs in record.arms.items()
    }
    difference = (np.mean(depths["gradual"]) - np.mean(depths["standard"])) / len(LAYERS)
    assert found["ood/a"].difference == pytest.approx(difference)
    assert found["ood/a"].low <= difference <= found["ood/a"].high
    assert not found["ood/a"].higher_is_better
    assert "Prediction depth, percent of the layers" in study_report(record)
    assert main(["report", str(tmp_path / "study")]) == 0
    assert "Prediction depth, percent of the layers" in (tmp_path / "study" / "report.html").read_text()
    settings["study"]["arms"]["gradual"]["evaluation"] = {"prediction_depth": {"k": 3}}
    with pytest.raises(ConfigurationError, match="all arms are judged alike"):
        load_study(write_yaml(tmp_path / "other.yaml", settings))


def test_without_the_key_nothing_is_measured(project):
    config = RunConfig.from_dict(run_settings(project))
    assert config.evaluation.prediction_depth is None
    report = measure_depth(depth_suite(str(project / "out"), None))  # as its run says
    assert report.splits["id_test"].k == 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_texts_with_random_labels_are_decided_deeper():
    """MiniLM on 128 tweets, half of them positive, until it knows the label of each."""
    task, splits = SequenceClassification(max_length=32), experiment.load(load_run(SENTIMENT))
    labels = np.array(splits[names.TRAIN]["label"][:])
    chosen = np.concatenate([np.flatnonzero(labels == label)[:64] for label in (0, 1)])
    depths = {}
    for kind in ("real", "random"):
        torch.manual_seed(0)
        model, tokenizer = task.load("bundled:all-MiniLM-L6-v2", splits.label_names)
        rows, collate = task.encode(splits[names.TRAIN].select(chosen), tokenizer).rows, task.collator(tokenizer)
        if kind == "random":
            shuffled = torch.tensor(rows["labels"][:])[torch.randperm(128)].tolist()
            rows = rows.remove_columns("labels").add_column("labels", shuffled)
        order = torch.randperm(128).split(32)
        batches = [dict(collate([rows[int(row)] for row in part])) for part in order]
        optimizer = torch.optim.AdamW(model.eval().parameters(), lr=2e-4)
        known = 0
        while known < 128:
            known = 0
            for batch in batches:
                outputs = model(**batch)
                known += int((outputs.logits.argmax(-1) == batch["labels"]).sum())
                optimizer.zero_grad()
                outputs.loss.backward()
                optimizer.step()
        depths[kind] = prediction_depth(model, batches).mean
    assert depths["random"] > depths["real"] + 0.3
