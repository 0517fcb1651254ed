"""Unfreezing schedules: how many updates were made -> which layer groups train. Pure Python, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from hf_early_ood.errors import ConfigurationError, did_you_mean

AUTO = "auto"
ORDERS = ("top_down", "bottom_up")
RELEASES = ("interval", "all_at_once")

Interval = int | float | str
"""Updates (int), fraction of training (float), or "auto"; anything else is refused."""


@dataclass(frozen=True)
class Stage:
    """One row of the stage table."""

    stage: int
    start: int | None
    """Completed updates at which the stage begins; None as long as the interval is not decided."""
    released: tuple[str, ...]
    trainable: tuple[str, ...]


class UnfreezingSchedule:
    r"""Gradual unfreezing: train few layer groups first and release the others one after the other.

    Howard & Ruder 2018 (arXiv 1801.06146) by epochs; Liu & Gurevych 2024 (arXiv 2403.15210, algorithm 1) by
    updates. With interval k and S releases, the stage after ``global_step`` completed updates is

    .. math:: s = \min(S, \lfloor \text{global\_step} / k \rfloor)

    so that exactly k updates are made in each stage. (The paper counts from 1 and releases *at* update k, before
    it is made: its first stage has k - 1 updates, ours k.) With ``release="all_at_once"`` there is a single
    release, of everything, after k updates. Nothing is frozen again.

    Args:
        groups: Group names from bottom to top (``LayerGroups.names``).
        interval: k in updates (int), as a fraction of all updates (float in (0, 1)), or "auto": the updates made
            until the signal is stable, filled in by :meth:`resolve`.
        order: "top_down", "bottom_up", or the names of the groups in the order of their release.
        initial: Groups trained from the start.
        release: "interval": one group every k updates. "all_at_once": all groups after k updates.
        stages: Explicit groups released per stage, the first being the initial set; replaces ``order``,
            ``initial`` and ``release``. Groups named nowhere are never released.

    Raises:
        ConfigurationError: Unknown group, group named twice, interval out of range, empty first stage.

    Example:
        >>> schedule = UnfreezingSchedule(["embeddings", "block.0", "block.1", "head"], interval=10)
        >>> schedule.stage(9), schedule.stage(10), schedule.trainable(10)
        (0, 1, ('block.1', 'head'))
        >>> schedule.num_releases
        3
    """

    def __init__(
        self,
        groups: Iterable[str],
        *,
        interval: Interval,
        order: str | Sequence[str] = "top_down",
        initial: Sequence[str] = ("head",),
        release: str = "interval",
        stages: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.groups = tuple(groups)
        if len(set(self.groups)) != len(self.groups):
            raise ConfigurationError("Group names must be unique.", got=self.groups)
        self.interval = _checked_interval(interval)
        if stages is None:
            stages = _build_stages(self.groups, order, initial, release)
        self.stages: tuple[tuple[str, ...], ...] = tuple(tuple(stage) for stage in stages)
        self._check_stages()

    def _check_stages(self) -> None:
        if not self.stages or not self.stages[0]:
            raise ConfigurationError("The first stage must train at least one group.", got=list(map(list, self.stages)))
        seen: set[str] = set()
        for number, stage in enumerate(self.stages):
            if not stage:
                raise ConfigurationError(f"Stage {number} releases nothing.", fix="Remove the empty stage.")
            for name in stage:
                _check_group(name, self.groups)
                if name in seen:
                    raise ConfigurationError("A group is released twice.", got=name)
                seen.add(name)

    @property
    def is_resolved(self) -> bool:
        """Whether the interval is a number of updates."""
        return isinstance(self.interval, int)

    @property
    def num_releases(self) -> int:
        """S: number of stages after the first."""
        return len(self.stages) - 1

    @property
    def never_released(self) -> tuple[str, ...]:
        """Groups that no stage trains."""
        released = {name for stage in self.stages for name in stage}
        return tuple(name for name in self.groups if name not in released)

    def resolve(self, *, total_updates: int | None = None, decided: int | None = None) -> UnfreezingSchedule:
        """Turn a fraction of training or "auto" into a number of updates.

        Args:
            total_updates: All updates of the run; needed for a fraction.
            decided: The decided interval in updates; used for "auto" only.

        Returns:
            A schedule with an integer interval, or this one where nothing was given to resolve it with.

        Raises:
            ConfigurationError: The decided interval is not at least one update.
        """
        interval = self.interval
        if isinstance(interval, float) and total_updates is not None:
            interval = max(1, math.floor(interval * total_updates + 1e-9))  # 0.29 of 100 are 29
        elif interval == AUTO and decided is not None:
            if decided < 1:
                raise ConfigurationError("An interval is at least one update.", got=decided)
            interval = int(decided)
        return UnfreezingSchedule(self.groups, interval=interval, stages=self.stages)

    def check_length(self, total_updates: int) -> str | None:
        """Compare the schedule with the length of training.

        Returns:
            A warning if the stages leave groups out or release them too late, else None.

        Raises:
            ConfigurationError: Not even the first release falls into training.
        """
        left_out = f"These groups are never trained: {', '.join(self.never_released)}." if self.never_released else None
        if not isinstance(self.interval, int) or self.num_releases == 0:
            return left_out
        if self.interval >= total_updates:
            raise ConfigurationError(
                "The interval is longer than training: no layer group would ever be released.",
                got=f"interval={self.interval}, training makes {total_updates} updates",
                allowed=f"1 to {total_updates - 1} updates; {self._longest(total_updates)}",
                fix="Lower interval, give it as a fraction of training, or train longer.",
            )
        late = [
            name
            for stage in self.table()
            if stage.start is not None and stage.start >= total_updates
            for name in stage.released
        ]
        if not late:
            return left_out
        return (
            f"With interval={self.interval} and {total_updates} updates these groups are never released: "
            f"{', '.join(late)}; {self._longest(total_updates)}."
        )

    def _longest(self, total_updates: int) -> str:
        longest = (total_updates - 1) // self.num_releases
        return f"{longest} or less releases every group" if longest else "training is too short to release every group"

    def stage(self, global_step: int) -> int:
        """Stage after ``global_step`` completed updates; 0 as long as the interval is not decided."""
        if not isinstance(self.interval, int):
            return 0
        return min(self.num_releases, global_step // self.interval)

    def trainable(self, global_step: int) -> tuple[str, ...]:
        """Names of the groups that train in update ``global_step + 1``, bottom to top."""
        return self.trainable_in(self.stage(global_step))

    def trainable_in(self, stage: int) -> tuple[str, ...]:
        """Names of the groups that train in a stage, bottom to top."""
        on = {name for released in self.stages[: stage + 1] for name in released}
        return tuple(name for name in self.groups if name in on)

    def table(self) -> list[Stage]:
        """All stages with the number of completed updates at which each begins."""
        interval = self.interval if isinstance(self.interval, int) else None
        return [
            Stage(
                stage=number,
                start=0 if number == 0 else None if interval is None else number * interval,
                released=released,
                trainable=self.trainable_in(number),
            )
            for number, released in enumerate(self.stages)
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; :meth:`from_dict` reads it back."""
        return {
            "interval": self.interval,
            "groups": list(self.groups),
            "stages": [list(stage) for stage in self.stages],
        }

    @classmethod
    def from_dict(cls, data: Any) -> UnfreezingSchedule:
        """Read :meth:`to_dict`.

        Raises:
            ConfigurationError: A key is missing or unknown, or a value is not usable.
        """
        known = ("interval", "groups", "stages")
        if not isinstance(data, dict):
            raise ConfigurationError("A schedule is a mapping.", got=type(data).__name__, allowed=known)
        for key in data:
            if key not in known:
                raise ConfigurationError("Unknown key in a schedule.", got=key, fix=did_you_mean(str(key), known))
        for key in known:
            if key not in data:
                raise ConfigurationError("A schedule lacks a key.", got=sorted(data), allowed=known)
        stages = data["stages"]
        for field, rows in (("groups", [data["groups"]]), ("stages", stages)):
            if not isinstance(rows, list) or not all(
                isinstance(row, list) and all(isinstance(name, str) for name in row) for row in rows
            ):
                raise ConfigurationError(
                    f"'{field}' of a schedule has the wrong form.",
                    got=data[field],
                    allowed="a list of group names" if field == "groups" else "a list of lists of group names",
                )
        return cls(data["groups"], interval=data["interval"], stages=stages)

    def to_yaml(self) -> str:
        """Editable YAML with one line a stage; :meth:`from_yaml` reads it back.

        Example:
            >>> print(UnfreezingSchedule(["block.0", "head"], interval=5).to_yaml())
            # Unfreezing schedule. interval: updates per stage (integer, fraction of training, or auto).
            # stages: the groups each stage adds to the trained ones; groups left out are never trained.
            interval: 5
            groups: [block.0, head]
            stages:
              - [head]     # from update 0
              - [block.0]  # from update 5
            <BLANKLINE>
        """
        rows = [f"  - {_flow(row.released)}" for row in self.table()]
        width = max(map(len, rows))
        lines = [
            "# Unfreezing schedule. interval: updates per stage (integer, fraction of training, or auto).",
            "# stages: the groups each stage adds to the trained ones; groups left out are never trained.",
            f"interval: {self.interval}",
            f"groups: {_flow(self.groups)}",
            "stages:",
        ]
        for row, stage in zip(rows, self.table(), strict=True):
            when = "once decided" if stage.start is None else f"from update {stage.start}"
            lines.append(f"{row:<{width}}  # {when}")
        return "\n".join(lines) + "\n"

    @classmethod
    def load(cls, path: str | PathLike[str], groups: Sequence[str]) -> UnfreezingSchedule:
        """Read a schedule file for a model with these layer groups.

        Raises:
            ConfigurationError: The file is missing, is not a schedule, or was made for another model.
        """
        file = Path(path).expanduser()
        fix = "Write one with: hf-early-ood schedule --model NAME --output FILE"
        if not file.is_file():
            raise ConfigurationError("The schedule file does not exist.", got=path, fix=fix)
        schedule = cls.from_yaml(file.read_text(encoding="utf-8"))
        if schedule.groups != tuple(groups):
            raise ConfigurationError(
                "The schedule file was made for another model.",
                got=list(schedule.groups),
                allowed=list(groups),
                fix=fix,
            )
        return schedule

    @classmethod
    def from_yaml(cls, text: str) -> UnfreezingSchedule:
        """Read :meth:`to_yaml`, edited or not.

        Raises:
            ConfigurationError: Not YAML, or not a schedule.
        """
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"The schedule is not valid YAML: {error}") from error
        return cls.from_dict(data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnfreezingSchedule) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.interval, self.groups, self.stages))

    def __repr__(self) -> str:
        return f"UnfreezingSchedule({list(self.groups)}, interval={self.interval!r}, stages={self.stages})"


