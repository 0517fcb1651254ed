"""Tables and figures of measurements of saved models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_early_ood.dynamics import Measurement
from hf_early_ood.report.figures import groups_figure, series_figure
from hf_early_ood.report.layout import NO_VALUE, Table, duration, measure_title

_COLUMNS = ("value", "per parameter", "standard error", "time")


def measurement_tables(measurements: Sequence[Measurement], models: Mapping[int, str]) -> list[Table]:
    """Of one model a line a measure, and the layer groups; of several, for each measure a line a model.

    Args:
        measurements: In the order of their steps.
        models: Step -> name of the model.
    """
    measures = list(dict.fromkeys(item.measure for item in measurements))
    if len(models) > 1:
        return [
            Table(
                measure_title(measure),
                ("model", "update", *_COLUMNS),
                [
                    (models[item.step], f"{item.step:,}", *_cells(item))
                    for item in measurements
                    if item.measure == measure
                ],
            )
            for measure in measures
        ]
    if not measurements:
        return []
    count = next((item.num_examples for item in measurements if item.num_examples), None)
    tables = [
        Table(
            f"{models[measurements[0].step]}, {count} examples",
            ("measure", *_COLUMNS),
            [(measure_title(item.measure), *_cells(item)) for item in measurements],
        )
    ]
    grouped = [item for item in measurements if item.per_group]
    if grouped:
        rows = [
            (group, *(number(item.per_group.get(group)) for item in grouped))
            for group in dict.fromkeys(group for item in grouped for group in item.per_group)
        ]
        tables.append(Table("By layer group", ("group", *(measure_title(item.measure) for item in grouped)), rows))
    return tables


def draw_measurements(
    measurements: Sequence[Measurement], folder: Path, subtitles: Mapping[str, str] | None = None
) -> list[Path]:
    """Draw every measure: over the updates, or, where there is one model, by layer group.

    Args:
        measurements: In the order of their steps.
        folder: For the files.
        subtitles: Measure -> what it was measured on.

    Returns:
        The PNG files, ``<measure>.png``. A single model has none for a measure without values of its groups, and
        neither has a measure that could not be taken.
    """
    several = len({item.step for item in measurements}) > 1
    drawn = []
    for measure in dict.fromkeys(item.measure for item in measurements):
        path, subtitle = folder / f"{measure}.png", (subtitles or {}).get(measure, "")
        series = [item for item in measurements if item.measure == measure]
        if not any(item.value is not None for item in series):
            continue
        if several:
            series_figure(series, path, subtitle)
        elif series[0].per_group:
            groups_figure(series[0], path, subtitle)
        else:
            continue
        drawn.append(path)
    return drawn


def number(value: float | None) -> str:
    """Four digits, whatever the size.

    Example:
        >>> number(0.000123456), number(12345.6), number(None)
        ('0.0001235', '1.235e+04', '-')
    """
    return NO_VALUE if value is None else f"{value:.4g}"


def _cells(item: Measurement) -> tuple[str, ...]:
    return number(item.value), number(item.normalized), number(item.standard_error), duration(item.seconds)
