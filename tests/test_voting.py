from __future__ import annotations

import json
import math

import pytest

from hf_early_ood.errors import ConfigurationError, ResumeError
from hf_early_ood.stabilization import StabilizationDetector
from hf_early_ood.voting import SignalVote

# Stable, with a window of one, at updates 20, 30 and 50.
SERIES = {
    "early": [1.0, 2.0, 2.0, 4.0, 8.0, 16.0, 32.0],
    "middle": [1.0, 2.0, 4.0, 4.0, 8.0, 16.0, 32.0],
    "late": [1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 32.0],
}


def replay(vote: SignalVote, series: dict[str, list[float]], start: int = 0) -> SignalVote:
    for number, values in enumerate(zip(*series.values(), strict=True)):
        if number >= start:
            vote.update(10 * number, dict(zip(series, values, strict=True)))
    return vote


@pytest.mark.parametrize(
    ("vote", "step", "signal"), [("any", 20, "early"), ("majority", 30, "middle"), ("all", 50, "late")]
)
def test_who_decides(vote, step, signal):
    decision = replay(SignalVote(list(SERIES), vote, window=1), SERIES).decision
    assert (decision.step, decision.reason, decision.signal) == (step, "stable", signal)
    # What is said of the decision is said of the signal that made it.
    alone = StabilizationDetector.replay([(10 * i, v) for i, v in enumerate(SERIES[signal])], window=1)
    assert decision.to_dict() == {**alone.to_dict(), "signal": signal}


@pytest.mark.parametrize(("number", "step"), [(1, 20), (2, 30), (3, 30), (4, 40), (5, 40)])
def test_a_majority_is_more_than_half(number, step):
    """Signal i is stable at update 10 * (i + 2)."""
    series = {str(i): [*[2.0**j for j in range(i + 2)], *[2.0 ** (i + 1)] * (9 - i)] for i in range(number)}
    assert replay(SignalVote(list(series), "majority", window=1), series).decision.step == step


def test_of_signals_that_become_stable_together_the_last_one_decides():
    series = {"a": [1.0, 2.0, 2.0], "b": [1.0, 2.0, 2.0], "c": [1.0, 2.0, 4.0]}
    for vote in ("any", "majority"):
        decision = replay(SignalVote(["a", "b", "c"], vote, window=1), series).decision
        assert (decision.step, decision.signal) == (20, "b")


def test_a_decision_stays():
    vote = SignalVote(["early", "middle"], "any", window=1)
    replay(vote, {name: SERIES[name] for name in vote.signals})
    assert vote.decision.step == 20
    assert vote.update(100, {"early": 1.0, "middle": 1.0}) is vote.decision


def test_fallback_names_what_was_waited_for():
    vote = replay(SignalVote(list(SERIES), window=1, max_step=40), SERIES)
    assert (vote.decision.step, vote.decision.reason, vote.decision.signal) == (40, "fallback", "late")
    assert (vote.decision.value, vote.decision.change, vote.decision.num_measurements) == (16.0, 1.0, 5)
    first = replay(SignalVote(list(SERIES), "any", window=1, max_step=10), SERIES)
    assert (first.decision.step, first.decision.signal) == (10, "early")
    at_last = replay(SignalVote(list(SERIES), window=1, max_step=50), SERIES)
    assert (at_last.decision.step, at_last.decision.reason) == (50, "stable")  # in time


def test_a_signal_without_values_does_not_vote():
    nan = {"early": SERIES["early"], "nan": [math.nan] * 7}
    assert replay(SignalVote(list(nan), "any", window=1), nan).decision.step == 20
    assert replay(SignalVote(list(nan), "all", window=1), nan).decision is None
    forced = replay(SignalVote(list(nan), "all", window=1, max_step=60), nan).decision
    assert (forced.step, forced.signal, forced.value, forced.num_skipped) == (60, "nan", None, 7)


@pytest.mark.parametrize("cut", range(8))
def test_state_continues_where_it_was(cut):
    series = {**SERIES, "early": [math.nan, *SERIES["early"][:-1]]}
    settings = {"window": 1, "max_step": 60}
    whole = replay(SignalVote(list(series), **settings), series)
    part = replay(SignalVote(list(series), **settings), {name: values[:cut] for name, values in series.items()})
    again = SignalVote(list(series), **settings)
    again.load_state_dict(json.loads(json.dumps(part.state_dict())))
    assert (again.decision, again.last_step) == (part.decision, part.last_step)
    assert again.state_dict() == part.state_dict()
    replay(again, series, start=cut)
    assert (again.decision, again.last_step) == (whole.decision, whole.last_step)
    assert again.state_dict() == whole.state_dict()


def test_loading_forgets_what_was_before():
    vote = replay(SignalVote(list(SERIES), "any", window=1), SERIES)
    empty = SignalVote(list(SERIES), "any", window=1)
    vote.load_state_dict(empty.state_dict())
    assert (vote.decision, vote.last_step) == (None, None)
    assert vote.state_dict() == empty.state_dict()
    assert replay(vote, SERIES).decision.step == 20


@pytest.mark.parametrize("other", [{"vote": "any"}, {"window": 2}, {"max_step": 9}, {"signals": ["late", "early"]}])
def test_state_of_other_settings_is_refused(other):
    settings = {"signals": ["early", "late"], "vote": "all", "window": 1}
    state = SignalVote(**settings).state_dict()
    with pytest.raises(ResumeError, match="other settings"):
        SignalVote(**{**settings, **other}).load_state_dict(state)


def test_settings_are_the_arguments():
    vote = SignalVote(["a"], "any", window=4, tolerance=0.1, transient=7, max_step=99)
    assert (vote.signals, vote.transient, vote.max_step) == (["a"], 7, 99)
    assert SignalVote(**vote.settings).settings == vote.settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"signals": []}, r"signals is a list of names, each once\. Got: \[\]"),
        ({"signals": ["a", "a"]}, "each once"),
        ({"signals": "abc"}, "each once. Got: 'abc'"),
        ({"vote": "most"}, "Unknown vote. Got: most. Allowed: all, majority, any"),
        ({"vote": None}, "Unknown vote"),
        ({"window": 0}, "window counts"),
        ({"tolerance": math.nan}, "relative change"),
        ({"tolerance": True}, "relative change"),
        ({"transient": -1}, "number of updates"),
        ({"max_step": 0}, "latest step"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        SignalVote(**{"signals": ["a"], **settings})


def test_every_signal_is_measured_every_time_and_in_order():
    vote = SignalVote(["a", "b"])
    with pytest.raises(ConfigurationError, match=r"value for each signal.*Got: \['a'\]\. Allowed: \['a', 'b'\]"):
        vote.update(10, {"a": 1.0})
    with pytest.raises(ConfigurationError, match="value for each signal"):
        vote.update(10, {"a": 1.0, "b": 1.0, "c": 1.0})
    vote.update(10, {"a": 1.0, "b": 1.0})
    with pytest.raises(ConfigurationError, match="step 10 after step 10"):
        vote.update(10, {"a": 1.0, "b": 1.0})
    assert (vote.last_step, [detector.num_measurements for detector in vote.detectors.values()]) == (10, [1, 1])
