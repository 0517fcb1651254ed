"""What must hold for every detector and every vote, whatever the series."""

from __future__ import annotations

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from hf_early_ood.stabilization import StabilizationDetector
from hf_early_ood.voting import VOTES, SignalVote

patient = settings(deadline=None)  # of other load on the machine


@patient
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


@patient
@given(
    values=st.lists(st.floats(0.1, 100), min_size=4, max_size=30),
    scale=st.sampled_from([2.0**-20, 0.5, 4.0, 2.0**30]),
)
def test_detector_does_not_depend_on_the_unit(values, scale):
    # Powers of two scale exactly in floating point, so equality is exact.
    plain = StabilizationDetector.replay(list(enumerate(values)), window=2, tolerance=0.05)
    scaled = StabilizationDetector.replay([(i, v * scale) for i, v in enumerate(values)], window=2, tolerance=0.05)
    assert (plain and plain.step) == (scaled and scaled.step)


VALUES = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, 1.01, 1.02, math.nan, math.inf]))
DETECTORS = st.fixed_dictionaries(
    {
        "window": st.integers(1, 4),
        "tolerance": st.floats(0, 0.5),
        "transient": st.integers(0, 60),
        "max_step": st.one_of(st.none(), st.integers(1, 60)),
    }
)


@patient
@given(
    values=st.lists(VALUES, min_size=1, max_size=30),
    settings=DETECTORS,
    vote=st.sampled_from(VOTES),
    every=st.integers(1, 20),
)
def test_the_vote_of_one_signal_is_its_detector(values, settings, vote, every):
    detector, voting = StabilizationDetector(**settings), SignalVote(["signal"], vote, **settings)
    for number, value in enumerate(values):
        alone = detector.update(every * number, value)
        found = voting.update(every * number, {"signal": value})
        assert (found and found.to_dict()) == (alone and {**alone.to_dict(), "signal": "signal"})


@patient
@given(
    rows=st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=30),
    number=st.integers(1, 3),
    settings=DETECTORS,
    vote=st.sampled_from(VOTES),
    cut=st.integers(0, 30),
)
def test_votes_are_counted(rows, number, settings, vote, cut):
    signals = ["a", "b", "c"][:number]
    series = [(10 * i, dict(zip(signals, row, strict=False))) for i, row in enumerate(rows)]

    # From the decisions of the signals, each alone and never forced.
    alone = {
        name: StabilizationDetector.replay([(s, v[name]) for s, v in series], **{**settings, "max_step": None})
        for name in signals
    }
    expected = None
    for step, _ in series:
        stable = [name for name in signals if alone[name] is not None and alone[name].step <= step]
        enough = {"all": len(stable) == number, "majority": 2 * len(stable) > number, "any": bool(stable)}[vote]
        if enough:
            expected = (step, "stable", [name for name in signals if alone[name] and alone[name].step == step][-1])
        elif settings["max_step"] is not None and 0 < step >= settings["max_step"]:
            expected = (step, "fallback", next(name for name in signals if name not in stable))
        if expected:
            break

    def replay(voting: SignalVote, part: list) -> SignalVote:
        for step, values in part:
            voting.update(step, values)
        return voting

    whole = replay(SignalVote(signals, vote, **settings), series)
    decision = whole.decision
    assert (decision and (decision.step, decision.reason, decision.signal)) == expected
    # Causal: neither what comes after a decision nor a restart changes it.
    if decision is not None:
        upto = [point for point in series if point[0] <= decision.step]
        assert replay(SignalVote(signals, vote, **settings), upto).decision == decision
        assert replay(SignalVote(signals, vote, **settings), upto[:-1]).decision is None
    again = SignalVote(signals, vote, **settings)
    again.load_state_dict(
        json.loads(json.dumps(replay(SignalVote(signals, vote, **settings), series[:cut]).state_dict()))
    )
    assert replay(again, series[cut:]).decision == decision
