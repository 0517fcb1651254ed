"""The section of a study whose arms perturb layer groups: what is read, tables, picture."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from hf_early_ood.names import ID_TEST, OOD_MACRO_MEAN
from hf_early_ood.report import score_sections
from hf_early_ood.report.figures.replaceable import draw_replaceable, replaceable_figure
from hf_early_ood.report.figures.style import DARK, LIGHT, narrow
from hf_early_ood.report.making import Making
from hf_early_ood.report.material import Material
from hf_early_ood.report.replaceable import (
    Perturbed,
    are_compared,
    groups_in_words,
    in_words,
    perturbed_arms,
    replaceable_table,
)
from hf_early_ood.results import InterventionRecord, PerturbationRecord, StudyRecord
from tests.report.records import arm_run, comparison, study
from tests.report.test_figures import overlaps

GROUPS = (("embeddings",), ("block.0", "block.1"), ("block.2", "block.3"), ("head",))
STEPS = (4, 28, 80)


def perturbed(groups, step: int, kind: str = "reset_to_start", seed: int = 1, **settings):
    record = PerturbationRecord(step, kind, dict.fromkeys(groups, 0.01), settings)
    return replace(arm_run(seed), intervention=InterventionRecord("standard", perturbation=record), updates=80)


def a_study(groups=GROUPS, steps=STEPS, noise: bool = True) -> StudyRecord:
    arms = {"standard": (replace(arm_run(1), updates=80),)}
    found = []
    cases = [(group, step, "reset_to_start") for group, step in itertools.product(groups, steps)]
    cases += [(group, steps[-1], "noise") for group in groups if noise]
    for number, (group, step, kind) in enumerate(cases):
        arm = f"arm{number}"
        arms[arm] = (perturbed(group, step, kind),)
        found += [comparison(ID_TEST, -0.01 * number, 0.02, arm=arm)]
        found += [comparison(OOD_MACRO_MEAN, -0.02 * number, 0.03, arm=arm)]
    return StudyRecord("layers", "standard", (1,), "accuracy", arms, tuple(found))


def test_what_is_perturbed_is_read_from_the_runs():
    found = perturbed_arms(a_study())
    assert len(found) == 16
    assert found[1] == Perturbed("arm1", GROUPS[0], "reset to start", 28)
    assert not perturbed_arms(study())


@pytest.mark.parametrize(
    ("made", "compared"),
    [
        (a_study(), True),
        (study(), False),
        (a_study(GROUPS[:1], (4,), noise=False), False),
        (replace(a_study(), comparisons=()), False),
    ],
    ids=["many", "none perturbs", "one", "not compared yet"],
)
def test_the_section_is_there_where_arms_are_compared(tmp_path: Path, made: StudyRecord, compared: bool):
    assert are_compared(made) == compared
    at = Making(made, Material(made, tmp_path / "study.json"), None, "")
    section = score_sections.perturbations(at)
    assert len(section.blocks) == (3 if compared else 0)


def test_tables():
    table = replaceable_table(a_study(), OOD_MACRO_MEAN)
    assert table.headers == ("layer groups", "perturbation", "4", "28", "80")
    assert table.rows[0] == (
        "embeddings", "reset to start", "+0.0 [-3.0, +3.0]", "-2.0 [-5.0, +1.0]", "-4.0 [-7.0, -1.0]*",
    )  # fmt: skip
    assert table.rows[4] == ("embeddings", "noise", "-", "-", "-24.0 [-27.0, -21.0]*")
    assert [row[0] for row in table.rows[:4]] == ["embeddings", "block.0 to 1", "block.2 to 3", "head"]
    assert "of 80" in table.note
    assert "ID test: accuracy, points from standard [95%], 1 seed" in replaceable_table(a_study(), ID_TEST).title


def test_words_for_who_cannot_see():
    words = in_words(a_study())
    assert words.startswith("accuracy on the mean of the OOD sets, points from standard, by layer groups and update. ")
    assert "block.0 to 1, reset to start after 28: -8.0; " in words


def doses() -> StudyRecord:
    """Arms of one kind, one group and one update, which differ in their settings, two of them in nothing."""
    settings = {"within": "row", "unit": "start"}
    cases = {
        "little": perturbed(["head"], 28, "noise", **settings, std=0.25, keep_signs=False),
        "much": perturbed(["head"], 28, "noise", **settings, std=1.0, keep_signs=False),
        "later": perturbed(["head"], 80, "noise", **settings, std=1.0, keep_signs=False),
        "twice": perturbed(["head"], 80, "noise", **settings, std=1.0, keep_signs=False),
        "moved": perturbed(["head"], 28, "shuffle", **settings, std=1.0, keep_signs=False),
        "signed": perturbed(["head"], 28, "shuffle", **settings, std=1.0, keep_signs=True),
    }
    names = ("redraw_magnitudes", "redraw_signs", "reset_to_random", "reset_to_start")
    cases |= {name: perturbed(["head"], 28, name) for name in names}
    arms = {"standard": (replace(arm_run(1), updates=80),), **{name: (run,) for name, run in cases.items()}}
    found = [
        comparison(split, -0.01 * number, 0.02, arm=arm)
        for number, arm in enumerate(cases, 1)
        for split in (ID_TEST, OOD_MACRO_MEAN)
    ]
    return StudyRecord("doses", "standard", (1,), "accuracy", arms, tuple(found))


def test_every_arm_of_one_kind_has_its_place():
    rows = {row[1]: row[2:] for row in replaceable_table(doses(), OOD_MACRO_MEAN).rows}
    assert rows["noise, std 0.25"] == ("-1.0 [-3.0, +1.0]", "-")
    assert rows["noise, std 1"] == ("-2.0 [-4.0, +0.0]", "-")
    assert rows["noise, std 1: later"] == ("-", "-3.0 [-5.0, -1.0]*")
    assert rows["noise, std 1: twice"] == ("-", "-4.0 [-6.0, -2.0]*")
    assert rows["shuffle"][0].startswith("-5.0")
    assert rows["shuffle, keep signs"][0].startswith("-6.0")
    assert len(rows) == 10


def test_only_settings_can_differ():
    made = doses()
    arms = {name: runs for name, runs in made.arms.items() if name in ("standard", "little", "much")}
    assert are_compared(replace(made, arms=arms))


@pytest.mark.parametrize("look", [LIGHT, narrow(LIGHT)], ids=["light", "narrow"])
def test_many_kinds_are_all_in_the_legend_and_about_their_update(look):
    figure = draw_replaceable(doses(), look)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert set(names[2:]) == {item.what for item in perturbed_arms(doses())}
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0
    assert box.x1 <= page.x1
    beside = figure.axes[0].yaxis.label
    assert "points from standard" in beside.get_text()
    assert not box.overlaps(beside.get_window_extent())
    marks = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "")]
    places = [x for line in marks for x in line.get_xdata()]
    early, late = [x for x in places if x < 54], [x for x in places if x > 54]
    assert sum(early) / len(early) == pytest.approx(28)
    assert sum(late) / len(late) == pytest.approx(80)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (["head"], "head"),
        (["block.1", "block.3"], "block.1, block.3"),
        (["block.8", "block.9", "block.10", "head"], "block.8 to 10, head"),
        (["encoder.block.0", "encoder.block.1", "decoder.block.2"], "encoder.block.0 to 1, decoder.block.2"),
    ],
)
def test_groups_in_words(groups, words):
    assert groups_in_words(groups) == words


@pytest.mark.parametrize("look", [LIGHT, narrow(LIGHT), DARK], ids=["light", "narrow", "dark"])
@pytest.mark.parametrize("made", [a_study(), a_study(GROUPS[:1], noise=False), a_study(GROUPS[:2], (5,))])
def test_the_picture(look, made):
    figure = draw_replaceable(made, look)
    figure.draw_without_rendering()
    ticks = {text.get_text() for axes in figure.axes for text in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    assert not [pair for pair in overlaps(figure) if not ticks & set(pair)]  # of shared axes, some are hidden
    words = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert words == [groups_in_words(groups) for groups in dict.fromkeys(a.groups for a in perturbed_arms(made))]
    first = figure.axes[0]
    lines = [line for line in first.lines if line.get_marker() not in ("None", None, "")]
    assert [100 * -0.01 * number for number in range(len(STEPS))][: len(lines[0].get_ydata())] == pytest.approx(
        list(lines[0].get_ydata())
    )


def test_a_missing_difference_leaves_a_gap(tmp_path: Path):
    made = a_study()
    kept = tuple(item for item in made.comparisons if item.arm != "arm1")
    figure = draw_replaceable(replace(made, comparisons=kept))
    assert len(figure.axes[0].lines[3].get_ydata()) == 2
    replaceable_figure(made, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
