"""Figures as PNG files, 1200 pixels wide. They read records and never see a model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from os import PathLike
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from hf_early_ood.atomic import replacing
from hf_early_ood.dynamics import Measurement
from hf_early_ood.errors import DataError
from hf_early_ood.names import ID_TEST
from hf_early_ood.report.layout import measure_axis, measure_title, metric_title
from hf_early_ood.report.reading import split_label
from hf_early_ood.report.verdict import ood_sets
from hf_early_ood.results import DecisionRecord, MetricValue, StageRecord, StudyRecord

_DPI = 150
_WIDTH = 8.0  # inches: 1200 pixels
_DECADES = 30  # largest value over smallest, from which on an axis is logarithmic
_INK, _MUTED, _GRID = "#1c2733", "#5b6875", "#e3e7eb"
_POINT, _AVERAGE, _DECISION = "#8fb3d9", "#174a7c", "#b3400a"
_TRAINABLE, _FROZEN = "#2a7f8e", "#eceff1"
# Told apart in gray and by the color-blind, together with the markers.
_ARM_COLORS = ("#174a7c", "#b3400a", "#2f7d32", "#7b3f98", "#8a6d00", "#00798c", "#a8325e", "#4a4a4a")
_ARM_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def signal_figure(
    series: Sequence[Measurement],
    decision: DecisionRecord | None,
    stage_changes: Sequence[StageRecord],
    path: str | PathLike[str],
    *,
    groups: Sequence[str] | None = None,
    num_updates: int | None = None,
    window: int = 3,
) -> None:
    """Draw the signal with the decision above, and below which layer groups train at which update.

    Args:
        series: Measurements of one kind, by update.
        decision: Where the detector decided; None: no detector, or no decision yet.
        stage_changes: Which groups were released when; empty: the lower panel is left out.
        path: The PNG file.
        groups: All layer groups, bottom to top; None: those that are named in the other arguments.
        num_updates: Updates of the whole run; None: up to the last measurement or release.
        window: Measurements in the moving average, where ``decision`` does not record it.

    Raises:
        DataError: If there is no measurement.
    """
    figure = _signal(series, decision, stage_changes, groups, num_updates, window)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png")


def _signal(
    series: Sequence[Measurement],
    decision: DecisionRecord | None,
    stage_changes: Sequence[StageRecord],
    groups: Sequence[str] | None,
    num_updates: int | None,
    window: int,
) -> Figure:
    if not series:
        raise DataError("There is no measurement to draw.", fix="Set a measure, or shorten intervention.probe.every.")
    last = max(series[-1].step, decision.step if decision else 0)
    released = max((stage.step for stage in stage_changes), default=0)
    # Room for the last release, so that its bar can be seen.
    end = max(num_updates or math.ceil(max(last, released * 1.08)), last, 1)
    zoomed = bool(stage_changes) and last < 0.5 * end
    names = _bottom_to_top(groups, series, stage_changes)

    strip_height = 0.75 + 0.23 * len(names) if stage_changes else 0.0
    figure = Figure(figsize=(_WIDTH, 3.6 + strip_height), dpi=_DPI, layout=ConstrainedLayoutEngine(hspace=0.06))
    FigureCanvasAgg(figure)
    if stage_changes:
        upper, lower = figure.subplots(2, 1, height_ratios=[3.4, strip_height])
        _draw_strip(lower, names, stage_changes, decision, end)
        if zoomed:
            lower.axvspan(0, last, color=_AVERAGE, alpha=0.10, lw=0, zorder=1.5)
    else:
        upper = figure.subplots()
    _draw_signal(upper, series, decision, window)
    limit = max(last, 1) if zoomed else end
    upper.set_xlim(-0.02 * limit, 1.02 * limit)
    _draw_decision(upper, decision, limit)
    upper.set_xlabel(f"updates 0 to {last} (shaded below)" if zoomed else "" if stage_changes else "updates")
    return figure


def _draw_signal(axes: Axes, series: Sequence[Measurement], decision: DecisionRecord | None, window: int) -> None:
    settings = decision.settings if decision else {}
    window, transient = settings.get("window", window), settings.get("transient", 0)
    normalized = all(item.normalized is not None for item in series if item.value is not None)
    pairs = [(item.step, item.normalized if normalized else item.value) for item in series]
    points = [(step, value) for step, value in pairs if value is not None]
    missing = [step for step, value in pairs if value is None]
    _style(axes)
    if points:
        steps, values = [step for step, _ in points], [value for _, value in points]
        axes.plot(steps, values, "o", color=_POINT, ms=5, mew=0, label="measured", zorder=3)
        # What the detector saw: nothing after its decision.
        judged = [point for point in points if transient <= point[0] <= (decision.step if decision else point[0])]
        averages = [
            (judged[i][0], fmean(value for _, value in judged[i + 1 - window : i + 1]))
            for i in range(window - 1, len(judged))
        ]
        if averages:
            marker = "o" if len(averages) == 1 else ""
            label = f"average of {window} measurements"
            axes.plot(*zip(*averages, strict=True), color=_AVERAGE, lw=2, marker=marker, label=label, zorder=4)
        _scale(axes, values)
    else:
        axes.set_yticks([])
    if missing:
        bottom = axes.get_xaxis_transform()
        axes.plot(missing, [0.03] * len(missing), "x", color=_DECISION, transform=bottom, label="not finite", zorder=5)
    name = measure_title(series[0].measure)
    axes.set_title(f"{name}, per parameter" if normalized else name, loc="left", color=_INK, fontsize=11, pad=10)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, fontsize=9, borderaxespad=0.2,
        handletextpad=0.4, columnspacing=1.4, labelcolor=_INK,
    )  # fmt: skip


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Limits with headroom for the label of the decision; logarithmic where the values span decades."""
    low, high = min(values), max(values)
    if low > 0 and high / low > _DECADES:
        axes.set_yscale("log")
        span = math.log10(high / low)
        axes.set_ylim(low / 10 ** (0.08 * span), high * 10 ** (0.3 * span))
    else:
        span = (high - low) or abs(high) or 1.0
        axes.set_ylim(low - 0.1 * span, high + 0.32 * span)


