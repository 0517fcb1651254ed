"""The early period of the arms of a study: what was watched, when was decided, what each layer group had."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hf_early_ood.dynamics import EARLY_DYNAMICS, Dynamics, Measurement
from hf_early_ood.names import SELECTION, TRAJECTORY
from hf_early_ood.report.figures.arms import Mark, backed
from hf_early_ood.report.figures.panels import panel_grid
from hf_early_ood.report.figures.signal import bottom_to_top, scale
from hf_early_ood.report.figures.style import DECADES, Look, make_figure, shortened, style
from hf_early_ood.report.layout import measure_axis, measure_title


@dataclass(frozen=True)
class Watched:
    """The signal of an arm: of each seed the series, the update of the decision and those of the releases."""

    measure: str
    per_parameter: bool
    series: Mapping[int, Sequence[tuple[int, float]]]
    decisions: Mapping[int, int]
    releases: Sequence[int]


def watched(seeds: Mapping[int, Dynamics]) -> Watched | None:
    """What the detector of an arm watched; None where nothing was measured for one."""
    found = {seed: signal_of(dynamics) for seed, dynamics in seeds.items()}
    found = {seed: series for seed, series in found.items() if series}
    if not found:
        return None
    items = [item for series in found.values() for item in series]
    normalized = all(item.normalized is not None for item in items if item.value is not None)
    series = {seed: _values(items, normalized) for seed, items in found.items()}
    decisions = {seed: dynamics.decision.step for seed, dynamics in seeds.items() if dynamics.decision is not None}
    first = seeds[min(found)]
    releases = [stage.step for stage in first.stages if stage.stage > 0]
    return Watched(items[0].measure, normalized, series, decisions, releases)


def signal_of(dynamics: Dynamics) -> tuple[Measurement, ...]:
    """The series that the detector watched: of the decision, or else the first that is there to decide an interval."""
    named = [dynamics.decision.signal] if dynamics.decision and dynamics.decision.signal else []
    deciding = [item.measure for item in dynamics.measurements if item.source != EARLY_DYNAMICS]
    signals = [*named, *(measure for measure in deciding if not measure.startswith(SELECTION))]
    return dynamics.of(signals[0]) if signals else ()


def _values(series: Sequence[Measurement], normalized: bool) -> list[tuple[int, float]]:
    pairs = ((item.step, item.normalized if normalized else item.value) for item in series)
    return [(step, value) for step, value in pairs if value is not None]


def draw_signals(arms: Mapping[str, Watched], found: Mapping[str, Mark], look: Look) -> Figure:
    """A panel for each arm: a line for each seed, its decision, and below when layers were released."""
    columns = 1 if look.narrow or len(arms) == 1 else 2
    figure, panels = panel_grid(look, len(arms), columns, 2.3, "Signal, decision and releases of layers")
    for axes, (arm, item) in zip(panels, arms.items(), strict=True):
        style(axes, look)
        values = [value for series in item.series.values() for _, value in series]
        for series in item.series.values():
            if series:
                steps, drawn = zip(*series, strict=True)
                axes.plot(steps, drawn, marker="o", ms=3, lw=1.2, color=found[arm].color, alpha=0.7, mew=0, zorder=3)
        if values:
            scale(axes, values)
        last = max([step for series in item.series.values() for step, _ in series] + [*item.decisions.values(), 1])
        axes.set_xlim(-0.03 * last, 1.06 * last)
        for step in item.decisions.values():
            axes.axvline(step, color=look.ink, lw=1.2, zorder=2)
        _say_decisions(axes, item, last, look)
        shown = [step for step in item.releases if step <= 1.06 * last]
        axes.plot(
            shown, [0.03] * len(shown), "^", color=look.trainable, ms=5, transform=axes.get_xaxis_transform(), zorder=5
        )
        per = ", per parameter" if item.per_parameter else ""
        axes.set_title(
            f"{shortened(arm, look.letters)}\n{measure_title(item.measure)}{per}",
            loc="left",
            fontsize=9,
            color=look.ink,
            pad=5,
        )
        axes.set_xlabel("updates", fontsize=8.5)
        axes.tick_params(labelsize=8)
        axes.yaxis.get_offset_text().set(color=look.ink, fontsize=8)
    return figure


def _say_decisions(axes: Axes, item: Watched, last: int, look: Look) -> None:
    steps = sorted(set(item.decisions.values()))
    if not steps:
        return
    text = f"decided after {steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "")
    right = steps[-1] > 0.5 * last
    axes.annotate(
        text, (steps[-1], 0.94), xycoords=axes.get_xaxis_transform(),
        xytext=(-5 if right else 5, 0), textcoords="offset points", ha="right" if right else "left", va="center",
        fontsize=8.5, color=look.ink, fontweight="bold", bbox=backed(look), zorder=6,
    )  # fmt: skip


def totals(dynamics: Dynamics) -> dict[str, tuple[Measurement, ...]]:
    """Measure -> its series of all parameters together, of those that have values at several updates."""
    found = {}
    for measure in dict.fromkeys(item.measure for item in dynamics.measurements):
        series = tuple(item for item in dynamics.of(measure) if item.value is not None)
        if "/" not in measure and len(series) > 1:  # not what chooses a group, nor what is logged, nor parts
            found[measure] = series
    return found


def draw_totals(
    measures: Mapping[str, Mapping[str, Sequence[Measurement]]], found: Mapping[str, Mark], look: Look
) -> Figure:
    """A panel for each measure: a line for each arm, over the updates."""
    columns = 1 if look.narrow or len(measures) == 1 else 2
    figure, panels = panel_grid(look, len(measures), columns, 2.3, "What was measured of all parameters that train")
    for axes, (measure, arms) in zip(panels, measures.items(), strict=True):
        style(axes, look)
        for arm, series in arms.items():
            steps, values = [item.step for item in series], [_number(item.value) for item in series]
            axes.plot(steps, values, color=found[arm].color, marker=found[arm].marker, ms=3.5, lw=1.3, mew=0, zorder=3)
        scale(axes, [_number(item.value) for series in arms.values() for item in series])
        axes.set_title(measure_title(measure), loc="left", fontsize=9, color=look.ink, pad=5)
        axes.set_xlabel("updates", fontsize=8.5)
        axes.set_ylabel(measure_axis(measure), fontsize=7.5, color=look.ink)
        axes.tick_params(labelsize=8)
        axes.yaxis.get_offset_text().set(color=look.ink, fontsize=8)
    shown = {arm: found[arm] for arms in measures.values() for arm in arms}
    if 1 < len(shown) == len(set(shown.values())):  # each has its own color
        handles = [
            Line2D([], [], color=mark.color, marker=mark.marker, ms=5, lw=1.8, label=shortened(arm, look.letters))
            for arm, mark in shown.items()
        ]
        figure.legend(
            handles=handles, loc="outside lower left", ncols=1 if look.narrow else 3, frameon=False, fontsize=8.5,
            labelcolor="linecolor",
        )  # fmt: skip
    return figure


def grouped(dynamics: Dynamics) -> tuple[Measurement, ...]:
    """The first measure of a run with values of several layer groups at several updates, but for the trajectory."""
    for measure in dict.fromkeys(item.measure for item in dynamics.measurements):
        if not measure.startswith(TRAJECTORY):
            series = of_groups(dynamics, measure)
            if series:
                return series
    return ()


def of_groups(dynamics: Dynamics, measure: str) -> tuple[Measurement, ...]:
    """One measure of a run, if it has values of several layer groups at several updates; else nothing."""
    series = tuple(item for item in dynamics.of(measure) if item.per_group)
    several = len(series) > 1 and len({group for item in series for group in item.per_group}) > 1
    return series if several else ()


def draw_group_maps(
    arms: Mapping[str, Sequence[Measurement]], look: Look, title: str = "What was measured of each layer group"
) -> Figure:
    """A panel for each arm: layer groups, the lowest below, by updates; the darker, the more, alike in all arms."""
    groups = {arm: bottom_to_top({name for item in series for name in item.per_group}) for arm, series in arms.items()}
    columns = 1 if look.narrow or len(arms) == 1 else 2
    rows = -(-len(arms) // columns)
    heights = 0.16 * max(map(len, groups.values())) + 1.15
    figure = make_figure(look, rows * heights + 0.4, room=0.08)
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=look.ink)
    for axes, (arm, series) in zip(panels, arms.items(), strict=False):
        same = [item for other in arms.values() for item in other if item.measure == series[0].measure]
        group_map(figure, axes, arm, series, groups[arm], look, among=same)
    for empty in panels[len(arms) :]:
        empty.set_visible(False)
    return figure


def group_map(
    figure: Figure,
    axes: Axes,
    arm: str,
    series: Sequence[Measurement],
    groups: Sequence[str],
    look: Look,
    *,
    among: Sequence[Measurement] = (),
) -> None:
    """Draw one measure as a heat map: a row a group, a column an update. Without an arm, the title is the measure.

    The colors are those of ``among``, where it is given: of all maps that are compared.
    """
    style(axes, look)
    axes.grid(visible=False)
    values = np.array([[_number(item.per_group.get(group)) for item in series] for group in groups])
    known = np.array([_number(value) for item in among or series for value in item.per_group.values()])
    known = known[np.isfinite(known)]
    logarithmic = known.size > 0 and known.min() > 0 and known.max() / known.min() > DECADES
    limits = (known.min(), known.max()) if known.size else (0.0, 1.0)
    norm = LogNorm(*limits) if logarithmic else Normalize(*limits)
    hatched(axes, look)
    steps = [item.step for item in series]
    mesh = axes.pcolormesh(
        edges(steps), np.arange(len(groups) + 1) - 0.5, values, cmap=look.colormap(), norm=norm, rasterized=True
    )
    label_groups(axes, groups, look)
    axes.set_xlabel("updates", fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.tick_params(labelsize=8)
    measure = series[0].measure.removeprefix(f"{SELECTION}/")
    title = f"{shortened(arm, look.letters)}\n{measure_title(measure)}" if arm else measure_title(measure)
    axes.set_title(title, loc="left", fontsize=9, color=look.ink, pad=5)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=16)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=look.ink, labelsize=7.5, length=2)
    bar.set_label(measure_axis(measure), fontsize=7.5, color=look.ink)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def edges(steps: Sequence[int]) -> list[float]:
    """Where the cell of one update ends and that of the next begins: half-way.

    Example:
        >>> edges([0, 10, 30])
        [-5.0, 5.0, 20.0, 40.0]
    """
    if len(steps) == 1:
        return [steps[0] - 0.5, steps[0] + 0.5]
    between = [(a + b) / 2 for a, b in itertools.pairwise(steps)]
    return [steps[0] - (between[0] - steps[0]), *between, steps[-1] + (steps[-1] - between[-1])]


def hatched(axes: Axes, look: Look) -> None:
    """Where there is no value, a heat map shows what no value looks like."""
    axes.set_facecolor(look.paper)
    axes.patch.set(hatch="////", edgecolor=look.grid, linewidth=0)


def label_groups(axes: Axes, groups: Sequence[str], look: Look) -> None:
    """Names of layer groups at the left; of many, only some."""
    every = -(-len(groups) // 16)
    rows = sorted({0, len(groups) - 1, *range(1, len(groups) - 1, every)}) if groups else []
    axes.set_yticks(rows, [shortened(groups[row], 18) for row in rows], fontsize=7.5)
    axes.tick_params(axis="y", length=0, labelsize=7.5)
    axes.set_ylim(-0.5, len(groups) - 0.5)
