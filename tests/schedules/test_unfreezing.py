"""What trains in which update, against tables written by hand and the papers' algorithms written out."""

from __future__ import annotations

import math
import re

import pytest

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.schedules import Stage, UnfreezingSchedule, parse_number
from tests.schedules.tables import GROUPS, follow, letters, trained

TOP = ["head", "block.-1"]

# Settings, and what trains in the first ten updates: "12h" are block.1, block.2 and the head.
TABLES = [
    # Orders, with a release every two updates.
    ({}, "h h 2h 2h 12h 12h 012h 012h e012h e012h"),
    ({"order": "top_down"}, "h h 2h 2h 12h 12h 012h 012h e012h e012h"),
    ({"order": "bottom_up"}, "h h eh eh e0h e0h e01h e01h e012h e012h"),
    ({"order": "random", "seed": 1}, "h h 2h 2h 02h 02h 012h 012h e012h e012h"),
    ({"order": ["block.1", "embeddings", "block.2"]}, "h h 1h 1h e1h e1h e12h e12h e12h e12h"),
    ({"order": ["block.-1", "/block/"], "initial": TOP}, "2h 2h 02h 02h 012h 012h 012h 012h 012h 012h"),
    ({"order": []}, "h h h h h h h h h h"),
    # Initial sets.
    ({"initial": TOP}, "2h 2h 12h 12h 012h 012h e012h e012h e012h e012h"),
    ({"initial": [*TOP, "block.-2"]}, "12h 12h 012h 012h e012h e012h e012h e012h e012h e012h"),
    ({"initial": ["head", r"/block\.[02]/"]}, "02h 02h 012h 012h e012h e012h e012h e012h e012h e012h"),
    ({"initial": ["block.0"], "order": "bottom_up"}, "0 0 e0 e0 e01 e01 e012 e012 e012h e012h"),
    # Timing.
    ({"interval": 1}, "h 2h 12h 012h e012h e012h e012h e012h e012h e012h"),
    ({"interval": 3}, "h h h 2h 2h 2h 12h 12h 12h 012h"),
    ({"interval": 10}, "h h h h h h h h h h"),
    ({"first": 2}, "h h h h 2h 2h 12h 12h 012h 012h"),
    ({"first": 3}, "h h h h h h 2h 2h 12h 12h"),
    ({"first": 2, "initial": TOP}, "2h 2h 2h 2h 12h 12h 012h 012h e012h e012h"),
    ({"start": 3}, "e012h e012h e012h h h 2h 2h 12h 12h 012h"),
    ({"start": 1, "first": 2, "order": "bottom_up"}, "e012h h h h h eh eh e0h e0h e01h"),
    ({"start": 2, "order": ["block.2", "block.1"]}, "12h 12h h h 2h 2h 12h 12h 12h 12h"),
    # Ways of releasing.
    ({"release": "all_at_once"}, "h h e012h e012h e012h e012h e012h e012h e012h e012h"),
    ({"release": "all_at_once", "first": 2, "initial": TOP}, "2h 2h 2h 2h e012h e012h e012h e012h e012h e012h"),
    ({"release": "all_at_once", "start": 1}, "e012h h h e012h e012h e012h e012h e012h e012h e012h"),
    ({"release": "all_at_once", "order": []}, "h h h h h h h h h h"),
    # Four releases within a span of s updates come s/3 updates apart, rounded.
    ({"release": 6}, "h h 2h 2h 12h 12h 012h 012h e012h e012h"),
    ({"release": 5}, "h h 2h 2h 12h 012h 012h e012h e012h e012h"),
    ({"release": 3}, "h h 2h 12h 012h e012h e012h e012h e012h e012h"),
    ({"release": 1}, "h h 12h e012h e012h e012h e012h e012h e012h e012h"),
    ({"release": 3, "first": 2, "start": 1}, "e012h h h h h 2h 12h 012h e012h e012h"),
    ({"release": 7, "order": ["block.0"]}, "h h 0h 0h 0h 0h 0h 0h 0h 0h"),
    # Embeddings.
    ({"embeddings": "last"}, "h h 2h 2h 12h 12h 012h 012h e012h e012h"),
    ({"embeddings": "last", "order": "bottom_up"}, "h h 0h 0h 01h 01h 012h 012h e012h e012h"),
    ({"embeddings": "with_block_0"}, "h h 2h 2h 12h 12h e012h e012h e012h e012h"),
    ({"embeddings": "with_block_0", "order": "bottom_up"}, "h h e0h e0h e01h e01h e012h e012h e012h e012h"),
    ({"embeddings": "with_block_0", "initial": ["head", "block.0"]}, "0h 0h 02h 02h e012h " + "e012h " * 4 + "e012h"),
    ({"embeddings": "with_block_0", "order": ["embeddings"]}, "h h eh eh eh eh eh eh eh eh"),
    ({"embeddings": "never"}, "h h 2h 2h 12h 12h 012h 012h 012h 012h"),
    ({"embeddings": "never", "start": 2}, "012h 012h h h 2h 2h 12h 12h 012h 012h"),
    ({"embeddings": "never", "release": "all_at_once"}, "h h 012h 012h 012h 012h 012h 012h 012h 012h"),
    ({"embeddings": "never", "initial": ["embeddings", "head"]}, "eh eh e2h e2h e12h e12h e012h e012h e012h e012h"),
    # What a schedule file says.
    ({"stages": [["head"], ["block.0", "block.2"], ["embeddings"]]}, "h h 02h 02h e02h e02h e02h e02h e02h e02h"),
    ({"stages": [TOP, ["block.0"]]}, "2h 2h 02h 02h 02h 02h 02h 02h 02h 02h"),
    ({"stages": [["head"], ["block.0"], ["block.1"]], "release": "all_at_once"}, "h h 01h " + "01h " * 6 + "01h"),
]


