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


def perturbed(groups, step: int, kind: str = "reset_to_start", seed: int = 1, **further):
    record = PerturbationRecord(step, kind, dict.fromkeys(groups, 0.01), further)
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
    assert (found[1].arm, found[1].groups, found[1].kind, found[1].step) == ("arm1", GROUPS[0], "reset to start", 28)
    assert not perturbed_arms(study())


@pytest.mark.parametrize(
    ("made", "compared"),
    [
        (a_study(), True),
        (study(), False),
        (a_study(GROUPS[:1], (4,), noise=False), False),
        (replace(a_study(), comparisons=()), False),
        (a_study(GROUPS[:1], (80,)), True),
    ],
    ids=["many", "none perturbs", "one", "not compared yet", "two kinds at one update"],
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


def shuffled(*further: dict) -> StudyRecord:
    """Arms that shuffle the head after 4 updates, each in its own way."""
    arms = {"standard": (replace(arm_run(1), updates=80),)}
    found = []
    for number, one in enumerate(further):
        arms[f"arm{number}"] = (perturbed(("head",), 4, "shuffle", **one),)
        found += [
            comparison(split, -0.01 * (number + 1), 0.005, arm=f"arm{number}") for split in (ID_TEST, OOD_MACRO_MEAN)
        ]
    return StudyRecord("layers", "standard", (1,), "accuracy", arms, tuple(found))


def test_arms_that_perturb_the_same_in_other_ways_have_rows_of_their_own():
    made = shuffled({}, {"within": "row", "keep_signs": True}, {"parameters": "matrices"}, {})
    rows = replaceable_table(made, OOD_MACRO_MEAN).rows
    assert [(row[1], row[2].split()[0]) for row in rows] == [
        ("shuffle, arm0", "-1.0"),
        ("shuffle (within row, keep signs)", "-2.0"),
        ("shuffle (parameters matrices)", "-3.0"),
        ("shuffle, arm3", "-4.0"),
    ]
    words = in_words(made)
    assert all(f"shuffle{end} after 4: -" in words for end in (", arm0", " (within row, keep signs)", ", arm3"))


def test_a_picture_of_many_kinds_shows_all_of_them_near_their_update():
    figure = draw_replaceable(shuffled(*({"std": number / 10} for number in range(12))))
    marks = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "")]
    assert len(marks) == 24
    places = [x for line in marks for x in line.get_xdata()]
    assert sum(places) / len(places) == pytest.approx(4)
    assert all(abs(x - 4) < 0.3 * 80 for x in places)


@pytest.mark.parametrize("look", [LIGHT, narrow(LIGHT)], ids=["light", "narrow"])
def test_the_legend_is_inside_and_beside_nothing(look):
    further = [{}, {"within": "row", "keep_signs": True}, *({"std": number / 10} for number in range(6))]
    figure = draw_replaceable(shuffled(*further), look)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()[2:]} == {
        item.kind for item in perturbed_arms(shuffled(*further))
    }
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0
    assert box.x1 <= page.x1
    label = figure.axes[0].yaxis.label
    assert "points from standard" in label.get_text()
    assert not box.overlaps(label.get_window_extent())


def test_words_for_who_cannot_see():
    words = in_words(a_study())
    assert words.startswith("accuracy on the mean of the OOD sets, points from standard, by layer groups and update. ")
    assert "block.0 to 1, reset to start after 28: -8.0; " in words


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
