from __future__ import annotations

import json
import random

import pytest
import torch
from datasets import ClassLabel, Dataset
from transformers import AutoModelForSequenceClassification

from hf_early_ood import names
from hf_early_ood.errors import (
    ConfigurationError,
    DataError,
    NonFiniteError,
    ProbeError,
    ResumeError,
    UnsupportedModelError,
)
from hf_early_ood.probing.candidates import Material, SimilarityRequest
from hf_early_ood.probing.ranking import few_examples, rank_sources
from hf_early_ood.similarities import INFINITE_DEPTH, LINEAR, MEASURES, NTK
from tests.probing.saved import save_classifier
from tests.tiny_project import make_project, sentences, write_rows

SMALL = {"few": 4, "draws": 3, "max_length": 24}


@pytest.fixture
def project(tmp_path):
    """Three files of one task: the target, more of the same, and one whose labels are exchanged."""
    folder = make_project(tmp_path / "project")
    write_rows(folder / "target.jsonl", sentences(48, 10))
    write_rows(folder / "same.jsonl", sentences(60, 11))
    exchanged = {"good": "bad", "bad": "good"}
    write_rows(folder / "exchanged.jsonl", [{**row, "label": exchanged[row["label"]]} for row in sentences(60, 12)])
    return folder


def domains(folder, **changes):
    sources = (str(folder / "exchanged.jsonl"), str(folder / "same.jsonl"))
    return SimilarityRequest(
        **{
            "sources": sources,
            "target": str(folder / "target.jsonl"),
            "model": str(folder / "model"),
            **SMALL,
            **changes,
        }
    )


def test_the_domain_of_the_same_task_is_the_better_source(project):
    record = rank_sources(domains(project), output=project / "out", command="typed")
    assert [source.name for source in record.sources] == ["same.jsonl", "exchanged.jsonl"]
    same, exchanged = record.sources
    for measure in MEASURES:
        assert same.scores[measure].mean < exchanged.scores[measure].mean
    assert same.scores[LINEAR].mean < same.from_scratch.mean < exchanged.scores[LINEAR].mean
    assert (same.first, exchanged.first) == (1.0, 0.0)
    assert same.error_before < 0.5 < exchanged.error_before
    assert same.num_examples == 60
    assert same.scores[LINEAR].deviation > 0
    assert record.labels == ("bad", "good")
    written = json.loads((project / "out" / names.SIMILARITY_FILE).read_text())
    assert written == json.loads(json.dumps(record.to_dict()))
    assert written["request"]["few"] == 4
    # Again: the same numbers, in the place of those before.
    again = rank_sources(domains(project), output=project / "out")
    assert again.sources == record.sources


def test_heads_of_saved_models_on_features_of_their_own(project):
    """A model whose head is fitted to the task, and one with the same head whose classes have exchanged names."""
    target = project / "target.jsonl"
    fitted = project / "fitted"
    save_classifier(project / "model", fitted)
    asked = SimilarityRequest((str(fitted),), str(target), **SMALL)
    (candidate,) = Material.read(asked).candidates(torch.device("cpu"))
    assert candidate.layer == "classifier"
    weights = candidate.target.teacher.weights.T
    turned = project / "turned"
    save_classifier(project / "model", turned, label_names=["good", "bad"])
    for folder, weight in ((fitted, weights), (turned, weights)):  # the second for the other class each
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            model.classifier.weight.copy_(weight)
            model.classifier.bias.copy_(-weight.float() @ candidate.target.mean.float())
        model.save_pretrained(folder)
    record = rank_sources(SimilarityRequest((str(turned), str(fitted)), str(target), **SMALL))
    assert [source.name for source in record.sources] == ["fitted", "turned"]
    good, bad = record.sources
    assert good.error_before < 0.5 < bad.error_before
    assert good.error_before == pytest.approx(1 - bad.error_before)
    assert good.layer == "classifier"
    assert good.explained is None
    assert good.from_scratch.mean == pytest.approx(bad.from_scratch.mean, rel=1e-4)


