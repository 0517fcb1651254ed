from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.evaluation.calibration import HIGHEST, LOWEST, at_temperature, fit_temperature
from hf_early_ood.evaluation.metrics import FloatArray, IntArray


def _data(n: int, temperature: float, seed: int = 0) -> tuple[IntArray, FloatArray]:
    """Labels drawn at T = 1 and probabilities of a model that is ``temperature`` times too sure."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, 3))
    labels = np.array([rng.choice(3, p=p) for p in softmax(logits, axis=1)])
    return labels, softmax(logits * temperature, axis=1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_finds_the_temperature_of_the_data(temperature: float) -> None:
    assert fit_temperature(*_data(20_000, temperature)) == pytest.approx(temperature, rel=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_is_the_minimum_of_the_likelihood(seed: int) -> None:
    labels, probabilities = _data(60, 2.0, seed)

    def loss(temperature: float) -> float:
        return float(-np.log(at_temperature(probabilities, temperature)[np.arange(60), labels]).mean())

    found = minimize_scalar(loss, bounds=(LOWEST, HIGHEST), method="bounded", options={"xatol": 1e-8})
    assert fit_temperature(labels, probabilities) == pytest.approx(found.x, rel=1e-4)


def test_float32_probabilities_give_the_same() -> None:
    labels, probabilities = _data(500, 2.0, 3)
    assert fit_temperature(labels, probabilities.astype(np.float32)) == pytest.approx(
        fit_temperature(labels, probabilities), rel=1e-5
    )


def test_bounds() -> None:
    sure = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert fit_temperature(np.array([0, 1]), sure) == LOWEST  # separable: the surer, the likelier
    assert fit_temperature(np.array([1, 0]), sure) == HIGHEST  # always wrong: the less sure, the better
    assert fit_temperature(np.array([0, 1]), np.full((2, 2), 0.5)) == 1.0  # nothing to scale
    assert fit_temperature(np.array([0]), sure[:1]) == LOWEST


def test_probabilities_of_zero_are_finite() -> None:
    labels = np.array([0, 1, 0, 0])
    certain = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    temperature = fit_temperature(labels, certain)
    assert LOWEST <= temperature <= HIGHEST
    scaled = at_temperature(certain, temperature)
    assert np.isfinite(scaled).all()
    assert scaled.sum(axis=1) == pytest.approx(1)


def test_ranking_stays() -> None:
    _, probabilities = _data(50, 1.0)
    for temperature in (LOWEST, 0.5, 3.0):
        np.testing.assert_array_equal(
            at_temperature(probabilities, temperature).argmax(axis=1), probabilities.argmax(axis=1)
        )
    np.testing.assert_allclose(at_temperature(probabilities, 1.0), probabilities)


def test_what_cannot_be_used() -> None:
    labels, probabilities = _data(4, 1.0)
    with pytest.raises(DataError, match="no examples"):
        fit_temperature(labels[:0], probabilities[:0])
    with pytest.raises(DataError, match="do not fit"):
        fit_temperature(labels[:2], probabilities)
    with pytest.raises(DataError, match=r"A label has no probability\. Got: 3"):
        fit_temperature(np.array([0, 3, 1, 1]), probabilities)
    with pytest.raises(DataError, match="Probabilities are not usable"):
        fit_temperature(labels, probabilities[:, 0])
    with pytest.raises(DataError, match="Probabilities are not usable"):
        fit_temperature(labels, np.full((4, 3), np.nan))
    for temperature in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ConfigurationError, match="temperature is not usable"):
            at_temperature(probabilities, temperature)
