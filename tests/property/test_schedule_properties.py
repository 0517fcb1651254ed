"""What must hold for every schedule."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.schedules import EMBEDDINGS_POLICIES, ORDERS, UnfreezingSchedule, settled_prefix

patient = settings(deadline=None)  # of other load on the machine


@st.composite
def settings_of_schedules(draw) -> dict:
    """Arguments of a schedule, its groups included."""
    groups = ["embeddings", *[f"block.{i}" for i in range(draw(st.integers(1, 6)))], "head"]
    return {
        "groups": groups,
        "interval": draw(st.integers(1, 12)),
        "order": draw(
            st.one_of(st.sampled_from(ORDERS), st.permutations(groups), st.lists(st.sampled_from(groups), unique=True))
        ),
        "initial": draw(st.sampled_from([["head"], ["head", "block.-1"], ["embeddings"], ["/[02d]/"], ["/./"]])),
        "release": draw(st.one_of(st.sampled_from(["interval", "all_at_once"]), st.integers(1, 30))),
        "first": draw(st.integers(1, 3)),
        "start": draw(st.integers(0, 9)),
        "embeddings": draw(st.sampled_from(EMBEDDINGS_POLICIES)),
        "seed": draw(st.integers(0, 5)),
    }


def with_choices(schedule: UnfreezingSchedule, draw) -> UnfreezingSchedule:
    """The schedule with all that it leaves open chosen at random."""
    while schedule.candidates():
        schedule = schedule.chosen(draw(st.sampled_from(schedule.candidates())))
    return schedule


@patient
@given(settings_of_schedules(), st.data())
def test_schedules_only_grow_and_make_k_updates_a_stage(settings, data):
    planned = UnfreezingSchedule(**settings)
    schedule = with_choices(planned, data.draw)
    interval, first, start = settings["interval"], settings["first"], settings["start"]
    span = settings["release"] if isinstance(settings["release"], int) else 0
    steps = range(start + (first + len(settings["groups"])) * interval + span + 3)
    stages = [schedule.stage(step) for step in steps]
    sets = [set(schedule.trainable(step)) for step in steps]

    assert stages == sorted(stages)
    assert stages == [planned.stage(step) for step in steps]  # what is chosen changes no timing
    assert set(schedule.groups) - set(schedule.never_released) == sets[-1]
    for step in steps[:start]:
        assert sets[step] == sets[-1] == set(planned.trainable(step))
    after = sets[start:]
    assert after[0] == set(schedule.stages[0])
    assert all(now <= later for now, later in pairwise(after))
    assert all(
        list(schedule.trainable(step)) == [name for name in schedule.groups if name in sets[step]] for step in steps
    )

    # Exactly k updates in each stage; in the first one as many intervals as were asked for.
    releases, last = schedule.num_releases, schedule.num_stages(len(steps)) - 1
    assert (last == releases + 1) if start else (last == releases)
    if releases:
        assert stages[start:].count(stages[start]) == first * interval
        assert stages[-1] == last
        if settings["release"] == "interval":
            assert all(stages.count(stage) == interval for stage in range(last - releases + 1, last))
        else:
            begin = start + first * interval
            assert stages[begin - 1] < stages[begin]
            end = begin + (span if releases > 1 else 0)
            assert stages[end] == last
            assert releases == 1 or stages[end - 1] < last


@patient
@given(settings_of_schedules(), st.data())
def test_schedules_are_what_their_files_say(settings, data):
    settings["interval"] = data.draw(st.one_of(st.just(settings["interval"]), st.floats(1e-9, 0.99)))
    if data.draw(st.booleans()):
        settings |= {"interval": "auto", "start": 0}
    schedule = UnfreezingSchedule(**settings)
    for _ in range(data.draw(st.integers(0, 3))):
        if schedule.candidates():
            schedule = schedule.chosen(data.draw(st.sampled_from(schedule.candidates())))
    for again in (
        UnfreezingSchedule.from_yaml(schedule.to_yaml()),
        UnfreezingSchedule.from_dict(json.loads(json.dumps(schedule.to_dict()))),
        schedule.resolve(),
    ):
        assert again == schedule
        assert hash(again) == hash(schedule)
        assert again.candidates() == schedule.candidates()
        resolved = [one.resolve(total_updates=100, decided=6) for one in (again, schedule)]
        assert resolved[0] == resolved[1]
        assert resolved[0].is_resolved
        assert [resolved[0].trainable(step) for step in range(99)] == [
            resolved[1].trainable(step) for step in range(99)
        ]


@patient
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, min_size=1, max_size=5))
def test_any_name_survives_the_file(names):
    for order in ("top_down", "fisher_trace"):
        schedule = UnfreezingSchedule(["head", *(name for name in names if name != "head")], interval=1, order=order)
        assert UnfreezingSchedule.from_yaml(schedule.to_yaml()) == schedule


@patient
@given(settings_of_schedules(), st.integers(1, 60))
def test_what_the_length_check_claims_is_true(settings, total):
    def releases(interval: int) -> list[int]:
        """Updates of the releases, found by looking at every update."""
        schedule = UnfreezingSchedule(**{**settings, "interval": interval})
        end = settings["start"] + 12 * interval * 3 + 200
        stages = [schedule.stage(step) for step in range(end)]
        offset = 1 if settings["start"] else 0
        return [next(s for s in range(end) if stages[s] > n + offset) for n in range(schedule.num_releases)]

    schedule = UnfreezingSchedule(**settings)
    own = releases(settings["interval"])
    assume(own)
    try:
        told = schedule.check_length(total) or ""
    except ConfigurationError as error:
        assert own[0] >= total
        told = str(error)
        allowed = re.search(r"Allowed: (?:1 to (\d+) updates|none)", told)
        longest = int(allowed[1] or 0)
        assert longest == 0 or releases(longest)[0] < total
        assert releases(longest + 1)[0] >= total
        if longest == 0:
            return
    else:
        assert own[0] < total
        assert ("never released" in told or "never come" in told) == (own[-1] >= total)
        assert ("never trained" in told) == bool(schedule.never_released)
        if own[-1] < total:
            return
    claimed = re.search(r"(\d+) or less releases every group|no interval releases every group", told)
    longest = int(claimed[1] or 0)
    assert longest == 0 or releases(longest)[-1] < total
    assert releases(longest + 1)[-1] >= total


@patient
@given(
    values=st.lists(st.one_of(st.integers(0, 4).map(float), st.floats(0, 10), st.just(math.nan)), max_size=12),
    percentile=st.one_of(st.integers(0, 100), st.floats(0, 100)),
)
def test_settled_prefix_is_that_of_numpy(values, percentile):
    change = {f"block.{i}": value for i, value in enumerate(values)}
    known = [value for value in values if not math.isnan(value)]
    settled = []
    for name, value in change.items():
        if math.isnan(value) or value >= np.percentile(known, percentile):
            break
        settled.append(name)
    assert settled_prefix(change, percentile) == tuple(settled)
