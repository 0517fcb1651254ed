"""What perturbing a layer group after k updates costs: a panel for each group, k along the axis."""

from __future__ import annotations

from collections import Counter
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
_ROOM = 0.024  # of the axis, between two marks at one update
_LETTERS = 14  # of the legend in an inch


def replaceable_figure(study: StudyRecord, path: str | PathLike[str]) -> None:
    """Write `draw_replaceable` as PNG."""
    save(lambda: draw_replaceable(study), path)


def draw_replaceable(study: StudyRecord, look: Look = LIGHT) -> Figure:
    """Difference from the baseline over the update of the perturbation, with its interval, for each set of groups.

    The perturbation of most arms is a line with filled marks; others are hollow marks beside it.
    """
    arms = perturbed_arms(study)
    kinds = sorted(dict.fromkeys(a.kind for a in arms), key=lambda kind: -sum(a.kind == kind for a in arms))
    panels = list(dict.fromkeys(item.groups for item in arms))
    columns = min(2 if look.narrow else 3, len(panels))
    rows = -(-len(panels) // columns)
    handles = _legend(kinds, look)
    longest = max(len(str(handle.get_label())) for handle in handles)
    in_a_row = 1 if look.narrow else max(1, min(len(handles), int(_LETTERS * look.width) // (longest + 8)))
    figure = make_figure(look, 0.9 + 2.1 * rows + 0.2 * -(-len(handles) // in_a_row))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    total = updates(study)
    end = total or max(1, *(item.step for item in arms))
    for axes, groups in zip(grid.ravel(), panels, strict=False):
        style(axes, look)
        axes.axhline(0, color=look.muted, lw=1.0, zorder=1)
        for number, kind in enumerate(kinds):
            own = sorted((a for a in arms if (a.groups, a.kind) == (groups, kind)), key=lambda item: item.step)
            for split_number, split in enumerate(SPLITS):
                places = [(_place(arms, item, kinds, split_number) * _ROOM * end + item.step, item) for item in own]
                _line(axes, study, places, split, look, (split_number, number))
        axes.set_title(shortened(groups_in_words(groups), look.letters), loc="left", color=look.ink, fontsize=10)
        widest = max(Counter((item.groups, item.step) for item in arms).values())
        axes.set_xlim(-(0.02 + _ROOM * widest) * end, (1.02 + _ROOM * widest) * end)
    for number, axes in enumerate(grid.ravel()):
        if number >= len(panels):
            axes.set_visible(False)
        elif number + columns >= len(panels):
            axes.tick_params(labelbottom=True)
    figure.legend(
        handles=handles, loc="outside upper left", ncols=in_a_row, frameon=False, fontsize=9, labelcolor=look.ink
    )
    of = "" if total is None else f", of {total}"
    figure.supxlabel(f"update after which the layers were perturbed{of}", fontsize=9, color=look.ink)
    words = f"{metric_title(study.metric)},\npoints from {shortened(study.baseline, 16)}"
    for axes in grid[:, 0]:
        axes.set_ylabel(words, fontsize=9, color=look.ink)
    return figure


def _place(arms: Sequence[Perturbed], item: Perturbed, kinds: Sequence[str], split_number: int) -> float:
    """Of a mark among those of the same groups and update, from the middle."""
    here = {other.kind for other in arms if (other.groups, other.step) == (item.groups, item.step)}
    beside = [kind for kind in kinds if kind in here]
    return 2 * beside.index(item.kind) + split_number - len(beside) + 0.5


def _line(
    axes: Axes,
    study: StudyRecord,
    arms: Sequence[tuple[float, Perturbed]],
    split: str,
    look: Look,
    numbers: tuple[int, int],
) -> None:
    found = [(place, compared) for place, item in arms if (compared := difference(study, item, split)) is not None]
    color, main = look.arms[numbers[0]], numbers[1] == 0
    places = [place for place, _ in found]
    values = [100 * (comparison.difference or 0.0) for _, comparison in found]
    for place, comparison in found:
        if comparison.low is not None and comparison.high is not None:
            ends = [100 * comparison.low, 100 * comparison.high]
            axes.plot([place, place], ends, color=color, lw=1.4, alpha=0.55, zorder=2)
    marker = MARKERS[numbers[0]] if main else _hollow(numbers[1])
    face = color if main else look.paper
    axes.plot(places, values, marker, ls="-" if main else "", color=color, mfc=face, ms=5, lw=1.4, zorder=3)


def _hollow(number: int) -> str:
    """The mark of what is not the first."""
    return MARKERS[2 + (number - 1) % (len(MARKERS) - 2)]


def _legend(kinds: Sequence[str], look: Look) -> list[Line2D]:
    splits = [
        Line2D([], [], color=look.arms[number], marker=MARKERS[number], ms=5, lw=1.4, label=_NAMES[split])
        for number, split in enumerate(SPLITS)
    ]
    others = [
        Line2D([], [], color=look.muted, marker=_hollow(number), mfc=look.paper, ms=5, ls="", label=kind)
        for number, kind in enumerate(kinds)
        if number
    ]
    line = Line2D([], [], color=look.muted, marker=MARKERS[0], ms=5, lw=1.4, label=kinds[0])
    return [*splits, line, *others]
