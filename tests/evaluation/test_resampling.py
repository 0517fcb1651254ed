from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from hf_early_ood.evaluation.classification import classification_scores
from hf_early_ood.evaluation.metrics import FloatArray, IntArray
from hf_early_ood.evaluation.resampling import resample, resample_indices
from hf_early_ood.evaluation.scores import Formula, Scores

Metric = Callable[[IntArray, IntArray, FloatArray], float]


def _models(n: int, classes: int, num_models: int, seed: int = 0) -> tuple[IntArray, list[IntArray], list[FloatArray]]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    probabilities = [
        rng.dirichlet(np.ones(classes), n) * 0.6 + 0.4 * np.eye(classes)[labels] for _ in range(num_models)
    ]
    return labels, [p.argmax(axis=1) for p in probabilities], probabilities


def _slow(
    labels: IntArray,
    predictions: Sequence[IntArray],
    probabilities: Sequence[FloatArray],
    metric: Metric,
    num_resamples: int,
) -> FloatArray:
    """The twin: draw examples, hand them to scikit-learn. (R, M)."""
    rng = np.random.default_rng(7)
    draws = []
    for _ in range(num_resamples):
        drawn = rng.integers(0, len(labels), len(labels))
        draws.append(
            [metric(labels[drawn], p[drawn], q[drawn]) for p, q in zip(predictions, probabilities, strict=True)]
        )
    return np.array(draws)


def _macro_f1(labels: IntArray, predictions: IntArray, _: FloatArray) -> float:
    return f1_score(labels, predictions, labels=np.unique(labels), average="macro", zero_division=0)


def _brier(labels: IntArray, _: IntArray, probabilities: FloatArray) -> float:
    return float(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1).mean())


METRICS: dict[str, Metric] = {
    "accuracy": lambda y, p, _: accuracy_score(y, p),
    "balanced_accuracy": lambda y, p, _: balanced_accuracy_score(y, p),
    "macro_f1": _macro_f1,
    "brier": _brier,
}


@pytest.mark.parametrize("metric", list(METRICS))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_resamples_are_those_of_the_slow_twin(metric: str) -> None:
    """Of both models, and of their difference, which only pairing makes narrow."""
    labels, predictions, probabilities = _models(60, 3, 2)
    probabilities[1] = 0.9 * probabilities[0] + 0.1 * probabilities[1]
    predictions[1] = probabilities[1].argmax(axis=1)
    slow = _slow(labels, predictions, probabilities, METRICS[metric], 500)
    scores = [classification_scores(labels, p, q) for p, q in zip(predictions, probabilities, strict=True)]
    values, draws = resample(scores, metric, 6000, np.random.default_rng(1))
    expected = [METRICS[metric](labels, p, q) for p, q in zip(predictions, probabilities, strict=True)]
    np.testing.assert_allclose(values, expected)
    for ours, theirs in [*zip(draws.T, slow.T, strict=True), (draws[:, 1] - draws[:, 0], slow[:, 1] - slow[:, 0])]:
        spread = theirs.std()
        assert ours.mean() == pytest.approx(theirs.mean(), abs=0.2 * spread)
        assert ours.std() == pytest.approx(spread, rel=0.15)


def test_drawing_examples_is_exactly_what_it_says() -> None:
    """Where most examples are cells of their own, the draws can be followed one by one."""
    labels, predictions, probabilities = _models(40, 3, 1)
    scores = classification_scores(labels, predictions[0], probabilities[0])
    _, draws = resample([scores], "brier", 50, np.random.default_rng(3))
    indices = list(resample_indices(40, 50, np.random.default_rng(3)))
    expected = [_brier(labels[i], predictions[0][i], probabilities[0][i]) for i in indices]
    np.testing.assert_allclose(draws[:, 0], expected)


def test_models_may_use_other_columns_for_a_metric() -> None:
    """The sums of each model go into its own formula."""
    labels = np.array([0, 1, 1, 0])
    first, second = classification_scores(labels, labels), classification_scores(labels, labels, num_classes=7)
    _, draws = resample([first, second], "macro_f1", 20, np.random.default_rng(0))
    np.testing.assert_array_equal(draws, 1.0)


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions, probabilities = _models(50, 2, 2)
    scores = [classification_scores(labels, p, q) for p, q in zip(predictions, probabilities, strict=True)]
    for metric in ("accuracy", "brier"):
        whole = resample(scores, metric, 30, np.random.default_rng(0))[1]
        with monkeypatch.context() as patch:
            patch.setattr("hf_early_ood.evaluation.resampling._BLOCK", 1)
            np.testing.assert_allclose(resample(scores, metric, 30, np.random.default_rng(0))[1], whole)


def test_a_metric_sees_only_what_it_uses() -> None:
    """Columns that it does not use change nothing, not even the random numbers."""
    labels, predictions, probabilities = _models(200, 2, 1)
    alone = classification_scores(labels, predictions[0])
    more = classification_scores(labels, predictions[0], probabilities[0])
    for ours, theirs in zip(
        *(resample([s], "accuracy", 20, np.random.default_rng(0)) for s in (alone, more)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_any_sums_will_do() -> None:
    columns = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 1.0]])
    scores = Scores(columns, {"ratio": Formula(lambda sums: sums[..., 0] / sums[..., 1])}, "x")
    values, draws = resample([scores], "ratio", 10, np.random.default_rng(0))
    assert values == [0.5]
    expected = [columns[i].sum(axis=0) for i in resample_indices(3, 10, np.random.default_rng(0))]
    np.testing.assert_allclose(draws[:, 0], [a / b for a, b in expected])
