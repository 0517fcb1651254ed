"""Where the weights were along a training: distances, directions, and what each layer group had of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_early_ood.dynamics import Measurement
from hf_early_ood.errors import DataError
from hf_early_ood.names import TRAJECTORY
from hf_early_ood.report.figures.early import group_map
from hf_early_ood.report.figures.signal import bottom_to_top
from hf_early_ood.report.figures.style import LIGHT, Look, make_figure, save, style

_DISTANCES = {"": "to the start", "/distance_to_end": "to the end", "/update_length": "from the one before"}
_COSINES = {
    "/cosine": "weights, start",
    "/cosine_with_end": "weights, end",
    "/update_cosine": "step, movement so far",
    "/update_cosine_to_end": "step, way to the end",
}
_MAPS = ("/relative_distance", "/sign_changes")


def movement_figure(measurements: Sequence[Measurement], path: str | PathLike[str], subtitle: str = "") -> None:
    """Draw distances and cosines of all weights together, and what each layer group has moved and turned around.

    Args:
        measurements: Of the trajectory and its quantities, by update.
        path: The PNG file.
        subtitle: Of which training.

    Raises:
        DataError: If there is none.
    """
    save(lambda: draw_movement(measurements, subtitle), path)


def draw_movement(measurements: Sequence[Measurement], subtitle: str = "", look: Look = LIGHT) -> Figure:
    """The figure that `movement_figure` writes."""
    series: dict[str, list[Measurement]] = {}
    for item in measurements:
        if item.measure.split("/")[0] == TRAJECTORY:
            series.setdefault(item.measure.removeprefix(TRAJECTORY), []).append(item)
    if "" not in series:
        raise DataError("There is no trajectory to draw.")
    groups = bottom_to_top({name for item in series[""] for name in item.per_group})
    figure = make_figure(look, 3.1 + 0.18 * len(groups) + 1.6)
    figure.suptitle(
        "How far the weights have gone" + (f": {subtitle}" if subtitle else ""),
        x=0.01, ha="left", fontsize=11, color=look.ink,
    )  # fmt: skip
    panels = figure.subplots(2, 2, height_ratios=[2.6, 0.18 * len(groups) + 1.0])
    for axes, lines, title in zip(panels[0], (_DISTANCES, _COSINES), ("L2 distance", "Cosine"), strict=True):
        _lines(axes, series, lines, title, look)
    for axes, quantity in zip(panels[1], _MAPS, strict=True):
        if quantity in series:
            group_map(figure, axes, "", series[quantity], groups, look)
        else:
            axes.set_visible(False)
    return figure


def _lines(axes: Axes, series: dict[str, list[Measurement]], lines: dict[str, str], title: str, look: Look) -> None:
    style(axes, look)
    for color, (quantity, label) in zip(look.arms, lines.items(), strict=False):
        items = series.get(quantity, [])
        if items:
            values = [math.nan if item.value is None else item.value for item in items]
            steps = [item.step for item in items]
            axes.plot(steps, values, color=color, lw=1.6, marker="o", ms=3.5, mew=0, label=label, zorder=3)
    axes.set_title(title, loc="left", fontsize=9, color=look.ink, pad=5)
    axes.set_xlabel("updates", fontsize=8.5)
    axes.tick_params(labelsize=8)
    # There may be no free corner: lines are faint behind the words.
    axes.legend(facecolor=look.paper, edgecolor="none", framealpha=0.85, fontsize=8, labelcolor=look.ink, loc="best")
