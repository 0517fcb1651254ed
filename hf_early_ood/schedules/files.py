"""Schedule files: an unfreezing schedule as YAML that a person can read and edit, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.schedules.base import flow, scalar

if TYPE_CHECKING:
    from hf_early_ood.schedules.unfreezing import UnfreezingSchedule

_REQUIRED = ("interval", "groups", "stages")
OPTIONAL: dict[str, Any] = {
    "release": "interval", "first": 1, "start": 0, "select": None, "waiting": [], "embeddings": "in_order"
}  # fmt: skip
"""Keys that may be left out, with the value that they then have."""

_MEANINGS = {
    "first": "intervals before the first release",
    "start": "updates, or fraction of training, in which all groups below train first",
    "release": "updates, or fraction of training, from the first release to the last",
    "embeddings": "selected when nothing else waits",
}


def checked_settings(data: Any) -> dict[str, Any]:
    """The content of a schedule file, with the right keys and lists of names where they belong.

    Raises:
        ConfigurationError: A key is missing or unknown, or a list has the wrong form.
    """
    known = (*_REQUIRED, *OPTIONAL)
    if not isinstance(data, dict):
        raise ConfigurationError("A schedule is a mapping.", got=type(data).__name__, allowed=known)
    for key in data:
        if key not in known:
            raise ConfigurationError("Unknown key in a schedule.", got=key, fix=did_you_mean(str(key), known))
    for key in _REQUIRED:
        if key not in data:
            raise ConfigurationError("A schedule lacks a key.", got=sorted(data), allowed=_REQUIRED)
    lists = {"groups": [data["groups"]], "stages": data["stages"], "waiting": data.get("waiting", [])}
    for field, rows in lists.items():
        if not isinstance(rows, list) or not all(
            isinstance(row, list) and all(isinstance(name, str) for name in row) for row in rows
        ):
            raise ConfigurationError(
                f"'{field}' of a schedule has the wrong form.",
                got=data[field],
                allowed="a list of group names" if field == "groups" else "a list of lists of group names",
            )
    return dict(data)


def as_yaml(schedule: UnfreezingSchedule) -> str:
    """YAML with one line a stage, and when it begins."""
    settings = schedule.to_dict()
    table = schedule.table()[schedule.num_before :]
    rows = [f"  - {flow(row.released)}" for row in table]
    width = max(len(row) for row in rows if len(row) <= 60 or row == rows[0])  # a long row moves no comment
    lines = [
        "# Unfreezing schedule. interval: updates per stage (integer, fraction of training, or auto).",
        "# stages: the groups each stage adds to the trained ones; groups left out are never trained.",
        f"interval: {scalar(schedule.interval)}",
        f"groups: {flow(schedule.groups)}",
    ]
    lines += [f"{key}: {scalar(settings[key])}  # {meaning}" for key, meaning in _MEANINGS.items() if key in settings]
    lines.append("stages:")
    lines += [f"{row:<{width}}  # {schedule.when(stage.stage)}" for row, stage in zip(rows, table, strict=True)]
    if schedule.waiting:
        following = schedule.num_before + len(schedule.stages)
        updates = ", ".join(map(str, schedule.starts[following:]))
        when = f"at updates {updates}" if updates else f"at every release, the first {schedule.when(following)}"
        lines += [f"select: {schedule.select}", f"waiting:  # one of these lines is selected {when}"]
        lines += [f"  - {flow(unit)}" for unit in schedule.waiting]
    return "\n".join(lines) + "\n"
