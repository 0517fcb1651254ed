from __future__ import annotations

import pytest

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.schedules import UnfreezingSchedule, parse_number

GROUPS = ["embeddings", "block.0", "block.1", "head"]


def test_top_down_releases_one_group_every_k_updates():
    schedule = UnfreezingSchedule(GROUPS, interval=3)
    seen = [schedule.trainable(step) for step in range(11)]
    assert seen[:3] == [("head",)] * 3
    assert seen[3:6] == [("block.1", "head")] * 3
    assert seen[6:9] == [("block.0", "block.1", "head")] * 3
    assert seen[9:] == [tuple(GROUPS)] * 2


def test_bottom_up_list_order_and_initial_set():
    assert UnfreezingSchedule(GROUPS, interval=1, order="bottom_up").stages == (
        ("head",),
        ("embeddings",),
        ("block.0",),
        ("block.1",),
    )
    listed = UnfreezingSchedule(GROUPS, interval=1, order=["block.0", "block.1"], initial=["head"])
    assert listed.stages == (("head",), ("block.0",), ("block.1",))
    assert listed.never_released == ("embeddings",)
    top = UnfreezingSchedule(GROUPS, interval=1, initial=["head", "block.1"])
    assert top.stages == (("head", "block.1"), ("block.0",), ("embeddings",))


def test_all_at_once_has_one_release():
    schedule = UnfreezingSchedule(GROUPS, interval=4, release="all_at_once")
    assert schedule.trainable(3) == ("head",)
    assert schedule.trainable(4) == tuple(GROUPS)


def test_auto_waits_until_decided():
    schedule = UnfreezingSchedule(GROUPS, interval="auto")
    assert not schedule.is_resolved
    assert schedule.stage(10**6) == 0
    decided = schedule.resolve(decided=7)
    assert decided.interval == 7
    assert decided.stage(7) == 1
    assert schedule.resolve(total_updates=100) == schedule  # a length alone decides nothing


def test_fraction_of_training():
    assert UnfreezingSchedule(GROUPS, interval=0.1).resolve(total_updates=95).interval == 9
    assert UnfreezingSchedule(GROUPS, interval=0.01).resolve(total_updates=20).interval == 1


def test_edited_yaml_is_read_back():
    text = UnfreezingSchedule(GROUPS, interval=5).to_yaml().replace("- [block.1]", "- [block.1, block.0]")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("  - [block.0]"))
    schedule = UnfreezingSchedule.from_yaml(text)
    assert schedule.stages == (("head",), ("block.1", "block.0"), ("embeddings",))


def test_length_check():
    schedule = UnfreezingSchedule(GROUPS, interval=10)
    assert schedule.check_length(31) is None
    assert "never released: embeddings" in schedule.check_length(30)
    with pytest.raises(ConfigurationError, match=r"longer than training.*interval=10, training makes 10 updates"):
        schedule.check_length(10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, r"interval is not usable.*Got: 0.*integer >= 1"),
        ({"interval": 1.0}, r"Got: 1\.0"),
        ({"interval": True}, "Got: True"),
        ({"interval": "Auto"}, "Got: 'Auto'"),
        ({"interval": 1, "order": "topdown"}, "Did you mean 'top_down'"),
        ({"interval": 1, "order": ["block.7"]}, r"Unknown layer group\. Got: block\.7"),
        ({"interval": 1, "order": ["block.0", "block.0"]}, r"released twice\. Got: block\.0"),
        ({"interval": 1, "initial": "head"}, r"list of group names.*Write \['head'\]"),
        ({"interval": 1, "initial": []}, "at least one group"),
        ({"interval": 1, "initial": ["classifier"]}, "nothing to train in this model. Got: classifier"),
        ({"interval": 1, "release": "slowly"}, "Unknown way of releasing"),
        ({"interval": 1, "stages": [["head"], []]}, "Stage 1 releases nothing"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        UnfreezingSchedule(GROUPS, **settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid YAML"),
        ("3", "is a mapping"),
        ("interval: 3", "lacks a key"),
        ("intervall: 3\ninterval: 3\ngroups: [a]\nstages: [[a]]", "Did you mean 'interval'"),
        ("interval: 3\ngroups: [a]\nstages: [a]", "list of lists"),
        ("interval: 3\ngroups: a\nstages: [[a]]", "list of group names"),
        ("interval: 3\ngroups: [a, a]\nstages: [[a]]", "must be unique"),
    ],
)
def test_bad_yaml(text, message):
    with pytest.raises(ConfigurationError, match=message):
        UnfreezingSchedule.from_yaml(text)


def test_odd_names_survive_the_file():
    names = ["no", "1", "a: b", "x,y", "head"]
    schedule = UnfreezingSchedule(names, interval=3)
    assert UnfreezingSchedule.from_yaml(schedule.to_yaml()) == schedule


def test_fractions_do_not_lose_an_update():
    assert UnfreezingSchedule(GROUPS, interval=0.29).resolve(total_updates=100).interval == 29


def test_groups_left_out_are_told():
    partial = UnfreezingSchedule(GROUPS, interval=3, order=["block.1", "block.0"])
    assert "never trained: embeddings" in partial.check_length(50)
    assert "never trained" in UnfreezingSchedule(GROUPS, interval="auto", order=[]).check_length(50)


def test_numbers_stay_numbers():
    assert [parse_number(x) for x in (0.05, 1.9, 7, "7", "0.5", "auto")] == [0.05, 1.9, 7, 7, 0.5, "auto"]
