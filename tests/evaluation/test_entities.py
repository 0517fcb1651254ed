from __future__ import annotations

import warnings

import numpy as np
import pytest
import seqeval.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from hf_early_ood.errors import DataError
from hf_early_ood.evaluation.entities import entities, entity_scores

REFERENCE = {
    "f1": seqeval.metrics.f1_score,
    "precision": seqeval.metrics.precision_score,
    "recall": seqeval.metrics.recall_score,
    "accuracy": seqeval.metrics.accuracy_score,
}
TAG = st.sampled_from(["O", "B", "I", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC", "A-B"))])
TEXTS = st.lists(st.lists(st.tuples(TAG, TAG), max_size=8), min_size=1, max_size=5)


def values(labels: list[list[str]], predictions: list[list[str]]) -> dict[str, float]:
    scores = entity_scores(labels, predictions)
    return {name: float(formula.of_sums(scores.columns.sum(0))) for name, formula in scores.formulas.items()}


def reference(labels: list[list[str]], predictions: list[list[str]]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: float(score(labels, predictions)) for name, score in REFERENCE.items()}


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_random_tags_are_scored_as_by_seqeval(texts: list[list[tuple[str, str]]]) -> None:
    labels, predictions = [[a for a, _ in text] for text in texts], [[b for _, b in text] for text in texts]
    for tags in labels + predictions:
        assert entities(tags) == set(get_entities(tags))
    assume(any(map(entities, labels)))
    assert values(labels, predictions) == pytest.approx(reference(labels, predictions))


# By the script of CoNLL-2000: what begins and ends an entity.
@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-PER I-PER", {("PER", 0, 1)}),
        ("O I-PER B-PER", {("PER", 1, 1), ("PER", 2, 2)}),
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("B-PER O I-PER", {("PER", 0, 0), ("PER", 2, 2)}),
        ("B-PER E-PER I-PER", {("PER", 0, 1), ("PER", 2, 2)}),
        ("S-PER I-PER S-PER", {("PER", 0, 0), ("PER", 1, 1), ("PER", 2, 2)}),
        ("B-A-B I-A-B", {("A-B", 0, 1)}),
        ("B I O", {("_", 0, 1)}),
        ("", set()),
    ],
)
def test_where_entities_begin_and_end(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected == set(get_entities(tags.split()))


def test_known_values() -> None:
    labels = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"], ["B-LOC", "I-LOC"]]
    predictions = [["B-PER", "O", "O", "B-LOC"], ["B-ORG", "O"], ["B-LOC", "I-LOC"]]
    # 3 entities given, 4 predicted, 2 right; 6 of 8 tags.
    expected = {"f1": 4 / 7, "precision": 2 / 4, "recall": 2 / 3, "accuracy": 6 / 8}
    assert values(labels, predictions) == pytest.approx(expected)
    assert reference(labels, predictions) == pytest.approx(expected)


def test_nothing_predicted() -> None:
    labels, predictions = [["B-PER", "O"]], [["O", "O"]]
    assert values(labels, predictions) == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 0.5}
    assert values(labels, predictions) == reference(labels, predictions)


def test_scores_of_examples_add_up() -> None:
    labels, predictions = [["B-PER"], ["O"], []], [["B-PER"], ["B-PER"], []]
    scores = entity_scores(labels, predictions, groups=np.array([0, 0, 1]))
    assert scores.columns.tolist() == [[1, 1, 1, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert scores.groups is not None
    assert scores.groups.tolist() == [0, 0, 1]
    # Resamples: the whole, and one without entities, of which precision and accuracy only are defined.
    sums = np.array([[1.0, 2, 1, 1, 2], [0, 0, 0, 2, 2]])
    found = {name: formula.of_sums(sums).tolist() for name, formula in scores.formulas.items()}
    assert found == {
        "f1": pytest.approx([2 / 3, np.nan], nan_ok=True),
        "precision": [0.5, 0.0],
        "recall": pytest.approx([1.0, np.nan], nan_ok=True),
        "accuracy": [0.5, 1.0],
    }


def test_same_examples_have_the_same_hash() -> None:
    one = entity_scores([["B-PER"], ["O"]], [["O"], ["O"]])
    assert one.examples == entity_scores([["B-PER"], ["O"]], [["B-PER"], ["O"]]).examples
    assert one.examples != entity_scores([["B-PER", "O"]], [["O", "O"]]).examples


def test_errors() -> None:
    with pytest.raises(DataError, match=r"no entities in the labels.*2 texts"):
        entity_scores([["O"], []], [["B-PER"], []])
    with pytest.raises(DataError, match=r"not as many predictions as labels.*Got: 1. Allowed: 2"):
        entity_scores([["O"], ["O"]], [["O"]])
    with pytest.raises(DataError, match=r"not as many predicted tags as words.*2 in text 1. Allowed: 1"):
        entity_scores([["B-PER"], ["O"]], [["O"], ["O", "O"]])
    for tag in ("NOUN", "", "PER", "X-PER", "BPER", "b-PER"):
        with pytest.raises(DataError, match=r"does not say where an entity begins.*IOB2"):
            entity_scores([[tag]], [["O"]])