def _draw_decision(axes: Axes, decision: DecisionRecord | None, limit: float) -> None:
    if decision is None:
        return
    axes.axvline(decision.step, color=_DECISION, lw=1.5, zorder=2)
    why = "signal stable" if decision.reason == "stable" else "not stable in time (fallback)"
    right = decision.step > 0.5 * limit
    axes.annotate(
        f"after update {decision.step}: {why}",
        (decision.step, 0.94),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-6 if right else 6, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="center",
        color=_DECISION,
        fontsize=10,
        fontweight="bold",
    )


def _draw_strip(
    axes: Axes,
    names: Sequence[str],
    stages: Sequence[StageRecord],
    decision: DecisionRecord | None,
    end: float,
) -> None:
    """One row a group: gray while frozen, colored while it trains."""
    _style(axes)
    axes.grid(visible=False)
    for row, name in enumerate(names):
        axes.barh(row, end, color=_FROZEN, height=0.8, zorder=1)
        spans = _spans(name, stages, end)
        if not spans:
            axes.text(0.5 * end, row, "never released", color=_MUTED, fontsize=8, ha="center", va="center", zorder=4)
        for start, stop in spans:
            axes.barh(row, stop - start, left=start, color=_TRAINABLE, height=0.8, zorder=2)
            inside = stop - start > 0.08 * end
            if start > 0 and (inside or len(spans) == 1):
                axes.annotate(
                    f"{start:g}", (start, row), xytext=(4 if inside else -4, 0), textcoords="offset points",
                    ha="left" if inside else "right", va="center_baseline", fontsize=8,
                    color="white" if inside else _MUTED, zorder=4,
                )  # fmt: skip
        if len(spans) == 1 and spans[0][1] < end:  # frozen for good
            stop, room = spans[0][1], end - spans[0][1] > 0.08 * end
            axes.annotate(
                f"{stop:g}", (stop, row), xytext=(4 if room else -4, 0), textcoords="offset points",
                ha="left" if room else "right", va="center_baseline", fontsize=8,
                color=_MUTED if room else "white", zorder=4,
            )  # fmt: skip
    if decision is not None:
        axes.axvline(decision.step, color=_DECISION, lw=1.5, zorder=3)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(-0.02 * end, 1.02 * end)
    axes.set_xlabel("updates")
    axes.spines["left"].set_visible(False)
    when = "when each trains" if any(stage.frozen for stage in stages) else "the update from which each trains"
    axes.set_title(f"Layer groups, and {when}", loc="left", color=_INK, fontsize=11, pad=6)


def _spans(name: str, stages: Sequence[StageRecord], end: float) -> list[tuple[float, float]]:
    """From which updates to which a group trains."""
    spans, start = [], end
    for stage in stages:
        if name in stage.released:
            start = stage.step
        elif name in stage.frozen:
            spans.append((start, stage.step))
            start = end
    return [(start, min(stop, end)) for start, stop in (*spans, (start, end)) if start < min(stop, end)]