def _flow(names: Sequence[str]) -> str:
    """A YAML list on one line, with quotes where a name needs them."""
    return yaml.safe_dump(list(names), default_flow_style=True, width=math.inf).strip()


def parse_number(text: int | float | str) -> int | float | str:
    """What a command line means by ``20``, ``0.1`` or ``auto``; numbers stay what they are.

    Example:
        >>> parse_number("20"), parse_number("0.1"), parse_number("auto")
        (20, 0.1, 'auto')
    """
    if not isinstance(text, str):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _checked_interval(interval: Any) -> Interval:
    allowed = 'an integer >= 1 (updates), a float in (0, 1) (fraction of training), or "auto"'
    if isinstance(interval, str) and interval == AUTO:
        return AUTO
    if isinstance(interval, int) and not isinstance(interval, bool) and interval >= 1:
        return interval
    if isinstance(interval, float) and 0.0 < interval < 1.0:
        return interval
    raise ConfigurationError("The interval is not usable.", got=repr(interval), allowed=allowed)


def _check_group(name: str, groups: Sequence[str]) -> None:
    if name not in groups:
        raise ConfigurationError("Unknown layer group.", got=name, fix=did_you_mean(name, groups))


def _build_stages(
    groups: tuple[str, ...], order: str | Sequence[str], initial: Sequence[str], release: str
) -> list[tuple[str, ...]]:
    if isinstance(initial, str):
        raise ConfigurationError("initial is a list of group names.", got=repr(initial), fix=f"Write [{initial!r}].")
    if release not in RELEASES:
        raise ConfigurationError("Unknown way of releasing groups.", got=release, allowed=", ".join(RELEASES))
    for name in initial:
        if name not in groups:
            raise ConfigurationError(
                "A group of the initial set has nothing to train in this model.",
                got=name,
                allowed=", ".join(groups),
                fix=f"Set initial to groups of this model, for example [{groups[-1]!r}].",
            )
    if isinstance(order, str):
        if order not in ORDERS:
            raise ConfigurationError(
                "Unknown order of release.",
                got=order,
                allowed=f"{', '.join(ORDERS)}, or a list of group names",
                fix=did_you_mean(order, ORDERS),
            )
        names = groups[::-1] if order == "top_down" else groups
    else:
        names = tuple(order)
    waiting: list[tuple[str, ...]] = [(name,) for name in names if name not in initial]
    if release == "all_at_once" and waiting:
        waiting = [tuple(name for names in waiting for name in names)]
    return [tuple(initial), *waiting]
