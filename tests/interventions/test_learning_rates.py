from __future__ import annotations

import re

import pytest
import torch

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.interventions.learning_rates import (
    Rate,
    Releases,
    check_factors,
    constant_factors,
    forget_state,
    rates,
    training_groups,
)
from hf_early_ood.interventions.update_rules import split_by_layer_group
from hf_early_ood.layers import find_layer_groups
from tests import families

NAMES = ("embeddings", "block.0", "block.1", "block.10", "head")


def test_layer_decay_counts_the_groups_above():
    assert constant_factors(NAMES, 0.5, {}) == {
        "embeddings": 1 / 16,
        "block.0": 1 / 8,
        "block.1": 1 / 4,
        "block.10": 1 / 2,
        "head": 1.0,
    }


def test_layer_decay_of_ulmfit():
    assert constant_factors(NAMES, 1 / 2.6, {})["block.1"] == pytest.approx(1 / 2.6 / 2.6)


def test_layer_decay_without_a_head_begins_at_the_top_group():
    assert constant_factors(("encoder.block.0", "decoder.block.0"), 0.1, {}) == {
        "encoder.block.0": 0.1,
        "decoder.block.0": 1.0,
    }


def test_factors_by_name_and_pattern():
    factors = {r"block\..*": 2.0, "block.1": 3.0, "head": 10}
    assert constant_factors(NAMES, 1.0, factors) == {
        "embeddings": 1.0,
        "block.0": 2.0,
        "block.1": 3.0,
        "block.10": 2.0,
        "head": 10.0,
    }


def test_a_name_is_not_part_of_another_name():
    assert constant_factors(NAMES, 1.0, {"block.1": 3.0})["block.10"] == 1.0


def test_factors_and_layer_decay_multiply():
    assert constant_factors(NAMES, 0.5, {"block.1": 3.0})["block.1"] == 0.75


@pytest.mark.parametrize("key", ["heads", "block", r"block\.[5-9]", "embed"])
def test_what_matches_no_group_is_refused(key):
    with pytest.raises(
        ConfigurationError, match=rf"does not have\. Got: {re.escape(repr(key))}\. Allowed: embeddings, "
    ):
        constant_factors(NAMES, 1.0, {key: 2.0})


def test_two_patterns_for_one_group_are_refused_in_either_order():
    # A checkpoint keeps its settings sorted by key: the order of entries must not matter.
    for patterns in (["block.*", ".*1"], [".*1", "block.*"]):
        with pytest.raises(ConfigurationError, match=r"Two patterns in factors match the layer group block\.1\."):
            constant_factors(NAMES, 1.0, dict.fromkeys(patterns, 2.0))


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"head": 0}, r"factors\['head'\] is not usable\. Got: 0\. Allowed: a finite number above 0"),
        ({"head": -1.0}, r"factors\['head'\] is not usable\. Got: -1"),
        ({"head": float("nan")}, r"factors\['head'\] is not usable\. Got: nan"),
        ({"head": float("inf")}, r"factors\['head'\] is not usable\. Got: inf"),
        ({"head": True}, r"factors\['head'\] is not usable\. Got: True"),
        ({"head": "2"}, r"factors\['head'\] is not usable\. Got: '2'"),
        ({"block[": 2.0}, r"neither a group name nor a regular expression\. Got: 'block\["),
        ({3: 2.0}, r"neither a group name nor a regular expression\. Got: 3"),
        (["head"], r"factors is not usable\. Got: \['head'\]"),
    ],
)
def test_factors_that_are_not_usable(factors, message):
    with pytest.raises(ConfigurationError, match=message):
        check_factors(factors)


def test_releases():
    releases = Releases()
    assert releases.notice(0, ["head", "block.1"]) == []
    assert releases.since == {"head": None, "block.1": None}
    assert releases.notice(3, ["head", "block.0"]) == []  # the first time
    assert releases.since == {"head": None, "block.0": 3}
    assert releases.notice(3, ["head", "block.0"]) == []  # asked twice
    assert releases.notice(4, ["head", "block.1"]) == ["block.1"]
    assert releases.since == {"head": None, "block.1": 4}
    assert releases.notice(5, ["head", "block.1"]) == []
    assert releases.since == {"head": None, "block.1": 4}
    assert releases.known == ["head", "block.1", "block.0"]


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [(0, [1, 1, 1, 1]), (1, [1 / 2, 1, 1, 1]), (2, [1 / 3, 2 / 3, 1, 1]), (3, [1 / 4, 2 / 4, 3 / 4, 1])],
)
def test_warmup_of_a_release(warmup, expected):
    constant = {"head": 1.0, "block.0": 1.0}
    got = [rates(step, {"head": None, "block.0": 7}, constant, release_warmup=warmup) for step in (7, 8, 9, 10)]
    assert [each["block.0"].factor for each in got] == expected
    assert [each["head"].factor for each in got] == [1.0] * 4


@pytest.mark.parametrize(("switch_at", "expected"), [(2, [3.0, 3.0, 6.0]), (None, [3.0, 3.0, 3.0])])
def test_switch(switch_at, expected):
    got = [rates(t, {"head": None}, {"head": 6.0}, switch_factor=0.5, switch_at=switch_at) for t in range(3)]
    assert [each["head"].factor for each in got] == expected


def test_what_continues():
    ramp, flat = Rate(0.5, 0.25), Rate(0.5, 1.0)
    assert Rate(0.5, 0.75).continues(ramp)
    assert flat.continues(flat)
    assert not flat.continues(ramp)
    assert not ramp.continues(flat)
    assert not ramp.continues(None)
    assert not Rate(0.1, 1.0).continues(flat)


@pytest.fixture
def split():
    model = families.build("bert")
    groups = find_layer_groups(model)
    decays = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    rest = [p for name, p in model.named_parameters() if name.endswith("bias")]
    optimizer = torch.optim.AdamW([{"params": decays}, {"params": rest, "weight_decay": 0.0}])
    split_by_layer_group(optimizer, groups)
    return groups, optimizer


def test_training_groups_are_those_that_require_a_gradient(split):
    groups, optimizer = split
    for name in ("embeddings", "block.1"):
        for parameter in groups[name].parameters.values():
            parameter.requires_grad_(False)
    next(iter(groups["block.1"].parameters.values())).requires_grad_(True)
    assert training_groups(optimizer) == ["block.0", "block.1", "block.2", "head"]


def test_forgetting_drops_the_state_of_these_groups_only(split):
    groups, optimizer = split
    for group in groups:
        for parameter in group.parameters.values():
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    forget_state(optimizer, ["block.1", "head"])
    kept = {group.name for group in groups for p in group.parameters.values() if p in optimizer.state}
    assert kept == {"embeddings", "block.0", "block.2"}
    optimizer.step()
    steps = {group.name: {float(optimizer.state[p]["step"]) for p in group.parameters.values()} for group in groups}
    assert steps == {"embeddings": {2.0}, "block.0": {2.0}, "block.1": {1.0}, "block.2": {2.0}, "head": {1.0}}
