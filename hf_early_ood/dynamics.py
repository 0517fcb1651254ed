"""The series of a run: what was measured at which update, and when layers were released."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from hf_early_ood.errors import ResumeError
from hf_early_ood.results import DecisionRecord, StageRecord

logger = logging.getLogger(__name__)

RATE_EVENT = "learning_rates"
EARLY_DYNAMICS = "EarlyDynamicsCallback"
"""Source of measurements that decide nothing."""


@dataclass(frozen=True)
class Measurement:
    """One line of the series, or a further quantity of it. Numbers that were NaN or infinite are None."""

    step: int
    measure: str
    value: float | None
    normalized: float | None = None
    per_group: dict[str, float | None] = field(default_factory=dict)
    num_examples: int | None = None
    standard_error: float | None = None
    seconds: float | None = None
    trainable: tuple[str, ...] = ()
    source: str | None = field(default=None, compare=False)
    """Who measured, such as the name of a callback; None: not noted."""


@dataclass(frozen=True)
class Dynamics:
    """A run's series, by update."""

    measurements: tuple[Measurement, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    decision: DecisionRecord | None = None
    rate_factors: tuple[tuple[int, dict[str, float]], ...] = ()
    """(update, layer group -> factor): where the learning rate of a group begins, ends its warm-up or jumps."""

    def of(self, measure: str) -> tuple[Measurement, ...]:
        """The measurements of one kind."""
        return tuple(item for item in self.measurements if item.measure == measure)


def read_records(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a series as they are, one record a line, whoever wrote them.

    A last line that was cut off (the process died while writing it) is left out with a warning.

    Raises:
        ResumeError: If the file is missing or a line is no record with a ``step``, with the number of the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise ResumeError("There is no such series of measurements.", got=path) from None
    if lines.pop():
        logger.warning("%s ends in the middle of a line, which is left out.", path)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record["step"], int):
                raise TypeError("step must be a whole number")
        except (ValueError, KeyError, TypeError) as error:
            raise _unusable(number, path, line, error) from error
        records.append(record)
    return records


def _unusable(number: int, path: str | PathLike[str], line: str, error: Exception) -> ResumeError:
    return ResumeError(
        f"Line {number} of {path} is not usable ({type(error).__name__}: {error}).",
        got=line[:100],
        allowed="a measurement or an event",
        fix="Remove the line, or the file.",
    )


def read_dynamics(path: str | PathLike[str]) -> Dynamics:
    """Read the series of a run.

    A last line that was cut off (the process died while writing it) is left out with a warning. Where a run was
    resumed from an earlier checkpoint, updates appear twice; the later line counts. Of what was measured to decide and
    otherwise, too, the former.

    Args:
        path: A file with one JSON object a line: measurements, and events, of which "stage", "decision" and
            "learning_rates" are read.

    Raises:
        ResumeError: If the file is missing or a line is not usable, with the number of the line.
    """
    measurements: dict[tuple[int, str], Measurement] = {}
    stages: dict[int, StageRecord] = {}
    decision, factors = None, {}
    for number, data in enumerate(read_records(path), 1):
        try:
            event = data.get("event")
            if event == "stage":
                stages[int(data["stage"])] = StageRecord(
                    int(data["stage"]),
                    int(data["step"]),
                    tuple(data["released"]),
                    int(data["trainable_parameters"]),
                    tuple(data.get("frozen", ())),
                )
            elif event == "decision":
                decision = DecisionRecord.from_dict({key: data[key] for key in data if key not in ("event", "source")})
            elif event == RATE_EVENT:
                factors[int(data["step"])] = {str(name): float(factor) for name, factor in data["factors"].items()}
            elif event is None:
                for item in (measurement_of(data), *quantities_of(data)):
                    before = measurements.get((item.step, item.measure))
                    if before is None or item.source != EARLY_DYNAMICS or before.source == EARLY_DYNAMICS:
                        measurements[item.step, item.measure] = item
        except (ResumeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unusable(number, path, json.dumps(data), error) from error
    return Dynamics(
        tuple(sorted(measurements.values(), key=lambda item: item.step)),
        tuple(stages[stage] for stage in sorted(stages)),
        decision,
        tuple(sorted(factors.items())),
    )


def quantities_of(data: Mapping[str, Any]) -> list[Measurement]:
    """Further quantities of a line of the series, each as a measurement ``<measure>/<quantity>`` of its own.

    Raises:
        TypeError: A value has another type.

    Example:
        >>> signs = {"value": 0.01, "per_group": {"head": 0.02}}
        >>> line = {"step": 5, "measure": "trajectory", "details": {"quantities": {"sign_changes": signs}}}
        >>> quantities_of(line)[0].measure, quantities_of(line)[0].per_group
        ('trajectory/sign_changes', {'head': 0.02})
    """
    quantities = (data.get("details") or {}).get("quantities", {})
    common = {key: data[key] for key in ("step", "trainable", "source") if key in data}
    return [
        measurement_of({**common, **item, "measure": f"{data['measure']}/{name}"}) for name, item in quantities.items()
    ]


def measurement_of(data: Mapping[str, Any]) -> Measurement:
    """What a line of the series says; further keys of it are left out.

    Raises:
        TypeError: A value has another type.

    Example:
        >>> measurement_of({"step": 5, "measure": "fisher_trace", "value": 2.5, "details": {}}).value
        2.5
    """
    known = {item.name for item in fields(Measurement)}
    values = {key: value for key, value in data.items() if key in known}
    values["trainable"] = tuple(data.get("trainable", ()))
    if not isinstance(data["step"], int) or not isinstance(data["measure"], str):
        raise TypeError("step must be a whole number and measure a name")
    if data["value"] is not None and not isinstance(data["value"], (int, float)):
        raise TypeError("value must be a number or null")
    return Measurement(**values)
