from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
import yaml
from scipy.stats import chisquare

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.schedules import LayerSampling, PrefixFreezing, settled_prefix
from tests.schedules.tables import GROUPS, letters, trained

BLOCKS = [f"block.{i}" for i in range(12)]
TWELVE = ["embeddings", *BLOCKS, "head"]


def drawn(schedule: LayerSampling, stage: int) -> tuple[str, ...]:
    return tuple(name for name in schedule.trainable_in(stage) if name not in schedule.always)


# LISA.


def test_lisa_draws_before_update_1_and_after_every_interval():
    """The authors' callback at the start of a step: if global_step % interval == 0, freeze all layers and draw."""
    lisa = LayerSampling(TWELVE, interval=3, num_groups=2, seed=5)
    active, draws = None, 0
    for global_step in range(30):
        if global_step % 3 == 0:
            active, draws = drawn(lisa, draws), draws + 1
        assert lisa.trainable(global_step) == ("embeddings", *active, "head")
        assert lisa.stage(global_step) == draws - 1
    assert draws == lisa.num_stages(30) == 10


def test_lisa_draws_the_same_everywhere():
    """Drawn in Python 3.6 to 3.13; they depend on the seed and the number of the stage alone."""
    lisa = LayerSampling(TWELVE, interval=20)
    assert [drawn(lisa, stage) for stage in range(4)] == [
        ("block.2", "block.8"),
        ("block.2", "block.4"),
        ("block.4", "block.11"),
        ("block.7", "block.11"),
    ]
    for other in (LayerSampling(TWELVE, interval=7), LayerSampling(TWELVE, interval=0.1).resolve(total_updates=990)):
        assert [drawn(other, stage) for stage in (3, 1, 3, 0)] == [drawn(lisa, stage) for stage in (3, 1, 3, 0)]
    assert [drawn(LayerSampling(TWELVE, seed=1), stage) for stage in range(4)] != [drawn(lisa, s) for s in range(4)]


def test_lisa_draws_uniformly_without_replacement_and_anew():
    stages = 66 * 60
    lisa = LayerSampling(TWELVE, num_groups=2, seed=3)
    pairs = [drawn(lisa, stage) for stage in range(stages)]
    counts = Counter(pairs)
    assert set(counts) == set(combinations(BLOCKS, 2))  # two different ones, in the model's order
    assert chisquare([counts[pair] for pair in combinations(BLOCKS, 2)]).pvalue > 0.01
    # What was drawn says nothing about what is drawn next.
    one = LayerSampling(GROUPS, num_groups=1, seed=3)
    following = Counter(pairwise(drawn(one, stage) for stage in range(1801)))
    assert len(following) == 9
    assert chisquare(list(following.values())).pvalue > 0.01


def test_lisa_groups_that_always_train():
    assert LayerSampling(TWELVE).always == ("embeddings", "head")
    assert LayerSampling(BLOCKS).always == ()  # what a default names need not be there
    assert LayerSampling(TWELVE, always=["block.-1", "/head/"]).always == ("block.11", "head")
    without = LayerSampling(GROUPS, num_groups=1, always=[])
    assert without.drawn_from == tuple(GROUPS)
    assert all(len(without.trainable_in(stage)) == 1 for stage in range(20))
    everything = LayerSampling(GROUPS, num_groups=3, interval=2)
    assert trained(everything, 3) == "e012h e012h e012h"


