"""Rank correlations on pairs whose answers are known."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from similarity_summary import chance, correlations, mean_interval, rank_interval


def pair(source, target, predicted, measured):
    return {"source": source, "target": target, "predicted": {"m": predicted}, "measured": [measured, measured + 0.2]}


def test_within_targets_leaves_out_how_hard_a_target_is():
    pairs = [pair("a", "x", 1, 0.9), pair("b", "x", 2, 0.8), pair("a", "y", 5, 0.2), pair("b", "y", 6, 0.1)]
    found = correlations(pairs, "m")
    assert found["within_targets"] == {"value": -1.0, "low": -1.0, "high": -1.0, "count": 2}
    assert found["targets"] == {"x": -1.0, "y": -1.0}
    assert found["all_pairs"]["value"] == pytest.approx(-1)


def test_a_target_whose_sources_are_all_alike_has_none():
    pairs = [pair("a", "x", 1, 0.5), pair("b", "x", 2, 0.5), pair("a", "y", 1, 0.1), pair("b", "y", 2, 0.3)]
    found = correlations(pairs, "m")
    assert found["targets"]["x"] is None
    assert found["within_targets"] == {"value": 1.0, "low": None, "high": None, "count": 1}


def test_intervals():
    found = mean_interval([0.2, 0.4, 0.6])
    assert found["value"] == pytest.approx(0.4)
    assert found["high"] - found["value"] == pytest.approx(4.302653 * 0.2 / 3**0.5, rel=1e-5)
    assert mean_interval([-1.0, 1.0])["low"] == -1.0
    assert mean_interval([]) == {"value": None, "low": None, "high": None, "count": 0}
    # rho = 0.5 of 28 pairs: tanh(0.5493 +- 1.96 sqrt(1.125 / 25)) = tanh(0.5493 +- 0.4158)
    found = rank_interval(0.5, 28)
    assert (found["low"], found["high"]) == (pytest.approx(0.1327, abs=1e-4), pytest.approx(0.7465, abs=1e-4))
    assert rank_interval(1.0, 28)["low"] is None


def all_pairs(seed, weight):
    """Every ordered pair of four domains; what is predicted follows what is measured, as far as the weight says."""
    draws = random.Random(seed)
    pairs = []
    for source, target in itertools.permutations("abcd", 2):
        measured = draws.random()
        pairs.append(pair(source, target, weight * measured + (1 - weight) * draws.random(), measured))
    return pairs


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_chance_equals_a_count_of_all_ways(seed):
    pairs = all_pairs(seed, 0.5)
    predicted = {(one["source"], one["target"]): one["predicted"]["m"] for one in pairs}
    means = []
    for way in itertools.permutations("abcd"):
        name = dict(zip("abcd", way, strict=True))
        renamed = [{**one, "predicted": {"m": predicted[name[one["source"]], name[one["target"]]]}} for one in pairs]
        means.append(correlations(renamed, "m")["within_targets"]["value"])
    assert chance(pairs, "m") == sum(mean >= means[0] - 1e-9 for mean in means) / 24


def test_chance_of_the_right_order_and_of_none():
    right = all_pairs(0, 1.0)
    assert chance(right, "m") == 1 / 24
    assert chance([{**one, "predicted": {"m": -one["predicted"]["m"]}} for one in right], "m") == 1
    assert chance(right[1:], "m") is None
    assert chance([{**one, "predicted": {"m": 0.5}} for one in right], "m") is None