@pytest.mark.parametrize(("settings", "table"), TABLES, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_what_trains_in_which_update(settings, table):
    schedule = UnfreezingSchedule(GROUPS, **{"interval": 2, **settings})
    assert trained(schedule, 10) == table
    # The table of stages says the same.
    rows = [row for row in schedule.table() if row.start is not None and row.start < 10]
    for row in rows:
        if row.start not in [other.start for other in rows if other.stage > row.stage]:
            assert letters(row.trainable) == table.split()[row.start]
    assert schedule.num_stages(10) == len(schedule.table())


@pytest.mark.parametrize(
    ("order", "settings", "choices", "table"),
    [
        ("fisher_trace", {}, ["1", "e", "2", "0"], "h h 1h 1h e1h e1h e12h e12h e012h e012h"),
        ("fisher_trace_batch_mean", {"initial": TOP}, ["0", "1", "e"], "2h 2h 02h 02h 012h 012h e012h " + "e012h " * 3),
        ("relative_gradient_norm", {"start": 3}, ["0", "2"], "e012h e012h e012h h h 0h 0h 02h 02h 02h"),
        ("fisher_trace", {"release": 3, "first": 2}, ["0", "2", "1", "e"], "h h h h 0h 02h 012h e012h e012h e012h"),
        ("fisher_trace", {"embeddings": "last"}, ["1", "0", "2", "e"], "h h 1h 1h 01h 01h 012h 012h e012h e012h"),
        ("fisher_trace", {"embeddings": "with_block_0"}, ["1", "e0", "2"], "h h 1h 1h e01h e01h " + "e012h " * 4),
        ("fisher_trace", {"embeddings": "never"}, ["1", "0", "2"], "h h 1h 1h 01h 01h 012h 012h 012h 012h"),
    ],
)
def test_what_trains_where_measurements_select(order, settings, choices, table):
    schedule = UnfreezingSchedule(GROUPS, interval=2, order=order, **settings)
    names = {letters([name]): name for name in GROUPS}
    done = follow(schedule, [[names[letter] for letter in choice] for choice in choices])
    assert trained(done, 10) == table.strip()
    assert [letters(unit) for unit in done.stages[1:]] == choices
    assert done.num_releases == schedule.num_releases
    # The stages that are known are those of a schedule whose order was written down.
    assert [row.start for row in done.table()] == [
        row.start for row in UnfreezingSchedule.from_dict(done.to_dict()).table()
    ]


# The papers' algorithms, as they are printed.


def unfreezing_of_the_papers(blocks: int, k: int, updates: int, select) -> dict[int, set[str]]:
    """What trains in update i = 1, 2, ...: arXiv 2403.15210, algorithm 1; 2301.05487, algorithm 1 with its SELECT."""
    trains = {"head"}
    by_update = {}
    for i in range(1, updates + 1):
        if i % k == 0 and i <= k * blocks:
            trains |= set(select([f"block.{b}" for b in range(blocks) if f"block.{b}" not in trains]))
        by_update[i] = set(trains)  # forward, backward, update
    return by_update


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize(
    ("settings", "select"),
    [
        ({"order": "top_down"}, lambda frozen: frozen[-1:]),  # gradual unfreezing
        ({"order": "bottom_up"}, lambda frozen: frozen[:1]),
        ({"release": "all_at_once"}, lambda frozen: frozen),  # LP-FT
    ],
)
def test_the_papers_release_one_update_earlier(settings, select, k):
    """They count from 1 and release *at* update k, before it is made: their first stage has k - 1 updates, ours k."""
    blocks, updates = 5, 50
    groups = [*(f"block.{b}" for b in range(blocks)), "head"]
    schedule = UnfreezingSchedule(groups, interval=k, **settings)
    paper = unfreezing_of_the_papers(blocks, k, updates, select)
    for i in range(1, updates):
        # The paper's update i is made with what our update i + 1 is made with, the one after i completed updates.
        assert set(schedule.trainable(i)) == paper[i]
    only_head = [i for i, trains in paper.items() if trains == {"head"}]
    assert len(only_head) == k - 1
    assert [schedule.trainable(step) for step in range(k + 1)].count(("head",)) == k


def test_fun_releases_what_it_selects_one_update_later_than_its_paper():
    """The frozen block of the largest trace; head and top train from the start, so the next opens after k updates."""
    blocks, k = 5, 3
    trace = {"block.0": 4.0, "block.1": 1.0, "block.2": 9.0, "block.3": 2.0}
    groups = [*(f"block.{b}" for b in range(blocks)), "head"]

    def largest(frozen: list[str]) -> list[str]:
        left = [name for name in frozen if name in trace]
        return [max(left, key=lambda name: trace[name])] if left else []

    schedule = UnfreezingSchedule(groups, interval=k, order="fisher_trace", initial=TOP)
    paper = unfreezing_of_the_papers(blocks, k, 40, largest)
    for step in range(40):
        for _ in range(schedule.needs_choice(schedule.stage(step))):
            schedule = schedule.chosen(largest([name for (name,) in schedule.candidates()]))
        if step:
            assert set(schedule.trainable(step)) == paper[step] | {"block.4"}
    assert [unit[0] for unit in schedule.stages[1:]] == ["block.2", "block.0", "block.3", "block.1"]


def gradual_unfreezing_of_funs_code(layers: int, k: int, updates: int) -> list[set[str]]:
    """What trains in each update: the loop of the released code, which looks before the forward pass of a batch."""
    trains = {"head"}
    by_update = []
    for global_step in range(updates):
        if global_step in (0, 1):
            trains |= {f"block.{layers - 1}"}
        if (global_step + 1) % k == 0 and global_step < layers * k + 1:
            layer = layers - (global_step + 1) // k
            if layer >= 0:
                trains |= {f"block.{layer}"}
        by_update.append(set(trains))
    return by_update


@pytest.mark.parametrize("k", [2, 5])
def test_gradual_unfreezing_of_funs_code_has_two_intervals_before_the_first_release(k):
    """It opens the top layer, which trains already, once more at k: layer 10 of 12 opens at 2k, layer 0 at 12k."""
    layers, updates = 12, 14 * k + 2
    groups = [*(f"block.{b}" for b in range(layers)), "head"]
    code = gradual_unfreezing_of_funs_code(layers, k, updates)
    opens = {name: next(i + 1 for i, trains in enumerate(code) if name in trains) for name in groups}
    assert (opens["block.11"], opens["block.10"], opens["block.0"]) == (1, 2 * k, 12 * k)

    schedule = UnfreezingSchedule(groups, interval=k, first=2, initial=TOP)
    for step in range(1, updates):
        # As in the papers, its update number i (index i - 1) is made with what our update i + 1 is made with.
        assert set(schedule.trainable(step)) == code[step - 1]
    # Its schedules by measurements turn everything on at 13 k + 1, where nothing is left to turn on.
    assert code[13 * k] == set(groups) == set(schedule.trainable(13 * k))
    # The paper, and its code where measurements select, have the second layer one interval earlier: first=1.
    assert UnfreezingSchedule(groups, interval=k, initial=TOP).trainable(k) == ("block.10", "block.11", "head")


def test_lp_ft_is_two_phases():
    """Kumar et al. 2022: the head for k updates, then everything."""
    schedule = UnfreezingSchedule(GROUPS, interval=4, release="all_at_once")
    assert [schedule.trainable(step) for step in range(4)] == [("head",)] * 4
    assert [schedule.trainable(step) for step in range(4, 20)] == [tuple(GROUPS)] * 16
    assert schedule.num_releases == 1


def test_stage_table():
    late = UnfreezingSchedule(["a", "b", "head"], interval=5, start=7, order=["b"])
    assert late.table() == [
        Stage(0, 0, released=("b", "head"), trainable=("b", "head")),
        Stage(1, 7, released=("head",), trainable=("head",)),
        Stage(2, 12, released=("b",), trainable=("b", "head")),
    ]
    auto = UnfreezingSchedule(["a", "head"], interval="auto").table()
    assert [(row.stage, row.start) for row in auto] == [(0, 0), (1, None)]


# Turning fractions and "auto" into updates.


def test_auto_waits_until_decided():
    schedule = UnfreezingSchedule(GROUPS, interval="auto")
    assert not schedule.is_resolved
    assert schedule.stage(10**6) == 0
    decided = schedule.resolve(decided=7)
    assert decided.interval == 7
    assert [decided.stage(step) for step in (6, 7, 13, 14)] == [0, 1, 1, 2]
    assert schedule.resolve(total_updates=100) == schedule  # a length alone decides nothing
    assert schedule.resolve() == schedule
    later = UnfreezingSchedule(GROUPS, interval="auto", first=2).resolve(decided=7)
    assert [later.stage(step) for step in (13, 14)] == [0, 1]
    with pytest.raises(ConfigurationError, match=r"at least one update\. Got: 0"):
        schedule.resolve(decided=0)


def test_fractions_of_training():
    def of(total, **settings):
        return UnfreezingSchedule(GROUPS, **settings).resolve(total_updates=total)

    assert of(95, interval=0.1).interval == 9
    assert of(20, interval=0.01).interval == 1
    assert of(100, interval=0.29).interval == 29  # 0.29 * 100 is a little less
    assert of(10, interval=0.2, start=0.3) == UnfreezingSchedule(GROUPS, interval=2, start=3)
    assert of(10, interval=2, release=0.5) == UnfreezingSchedule(GROUPS, interval=2, release=5)
    assert of(10, interval=0.2).resolve(decided=7).interval == 2  # nothing was left to decide
    assert of(10, interval=0.2).resolve(total_updates=50).interval == 2
    half = UnfreezingSchedule(GROUPS, interval=2, start=0.5)
    assert not half.is_resolved
    assert trained(half.resolve(total_updates=4), 5) == "e012h e012h h h 2h"


@pytest.mark.parametrize("first_resolved", ["total_updates", "decided"])
def test_fraction_and_auto_together(first_resolved):
    both = {"total_updates": 40, "decided": 3}
    schedule = UnfreezingSchedule(GROUPS, interval="auto", release=0.25, order="fisher_trace")
    one = schedule.resolve(**{first_resolved: both.pop(first_resolved)})
    assert not one.is_resolved
    assert one.stage(39) == 0
    assert one.resolve(**both) == UnfreezingSchedule(GROUPS, interval=3, release=10, order="fisher_trace")


def test_late_start_is_known_before_the_rest():
    schedule = UnfreezingSchedule(GROUPS, interval=0.1, start=4)
    assert [schedule.stage(step) for step in (3, 4, 50)] == [0, 1, 1]


# What measurements select.


def test_choices_are_taken_in_their_order():
    schedule = UnfreezingSchedule(GROUPS, interval=2, order="fisher_trace", embeddings="last")
    assert [schedule.needs_choice(stage) for stage in range(5)] == [False, True, True, True, True]
    assert schedule.candidates() == (("block.0",), ("block.1",), ("block.2",))  # embeddings come last
    one = schedule.chosen(["block.2"])
    assert [one.needs_choice(stage) for stage in range(4)] == [False, False, True, True]
    assert one.stages == (("head",), ("block.2",))
    with pytest.raises(ConfigurationError, match=r"cannot be selected\. Got: \['block.2'\]\. Allowed: \[\['block.0'\]"):
        one.chosen(["block.2"])
    with pytest.raises(ConfigurationError, match="cannot be selected"):
        one.chosen(["embeddings"])
    three = one.chosen(["block.0"]).chosen(["block.1"])
    assert three.candidates() == (("embeddings",),)
    done = three.chosen(["embeddings"])
    assert (done.candidates(), done.select, done.needs_choice(4), done.needs_choice(5)) == ((), None, False, False)
    assert schedule.candidates() == (("block.0",), ("block.1",), ("block.2",))  # the one that was asked is as it was


def test_groups_that_go_together_are_selected_together():
    schedule = UnfreezingSchedule(GROUPS, interval=2, order="fisher_trace", embeddings="with_block_0")
    assert schedule.candidates() == (("embeddings", "block.0"), ("block.1",), ("block.2",))
    assert schedule.chosen(["block.0", "embeddings"]).stages[1] == ("embeddings", "block.0")
    with pytest.raises(ConfigurationError, match="cannot be selected"):
        schedule.chosen(["block.0"])


def test_nothing_is_left_to_choose_without_a_selection():
    plain = UnfreezingSchedule(GROUPS, interval=2)
    assert not any(plain.needs_choice(stage) for stage in range(9))
    with pytest.raises(ConfigurationError, match="cannot be selected"):
        plain.chosen(["block.0"])
    # Everything trains from the start, or is released at once: there is nothing to select.
    for settings in ({"initial": ["/./"]}, {"release": "all_at_once"}):
        full = UnfreezingSchedule(GROUPS, interval=2, order="fisher_trace", embeddings="last", **settings)
        assert not full.needs_choice(1)
        assert UnfreezingSchedule.from_yaml(full.to_yaml()) == full == full.resolve(total_updates=9)


# Files, equality.

ODD_NAMES = ["no", "1", "1e3", "null", "~", "a: b", "x,y", "[z]", "# c", "", " lead", "ünï", "'q'", "2020-01-01", "<<"]
SCHEDULES = [
    *[{"interval": 2, **settings} for settings, _ in TABLES],
    *[{"interval": interval} for interval in (1, 10**6, 0.05, 1e-05, "auto")],
    {"interval": 0.1, "release": 1e-7, "start": 3e-05, "first": 7},
    {"interval": "auto", "release": 0.3, "first": 2},
    {"interval": 5, "order": "fisher_trace", "embeddings": "last"},
    {"interval": 5, "order": "fisher_trace", "embeddings": "never", "start": 2},
    {"interval": "auto", "order": "relative_gradient_norm", "embeddings": "with_block_0", "initial": TOP},
    {"interval": 5, "stages": [["head"], ["block.0"]], "select": "fisher_trace", "waiting": [["block.1", "block.2"]]},
]


@pytest.mark.parametrize("settings", SCHEDULES, ids=str)
def test_files_say_everything(settings):
    schedule = UnfreezingSchedule(GROUPS, **settings)
    for again in (UnfreezingSchedule.from_dict(schedule.to_dict()), UnfreezingSchedule.from_yaml(schedule.to_yaml())):
        assert again == schedule
        assert hash(again) == hash(schedule)
        assert again.to_yaml() == schedule.to_yaml()
        assert again.table() == schedule.table()
        assert again.resolve(total_updates=200, decided=4) == schedule.resolve(total_updates=200, decided=4)


@pytest.mark.parametrize("order", ["top_down", "fisher_trace"])
def test_odd_names_survive_the_file(order):
    schedule = UnfreezingSchedule([*ODD_NAMES, "head"], interval=3, order=order)
    assert UnfreezingSchedule.from_yaml(schedule.to_yaml()) == schedule


def test_a_selection_half_made_survives_the_file():
    schedule = UnfreezingSchedule(GROUPS, interval=3, order="fisher_trace", embeddings="last")
    for choice in ("block.1", "block.0", "block.2", "embeddings"):
        schedule = schedule.chosen([choice])
        again = UnfreezingSchedule.from_yaml(schedule.to_yaml())
        assert again == schedule
        assert again.candidates() == schedule.candidates()


def test_schedules_differ_by_every_setting():
    base = {"interval": 3, "order": "fisher_trace"}
    others = [
        {"interval": 4}, {"interval": "auto"}, {"order": "top_down"}, {"order": "fisher_trace_batch_mean"},
        {"initial": TOP}, {"release": 4}, {"release": "all_at_once"}, {"first": 2}, {"start": 1},
        {"embeddings": "last"}, {"embeddings": "never"}, {"embeddings": "with_block_0"},
    ]  # fmt: skip
    schedules = [UnfreezingSchedule(GROUPS, **{**base, **other}) for other in [{}, *others]]
    schedules.append(UnfreezingSchedule(GROUPS[1:], **base))
    assert len(set(schedules)) == len(schedules)
    assert schedules[0] != schedules[0].to_dict()
    assert UnfreezingSchedule(GROUPS, interval=3, order=["block.2", "block.1", "block.0", "embeddings"]) == (
        UnfreezingSchedule(GROUPS, interval=3, order="top_down")
    )


def test_edited_yaml_is_read_back():
    text = UnfreezingSchedule(GROUPS, interval=5).to_yaml().replace("- [block.1]", "- [block.1, block.0]")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("  - [block.0]"))
    schedule = UnfreezingSchedule.from_yaml(text)
    assert schedule.stages == (("head",), ("block.2",), ("block.1", "block.0"), ("embeddings",))


