from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.evaluation.win_rate import win_rate


def test_value_wins_and_ties():
    controls = np.array([[0.5, 0.7, 0.6], [0.4, 0.9, 0.5]])
    rate = win_rate(np.array([0.6, 0.6]), controls)
    assert rate.value == (1 + 0 + 0.5 + 1 + 0 + 1) / 6
    assert (rate.wins, rate.num_seeds, rate.num_controls, rate.covers) == (2.0, 2, 3, "seeds and controls")
    assert win_rate(np.array([0.6, 0.6]), controls, ties=0).value == 0.5
    assert (
        win_rate(np.array([0.1, 0.2, 0.3]), np.array([[0.3], [0.2], [0.1]])).wins == 0.5
    )  # equal means, up to rounding


@pytest.mark.parametrize(
    ("seeds", "controls", "independent"), [(5, 10, 5), (10, 4, 4), (1, 8, 8), (6, 1, 6), (1, 1, 1)]
)
def test_an_arm_that_always_wins_is_not_certain_to(seeds, controls, independent):
    rate = win_rate(np.ones(seeds), np.zeros((seeds, controls)))
    expected = binomtest(independent, independent).proportion_ci(0.95, "exact")
    assert (rate.value, rate.high) == (1.0, 1.0)
    assert rate.low == pytest.approx(expected.low)
    lost = win_rate(np.zeros(seeds), np.ones((seeds, controls)))
    assert (lost.low, lost.high) == pytest.approx((0.0, 1 - expected.low))


def test_what_the_interval_covers():
    rng = np.random.default_rng(0)
    assert win_rate(rng.random(1), rng.random((1, 5))).covers == "controls"
    assert win_rate(rng.random(5), rng.random((5, 1))).covers == "seeds"
    assert win_rate(rng.random(1), rng.random((1, 1))).covers == "this pair"


def test_all_ties_leave_everything_open():
    rate = win_rate(np.ones(5), np.ones((5, 5)))
    assert (rate.value, rate.wins) == (0.5, 2.5)
    assert rate.low < 0.15
    assert rate.high > 0.85


@pytest.mark.parametrize(("mean", "spread", "noise"), [(0, 1, 0.3), (0, 0.3, 1), (1, 0.3, 1), (1, 1, 0.3)])
@pytest.mark.parametrize(("seeds", "controls"), [(3, 10), (5, 10)])
def test_intervals_hold_the_truth(mean, spread, noise, seeds, controls):
    """Score of a control: that of its setting plus noise of the run; the truth is known in closed form."""
    rng, truth, held = np.random.default_rng(0), norm.cdf(mean / np.hypot(spread, noise * np.sqrt(2))), 0
    for _ in range(400):
        of_seeds = rng.normal(size=(seeds, 1))
        arm = mean + of_seeds[:, 0] + noise * rng.normal(size=seeds)
        others = of_seeds + spread * rng.normal(size=controls) + noise * rng.normal(size=(seeds, controls))
        rate = win_rate(arm, others)
        held += rate.low <= truth <= rate.high
    assert held / 400 > 0.92  # three standard errors below 95 %


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="do not fit"):
        win_rate(np.ones(3), np.ones((2, 3)))
    with pytest.raises(DataError, match="do not fit"):
        win_rate(np.ones(3), np.ones((3, 0)))
    with pytest.raises(DataError, match="not finite"):
        win_rate(np.array([np.nan]), np.ones((1, 3)))
    with pytest.raises(ConfigurationError, match="tie"):
        win_rate(np.ones(1), np.ones((1, 3)), ties=2)
    with pytest.raises(ConfigurationError, match="confidence"):
        win_rate(np.ones(1), np.ones((1, 3)), confidence=95)
