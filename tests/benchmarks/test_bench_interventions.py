"""The numbers of the benchmark of interventions, and their table with and without a record."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import make_tables
from bench_interventions import FREEZES, Arm, Training, arms, summary
from cost_tables import interventions

from hf_early_ood.config.interventions import InterventionConfig

ARM = Arm(FREEZES, {"method": "gradual_unfreezing", "interval": 0.5})


def training(head, full, more=0.0, **others):
    """Two updates of the head, two of everything, and what lies between them."""
    return Training(2 * head + 2 * full + more, stages={0: [head, head], 1: [full, full]}, **others)


def standard(update):
    return Training(4 * update, stages={0: [update] * 4})


def test_ratios_are_to_the_standard_training_of_the_pair():
    pairs = [(training(1.0, 3.0), standard(4.0)), (training(2.0, 6.0), standard(8.0)), (training(9, 9), standard(4.0))]
    row = summary(ARM, pairs)
    assert row["ratio"] == pytest.approx(0.5)
    assert row["repetitions"] == pytest.approx([0.5, 0.5, 2.25])
    assert row["update_by_stage"] == {"0": pytest.approx(0.25), "1": pytest.approx(0.75)}


def test_measuring_is_told_in_updates():
    # A fifth of 10 seconds, with updates of half a second.
    row = summary(ARM, [(training(1.0, 3.0, more=2.0, measuring=0.2), standard(0.5))])
    assert row["measuring_updates"] == pytest.approx(4.0)


def test_every_section_of_the_configuration_is_in_an_arm():
    used = {key for arm in arms(60).values() for key in (*arm.section, arm.section.get("method"))}
    sections = {field.name for field in fields(InterventionConfig) if field.default is None} - {"schedule"}
    # After training, timed by itself; once; and experiments, whose cost nobody weighs against standard training.
    assert sections - used == {"weight_interpolation", "perturbation", "pretext"}


def test_table_has_measuring_only_where_something_is_measured():
    row = {"ratio": 0.5, "measuring_updates": 0.0, "update_by_stage": {"0": 0.4, "1": 1.0}}
    record = {
        "setting": {"updates": 60, "examples": 16, "length": 64},
        "environment": {"command": "python bench"},
        "results": {
            "arms": {"LP-FT": row, "FUN": {**row, "measuring_updates": 7.25}},
            "weight_interpolation": {"alphas": 11, "updates": 2.5},
        },
        "goals": [{"what": "LP-FT", "value": 1.2, "limit": 1.0, "at_least": False, "met": False}],
    }
    text = interventions(record, True)
    assert "| LP-FT | 0.50 |  | at most 1 (missed) |" in text
    assert "| FUN | 0.50 | 7.2 |  |" in text
    assert "11 points costs as many evaluations, and the time of 2.5 updates" in text
    assert "| LP-FT | 0.50 |  | at most 1 (missed) | 0.40 1.00 |" in interventions(record, False)


def test_a_table_without_a_record_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(make_tables, "RESULTS", tmp_path)
    assert not make_tables.recorded("interventions")
    (tmp_path / "bench_interventions_gpu.json").touch()
    assert not make_tables.recorded("interventions")  # README.md shows the record of a CPU
    (tmp_path / "bench_interventions.json").touch()
    assert make_tables.recorded("interventions")