def test_a_file_may_count_from_the_top_and_release_all_at_once():
    text = (
        "interval: 2\ngroups: [block.0, block.1, head]\nrelease: all_at_once\nstages: [[head], [block.-1], [block.0]]"
    )
    schedule = UnfreezingSchedule.from_yaml(text)
    assert schedule.stages == (("head",), ("block.1", "block.0"))
    waiting = (
        "interval: 2\ngroups: [block.0, block.1, head]\nselect: fisher_trace\nstages: [[head]]\nwaiting: [['/b/']]"
    )
    assert UnfreezingSchedule.from_yaml(waiting).candidates() == (("block.0", "block.1"),)


def test_words_of_the_file():
    late = UnfreezingSchedule(GROUPS, interval=2, release=5, first=2, start=3, order="fisher_trace", embeddings="last")
    assert late.to_yaml().splitlines()[2:] == [
        "interval: 2",
        "groups: [embeddings, block.0, block.1, block.2, head]",
        "first: 2  # intervals before the first release",
        "start: 3  # updates, or fraction of training, in which all groups below train first",
        "release: 5  # updates, or fraction of training, from the first release to the last",
        "embeddings: last  # selected when nothing else waits",
        "stages:",
        "  - [head]  # from update 3",
        "select: fisher_trace",
        "waiting:  # one of these lines is selected at updates 7, 9, 10, 12",
        "  - [block.0]",
        "  - [block.1]",
        "  - [block.2]",
        "  - [embeddings]",
    ]

    def comments(schedule):
        return re.findall(r"\]  *# (.*)", schedule.to_yaml())

    auto = UnfreezingSchedule(GROUPS[2:], interval="auto", first=2)
    assert comments(auto) == ["from update 0", "after 2 intervals", "after 3 intervals"]
    fractions = UnfreezingSchedule(GROUPS[2:], interval=0.1, release=0.3, start=0.2)
    assert comments(fractions) == ["from 0.2 of training", "after 1 interval", "later, evenly spaced"]
    waits = UnfreezingSchedule(GROUPS, interval="auto", order="fisher_trace")
    assert "waiting:  # one of these lines is selected at every release, the first after 1 interval" in waits.to_yaml()


