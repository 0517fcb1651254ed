from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from hf_early_ood.schedules import UnfreezingSchedule
from hf_early_ood.stabilization import StabilizationDetector

GROUPS = st.integers(1, 12).map(lambda n: ["embeddings", *[f"block.{i}" for i in range(n)], "head"])


@given(
    groups=GROUPS,
    interval=st.integers(1, 50),
    order=st.sampled_from(["top_down", "bottom_up"]),
    release=st.sampled_from(["interval", "all_at_once"]),
    step=st.integers(0, 2000),
)
def test_schedule_only_grows_and_makes_k_updates_a_stage(groups, interval, order, release, step):
    schedule = UnfreezingSchedule(groups, interval=interval, order=order, release=release)
    now, later = set(schedule.trainable(step)), set(schedule.trainable(step + 1))
    assert now <= later
    assert "head" in now
    assert schedule.stage(step) == min(schedule.num_releases, step // interval)
    assert set(schedule.trainable(interval * schedule.num_releases)) == set(groups)
    if schedule.num_releases:
        assert schedule.stage(interval - 1) == 0
        assert schedule.stage(interval) == 1
    assert UnfreezingSchedule.from_yaml(schedule.to_yaml()) == schedule


@given(
    values=st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf)), min_size=1, max_size=40),
    window=st.integers(1, 5),
    tolerance=st.floats(0, 0.5),
    cut=st.integers(0, 40),
    max_step=st.one_of(st.none(), st.integers(1, 400)),
)
def test_detector_is_causal_and_survives_a_restart(values, window, tolerance, cut, max_step):
    series = [(10 * i, v) for i, v in enumerate(values)]
    settings = {"window": window, "tolerance": tolerance, "max_step": max_step}
    whole = StabilizationDetector.replay(series, **settings)
    # Causal: what comes after the decision does not change it.
    if whole is not None:
        upto = [point for point in series if point[0] <= whole.step]
        assert StabilizationDetector.replay(upto, **settings) == whole
        assert StabilizationDetector.replay(upto[:-1], **settings) is None
    # Restart anywhere.
    first = StabilizationDetector(**settings)
    for point in series[:cut]:
        first.update(*point)
    second = StabilizationDetector(**settings)
    second.load_state_dict(first.state_dict())
    for point in series[cut:]:
        second.update(*point)
    assert second.decision == whole


@given(
    values=st.lists(st.floats(0.1, 100), min_size=4, max_size=30),
    scale=st.sampled_from([2.0**-20, 0.5, 4.0, 2.0**30]),
)
def test_detector_does_not_depend_on_the_unit(values, scale):
    # Powers of two scale exactly in floating point, so equality is exact.
    plain = StabilizationDetector.replay(list(enumerate(values)), window=2, tolerance=0.05)
    scaled = StabilizationDetector.replay([(i, v * scale) for i, v in enumerate(values)], window=2, tolerance=0.05)
    assert (plain and plain.step) == (scaled and scaled.step)