def test_lisa_has_nothing_to_choose():
    lisa = LayerSampling(GROUPS)
    assert (lisa.select, lisa.needs_choice(3), lisa.candidates()) == (None, False, ())
    with pytest.raises(ConfigurationError, match="leaves nothing to choose"):
        lisa.chosen(["block.0"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "interval is not usable"),
        ({"interval": "auto"}, "interval is not usable. Got: 'auto'"),
        ({"interval": 1.0}, "interval is not usable"),
        ({"num_groups": 0}, "num_groups is not usable. Got: 0"),
        ({"num_groups": True}, "num_groups is not usable. Got: True"),
        ({"num_groups": 2.0}, "num_groups is not usable"),
        ({"num_groups": 4}, r"fewer layer groups.*Got: num_groups=4\. Allowed: 1 to 3: block.0, block.1, block.2"),
        ({"num_groups": 1, "always": ["/./"]}, "fewer layer groups.*none are left"),
        ({"always": "head"}, r"always is a list of group names.*Write \['head'\]"),
        ({"always": ["classifier"]}, "Unknown layer group. Got: classifier"),
        ({"seed": -1}, "seed is not usable"),
        ({"seed": "a"}, "seed is not usable"),
        ({"groups": []}, "There are no layer groups"),
        ({"groups": ["a", "a", "b"]}, "must be unique"),
    ],
    ids=str,
)
def test_bad_settings_of_lisa(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        LayerSampling(**{"groups": GROUPS, **settings})


# AutoFreeze.


def autofreeze_of_the_source(layers: list[str], changes: list[list[float]], k: int, updates: int) -> list[list[str]]:
    """What trains in each update; ``changes[i]`` are eta of all layers, lowest first, at the end of interval i."""
    start_layer, by_update = 0, []
    for update in range(updates):
        by_update.append([*layers[start_layer:], "head"])
        if (update + 1) % k == 0:
            interval = (update + 1) // k - 1
            if interval == 0:
                continue  # there is no interval before to compare with
            active = changes[interval][start_layer:]
            threshold = np.percentile(active, 50) if active else 0.0
            for change in active:
                if change >= threshold:
                    break
                start_layer += 1
    return by_update


@pytest.mark.parametrize("seed", range(5))
def test_autofreeze_freezes_what_the_source_does(seed):
    k, updates, layers = 4, 40, TWELVE[:-1]
    changes = np.random.default_rng(seed).gamma(2.0, size=(10, len(layers))).round(1).tolist()  # with ties
    schedule = PrefixFreezing(TWELVE, interval=k)
    expected = autofreeze_of_the_source(layers, changes, k, updates)
    stage = 0
    for step in range(updates):
        while stage < schedule.stage(step):  # as a run does, before the update
            stage += 1
            assert schedule.needs_choice(stage)
            change = {name: changes[stage - 1][layers.index(name)] for (name,) in schedule.candidates()}
            schedule = schedule.chosen(settled_prefix(change) if stage > 1 else ())
            assert not schedule.needs_choice(stage)
        assert list(schedule.trainable(step)) == expected[step]
    assert expected[-1] != TWELVE  # something froze
    assert expected[k] == TWELVE  # not at the first look


def test_autofreeze_table():
    schedule = PrefixFreezing(GROUPS, interval=2)
    for names in ([], ["embeddings"], [], ["block.0", "block.1"]):
        schedule = schedule.chosen(names)
    assert trained(schedule, 10) == "e012h e012h e012h e012h 012h 012h 012h 012h 2h 2h"
    assert schedule.trainable(10**6) == ("block.2", "head")
    assert letters(name for (name,) in schedule.candidates()) == "2"
    last = schedule.chosen(["block.2"])
    assert (last.trainable_in(5), last.candidates()) == (("head",), ())  # the top group is never frozen
    assert last.chosen([]).trainable_in(6) == ("head",)


@pytest.mark.parametrize(
    "names",
    [
        ["block.1"],
        ["block.2", "block.0"],
        ["embeddings"],
        ["block.0"] * 2,
        ["x"],
        ["block.0", "block.1", "block.2", "head"],
    ],
)
def test_autofreeze_freezes_only_from_the_bottom(names):
    schedule = PrefixFreezing(GROUPS, interval=2).chosen(["embeddings"])
    with pytest.raises(ConfigurationError, match="Only the lowest groups can be frozen"):
        schedule.chosen(names)
    with pytest.raises(ConfigurationError, match="Only the lowest groups can be frozen"):
        PrefixFreezing(GROUPS, interval=2, frozen=[["embeddings"], names])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "interval is not usable"),
        ({"interval": "auto"}, "interval is not usable"),
        ({"groups": []}, "There are no layer groups"),
        ({"frozen": [["head"]]}, "Only the lowest groups"),
    ],
)
def test_bad_settings_of_autofreeze(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        PrefixFreezing(**{"groups": GROUPS, **settings})


# Both.


@pytest.mark.parametrize("kind", [LayerSampling, PrefixFreezing])
def test_fractions_and_stages(kind):
    schedule = kind(GROUPS, interval=0.29)
    assert not schedule.is_resolved
    assert (schedule.stage(10**6), schedule.num_stages(100)) == (0, 1)
    resolved = schedule.resolve(total_updates=100)
    assert resolved.is_resolved
    assert resolved == kind(GROUPS, interval=29)
    assert hash(resolved) == hash(kind(GROUPS, interval=29))
    assert resolved != schedule
    assert resolved.resolve(total_updates=7, decided=3) == resolved
    assert [resolved.stage(step) for step in (0, 28, 29, 57, 58)] == [0, 0, 1, 1, 2]
    assert [resolved.num_stages(total) for total in (0, 1, 29, 30, 58, 59)] == [1, 1, 1, 2, 2, 3]
    assert kind(GROUPS, interval=0.01).resolve(total_updates=20).interval == 1


def test_lisa_and_autofreeze_survive_resolving():
    lisa = LayerSampling(GROUPS, interval=0.5, num_groups=1, always=["head"], seed=9)
    assert lisa.resolve(total_updates=8) == LayerSampling(GROUPS, interval=4, num_groups=1, always=["head"], seed=9)
    auto = PrefixFreezing(GROUPS, interval=0.5).chosen([]).chosen(["embeddings"])
    assert auto.resolve(total_updates=8) == PrefixFreezing(GROUPS, interval=4, frozen=[[], ["embeddings"]])
    assert len({lisa, auto, LayerSampling(GROUPS), PrefixFreezing(GROUPS), PrefixFreezing(GROUPS).chosen([])}) == 5
    for schedule in (lisa, auto):
        assert type(schedule)(**schedule.to_dict()) == schedule


@pytest.mark.parametrize(("kind", "least"), [(LayerSampling, 2), (PrefixFreezing, 3)])
def test_an_interval_with_which_nothing_changes_is_refused(kind, least):
    """AutoFreeze has nothing to compare with at its first look: it takes two before the end."""
    for total in range(1, 30):
        for interval in range(1, 30):
            schedule = kind(GROUPS, interval=interval)
            if schedule.stage(total - 1) + 1 >= least:
                assert schedule.check_length(total) is None
            else:
                with pytest.raises(
                    ConfigurationError, match=f"Got: interval={interval}, training makes {total} updates"
                ):
                    schedule.check_length(total)
    allowed = {LayerSampling: "1 to 9 updates", PrefixFreezing: "1 to 4 updates"}[kind]
    with pytest.raises(ConfigurationError, match=f"Allowed: {allowed}"):
        kind(GROUPS, interval=10).check_length(10)
    with pytest.raises(ConfigurationError, match="Allowed: none"):
        kind(GROUPS, interval=1).check_length(1)
    assert kind(GROUPS, interval=0.9).check_length(1) is None  # not known yet


def test_what_a_person_reads():
    assert LayerSampling(GROUPS, interval=1, num_groups=1).to_yaml().splitlines()[:3] == [
        "# LISA: every update, 1 of 3 groups are drawn.",
        "always: [embeddings, head]",
        "drawn:  # the first five times",
    ]
    assert "# LISA: every 0.1 of training, 2 of 3 groups" in LayerSampling(GROUPS, interval=0.1).to_yaml()
    lisa = LayerSampling(GROUPS, interval=20, always=["head"])
    assert yaml.safe_load(lisa.to_yaml())["drawn"] == [list(drawn(lisa, stage)) for stage in range(5)]
    auto = PrefixFreezing(GROUPS, interval=20)
    assert auto.to_yaml().startswith("# AutoFreeze: every 20 updates, the lowest groups")
    assert yaml.safe_load(auto.chosen([]).chosen(["embeddings"]).to_yaml())["frozen"] == [[], ["embeddings"]]


# AutoFreeze's choice.


@pytest.mark.parametrize(
    ("change", "percentile", "expected"),
    [
        ([0.1, 0.2, 0.9, 0.8], 50, "01"),
        ([0.1, 0.9, 0.2, 0.8], 50, "0"),  # what lies above the first one that changes is not looked at
        ([0.9, 0.1, 0.1, 0.1], 50, ""),
        ([0.1, 0.2, 0.3], 50, "0"),  # the median itself has not settled
        ([0.1, 0.2, 0.3], 100, "01"),
        ([0.1, 0.2, 0.3], 0, ""),
        ([0.1, 0.2, 0.3], 75, "01"),
        ([0.1, 0.2, 0.3], 25, "0"),
        ([0.2, 0.2, 0.2], 50, ""),  # all alike: none has settled more than the others
        ([0.0, 0.0, 0.0], 100, ""),
        ([0.5], 50, ""),
        ([], 50, ""),
        ([math.nan], 50, ""),
        ([math.nan, 0.1, 0.9], 50, ""),
        ([0.1, math.nan, 0.9], 50, "0"),
        ([0.1, 0.2, math.nan], 50, "0"),  # the percentile is of 0.1 and 0.2
        ([1.0, 2.0, math.inf], 50, "0"),
        ([1.0, math.inf], 50, "0"),
        ([1.0, math.inf, math.inf, math.inf], 50, "0"),
        ([math.inf, math.inf], 50, ""),
    ],
)
def test_settled_prefix(change, percentile, expected):
    named = {str(number): value for number, value in enumerate(change)}
    assert "".join(settled_prefix(named, percentile)) == expected


@pytest.mark.parametrize("percentile", [-1, 100.5, math.nan, math.inf, True, "50", None])
def test_bad_percentile(percentile):
    with pytest.raises(ConfigurationError, match="percentile is not usable"):
        settled_prefix({"block.0": 1.0, "block.1": 2.0}, percentile)