def test_a_stage_has_one_line_however_many_layers():
    groups = ["embeddings", *(f"block.{i}" for i in range(48)), "head"]
    once = UnfreezingSchedule(groups, interval=5, release="all_at_once")
    head, released = once.to_yaml().splitlines()[-2:]
    assert head == "  - [head]  # from update 0"  # the long line moves no comment but its own
    assert released.startswith("  - [block.47, block.46, ")
    assert released.endswith(", embeddings]  # from update 5")
    assert len(UnfreezingSchedule(groups, interval=5).to_yaml().splitlines()) == 5 + 50


def test_schedule_file_of_a_model(tmp_path):
    schedule = UnfreezingSchedule(GROUPS, interval="auto", order="fisher_trace")
    file = tmp_path / "schedule.yaml"
    file.write_text(schedule.to_yaml())
    assert UnfreezingSchedule.load(file, GROUPS) == schedule
    with pytest.raises(ConfigurationError, match="made for another model"):
        UnfreezingSchedule.load(file, GROUPS[1:])
    with pytest.raises(ConfigurationError, match="does not exist"):
        UnfreezingSchedule.load(tmp_path / "other.yaml", GROUPS)


# Against the length of training.


@pytest.mark.parametrize(
    ("settings", "updates", "warning"),
    [
        ({"interval": 10}, 41, None),
        (
            {"interval": 10},
            40,
            "With interval=10 and 40 updates these groups are never released: embeddings; 9 or less",
        ),
        ({"interval": 10}, 20, "never released: block.1, block.0, embeddings; 4 or less releases every group"),
        ({"interval": 2}, 4, "never released: block.1, block.0, embeddings; no interval releases every group"),
        ({"interval": 5, "first": 2}, 26, None),
        ({"interval": 5, "first": 2}, 25, "With interval=5, first=2 and 25 updates .*: embeddings; 4 or less"),
        ({"interval": 5, "start": 10}, 31, None),
        ({"interval": 5, "start": 10}, 30, "With interval=5, start=10 and 30 updates .*: embeddings; 4 or less"),
        ({"interval": 5, "release": 10}, 16, None),
        ({"interval": 5, "release": 10}, 15, "With interval=5, release=10 and 15 updates .*: embeddings; 4 or less"),
        ({"interval": 5, "release": 10}, 11, "released: block.0, embeddings; no interval releases every group"),
        ({"interval": 5, "release": 10, "order": ["block.0"]}, 6, "never trained: embeddings, block.1"),
        ({"interval": 5, "release": "all_at_once"}, 6, None),
        ({"interval": 10, "order": "fisher_trace"}, 41, None),
        ({"interval": 10, "order": "fisher_trace"}, 40, "40 updates 1 of 4 releases never come; 9 or less"),
        ({"interval": 3, "order": ["block.1", "block.0"]}, 50, "These groups are never trained: embeddings, block.2"),
        ({"interval": 3, "embeddings": "never"}, 9, "never released: block.0; 2 or less .*never trained: embeddings"),
        ({"interval": "auto", "order": []}, 50, "never trained: embeddings, block.0, block.1, block.2"),
        ({"interval": "auto"}, 1, None),
        ({"interval": 0.5}, 1, None),
        ({"interval": 50, "initial": ["/./"]}, 1, None),
    ],
)
def test_length_check(settings, updates, warning):
    told = UnfreezingSchedule(GROUPS, **settings).check_length(updates)
    if warning is None:
        assert told is None
    else:
        assert re.search(warning, told)


