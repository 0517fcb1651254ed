"""A user's own data: three files and the short YAML file of the README, no validation set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_early_ood import experiment, names
from hf_early_ood.cli import USER_ERROR, main
from hf_early_ood.results import read_run, read_study
from tests.tiny_project import make_project

README = Path(__file__).parents[2] / "README.md"
OWN_DATA = README.read_text(encoding="utf-8").partition("\n## Your own data\n")[2].partition("\n## ")[0]
(OWN,) = re.findall(r"```yaml\n(.*?)```", OWN_DATA, flags=re.DOTALL)
TINY = [
    "--model.name",
    "./model",
    "--data.max_length",
    "32",
    "--training.max_steps",
    "10",
    "--training.use_cpu",
    "true",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    experiment._load.cache_clear()
    monkeypatch.chdir(make_project(tmp_path / "project"))
    for unused in ("validation.jsonl", "b.jsonl"):
        (tmp_path / "project" / unused).unlink()
    (tmp_path / "project" / "a.jsonl").rename(tmp_path / "project" / "reviews.jsonl")
    return tmp_path / "project"


def test_three_files_and_fifteen_lines_give_the_verdict(folder, capsys):
    assert len(OWN.splitlines()) <= 15
    (folder / "reviews.yaml").write_text(OWN)
    assert main(["validate", "reviews.yaml", *TINY]) == 0
    assert main(["study", "reviews.yaml", *TINY]) == 0
    printed = capsys.readouterr().out
    record = read_study(folder / "runs" / "reviews" / names.STUDY_FILE)
    assert record.name == "reviews"
    assert {comparison.split for comparison in record.comparisons} >= {"id_test", "ood/reviews"}
    assert (folder / "runs" / "reviews" / names.VERDICT_FILE).read_text() in printed
    run = read_run(folder / "runs" / "reviews" / "gradual" / "seed1" / names.RESULTS_FILE)
    assert set(run.data) == {"train", "id_test", "ood/reviews"}
    assert run.evaluation.selected_by == "last update"
    assert run.config["data"]["id_validation"] is None


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("--training.load_best_model_at_end=true", "training.load_best_model_at_end"),
        ("--training.metric_for_best_model=loss", "training.metric_for_best_model"),
        ("--training.eval_strategy=epoch", "training.eval_strategy"),
        ("--intervention.weight_interpolation={}", "intervention.weight_interpolation"),
    ],
)
def test_without_a_validation_set_nothing_is_chosen(folder, capsys, option, key):
    (folder / "reviews.yaml").write_text(OWN)
    assert main(["validate", "reviews.yaml", *TINY, option]) == USER_ERROR
    assert f"{key}: needs examples to choose by: give data.id_validation." in capsys.readouterr().err
