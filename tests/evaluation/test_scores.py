from __future__ import annotations

import pickle

import numpy as np
import pytest

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.evaluation.classification import classification_scores
from hf_early_ood.evaluation.scores import Formula, Scores, hash_examples

MEAN = {"mean": Formula(lambda sums: sums[..., 0] / sums[..., 1], uses=(1, 2))}


def test_a_metric_uses_its_columns() -> None:
    scores = Scores(np.array([[9.0, 1.0, 1.0], [9.0, 0.0, 1.0]]), MEAN, "x")
    assert (scores.value("mean"), len(scores)) == (0.5, 2)
    np.testing.assert_array_equal(scores.used("mean"), [[1, 1], [0, 1]])


def test_unknown_metric() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown metric. Got: meen. Allowed: mean.*Did you mean 'mean'"):
        Scores(np.ones((1, 3)), MEAN, "x").value("meen")


@pytest.mark.parametrize(
    ("columns", "groups", "message"),
    [
        (np.ones(3), None, "wrong shape"),
        (np.ones((0, 3)), None, "There are no examples"),
        (np.array([[1.0, np.nan, 1.0]]), None, "A score is NaN or infinite"),
        (np.array([[1.0, np.inf, 1.0]]), None, "A score is NaN or infinite"),
        (np.ones((2, 3)), np.array([0]), r"Groups do not fit. Got: \(1,\). Allowed: \(2,\)"),
    ],
)
def test_unusable(columns: np.ndarray, groups: np.ndarray | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Scores(columns, MEAN, "x", groups)


def test_hash_of_examples() -> None:
    assert hash_examples(np.array([1, 2])) == hash_examples([1, 2])
    assert hash_examples([[], ["a"]]) != hash_examples([["a"], []])
    assert hash_examples(["ab", "c"]) != hash_examples(["a", "bc"])


def test_scores_of_classes_travel_between_processes() -> None:
    scores = classification_scores(np.array([0, 1]), np.array([0, 0]), np.full((2, 2), 0.5))
    copy = pickle.loads(pickle.dumps(scores))
    assert [copy.value(metric) for metric in copy.formulas] == [scores.value(metric) for metric in scores.formulas]
