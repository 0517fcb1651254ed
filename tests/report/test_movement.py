"""The trajectory on a page and in a picture of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from hf_early_ood import names
from hf_early_ood.atomic import append_jsonl
from hf_early_ood.dynamics import Measurement, measurement_of, quantities_of, read_dynamics
from hf_early_ood.errors import DataError, ResumeError
from hf_early_ood.report.figures import early
from hf_early_ood.report.figures.movement import draw_movement, movement_figure
from hf_early_ood.report.material import read_material
from hf_early_ood.report.movement import movement_tables
from hf_early_ood.report.study_page import make_page
from tests.report import folders

GROUPS = ("embeddings", "block.0", "head")


def line(step: int) -> dict[str, Any]:
    def of(scale: float) -> dict[str, Any]:
        return {"value": scale * step, "per_group": {name: scale * step * (i + 1) for i, name in enumerate(GROUPS)}}

    quantities = {"sign_changes": of(0.001), "relative_distance": of(0.01), "cosine": of(0.02)}
    if step:
        quantities["update_cosine"] = {"value": None, "per_group": dict.fromkeys(GROUPS)}
    record = {"measure": "trajectory", "num_examples": None, **of(0.5)}
    return {"step": step, **record, "details": {"quantities": quantities}, "trainable": list(GROUPS)}


def measurements() -> list[Measurement]:
    lines = [line(step) for step in (0, 10, 20)]
    return [item for record in lines for item in (measurement_of(record), *quantities_of(record))]


def test_page_shows_distance_and_signs_of_each_group(tmp_path: Path) -> None:
    folders.write_run(tmp_path, folders.run("gradual", 1, 0.01, ["movie", "amazon"], True))
    for step in (0, 10, 20):
        append_jsonl(tmp_path / names.DYNAMICS_FILE, line(step))
    drawn = {picture.name: picture for picture in make_page(read_material(tmp_path)).pictures()}
    assert {"group_measures", "trajectory", "trajectory_sign_changes"} <= set(drawn)
    dynamics = read_dynamics(tmp_path / names.DYNAMICS_FILE)
    assert early.grouped(dynamics)[0].measure == "fisher_trace"
    assert [item.step for item in early.of_groups(dynamics, "trajectory/sign_changes")] == [0, 10, 20]


def test_a_page_without_a_trajectory_says_nothing_of_it(tmp_path: Path) -> None:
    folders.write_run(tmp_path, folders.run("gradual", 1, 0.01, ["movie", "amazon"], True))
    assert not [p for p in make_page(read_material(tmp_path)).pictures() if p.name.startswith("trajectory")]


def test_picture(tmp_path: Path) -> None:
    movement_figure(measurements(), tmp_path / "a.png", "of a test")
    assert imread(tmp_path / "a.png").shape[1] == 1200
    distances, cosines = draw_movement(measurements()).axes[:2]
    assert [item.get_label() for item in distances.lines] == ["to the start"]
    assert [math.isnan(value) for value in cosines.lines[1].get_ydata()] == [True, True]
    with pytest.raises(DataError, match="no trajectory to draw"):
        movement_figure([Measurement(0, "fisher_trace", 1.0)], tmp_path / "b.png")


def test_tables_have_a_line_a_model_and_a_line_a_group() -> None:
    models, groups = movement_tables(measurements(), {0: "start", 10: "checkpoint-10", 20: "checkpoint-20"})
    assert [row[:2] for row in models.rows] == [("start", "0"), ("checkpoint-10", "5"), ("checkpoint-20", "10")]
    assert [row[0] for row in groups.rows] == list(GROUPS)
    assert groups.title == "checkpoint-20 by layer group"


def test_a_line_with_other_quantities_is_told(tmp_path: Path) -> None:
    append_jsonl(tmp_path / "a.jsonl", {**line(0), "details": {"quantities": {"cosine": {"value": "1"}}}})
    with pytest.raises(ResumeError, match=r"Line 1 of .* is not usable"):
        read_dynamics(tmp_path / "a.jsonl")