def test_the_order_of_a_models_classes_does_not_count(project):
    """Three, since two that are exchanged are exchanged back by any mistake."""
    rows = [{**row, "label": "fair" if n % 3 else row["label"]} for n, row in enumerate(sentences(48, 10))]
    write_rows(project / "three.jsonl", rows)
    classes = ["bad", "good", "fair"]
    plain = save_classifier(project / "model", project / "plain", label_names=classes)
    turned = save_classifier(project / "model", project / "turned", label_names=[classes[1], classes[2], classes[0]])
    weights = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    for folder, order in ((plain, [0, 1, 2]), (turned, [1, 2, 0])):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            model.classifier.weight.copy_(weights[order])
            model.classifier.bias.copy_(torch.tensor([0.3, -0.2, 0.1])[order])
        model.save_pretrained(folder)
    asked = SimilarityRequest((str(plain), str(turned)), str(project / "three.jsonl"), **SMALL)
    first, second = Material.read(asked).candidates(torch.device("cpu"))
    assert first.weights.allclose(second.weights)
    assert first.error_before == second.error_before


def test_a_model_that_cannot_be_scored_is_named(project):
    for name in ("fine", "diverged", "silent"):
        folder = save_classifier(project / "model", project / name)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        if name != "fine":
            model.classifier.weight.data.fill_(torch.nan if name == "diverged" else 0.0)
            model.save_pretrained(folder)
    for name, error, message in (
        ("diverged", NonFiniteError, "A logit is NaN"),
        ("silent", ProbeError, "says the same of all examples"),
    ):
        sources = (str(project / "fine"), str(project / name))
        with pytest.raises(error, match=rf"^source .*/{name}: .*{message}"):
            rank_sources(SimilarityRequest(sources, str(project / "target.jsonl"), **SMALL))


def test_it_warns_where_the_target_cannot_be_told(project, caplog):
    draws = random.Random(0)
    noise = [{**row, "label": draws.choice(["good", "bad"])} for row in sentences(48, 10)]
    write_rows(project / "noise.jsonl", noise)
    with caplog.at_level("WARNING"):
        rank_sources(domains(project))
        assert "mean nothing" not in caplog.text
        record = rank_sources(domains(project, target=str(project / "noise.jsonl")))
    assert record.sources[0].target_explained <= 0
    assert "On the features, a linear model of the target tells its labels no better than a guess" in caplog.text


def test_names_that_two_sources_share_are_told_apart(project):
    for parent in ("a", "b"):
        save_classifier(project / "model", project / parent / "model", seed=ord(parent))
    asked = SimilarityRequest(
        (str(project / "a/model"), str(project / "b/model")), str(project / "target.jsonl"), **SMALL
    )
    found = {source.name for source in rank_sources(asked).sources}
    assert found == {str(project / "a/model"), str(project / "b/model")}


def test_a_folder_of_checkpoints_is_a_source_each(project):
    for step in (2, 4):
        save_classifier(project / "model", project / "run" / f"checkpoint-{step}", seed=step)
    asked = SimilarityRequest((str(project / "run"),), str(project / "target.jsonl"), rank_by=NTK, **SMALL)
    record = rank_sources(asked)
    assert {source.name for source in record.sources} == {"checkpoint-2", "checkpoint-4"}
    scores = [source.scores[NTK].mean for source in record.sources]
    assert scores == sorted(scores)


def test_more_examples_than_features_need_a_ridge(project):
    with pytest.raises(ProbeError, match="any source ends at the target"):
        rank_sources(domains(project, few=40))  # the width is 16
    record = rank_sources(domains(project, few=40, ridge=0.1))
    assert record.ranked_by == LINEAR
    assert set(record.sources[0].scores) == {LINEAR, NTK}
    with pytest.raises(ConfigurationError, match=f"Unknown rank_by. Got: {INFINITE_DEPTH}. Allowed: linear, ntk"):
        domains(project, ridge=0.1, rank_by=INFINITE_DEPTH)


def test_draws_differ_and_are_the_same_for_the_same_seed(project):
    asked = domains(project)
    draws = few_examples(48, asked)
    assert [len(set(rows)) for rows in draws] == [4, 4, 4]
    assert draws[0] != draws[1]
    assert few_examples(48, asked) == draws
    one = rank_sources(domains(project, draws=1))
    assert one.sources[0].scores[LINEAR].deviation is None


