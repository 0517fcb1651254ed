"""What may be published, what is in the folder, and what is not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import yaml

from hf_early_ood.config import RunConfig
from hf_early_ood.errors import PublishError, ResumeError
from hf_early_ood.folders import sha256
from hf_early_ood.hub.card import CardOptions
from hf_early_ood.hub.folder import prepare_model, read_source
from hf_early_ood.results import RunRecord, read_run, write_record

OPTIONS = CardOptions(repo_id="jane/tiny")


def prepare(folder):
    return prepare_model(read_source(folder), OPTIONS)


def change(folder, **values):
    file = folder / "results.json"
    write_record(file, replace(read_run(file), **values))


def test_the_folder_of_a_run(one_run, project, monkeypatch):
    (one_run / "model/training_args.bin").write_bytes(b"pickle")
    (one_run / "model/README.md").write_text("empty")
    (one_run / "checkpoint-3").mkdir()
    (one_run / "checkpoint-3/model.safetensors").write_bytes(b"x")
    publication = prepare(one_run)
    assert list(publication.files) == [
        "README.md", "config.json", "config.yaml", "dynamics.jsonl", "figures/signal.png", "model.safetensors",
        "results.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert any("training_args.bin is left out" in note for note in publication.notes)
    assert RunRecord.from_dict(json.loads(publication.content("results.json"))).arm == "gradual"
    monkeypatch.chdir(project)  # where the files are, the settings can be used as they are
    RunConfig.from_dict(yaml.safe_load(publication.content("config.yaml")))
    assert "figures/signal.png" in publication.content("README.md").decode()


def test_an_adapter(finished_adapter):
    publication = prepare(finished_adapter)
    assert "adapter_model.safetensors" in publication.files
    settings = json.loads(publication.content("adapter_config.json"))
    assert settings["base_model_name_or_path"] == "model"
    card = publication.content("README.md").decode()
    assert "library_name: peft" in card
    assert any("adapter_config.json, base_model_name_or_path" in note for note in publication.notes)


def test_an_adapter_of_the_bundled_model_names_what_others_can_load(finished_adapter, tmp_path):
    folder = shutil.copytree(finished_adapter, tmp_path / "run")
    settings = folder / "model/adapter_config.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "base_model_name_or_path": "/venv/site-packages/gt/model"}))
    record = read_run(folder / "results.json")
    hashes = {**record.weights, settings.name: sha256(settings)}
    change(folder, model=replace(record.model, name="bundled:all-MiniLM-L6-v2", is_local=False), weights=hashes)
    publication = prepare(folder)
    found = json.loads(publication.content("adapter_config.json"))["base_model_name_or_path"]
    assert found == "sentence-transformers/all-MiniLM-L6-v2"
    card = publication.content("README.md").decode()
    assert "base_model: sentence-transformers/all-MiniLM-L6-v2" in card
    assert "base_model_relation: adapter" in card
    assert "PeftModel.from_pretrained" in card


def test_nothing_about_the_machine_is_in_it(one_run, finished_adapter, project):
    for folder in (one_run, finished_adapter):
        publication = prepare(folder)
        for path in publication.files:
            content = publication.content(path)
            assert str(project).encode() not in content, path
            assert b"jane_private" not in content, path
        assert any("train.jsonl is given as train.jsonl" in note for note in publication.notes)
    assert "Paths on the machine are given by their last part" in publication.content("README.md").decode()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"status": "failed", "error": "boom"}, "The run has failed"),
        ({"evaluation": None}, "The run has not been evaluated"),
        ({"weights": {}}, "does not say which weights were evaluated"),
        (
            {"weights": {"model.safetensors": "0" * 64}},
            "The model is not the one that was evaluated.*model.safetensors",
        ),
        ({"weights": {"model.safetensors": "0" * 64, "more.safetensors": "1"}}, "model.safetensors, more.safetensors"),
    ],
)
def test_runs_that_are_refused(one_run, values, message):
    change(one_run, **values)
    with pytest.raises(PublishError, match=message):
        read_source(one_run)


def test_weights_that_were_trained_further_are_refused(one_run):
    file = one_run / "model/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(PublishError, match="The model is not the one that was evaluated"):
        read_source(one_run)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_another_configuration_or_tokenizer_is_refused(one_run, name):
    """It would predict something else than what was judged."""
    file = one_run / "model" / name
    file.write_text(file.read_text().replace("\n", "\n ", 1))
    with pytest.raises(PublishError, match=f"not the one that was evaluated.*{name} in"):
        read_source(one_run)
    # Of a record from before these were noted, the weights are compared.
    weights = json.loads((one_run / "results.json").read_text())["weights"]
    change(one_run, weights={"model.safetensors": weights["model.safetensors"]})
    assert read_source(one_run)


def test_a_card_written_beside_the_model_is_no_part_of_it(one_run):
    (one_run / "model" / "README.md").write_text("mine")
    assert read_source(one_run)


def test_pickled_weights_are_refused(one_run):
    (one_run / "model/model.safetensors").rename(one_run / "model/pytorch_model.bin")
    with pytest.raises(PublishError, match=r"no weights in safetensors.*pytorch_model\.bin"):
        read_source(one_run)


def test_a_run_without_results_is_refused(one_run):
    (one_run / "results.json").unlink()
    with pytest.raises(ResumeError, match="no such results file"):
        read_source(one_run)


@pytest.mark.parametrize(
    "path", ["model/notes.txt", "dynamics.jsonl", "signal.png", "model/model.safetensors", "results.json"]
)
def test_links_that_lead_out_are_refused(one_run, tmp_path, path):
    secret = tmp_path / "secret"
    if (one_run / path).exists():
        (one_run / path).rename(secret)
    else:
        secret.write_text("secret")
    (one_run / path).symlink_to(secret)
    with pytest.raises(PublishError, match="from outside of the folder"):
        prepare(one_run)


def test_a_linked_folder_of_a_model_is_refused(one_run, tmp_path):
    (one_run / "model").rename(tmp_path / "elsewhere")
    (one_run / "model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PublishError, match="from outside of the folder"):
        prepare(one_run)


def test_a_study_that_points_out_of_its_folder_is_refused(study):
    file = study / "study.json"
    data = json.loads(file.read_text())
    for runs in data["arms"].values():
        for run in runs:
            run["path"] = "../outside"
    file.write_text(json.dumps(data))
    with pytest.raises(PublishError, match="from outside of the folder"):
        read_source(study)


def test_a_study_that_is_older_than_its_runs_is_refused(study):
    for folder in study.glob("*/seed*"):
        change(folder, evaluation=replace(read_run(folder / "results.json").evaluation, selected_by="something else"))
    with pytest.raises(PublishError, match="not about the run that is in the folder now"):
        read_source(study)


def test_benchmarks(one_run):
    publication = prepare_model(
        read_source(one_run), OPTIONS, ["ood/a=org/bench:hard", "ood/b=org/bench", "id_test=org/two"]
    )
    entries = yaml.safe_load(publication.content(".eval_results/org__bench.yaml"))
    assert [entry["dataset"] for entry in entries] == [
        {"id": "org/bench", "task_id": "hard"}, {"id": "org/bench", "task_id": "default"},
    ]  # fmt: skip
    record = read_run(one_run / "results.json")
    assert entries[0]["value"] == pytest.approx(record.evaluation.splits["ood/a"].metrics["balanced_accuracy"].value)
    assert "n = 20" in entries[0]["notes"]
    assert ".eval_results/org__two.yaml" in publication.files
    for benchmark, message in (
        ("nonsense", "not usable"),
        ("org/other", "No evaluated set"),
        ("ood/z=org/x", "No eval"),
    ):
        with pytest.raises(PublishError, match=message):
            prepare_model(read_source(one_run), OPTIONS, [benchmark])
