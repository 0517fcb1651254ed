"""What perturbing a layer group after k updates costs: a panel for each group, k along the axis."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hf_early_ood.names import ID_TEST, OOD_MACRO_MEAN
from hf_early_ood.report.figures.style import LIGHT, MARKERS, Look, make_figure, save, shortened, style
from hf_early_ood.report.layout import metric_title
from hf_early_ood.report.replaceable import (
    SPLITS,
    Perturbed,
    difference,
    groups_in_words,
    perturbed_arms,
    updates,
)
from hf_early_ood.results import StudyRecord

_NAMES = {ID_TEST: "ID test", OOD_MACRO_MEAN: "mean of the OOD sets"}
_ROOM = 0.012  # of the axis, between two splits or kinds at one update
_LONG = 20  # letters of a kind, with which four do not stand in a row
_MOST = 3  # kinds that have so much of it; more of them share it


def replaceable_figure(study: StudyRecord, path: str | PathLike[str]) -> None:
    """Write `draw_replaceable` as PNG."""
    save(lambda: draw_replaceable(study), path)


def draw_replaceable(study: StudyRecord, look: Look = LIGHT) -> Figure:
    """Difference from the baseline over the update of the perturbation, with its interval, for each set of groups.

    The kind of most arms is a line with filled marks; others are hollow marks beside it.
    """
    arms = perturbed_arms(study)
    kinds = sorted(dict.fromkeys(a.kind for a in arms), key=lambda kind: -sum(a.kind == kind for a in arms))
    panels = list(dict.fromkeys(item.groups for item in arms))
    columns = min(2 if look.narrow else 3, len(panels))
    rows = -(-len(panels) // columns)
    figure = make_figure(look, 1.1 + 2.1 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    end = updates(study) or max(item.step for item in arms)
    room = 2 * _ROOM * end * min(1.0, _MOST / len(kinds))
    for axes, groups in zip(grid.ravel(), panels, strict=False):
        style(axes, look)
        axes.axhline(0, color=look.muted, lw=1.0, zorder=1)
        for kind_number, kind in enumerate(kinds):
            own = sorted((a for a in arms if (a.groups, a.kind) == (groups, kind)), key=lambda item: item.step)
            for split_number, split in enumerate(SPLITS):
                shift = (split_number - 0.5 + 2 * kind_number) * room
                _line(axes, study, own, split, look, (split_number, kind_number), shift)
        axes.set_title(shortened(groups_in_words(groups), look.letters), loc="left", color=look.ink, fontsize=10)
        axes.set_xlim(-0.04 * end, (1.06 + 0.05 * (min(len(kinds), _MOST) - 1)) * end)
    for number, axes in enumerate(grid.ravel()):
        if number >= len(panels):
            axes.set_visible(False)
        elif number + columns >= len(panels):
            axes.tick_params(labelbottom=True)
    in_a_row = 2 if max(map(len, kinds)) > _LONG else min(2 + len(kinds), 4)
    figure.legend(
        handles=_legend(kinds, look), loc="outside upper left", ncols=1 if look.narrow else in_a_row,
        frameon=False, fontsize=9, labelcolor=look.ink,
    )  # fmt: skip
    figure.supxlabel(f"update after which the layers were perturbed, of {end}", fontsize=9, color=look.ink)
    words = f"{metric_title(study.metric)}, points from {study.baseline}"
    figure.supylabel(words, fontsize=9, color=look.ink)
    return figure


def _line(
    axes: Axes,
    study: StudyRecord,
    arms: Sequence[Perturbed],
    split: str,
    look: Look,
    numbers: tuple[int, int],
    shift: float,
) -> None:
    found = [(item.step, comparison) for item in arms if (comparison := difference(study, item, split)) is not None]
    color, main = look.arms[numbers[0]], numbers[1] == 0
    places = [step + shift for step, _ in found]
    values = [100 * (comparison.difference or 0.0) for _, comparison in found]
    for place, (_, comparison) in zip(places, found, strict=True):
        if comparison.low is not None and comparison.high is not None:
            ends = [100 * comparison.low, 100 * comparison.high]
            axes.plot([place, place], ends, color=color, lw=1.4, alpha=0.55, zorder=2)
    marker = MARKERS[numbers[0] if main else _hollow(numbers[1])]
    face = color if main else look.paper
    axes.plot(places, values, marker, ls="-" if main else "", color=color, mfc=face, ms=5, lw=1.4, zorder=3)


def _hollow(number: int) -> int:
    return (1 + number) % len(MARKERS)


def _legend(kinds: Sequence[str], look: Look) -> list[Line2D]:
    splits = [
        Line2D([], [], color=look.arms[number], marker=MARKERS[number], ms=5, lw=1.4, label=_NAMES[split])
        for number, split in enumerate(SPLITS)
    ]
    others = [
        Line2D([], [], color=look.muted, marker=MARKERS[_hollow(number)], mfc=look.paper, ms=5, ls="", label=kind)
        for number, kind in enumerate(kinds)
        if number
    ]
    line = Line2D([], [], color=look.muted, marker=MARKERS[0], ms=5, lw=1.4, label=kinds[0])
    return [*splits, line, *others]