def _bottom_to_top(
    groups: Sequence[str] | None, series: Sequence[Measurement], stages: Sequence[StageRecord]
) -> list[str]:
    if groups is not None:
        return list(groups)
    named = {name for stage in stages for name in stage.released}
    named |= {name for item in series for name in (*item.per_group, *item.trainable)}

    def place(name: str) -> tuple[int, list[tuple[int, str]]]:
        outside = 0 if name == "embeddings" else 2 if name == "head" else 1
        return outside, [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]

    return sorted(named, key=place)


def series_figure(series: Sequence[Measurement], path: str | PathLike[str], subtitle: str = "") -> None:
    """Draw one measure over the updates, with its standard error where it has one, and gaps where it has no value.

    Args:
        series: Measurements of one kind, by update.
        path: The PNG file.
        subtitle: What was measured on.

    Raises:
        DataError: If there is no measurement.
    """
    figure = _series(series, subtitle)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png")


def _series(series: Sequence[Measurement], subtitle: str) -> Figure:
    if not series:
        raise DataError("There is no measurement to draw.")
    figure = Figure(figsize=(_WIDTH, 3.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _style(axes)
    points = [(item.step, item.value, item.standard_error) for item in series if item.value is not None]
    steps, values = [step for step, _, _ in points], [value for _, value, _ in points]
    # NaN interrupts the line: between its neighbors, nobody knows the value that is missing.
    line = [math.nan if item.value is None else item.value for item in series]
    axes.plot([item.step for item in series], line, color=_AVERAGE, lw=1.6, marker="o", ms=4.5, mew=0, zorder=3)
    if any(error for _, _, error in points):
        errors = [error or 0.0 for _, _, error in points]
        axes.errorbar(steps, values, errors, fmt="none", color=_POINT, lw=1.6, capsize=3, zorder=2, label="± 1 s.e.")
    if values and min(values) > 0 and max(values) / min(values) > _DECADES:
        axes.set_yscale("log")
    missing = [item.step for item in series if item.value is None]
    if missing:
        bottom = axes.get_xaxis_transform()
        axes.plot(missing, [0.03] * len(missing), "x", color=_DECISION, transform=bottom, label="no value", zorder=5)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.07 if subtitle else 1.0), ncols=2, frameon=False, fontsize=9,
            borderaxespad=0.2, labelcolor=_INK,
        )  # fmt: skip
    _title(axes, measure_title(series[0].measure), subtitle)
    axes.set_xlabel("updates")
    axes.set_ylabel(measure_axis(series[0].measure), color=_INK, fontsize=9)
    return figure


def _title(axes: Axes, title: str, subtitle: str) -> None:
    """A title at the left, and below it, smaller, what was measured on."""
    axes.set_title(title, loc="left", color=_INK, fontsize=11, pad=24 if subtitle else 10)
    if subtitle:
        axes.annotate(
            subtitle, (0, 1), xycoords="axes fraction", xytext=(0, 9), textcoords="offset points", fontsize=8.5,
            color=_MUTED,
        ).set_in_layout(False)  # fmt: skip


def groups_figure(item: Measurement, path: str | PathLike[str], subtitle: str = "") -> None:
    """Draw how much each layer group has of one measure, the lowest group at the bottom.

    Args:
        item: A measurement with values of its groups.
        path: The PNG file.
        subtitle: What was measured on.

    Raises:
        DataError: If it has none.
    """
    figure = _groups(item, subtitle)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png")


