from __future__ import annotations

import math

import numpy as np
import pytest

from hf_early_ood.errors import ConfigurationError, ResumeError
from hf_early_ood.stabilization import StabilizationDetector


def decide(values, every=10, **settings):
    return StabilizationDetector.replay([(i * every, v) for i, v in enumerate(values)], **settings)


def slow_twin(values, every, window, tolerance):
    """The offline rule of the paper on a whole series: average, differences, first one within the tolerance."""
    smooth = [np.mean(values[i - window + 1 : i + 1]) for i in range(window - 1, len(values))]
    for i in range(1, len(smooth)):
        if abs(smooth[i] - smooth[i - 1]) / abs(smooth[i - 1]) <= tolerance:
            return (i + window - 1) * every
    return None


def test_equals_the_offline_rule_on_a_saturating_signal():
    rng = np.random.default_rng(0)
    for noise in (0.0, 0.01, 0.05):
        for window in (1, 3, 8):
            values = 5 - 4 * np.exp(-np.arange(40) / 6) + noise * rng.standard_normal(40)
            decision = decide(values, window=window, tolerance=0.02)
            assert decision.step == slow_twin(values, 10, window, 0.02)
            assert decision.reason == "stable"


def test_rapid_change_is_waited_out():
    assert decide([1, 2, 4, 8, 16, 16, 16, 16, 16], window=1, tolerance=0.02).step == 50


def test_transient_leaves_out_a_flat_start():
    values = [1, 1, 1, 1, 2, 4, 8, 8, 8]
    assert decide(values, window=1).step == 10
    assert decide(values, window=1, transient=40).step == 70


def test_constant_signals_are_stable_once_the_window_is_full():
    assert decide([2.5] * 10, window=3).step == 30
    assert decide([0.0] * 10, window=3).step == 30
    assert decide([0.0, 0.0, 1.0, 1.0, 1.0], window=1, transient=10).step == 30  # from 0 to 1 is no small change


def test_never_at_step_zero():
    assert decide([1.0, 1.0], window=1, max_step=1).step == 10


def test_never_stable_falls_back_at_max_step_or_never():
    values = [1.0, 2.0] * 20
    fallback = decide(values, window=1, max_step=120)
    assert (fallback.step, fallback.reason) == (120, "fallback")
    assert decide(values, window=1) is None


def test_only_what_is_stable_can_be_stable_at_the_first_chance():
    assert decide([1.0, 1.0], window=1).at_first_chance
    assert not decide([1.0, 2.0, 2.0], window=1).at_first_chance
    forced = decide([1.0, 2.0], window=1, max_step=10)
    assert (forced.reason, forced.at_first_chance) == ("fallback", False)


def test_too_short_decides_nothing():
    assert decide([1.0, 1.0, 1.0], window=3) is None


def test_nan_neither_breaks_nor_fakes_stability():
    values = [1.0, math.nan, 2.0, math.inf, 4.0, 4.0]
    decision = decide(values, window=1)
    assert (decision.step, decision.num_skipped) == (50, 2)
    assert decide([math.nan] * 10, window=1) is None
    only_nan = decide([math.nan] * 10, window=1, max_step=40)
    assert (only_nan.step, only_nan.reason, only_nan.value, only_nan.num_skipped) == (40, "fallback", None, 5)


def test_decision_stays():
    detector = StabilizationDetector(window=1)
    detector.update(0, 1.0)
    first = detector.update(5, 1.0)
    assert detector.update(10, 100.0) is first


def test_state_of_other_settings_is_refused():
    state = StabilizationDetector(window=3).state_dict()
    with pytest.raises(ResumeError, match="other settings"):
        StabilizationDetector(window=4).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, r"window counts measurements\. Got: 0"),
        ({"window": 2.0}, "window counts"),
        ({"tolerance": -0.1}, "relative change"),
        ({"tolerance": math.nan}, "relative change"),
        ({"tolerance": True}, "relative change"),
        ({"transient": -1}, "number of updates"),
        ({"transient": "auto"}, "number of updates"),
        ({"max_step": 0}, "latest step"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        StabilizationDetector(**settings)


def test_steps_must_increase():
    detector = StabilizationDetector()
    detector.update(10, 1.0)
    with pytest.raises(ConfigurationError, match="step 10 after step 10"):
        detector.update(10, 1.0)
