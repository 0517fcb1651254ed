from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from hf_early_ood.errors import DataError
from hf_early_ood.evaluation.classification import NUM_BINS, classification_scores
from hf_early_ood.evaluation.metrics import METRICS, FloatArray, IntArray, classification_metrics


def _ece(labels: IntArray, predictions: IntArray, probabilities: FloatArray) -> float:
    """As it is defined, bin by bin."""
    top = probabilities[np.arange(len(labels)), predictions]
    total = 0.0
    for b in range(NUM_BINS):
        inside = (top > b / NUM_BINS) & (top <= (b + 1) / NUM_BINS)
        if inside.any():
            right = (labels == predictions)[inside].mean()
            total += inside.mean() * abs(right - top[inside].mean())
    return total


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), classes=st.integers(2, 5), seed=st.integers(0, 1000))
def test_agrees_with_the_definitions(n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.integers(0, classes, n), rng.dirichlet(np.full(classes, 0.5), n)
    predictions = probabilities.argmax(axis=1)
    scores = classification_scores(labels, predictions, probabilities)
    expected = classification_metrics(labels, predictions)
    assert {metric: scores.value(metric) for metric in METRICS} == pytest.approx(expected)
    brier = np.mean(
        [sum((p - (c == y)) ** 2 for c, p in enumerate(row)) for y, row in zip(labels, probabilities, strict=True)]
    )
    assert scores.value("brier") == pytest.approx(brier)
    assert scores.value("ece") == pytest.approx(_ece(labels, predictions, probabilities))


def test_of_two_classes_the_brier_score_is_twice_that_of_one() -> None:
    rng = np.random.default_rng(0)
    labels, positive = rng.integers(0, 2, 40), rng.random(40)
    probabilities = np.stack([1 - positive, positive], axis=1)
    scores = classification_scores(labels, probabilities.argmax(axis=1), probabilities)
    assert scores.value("brier") == pytest.approx(2 * brier_score_loss(labels, positive))


def test_extremes() -> None:
    labels, sure = np.array([0, 1]), np.eye(2)
    right = classification_scores(labels, labels, sure)
    wrong = classification_scores(labels, 1 - labels, sure[::-1])
    assert (right.value("brier"), right.value("ece")) == (0, 0)
    assert (wrong.value("brier"), wrong.value("ece")) == (2, 1)
    assert not right.formulas["ece"].higher_is_better
    assert not right.formulas["brier"].higher_is_better


def test_a_probability_on_the_edge_of_a_bin_is_in_the_lower_one() -> None:
    """0.6 = 9/15: with 0.61 in the same bin, errors of opposite sign would cancel."""
    probabilities = np.array([[0.6, 0.4], [0.64, 0.36]])
    scores = classification_scores(np.array([1, 0]), np.array([0, 0]), probabilities)
    assert scores.value("ece") == pytest.approx((0.6 + 0.36) / 2)


def test_bins_cancel_only_inside() -> None:
    probabilities = np.array([[0.62, 0.38], [0.65, 0.35]])
    scores = classification_scores(np.array([1, 0]), np.array([0, 0]), probabilities)
    assert scores.value("ece") == pytest.approx(abs(-0.62 + 0.35) / 2)


def test_calibrated_probabilities_have_metrics_of_their_own() -> None:
    labels, predictions = np.array([0, 1, 1]), np.array([0, 1, 0])
    first, second = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]), np.array([[0.6, 0.4], [0.45, 0.55], [0.55, 0.45]])
    both = classification_scores(labels, predictions, first, calibrated=second)
    for metric in ("brier", "ece"):
        assert both.value(metric) == classification_scores(labels, predictions, first).value(metric)
        alone = classification_scores(labels, predictions, second).value(metric)
        assert both.value(f"{metric}_calibrated") == pytest.approx(alone)
    assert set(classification_scores(labels, predictions).formulas) == set(METRICS)


def test_what_was_to_be_predicted_can_be_compared() -> None:
    labels, other = np.array([0, 1, 1]), np.array([1, 1, 1])
    first = classification_scores(labels, other)
    assert first.examples == classification_scores(labels.astype(np.int32), labels, num_classes=5).examples
    assert first.examples != classification_scores(other, other).examples
    assert first.examples != classification_scores(labels[:2], other[:2]).examples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "There are no examples"),
        (([0], [0, 1]), "Labels and predictions do not fit"),
        (([0, 2], [0, 1], np.full((2, 2), 0.5)), "class id is too large. Got: 2. Allowed: < 2"),
        (([0, 1], [0, 1], np.full((3, 2), 0.5)), r"Probabilities do not fit. Got: \(3, 2\). Allowed: \(2, 2\)"),
        (([0, 1], [0, 1], np.array([[2.0, -1.0], [1.0, 0.0]])), "Rows are not probabilities.*softmax"),
        (([0, 1], [0, 1], np.array([[0.5, 0.6], [1.0, 0.0]])), "Rows are not probabilities"),
        (([0, 1], [0, 1], np.array([[np.nan, 0.6], [1.0, 0.0]])), "Rows are not probabilities"),
    ],
)
def test_what_does_not_fit(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        classification_scores(*(np.asarray(argument) for argument in arguments))