def test_splits_of_bundled_data():
    asked = SimilarityRequest(("bundled:vader-icwsm2014#movie",), "bundled:vader-icwsm2014#nyt", model="x", size=7)
    spec = asked.spec(asked.sources[0])
    assert (spec.source, spec.split, spec.max_examples) == ("bundled:vader-icwsm2014", "movie", 7)
    assert asked.spec("train.jsonl").split is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sources": ()}, ConfigurationError, "Sources are needed, each once. Got: none"),
        ({"sources": ("a", "a")}, ConfigurationError, "Sources are needed, each once. Got: a, a"),
        ({"sources": "a"}, ConfigurationError, "sources is not usable"),
        ({"few": 0}, ConfigurationError, "few is not usable"),
        ({"ridge": -1}, ConfigurationError, "ridge is not usable"),
        ({"seed": 2**32}, ConfigurationError, r"seed is not usable.*below 2\*\*32"),
        ({"rank_by": "infinite"}, ConfigurationError, "Did you mean 'infinite_depth'"),
        ({"label_names": ("a", "b")}, ConfigurationError, "the labels are those of the target"),
        ({"model": None, "revision": "main"}, ConfigurationError, "--revision is that of --model"),
        ({"few": 48}, DataError, "The target has too few examples"),
        ({"label": "stars"}, DataError, r"^target .*target\.jsonl: A column is not there"),
    ],
)
def test_what_cannot_be_asked(project, change, error, message):
    with pytest.raises(error, match=message):
        Material.read(domains(project, **change))


def test_labels_that_do_not_fit(project):
    rows = sentences(30, 1)
    write_rows(project / "one.jsonl", [{**row, "label": "good"} for row in rows])
    with pytest.raises(DataError, match=r"no example of a class. Got: .*one.jsonl without bad"):
        Material.read(domains(project, sources=(str(project / "one.jsonl"),)))
    write_rows(project / "other.jsonl", [{**row, "label": "fair"} for row in rows])
    with pytest.raises(DataError, match=r"^source .*other\.jsonl: .* not one of those of the target") as found:
        Material.read(domains(project, sources=(str(project / "same.jsonl"), str(project / "other.jsonl"))))
    assert "--label-names" not in str(found.value)  # with --model it is refused
    alone = Dataset.from_dict({"text": [row["text"] for row in rows], "label": [0] * len(rows)})
    alone.cast_column("label", ClassLabel(names=["bad", "good"])).save_to_disk(project / "alone")
    with pytest.raises(ProbeError, match="Two classes are needed"):
        rank_sources(domains(project, target=str(project / "alone"), few=2))


def test_models_that_do_not_fit(project):
    target = str(project / "target.jsonl")
    with pytest.raises(UnsupportedModelError, match="has no head"):
        Material.read(SimilarityRequest((str(project / "model"),), target, **SMALL))
    numbered = save_classifier(project / "model", project / "numbered", label_names=["LABEL_0", "LABEL_1"])
    with pytest.raises(DataError, match=r"not one of those of the model.*--label-names"):
        Material.read(SimilarityRequest((str(numbered),), target, **SMALL))
    named = SimilarityRequest((str(numbered),), target, label_names=("bad", "good"), **SMALL)
    assert Material.read(named).labels == ("bad", "good")
    three = save_classifier(project / "model", project / "three", label_names=["bad", "good", "fair"])
    with pytest.raises(UnsupportedModelError, match="The classes of a source are not those of the target"):
        Material.read(
            SimilarityRequest((str(save_classifier(project / "model", project / "two")), str(three)), target, **SMALL)
        )
    regression = save_classifier(project / "model", project / "regression", label_names=["score"])
    with pytest.raises(UnsupportedModelError, match="no classifier of texts with one label"):
        Material.read(SimilarityRequest((str(regression),), target, **SMALL))


def test_an_output_folder_with_something_else(project):
    with pytest.raises(ResumeError, match="holds no similarity"):
        rank_sources(domains(project), output=project / "model")