@pytest.mark.parametrize(
    ("settings", "updates", "message"),
    [
        ({"interval": 10}, 10, r"interval=10, training makes 10 updates\. Allowed: 1 to 9 updates; 2 or less releases"),
        ({"interval": 5, "first": 2}, 10, r"interval=5, first=2, training .*Allowed: 1 to 4 updates; 1 or less"),
        ({"interval": 5, "start": 6}, 11, r"interval=5, start=6, .*Allowed: 1 to 4 updates; 1 or less"),
        ({"interval": 5, "release": 9}, 5, r"Allowed: 1 to 4 updates; no interval releases every group"),
        ({"interval": 1, "start": 20}, 20, r"Allowed: none\. To fix: Train longer, or lower start or first"),
        ({"interval": 1, "first": 3}, 3, r"Allowed: none"),
    ],
)
def test_a_schedule_without_a_release_is_refused(settings, updates, message):
    with pytest.raises(ConfigurationError, match="interval is longer than training allows.*" + message):
        UnfreezingSchedule(GROUPS, **settings).check_length(updates)


# What is refused.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, r"interval is not usable.*Got: 0.*integer >= 1"),
        ({"interval": -3}, "Got: -3"),
        ({"interval": 1.0}, r"Got: 1\.0"),
        ({"interval": math.nan}, "Got: nan"),
        ({"interval": True}, "Got: True"),
        ({"interval": None}, "Got: None"),
        ({"interval": "Auto"}, "Got: 'Auto'"),
        ({"interval": [1]}, r"Got: \[1\]"),
        ({"first": 0}, r"first is not usable\. Got: 0\. Allowed: a whole number, 1 or more"),
        ({"first": -1}, "first is not usable"),
        ({"first": True}, "first is not usable. Got: True"),
        ({"first": 1.5}, "first is not usable. Got: 1.5"),
        ({"first": "2"}, "first is not usable. Got: '2'"),
        ({"start": -1}, r"late start is not usable\. Got: -1\. Allowed: an integer >= 0 .*fraction"),
        ({"start": True}, "late start is not usable. Got: True"),
        ({"start": 1.0}, "late start is not usable. Got: 1.0"),
        ({"start": "auto"}, "late start is not usable. Got: 'auto'"),
        ({"start": 3, "interval": "auto"}, "late start needs a fixed interval"),
        ({"start": 0.1, "interval": "auto"}, "late start needs a fixed interval"),
        ({"release": 0}, "span of the releases is not usable. Got: 0"),
        ({"release": -3}, "span of the releases is not usable. Got: -3"),
        ({"release": 1.0}, "span of the releases is not usable. Got: 1.0"),
        ({"release": math.nan}, "span of the releases is not usable. Got: nan"),
        ({"release": True}, "span of the releases is not usable. Got: True"),
        ({"release": None}, "span of the releases is not usable. Got: None"),
        ({"release": "slowly"}, "Unknown way of releasing groups. Got: slowly. Allowed: interval, all_at_once"),
        ({"release": "all-at-once"}, "Did you mean 'all_at_once'"),
        ({"embeddings": "lst"}, "Unknown way of treating the embeddings. Got: lst.*Did you mean 'last'"),
        ({"embeddings": None}, "Unknown way of treating the embeddings"),
        ({"seed": -1}, "seed is not usable"),
        ({"seed": 0.5}, "seed is not usable"),
        ({"order": "topdown"}, "Did you mean 'top_down'"),
        ({"order": None}, "order is a list of group names. Got: None"),
        ({"order": 3}, "order is a list of group names"),
        ({"order": {"block.0"}}, "order is a list of group names"),  # a set has no order
        ({"order": [3]}, "order is a list of group names"),
        ({"order": [["block.0"]]}, "order is a list of group names"),
        ({"order": ["block.7"]}, r"Unknown layer group\. Got: block\.7"),
        ({"order": ["block.-4"]}, r"Unknown layer group\. Got: block\.-4"),
        ({"order": ["/layer/"]}, "Unknown layer group"),
        ({"order": ["/[/"]}, r"Not a regular expression\. Got: /\[/"),
        ({"order": ["block.0", "block.0"]}, r"released twice\. Got: block\.0"),
        ({"initial": "head"}, r"initial is a list of group names.*Write \['head'\]"),
        ({"initial": None}, "initial is a list of group names. Got: None"),
        ({"initial": [0]}, "initial is a list of group names"),
        ({"initial": []}, "at least one group"),
        ({"initial": ["classifier"]}, "nothing to train in this model. Got: classifier"),
        ({"initial": ["/[/"]}, "Not a regular expression"),
        ({"stages": []}, "at least one group"),
        ({"stages": [[]]}, "at least one group"),
        ({"stages": [["head"], []]}, "Stage 1 releases nothing"),
        ({"stages": [["head"], "block.0"]}, r"A stage is a list of group names.*Write \['block.0'\]"),
        ({"stages": [["head"], ["block.0"], ["block.1", "block.0"]]}, "released twice. Got: block.0"),
        ({"stages": [["head"], ["block.9"]]}, r"Unknown layer group\. Got: block\.9"),
        ({"stages": [["head"]], "embeddings": "never"}, "stages say what is done with the embeddings"),
        ({"stages": [["head"]], "embeddings": "last"}, "stages say what is done with the embeddings"),
        ({"stages": [["head"]], "embeddings": "lst"}, "Did you mean 'last'"),
        ({"stages": [["head"]], "select": "fisher_trace"}, "No groups wait to be selected. Got: select=fisher_trace"),
        ({"stages": [["head"]], "waiting": [["block.0"]]}, "nothing selects them"),
        (
            {"stages": [["head"]], "waiting": [["block.0"]], "select": "fisher"},
            "Unknown selection. Got: fisher.*Did you",
        ),
        ({"stages": [["head"]], "waiting": [["block.0"]], "select": 3}, "Unknown selection. Got: 3"),
        ({"stages": [["head"]], "waiting": [["head"]], "select": "fisher_trace"}, "released twice. Got: head"),
        (
            {"stages": [["head"]], "waiting": [["block.0"]] * 2, "select": "fisher_trace"},
            "released twice. Got: block.0",
        ),
        ({"stages": [["head"]], "waiting": ["block.0"], "select": "fisher_trace"}, "What waits .* is a list of group"),
        ({"stages": [["head"]], "waiting": [["x"]], "select": "fisher_trace"}, "Unknown layer group"),
        ({"stages": [["head"]], "waiting": [["block.0"], []], "select": "fisher_trace"}, "Stage 2 releases nothing"),
        ({"select": "fisher_trace"}, "go with stages"),
        ({"waiting": [["block.0"]]}, "go with stages"),
    ],
    ids=str,
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        UnfreezingSchedule(GROUPS, **{"interval": 1, **settings})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "There are no layer groups"),
        ("head", r"groups is a list of group names.*Write \['head'\]"),
        (["a", "a"], "must be unique"),
        ([1, "head"], "groups is a list of group names"),
    ],
)
def test_bad_groups(groups, message):
    with pytest.raises(ConfigurationError, match=message):
        UnfreezingSchedule(groups, interval=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid YAML"),
        ("", "is a mapping"),
        ("3", "is a mapping"),
        ("interval: 3", "lacks a key"),
        ("intervall: 3\ninterval: 3\ngroups: [a]\nstages: [[a]]", "Did you mean 'interval'"),
        ("3: 3\ninterval: 3\ngroups: [a]\nstages: [[a]]", "Unknown key in a schedule. Got: 3"),
        ("interval: 3\ngroups: [a]\nstages: [a]", "list of lists"),
        ("interval: 3\ngroups: [a]\nstages:", "list of lists"),
        ("interval: 3\ngroups: [a, 1]\nstages: [[a]]", "list of group names"),
        ("interval: 3\ngroups: a\nstages: [[a]]", "list of group names"),
        ("interval: 3\ngroups: [a, a]\nstages: [[a]]", "must be unique"),
        ("interval: 1e-2\ngroups: [a]\nstages: [[a]]", "interval is not usable. Got: '1e-2'"),
        ("interval: 3\ngroups: [a]\nstages: [[a]]\nrelease: yes", "Got: True"),
        ("interval: 3\ngroups: [a]\nstages: [[a]]\nfirst: 0", "first is not usable"),
        ("interval: 3\ngroups: [a, b]\nstages: [[a]]\nembeddings: never", "stages say"),
        ("interval: 3\ngroups: [a, b]\nstages: [[a]]\nwaiting:", "'waiting' of a schedule has the wrong form"),
        ("interval: 3\ngroups: [a, b]\nstages: [[a]]\nwaiting: [b]", "'waiting' of a schedule has the wrong form"),
        ("interval: 3\ngroups: [a, b]\nstages: [[a]]\nwaiting: [[b]]", "nothing selects them"),
        ("interval: 3\ngroups: [a, b]\nstages: [[a]]\nselect: fisher_trace", "No groups wait"),
    ],
)
def test_bad_yaml(text, message):
    with pytest.raises(ConfigurationError, match=message):
        UnfreezingSchedule.from_yaml(text)


def test_numbers_stay_numbers():
    assert [parse_number(x) for x in (0.05, 1.9, 7, "7", "0.5", "auto")] == [0.05, 1.9, 7, 7, 0.5, "auto"]