def _groups(item: Measurement, subtitle: str) -> Figure:
    if not item.per_group:
        raise DataError("The measurement has no values of layer groups to draw.", got=item.measure)
    groups, values = list(item.per_group), [value or 0.0 for value in item.per_group.values()]
    figure = Figure(figsize=(_WIDTH, 1.5 + 0.28 * len(groups)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _style(axes)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
    axes.grid(visible=False, axis="y")
    axes.barh(range(len(groups)), values, color=_TRAINABLE, height=0.72, zorder=2)
    axes.axvline(0, color=_MUTED, lw=0.8, zorder=3)
    for row, value in enumerate(item.per_group.values()):
        text = "no value" if value is None else f"{value:.3g}"
        left = value is not None and value < 0
        axes.annotate(
            text, (value or 0.0, row), xytext=(-4 if left else 4, 0), textcoords="offset points", fontsize=8.5,
            color=_MUTED, va="center_baseline", ha="right" if left else "left",
        )  # fmt: skip
    # Room for the numbers at the ends of the longest bars.
    low, high = min(0.0, *values), max(0.0, *values)
    span = (high - low) or 1.0
    axes.set_xlim(low - (0.1 if low < 0 else 0) * span, high + 0.1 * span)
    axes.set_yticks(range(len(groups)), groups, fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(groups) - 0.4)
    total = "no value" if item.value is None else f"{item.value:.4g}"
    _title(axes, f"{measure_title(item.measure)} by layer group, {total} in total", subtitle)
    axes.set_xlabel(measure_axis(item.measure), color=_INK, fontsize=9)
    axes.set_ylabel("layer group", color=_INK, fontsize=9)
    return figure


def comparison_figure(study: StudyRecord, path: str | PathLike[str]) -> None:
    """Draw every arm's score on the ID test set and on each OOD set, with intervals.

    With one complete seed the line is the interval over test examples; with more it runs from the lowest seed to
    the highest.

    Args:
        study: The study's record.
        path: The PNG file.

    Raises:
        DataError: If no run of the study has scores.
    """
    figure = _comparison(study)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png")


def _comparison(study: StudyRecord) -> Figure:
    splits = [ID_TEST, *ood_sets(study)]
    scores = {(arm, split): _score(study, arm, split) for arm in study.arms for split in splits}
    if not any(score is not None for score in scores.values()):
        raise DataError("There is no score to draw.", fix="Finish at least one run of the study.")
    arms = list(study.arms)
    lane = 0.8 / len(arms)
    height = 1.1 + len(splits) * max(0.34, 0.2 * len(arms) + 0.12)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _style(axes)
    several = False
    for number, arm in enumerate(arms):
        color, marker = _ARM_COLORS[number % len(_ARM_COLORS)], _ARM_MARKERS[number % len(_ARM_MARKERS)]
        labeled = False
        for row, split in enumerate(splits):
            score = scores[arm, split]
            if score is None or score.value is None:
                continue
            y = row + (number - (len(arms) - 1) / 2) * lane
            right = score.value
            if score.low is not None and score.high is not None:
                axes.plot([100 * score.low, 100 * score.high], [y, y], color=color, lw=1.8, zorder=2)
                right = max(right, score.high)
            axes.plot(100 * score.value, y, marker, color=color, ms=6.5, zorder=3)
            # The first row carries the names, so that no legend has to be looked up.
            text = f"{100 * score.value:.1f}" + ("" if labeled else f"  {arm}")
            axes.annotate(
                text, (100 * right, y), xytext=(6, 0), textcoords="offset points", va="center", color=color,
                fontsize=8.5, fontweight="normal" if labeled else "bold",
            )  # fmt: skip
            labeled = True
        several = several or len(_values(study, arm, ID_TEST)) > 1
    axes.set_yticks(range(len(splits)), [split_label(split) for split in splits])
    axes.set_ylim(len(splits) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    for row in range(1, len(splits)):
        axes.axhline(row - 0.5, color=_GRID, lw=1)
    axes.grid(axis="y", visible=False)
    low, high = axes.get_xlim()
    # Room on the right for the names of the first row.
    axes.set_xlim(low, high + (high - low) * min(0.6, 0.06 + 0.016 * max(map(len, arms))))
    left, right = axes.get_xlim()
    axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= min(right, 100)])
    lines = "lowest to highest seed" if several else f"{study.confidence:.0%} interval over test examples"
    axes.set_xlabel(f"{metric_title(study.metric)}, percent (lines: {lines})")
    axes.set_title(f"{study.name}: in distribution and out of distribution", loc="left", color=_INK, fontsize=11)
    return figure


def _values(study: StudyRecord, arm: str, split: str) -> list[MetricValue]:
    evaluations = [run.evaluation for run in study.arms[arm] if run.status == "complete"]
    found = [item.splits[split].metrics.get(study.metric) for item in evaluations if item and split in item.splits]
    return [value for value in found if value is not None and value.value is not None]


def _score(study: StudyRecord, arm: str, split: str) -> MetricValue | None:
    values = _values(study, arm, split)
    if len(values) < 2:
        return values[0] if values else None
    numbers = [value.value for value in values if value.value is not None]
    return MetricValue(fmean(numbers), min(numbers), max(numbers))


def _style(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(color=_GRID, lw=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_MUTED)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, steps=[1, 2, 5, 10]))
