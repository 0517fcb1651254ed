"""Scheduled unfreezing: few layer groups train first, the others are released one after the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from hf_early_ood.checks import check_choice, check_count
from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.schedules.base import (
    AUTO,
    Interval,
    Schedule,
    Stage,
    checked_groups,
    checked_updates,
    in_updates,
)
from hf_early_ood.schedules.files import OPTIONAL, as_yaml, checked_settings
from hf_early_ood.schedules.orders import (
    EMBEDDINGS,
    EMBEDDINGS_POLICIES,
    ORDERS,
    SELECTIONS,
    Units,
    all_named,
    initial_groups,
    release_units,
)

__all__ = ["EMBEDDINGS_POLICIES", "ORDERS", "RELEASES", "SELECTIONS", "UnfreezingSchedule"]

RELEASES = ("interval", "all_at_once")


class UnfreezingSchedule(Schedule):
    r"""Gradual unfreezing and its relatives: train few layer groups first and release the others step by step.

    Howard & Ruder 2018 (arXiv 1801.06146) by epochs; Liu & Gurevych 2024 (arXiv 2403.15210, algorithm 1) by
    updates; in general form, with a rule that selects what is released, Liu et al. 2024 (FUN, arXiv 2301.05487,
    algorithm 1). With interval k, release j = 1, 2, ..., S is made after

    .. math:: \text{start} + (\text{first} + j - 1) \cdot k

    completed updates, so that with the defaults the stage after ``global_step`` updates is
    :math:`\min(S, \lfloor \text{global\_step} / k \rfloor)` and exactly k updates are made in each stage. (The papers
    count from 1 and release *at* update k, before it is made: their first stage has k - 1 updates, ours k.) Nothing
    is frozen again, but for a late start.

    ============================  =====================================================================================
    Order                         Known as
    ============================  =====================================================================================
    ``top_down``                  gradual unfreezing (ULMFiT; GU)
    ``bottom_up``                 reverse unfreezing, a negative control: -7.6 F1 on XQuAD against top-down (FUN, XLM-R)
    ``random``                    a fixed random permutation, drawn with ``seed``; a control
    a list of groups              any other permutation
    ``fisher_trace``              FUN: the frozen group with the largest Fisher trace comes next
    ``fisher_trace_batch_mean``   FUN as in the authors' code: squared norm of the batch-mean gradient, argmax labels
    ``relative_gradient_norm``    surgical fine-tuning's Auto-RGN (Lee et al. 2023, arXiv 2210.11466) as a selection
    any, release="all_at_once"    LP-FT (Kumar et al. 2022, arXiv 2202.10054) inside one run: head only, then all
    ============================  =====================================================================================

    Args:
        groups: Group names from bottom to top (``LayerGroups.names``).
        interval: k in updates (int), as a fraction of all updates (float in (0, 1)), or "auto": the updates made
            until the signal is stable, filled in by :meth:`resolve`.
        order: An order of the table, or the names of the groups in the order of their release. In lists of names,
            "block.-1" is the top block and "/block\.[0-3]/" every group in whose name the expression is found.
        initial: Groups trained from the start; ("head", "block.-1") is the papers' head and top layer.
        release: "interval": one group every k updates. "all_at_once": everything at the first release. A number of
            updates (int) or fraction of training (float): the first group at the first release, the last one so many
            updates later, the others evenly between.
        first: Intervals before the first release: 1 in the papers; 2 in the released code of FUN's gradual unfreezing,
            where the top adapter trains from the start and the next one is released at 2k.
        start: Updates (int), or fraction of training (float), with all groups of the schedule trained before anything
            is frozen: a late start, the control for what is special about the early period.
        embeddings: "in_order": like a block below the lowest one. "last": after all others, whatever the order.
            "with_block_0": together with the lowest block. "never". Of no meaning where they are in ``initial``, or
            where there is no such group (LoRA).
        seed: For the random order.
        stages: Explicit groups released per stage, the first being the initial set; replaces ``order``,
            ``initial`` and ``embeddings``. Groups named nowhere are never released.
        select: With ``stages``: what selects among ``waiting``, as a schedule file has it.
        waiting: With ``stages`` and ``select``: sets of groups of which one is selected at every release.

    Raises:
        ConfigurationError: Unknown group, group named twice, interval out of range, empty first stage.

    Example:
        >>> schedule = UnfreezingSchedule(["embeddings", "block.0", "block.1", "head"], interval=10)
        >>> schedule.stage(9), schedule.stage(10), schedule.trainable(10)
        (0, 1, ('block.1', 'head'))
        >>> schedule.num_releases
        3
        >>> fun = UnfreezingSchedule(["block.0", "block.1", "head"], interval=10, order="fisher_trace")
        >>> fun.needs_choice(1), fun.candidates(), fun.chosen(["block.0"]).trainable(10)
        (True, (('block.0',), ('block.1',)), ('block.0', 'head'))
    """

    def __init__(
        self,
        groups: Iterable[str],
        *,
        interval: Interval,
        order: str | Sequence[str] = "top_down",
        initial: Sequence[str] = ("head",),
        release: str | int | float = "interval",
        first: int = 1,
        start: int | float = 0,
        embeddings: str = "in_order",
        seed: int = 0,
        stages: Sequence[Sequence[str]] | None = None,
        select: str | None = None,
        waiting: Sequence[Sequence[str]] = (),
    ) -> None:
        self.groups = checked_groups(groups)
        self.interval = checked_updates(interval, "The interval", words=(AUTO,))
        if isinstance(release, str) and release not in RELEASES:
            raise ConfigurationError(
                "Unknown way of releasing groups.",
                got=release,
                allowed=f"{', '.join(RELEASES)}, or the updates over which they are released",
                fix=did_you_mean(release, RELEASES),
            )
        self.release = checked_updates(release, "The span of the releases", words=RELEASES)
        check_count("first", first)
        check_count("seed", seed, least=0)
        self.first = first
        self.start = checked_updates(start, "The late start", least=0)
        if self.start and self.interval == AUTO:
            raise ConfigurationError(
                "A late start needs a fixed interval.",
                got=f"start={start!r}, interval={AUTO!r}",
                fix="Give the interval, or leave start out: the signal is watched while the initial groups train.",
            )
        if stages is None:
            if select is not None or waiting:
                raise ConfigurationError("select and waiting go with stages.", fix="Name the selection as the order.")
            on = initial_groups(initial, self.groups)
            units = release_units(self.groups, order, on, embeddings, seed)
            self.select = order if isinstance(order, str) and order in SELECTIONS else None
            self.stages: Units = (on,) if self.select else (on, *units)
            self.waiting: Units = units if self.select else ()
        else:
            self.stages = tuple(all_named(stage, self.groups, "A stage") for stage in stages)
            self.waiting = tuple(all_named(unit, self.groups, "What waits to be selected") for unit in waiting)
            self.select = select
            self._check_selection(embeddings)
        self._check_stages()
        if self.release == "all_at_once":
            rest = tuple(name for unit in (*self.stages[1:], *self.waiting) for name in unit)
            self.stages, self.waiting = (self.stages[0], rest) if rest else self.stages, ()
            self.select, self.release = None, "interval"
        # Everything else is in the stages and in what waits.
        self.embeddings = "last" if embeddings == "last" and self.waiting else "in_order"
        self.starts = self._compute_starts()

    def _check_selection(self, embeddings: str) -> None:
        """Refuse, next to explicit stages, what would have no effect."""
        if self.select is not None:
            check_choice("selection", self.select, SELECTIONS)
        if self.waiting and self.select is None:
            raise ConfigurationError("Groups wait to be selected, but nothing selects them.", fix="Set select.")
        if self.select is not None and not self.waiting:
            raise ConfigurationError("No groups wait to be selected.", got=f"select={self.select}", fix="Set waiting.")
        check_choice("way of treating the embeddings", embeddings, EMBEDDINGS_POLICIES)
        if embeddings not in (("in_order", "last") if self.waiting else ("in_order",)):
            raise ConfigurationError(
                "The stages say what is done with the embeddings.",
                got=f"embeddings={embeddings}, with stages",
                fix=f"Leave it out, and name {EMBEDDINGS!r} in the stage that releases them, or in none.",
            )

    def _check_stages(self) -> None:
        if not self.stages or not self.stages[0]:
            raise ConfigurationError("The first stage must train at least one group.", got=list(map(list, self.stages)))
        seen: set[str] = set()
        for number, stage in enumerate((*self.stages, *self.waiting)):
            if not stage:
                raise ConfigurationError(f"Stage {number} releases nothing.", fix="Remove the empty stage.")
            for name in stage:
                if name in seen:
                    raise ConfigurationError("A group is released twice.", got=name)
                seen.add(name)

    # When.

    @property
    def is_resolved(self) -> bool:
        """Whether interval, start and span are numbers of updates."""
        return all(not isinstance(value, float) for value in (self.release, self.start)) and isinstance(
            self.interval, int
        )

    @property
    def num_releases(self) -> int:
        """S: number of stages after the first that release something."""
        return len(self.stages) - 1 + len(self.waiting)

    @property
    def num_before(self) -> int:
        """Stages before the initial set trains alone: 1 with a late start."""
        return 1 if self.start else 0

    def _compute_starts(self) -> tuple[int, ...]:
        """Completed updates at which each stage begins, as far as they are known."""
        if isinstance(self.start, float):
            return (0,)
        starts = [0] if not self.start else [0, self.start]
        if not isinstance(self.interval, int) or isinstance(self.release, float):
            return tuple(starts)
        first = self.start + self.first * self.interval
        if isinstance(self.release, int):
            steps = max(1, self.num_releases - 1)
            starts += [first + round(j * self.release / steps) for j in range(self.num_releases)]
        else:
            starts += [first + j * self.interval for j in range(self.num_releases)]
        return tuple(starts)

    def resolve(self, *, total_updates: int | None = None, decided: int | None = None) -> UnfreezingSchedule:
        """Turn fractions of training or "auto" into numbers of updates.

        Args:
            total_updates: All updates of the run; needed for a fraction.
            decided: The decided interval in updates; used for "auto" only.

        Returns:
            A schedule with an integer interval, or this one where nothing was given to resolve it with.

        Raises:
            ConfigurationError: The decided interval is not at least one update.
        """
        interval = in_updates(self.interval, total_updates)
        if interval == AUTO and decided is not None:
            if decided < 1:
                raise ConfigurationError("An interval is at least one update.", got=decided)
            interval = int(decided)
        release, start = in_updates(self.release, total_updates), in_updates(self.start, total_updates)
        return self._with(interval=interval, release=release, start=start)

    def _with(self, **changes: Any) -> UnfreezingSchedule:
        names = ("interval", "release", "first", "start", "embeddings", "stages", "select", "waiting")
        settings = {name: getattr(self, name) for name in names} | changes
        if not settings["waiting"]:
            settings |= {"select": None, "embeddings": "in_order"}
        return UnfreezingSchedule(self.groups, **settings)

    def stage(self, global_step: int) -> int:
        """Stage after ``global_step`` completed updates; 0 as long as the interval is not decided."""
        return bisect_right(self.starts, global_step) - 1

    def num_stages(self, total_updates: int) -> int:
        """Stages of the whole schedule."""
        return self.num_before + 1 + self.num_releases

    # What.

    def needs_choice(self, stage: int) -> bool:
        """Whether the groups that a stage releases are still to be selected."""
        return bool(self.waiting) and stage - self.num_before >= len(self.stages)

    def candidates(self) -> Units:
        """The sets of groups of which the next release is selected."""
        last = self.embeddings == "last" and len(self.waiting) > 1
        return tuple(unit for unit in self.waiting if not (last and unit == (EMBEDDINGS,)))

    def chosen(self, names: Sequence[str]) -> UnfreezingSchedule:
        """This schedule with the groups that the next stage releases.

        Raises:
            ConfigurationError: They are none of the candidates.
        """
        unit = next((unit for unit in self.candidates() if set(unit) == set(names)), None)
        if unit is None:
            raise ConfigurationError(
                "These groups cannot be selected.", got=list(names), allowed=str([list(c) for c in self.candidates()])
            )
        waiting = tuple(other for other in self.waiting if other != unit)
        return self._with(stages=(*self.stages, unit), waiting=waiting)

    @property
    def never_released(self) -> tuple[str, ...]:
        """Groups that no stage trains."""
        released = {name for stage in (*self.stages, *self.waiting) for name in stage}
        return tuple(name for name in self.groups if name not in released)

    def trainable_in(self, stage: int) -> tuple[str, ...]:
        """Names of the groups that train in a stage, bottom to top."""
        units = self.stages[: stage - self.num_before + 1]
        if stage < self.num_before:
            units = (*self.stages, *self.waiting)
        return self.in_order({name for unit in units for name in unit})

    def table(self) -> list[Stage]:
        """The stages that are known, with the number of completed updates at which each begins."""
        released = [self.trainable_in(0)] * self.num_before + list(self.stages)
        return [
            Stage(
                stage=number,
                start=self.starts[number] if number < len(self.starts) else None,
                released=names,
                trainable=self.trainable_in(number),
            )
            for number, names in enumerate(released)
        ]

    def when(self, stage: int) -> str:
        """When a stage begins, in words."""
        if stage < len(self.starts):
            return f"from update {self.starts[stage]}"
        release = stage - self.num_before
        if release == 0:
            return f"from {self.start} of training"
        if release > 1 and self.release != "interval":
            return "later, evenly spaced"
        intervals = self.first + release - 1
        return f"after {intervals} interval{'s' * (intervals > 1)}"

    def check_length(self, total_updates: int) -> str | None:
        """Compare the schedule with the length of training.

        Returns:
            A warning if the stages leave groups out or release them too late, else None.

        Raises:
            ConfigurationError: Not even the first release falls into training.
        """
        left_out = f"These groups are never trained: {', '.join(self.never_released)}." if self.never_released else None
        if not self.is_resolved or self.num_releases == 0:
            return left_out
        releases = self.starts[self.num_before + 1 :]
        own = self.to_dict()
        settings = ", ".join(f"{key}={own[key]}" for key in ("interval", "first", "start", "release") if key in own)
        if releases[0] >= total_updates:
            longest = self._longest(total_updates, 1)
            raise ConfigurationError(
                "The interval is longer than training allows: no layer group would ever be released.",
                got=f"{settings}, training makes {total_updates} updates",
                allowed=f"1 to {longest} updates; {self._advice(total_updates)}" if longest > 0 else "none",
                fix="Lower interval, give it as a fraction of training, or train longer."
                if longest > 0
                else "Train longer, or lower start or first.",
            )
        in_time = sum(start < total_updates for start in releases)
        if in_time == self.num_releases:
            return left_out
        late = [name for unit in self.stages[1 + in_time :] for name in unit]
        what = (
            f"{self.num_releases - in_time} of {self.num_releases} releases never come"
            if self.waiting
            else f"these groups are never released: {', '.join(late)}"
        )
        warning = f"With {settings} and {total_updates} updates {what}; {self._advice(total_updates)}."
        return warning if left_out is None else f"{warning} {left_out}"

    def _longest(self, total_updates: int, releases: int) -> int:
        """The longest interval with which so many releases fall into training; below 1 if there is none."""
        spread = isinstance(self.release, int)
        span = self.release if spread and releases > 1 else 0
        return (total_updates - 1 - self.start - span) // (self.first + (0 if spread else releases - 1))

    def _advice(self, total_updates: int) -> str:
        longest = self._longest(total_updates, self.num_releases)
        return f"{longest} or less releases every group" if longest > 0 else "no interval releases every group"

    # Files.

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; :meth:`from_dict` reads it back."""
        own: dict[str, Any] = {
            "interval": self.interval,
            "groups": list(self.groups),
            "stages": [list(stage) for stage in self.stages],
            "release": self.release,
            "first": self.first,
            "start": self.start,
            "select": self.select if self.waiting else None,
            "waiting": [list(unit) for unit in self.waiting],
            "embeddings": self.embeddings,
        }
        return {key: value for key, value in own.items() if value != OPTIONAL.get(key, ...)}

    @classmethod
    def from_dict(cls, data: Any) -> UnfreezingSchedule:
        """Read :meth:`to_dict`.

        Raises:
            ConfigurationError: A key is missing or unknown, or a value is not usable.
        """
        settings = checked_settings(data)
        return cls(settings.pop("groups"), **settings)

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
        return as_yaml(self)

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
