"""The numbers behind the figure of the random labels, on series whose answers are known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from random_labels_summary import ALL, ARMS, LABELS, PER_PARAMETER, paired, summary

SEEDS = (1, 2)
RELEASES = {"head": 0, "block.0": 20, "embeddings": 40}


def run(labels, arm, seed, growth=1.0):
    """A constant trace, 6 for the head of 2 parameters, times the seed; twice that with random labels.

    ``growth`` multiplies it when the first group has been released.
    """
    steps = list(range(0, 81, 5))
    releases = {"standard": dict.fromkeys(RELEASES, 0), "gradual_unfreezing": RELEASES, "head_only": {"head": 0}}[arm]
    factor = {"real": 1.0, "random": 2.0}[labels] * seed
    series = [factor * (growth if step > 20 else 1.0) for step in steps]
    return {
        "labels": labels,
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "parameters": {"embeddings": 100, "block.0": 10, "head": 2},
        "releases": releases,
        "trainable": [[name for name, start in releases.items() if start < max(step, 1)] for step in steps],
        "trace": {
            name: [size * value for value in series] for name, size in (("embeddings", 1), ("block.0", 3), ("head", 6))
        },
    }


def runs(growth=1.0):
    return [run(labels, arm, seed, growth) for labels in LABELS for arm in ARMS for seed in SEEDS]


def test_a_constant_trace_is_all_bookkeeping():
    released = summary(runs())["released"]["real"]
    assert [(release["group"], release["step"]) for release in released] == [("block.0", 20), ("embeddings", 40)]
    # 6 over 2 parameters, then 6 + 3 over 12: the quarter of it, without any training.
    assert released[0]["per_parameter"]["ratios"] == pytest.approx([0.25, 0.25])
    assert released[0]["per_parameter_same_weights"]["ratios"] == pytest.approx([0.25, 0.25])
    assert released[0]["total"]["ratio"] == pytest.approx(1.5)
    for column in ("same_parameters", "all", "all_later", "all_standard", "all_head_only"):
        assert released[0][column]["ratios"] == [1.0, 1.0], column


def test_what_training_changes_is_told_from_bookkeeping():
    first, second = summary(runs(growth=3.0))["released"]["real"]
    assert first["per_parameter"]["ratio"] == pytest.approx(0.75)
    assert first["per_parameter_same_weights"]["ratio"] == pytest.approx(0.25)
    assert first["same_parameters"]["ratio"] == first["all"]["ratio"] == pytest.approx(3.0)
    assert second["all"]["ratio"] == pytest.approx(1.0)


def test_withheld_layers_are_compared_by_the_paper_and_on_equal_terms():
    withheld = summary(runs())["withheld"]["real"]["head_only"]
    # 6 over 2 parameters against 10 over 112.
    assert withheld[PER_PARAMETER]["update 0"]["ratio"] == pytest.approx(3 / (10 / 112))
    assert withheld[ALL]["updates 1 to 20"]["ratios"] == [1.0, 1.0]


def test_random_labels_are_paired_with_real_ones_by_seed():
    found = summary(runs())["random_against_real"]["standard"][ALL]["last 20 updates"]
    assert found["values"] == pytest.approx([20.0, 40.0])
    assert found["ratios"] == pytest.approx([2.0, 2.0])
    assert found["difference"] == pytest.approx(15.0)


def test_the_mean_of_ratios_is_geometric():
    assert paired([2.0, 8.0], [1.0, 1.0])["ratio"] == pytest.approx(4.0)
