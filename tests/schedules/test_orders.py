from __future__ import annotations

import pytest

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.schedules import UnfreezingSchedule
from hf_early_ood.schedules.orders import all_named, initial_groups, named_groups, release_units
from tests.schedules.tables import GROUPS, letters


def units(order, initial=("head",), embeddings="in_order", seed=0, groups=tuple(GROUPS)) -> list[str]:
    return [letters(unit) for unit in release_units(groups, order, initial, embeddings, seed)]


def test_top_down_and_bottom_up():
    assert units("top_down") == ["2", "1", "0", "e"]
    assert units("bottom_up") == ["e", "0", "1", "2"]
    assert units("bottom_up", initial=("block.0", "embeddings")) == ["1", "2", "h"]
    assert units("top_down", initial=GROUPS) == []


def test_lists_release_what_they_name():
    assert units(["block.1", "embeddings"]) == ["1", "e"]
    assert units(["block.1", "head", "block.0"]) == ["1", "0"]  # the head trains already
    assert units(["/block/", "embeddings"]) == ["0", "1", "2", "e"]
    assert units(["block.-2", "block.-1", "block.-3"]) == ["1", "2", "0"]
    assert units([]) == []


@pytest.mark.parametrize(
    ("order", "policy", "expected"),
    [
        ("top_down", "in_order", "2 1 0 e"),
        ("top_down", "last", "2 1 0 e"),
        ("top_down", "with_block_0", "2 1 e0"),
        ("top_down", "never", "2 1 0"),
        ("bottom_up", "in_order", "e 0 1 2"),
        ("bottom_up", "last", "0 1 2 e"),
        ("bottom_up", "with_block_0", "e0 1 2"),
        ("bottom_up", "never", "0 1 2"),
        (["block.1", "embeddings", "block.2"], "last", "1 2 e"),
        (["block.2", "embeddings", "block.1"], "with_block_0", "2 e1"),  # the lowest block that is released
        (["block.1"], "last", "1"),  # a list says which groups are released at all
        (["block.1"], "with_block_0", "1"),
        (["embeddings"], "with_block_0", "e"),
        (["embeddings"], "never", ""),
    ],
)
def test_embeddings(order, policy, expected):
    assert units(order, embeddings=policy) == expected.split()


@pytest.mark.parametrize("policy", ["in_order", "last", "with_block_0", "never"])
def test_without_embeddings_all_policies_are_one(policy):
    """They train from the start, or there is no such group, as with LoRA."""
    assert units("bottom_up", initial=("embeddings", "head"), embeddings=policy) == ["0", "1", "2"]
    assert units("bottom_up", embeddings=policy, groups=tuple(GROUPS[1:])) == ["0", "1", "2"]


def test_random_order_is_the_same_everywhere():
    """Drawn in Python 3.6 to 3.13; a run that is resumed elsewhere, and every rank, must draw the same."""
    assert [units("random", seed=seed) for seed in range(3)] == [
        ["e", "2", "0", "1"],
        ["2", "0", "1", "e"],
        ["2", "0", "1", "e"],
    ]
    groups = ["embeddings", *(f"block.{i}" for i in range(12)), "head"]
    drawn = UnfreezingSchedule(groups, interval=1, order="random", embeddings="never").stages
    assert [int(name.removeprefix("block.")) for (name,) in drawn[1:]] == [10, 8, 0, 5, 9, 1, 4, 6, 2, 11, 7, 3]


def test_random_orders_differ_by_seed_and_have_every_group_once():
    orders = [tuple(units("random", seed=seed)) for seed in range(200)]
    assert {tuple(sorted(order)) for order in orders} == {("0", "1", "2", "e")}
    assert len(set(orders)) == 24  # all permutations of four
    # What trains from the start takes nothing away from the order of the others.
    for seed, order in enumerate(orders):
        rest = [unit for unit in order if unit != "2"]
        assert units("random", initial=("head", "block.2"), seed=seed) == rest


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("block.1", "1"),
        ("block.-1", "2"),
        ("block.-3", "0"),
        ("/block/", "012"),
        (r"/^block\.[02]$/", "02"),
        ("/d/", "eh"),
    ],
)
def test_names_as_a_person_writes_them(pattern, expected):
    assert letters(named_groups(pattern, GROUPS)) == expected


def test_a_name_goes_before_what_it_could_mean():
    groups = ["block.-1", "block.0", "block.1", "/block/"]
    assert named_groups("block.-1", groups) == ("block.-1",)
    assert named_groups("/block/", groups) == ("/block/",)


def test_counting_from_the_top_knows_its_stack_and_the_order_of_the_model():
    groups = ["encoder.0", "encoder.1", "decoder.0", "decoder.1", "decoder.10", "decoder.x", "head"]
    assert named_groups("encoder.-1", groups) == ("encoder.1",)
    assert named_groups("decoder.-1", groups) == ("decoder.10",)  # not the last in the alphabet, nor decoder.x
    assert named_groups("decoder.-3", groups) == ("decoder.0",)


@pytest.mark.parametrize("pattern", ["block.-4", "block.-0", "block.3", "-1", "blocks.-1", "/layer/", "//", "/", ""])
def test_names_that_mean_nothing(pattern):
    with pytest.raises(ConfigurationError, match="Unknown layer group"):
        named_groups(pattern, GROUPS)


def test_misspelled_names_get_a_hint():
    with pytest.raises(ConfigurationError, match=r"Got: embedding\. .*Did you mean 'embeddings'"):
        named_groups("embedding", GROUPS)


def test_several_names_mean_each_group_once():
    assert letters(all_named(["block.1", "/block/", "head"], GROUPS, "this")) == "102h"
    assert letters(initial_groups(["head", "head", "block.-1"], GROUPS)) == "h2"
    with pytest.raises(ConfigurationError, match="this is a list of group names"):
        all_named("head", GROUPS, "this")
