from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import linregress

from hf_early_ood.errors import DataError
from hf_early_ood.evaluation.robustness import effective_robustness

AT_HOME = [0.55, 0.7, 0.8, 0.9, 0.97]


def test_a_model_on_the_line_has_none() -> None:
    line = [(x, float(expit(0.8 * logit(x) - 0.5))) for x in AT_HOME]
    for x in (0.6, 0.85):
        found = effective_robustness(line, x, float(expit(0.8 * logit(x) - 0.5)))
        assert found.value == pytest.approx(0, abs=1e-12)
        assert (found.slope, found.intercept, found.r_squared) == pytest.approx((0.8, -0.5, 1.0))
        assert not found.extrapolated
    assert effective_robustness(line, 0.85, 0.9).value > 0 > effective_robustness(line, 0.85, 0.5).value


def test_the_line_is_the_least_squares_line_of_logits() -> None:
    away = [0.4, 0.45, 0.7, 0.72, 0.8]
    expected = linregress(logit(AT_HOME), logit(away))
    found = effective_robustness(list(zip(AT_HOME, away, strict=True)), 0.99, 0.9)
    assert (found.slope, found.intercept) == pytest.approx((expected.slope, expected.intercept))
    assert found.r_squared == pytest.approx(expected.rvalue**2)
    assert found.value == pytest.approx(0.9 - expit(expected.intercept + expected.slope * logit(0.99)))
    assert found.extrapolated
    assert found.num_baselines == 5


def test_baselines_that_are_all_alike_out_of_distribution() -> None:
    found = effective_robustness([(x, 0.5) for x in AT_HOME], 0.8, 0.6)
    assert found.value == pytest.approx(0.1)
    assert np.isnan(found.r_squared)


@pytest.mark.parametrize(
    ("baselines", "model", "message"),
    [
        ([], (0.8, 0.7), "too few baselines for effective robustness. Got: 0. Allowed: 5 or more"),
        ([(x, 0.5) for x in AT_HOME[:4]], (0.8, 0.7), "too few baselines.*Got: 4.*relative robustness"),
        ([(0.9 + 0.01 * i, 0.5) for i in range(5)], (0.9, 0.7), "nearly the same ID accuracy.*0.900 to 0.940.*seeds"),
        (
            [(x, 0.5) for x in [*AT_HOME, 1.0]],
            (0.8, 0.7),
            "An accuracy has no logit. Got: 1.0. Allowed: 0 < accuracy < 1",
        ),
        ([(x, 0.5) for x in AT_HOME], (0.8, 0.0), "An accuracy has no logit"),
        ([(x, 0.5) for x in AT_HOME], (80.0, 70.0), "An accuracy has no logit"),
        ([(x, 0.5) for x in AT_HOME], (float("nan"), 0.5), "An accuracy has no logit"),
    ],
)
def test_what_is_refused(baselines: list[tuple[float, float]], model: tuple[float, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        effective_robustness(baselines, *model)
