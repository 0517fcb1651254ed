"""The figure of bench_random_labels.py: trace by arm, real labels beside random ones. It reads series, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from random_labels_summary import (
    ALL,
    ARMS,
    HEAD_ONLY,
    LABELS,
    PER_PARAMETER,
    REAL,
    STANDARD,
    UNFREEZING,
    VIEWS,
    Curve,
    headline,
    note,
)

from hf_early_ood.atomic import replacing

# The look of hf_early_ood.report.figures.
INK, MUTED, GRID = "#1c2733", "#5b6875", "#e3e7eb"
COLORS = {STANDARD: "#174a7c", UNFREEZING: "#b3400a", HEAD_ONLY: "#2f7d32"}
LINES = {STANDARD: "-", UNFREEZING: "-", HEAD_ONLY: "--"}
NAMES = {
    STANDARD: "standard (everything trains)",
    UNFREEZING: "gradual unfreezing",
    HEAD_ONLY: "head only",
}
TITLES = {
    PER_PARAMETER: "Trace of the parameters that train, divided by their number (as the paper counts)",
    ALL: "Trace of all parameters, whether they train or not (equal terms)",
}
STYLE = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8, "xtick.color": INK, "ytick.color": INK,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.labelcolor": INK, "axes.labelsize": 9.5, "text.color": INK,
}  # fmt: skip


def draw(record: Mapping[str, Any], path: Path) -> None:
    """A row as the paper counts and one on equal terms; real and random labels as columns; 1200 pixels wide."""
    curves = [Curve.of(run) for run in record["runs"]]
    with rc_context(STYLE):
        figure = Figure(figsize=(8.0, 8.8), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        head, *rows = figure.subfigures(3, 1, height_ratios=[0.33, 1, 1])
        for part, view in zip(rows, (PER_PARAMETER, ALL), strict=True):
            part.suptitle(TITLES[view], x=0.01, ha="left", fontsize=10, fontweight="bold")
            for axes, labels in zip(part.subplots(1, 2, sharey=True), LABELS, strict=True):
                chosen = [curve for curve in curves if curve.labels == labels]
                _lines(axes, chosen, view)
                _releases(axes, chosen)
                axes.set_yscale("log")
                title = rf"$\bf{{{labels}\ labels}}$" + "\n" + note(record["summary"], view, labels)
                axes.set_title(title, loc="left", fontsize=9, pad=18, linespacing=1.3)
                axes.set_xlabel("updates")
                if labels == REAL:
                    axes.set_ylabel("tr F / number of parameters" if view == PER_PARAMETER else "tr F")
        _head(head, record, *rows[0].axes[0].get_legend_handles_labels())
        with replacing(path) as unfinished:
            figure.savefig(unfinished, format="png")


def _head(head: SubFigure, record: Mapping[str, Any], handles: list[Artist], names: list[str]) -> None:
    """The finding, the legend, and what the lines are."""
    head.text(0.01, 0.98, headline(record["summary"]), fontsize=11.5, fontweight="bold", va="top")
    head.legend(
        handles, names, loc="lower left", bbox_to_anchor=(0.0, 0.17), ncols=4, frameon=False, fontsize=9,
        columnspacing=1.4,
    )  # fmt: skip
    number = len({run["seed"] for run in record["runs"]})
    text = f"all-MiniLM-L6-v2 on tweets; mean over seeds ({number}), shaded from the lowest to the highest"
    head.text(0.014, 0.05, text, fontsize=9, color=MUTED)


def _lines(axes: Axes, curves: Sequence[Curve], view: str) -> None:
    """Mean over seeds, and the range of seeds."""
    for arm in ARMS:
        mine = [curve for curve in curves if curve.arm == arm]
        steps = mine[0].steps
        values = [[VIEWS[view](curve, step) for curve in mine] for step in steps]
        low, high = [min(each) for each in values], [max(each) for each in values]
        axes.fill_between(steps, low, high, color=COLORS[arm], alpha=0.18, lw=0)
        axes.plot(steps, [fmean(each) for each in values], LINES[arm], color=COLORS[arm], lw=1.8, label=NAMES[arm])


def _releases(axes: Axes, curves: Sequence[Curve]) -> None:
    """A dotted line at each release, with the group above it."""
    releases = next(curve.releases for curve in curves if curve.arm == UNFREEZING)
    first = min(step for step in releases.values() if step > 0)
    for group, step in releases.items():
        if step > 0:
            label = "release" if step == first else None
            axes.axvline(step, color=COLORS[UNFREEZING], lw=0.9, ls=":", zorder=1, label=label)
            name = group.replace("embeddings", "emb.")
            axes.annotate(
                name if step == first else name.removeprefix("block."), (step, 1.0), xytext=(0, 3),
                textcoords="offset points", xycoords=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8,
                color=COLORS[UNFREEZING],
            )  # fmt: skip
