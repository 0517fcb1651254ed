"""Schedules that freeze groups again: LISA draws groups anew every period, AutoFreeze freezes them from the bottom."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

from hf_early_ood.checks import check_count, check_number
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.schedules.base import Schedule, checked_groups, checked_updates, flow, in_updates, in_words
from hf_early_ood.schedules.orders import all_named

SETTLED = "settled_gradients"


class _PeriodicSchedule(Schedule):
    """A new stage after every ``interval`` updates, to the end of training."""

    _least_stages = 2  # with fewer it would have no effect

    def __init__(self, groups: Iterable[str], interval: int | float) -> None:
        self.groups = checked_groups(groups)
        self.interval = checked_updates(interval, "The interval")

    @property
    def is_resolved(self) -> bool:
        """Whether the interval is a number of updates."""
        return isinstance(self.interval, int)

    def stage(self, global_step: int) -> int:
        """Stage after ``global_step`` completed updates."""
        return global_step // self.interval if isinstance(self.interval, int) else 0

    def num_stages(self, total_updates: int) -> int:
        """Stages that begin within training, each with a draw or a look of its own, also where nothing changes."""
        return self.stage(max(0, total_updates - 1)) + 1

    def check_length(self, total_updates: int) -> str | None:
        """Refuse an interval with which the stages that it takes to have an effect do not fall into training.

        Raises:
            ConfigurationError: They do not.
        """
        if self.is_resolved and self.num_stages(total_updates) < self._least_stages:
            longest = (total_updates - 1) // (self._least_stages - 1)
            raise ConfigurationError(
                "The interval is longer than training allows: nothing would ever change.",
                got=f"interval={self.interval}, training makes {total_updates} updates",
                allowed=f"1 to {longest} updates" if longest > 0 else "none",
                fix="Lower interval, give it as a fraction of training, or train longer.",
            )
        return None


class LayerSampling(_PeriodicSchedule):
    """Train a few randomly drawn blocks at a time: LISA (Pan et al. 2024, arXiv 2403.17919).

    Every ``interval`` updates ``num_groups`` of the groups that are not in ``always`` are drawn, uniformly and without
    replacement; they train together with those in ``always``, the others are frozen. The draw of a stage depends on
    seed and number of the stage alone, so that ranks and resumed runs agree.

    Args:
        groups: Group names from bottom to top.
        interval: K, updates between two draws (the README of the authors' code: 20), or a fraction of training.
        num_groups: gamma, groups drawn at a time (2 is typical of the paper).
        always: Groups that always train; embeddings and head in the source. A name that the model has no group for is
            left out where a default put it there.
        seed: Of the draws.

    Raises:
        ConfigurationError: A setting is not usable, or there are fewer groups than are to be drawn.

    Example:
        >>> lisa = LayerSampling(["embeddings", "block.0", "block.1", "block.2", "head"], interval=20, num_groups=1)
        >>> [lisa.trainable(step)[1] for step in (0, 19, 20, 40, 60)]
        ['block.0', 'block.0', 'block.0', 'block.1', 'block.2']
    """

    def __init__(
        self,
        groups: Iterable[str],
        *,
        interval: int | float = 20,
        num_groups: int = 2,
        always: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(groups, interval)
        if always is None:
            self.always = self.in_order(("embeddings", "head"))
        else:
            self.always = all_named(always, self.groups, "always")
        self.drawn_from = tuple(name for name in self.groups if name not in self.always)
        check_count("num_groups", num_groups)
        check_count("seed", seed, least=0)
        if num_groups > len(self.drawn_from):
            raise ConfigurationError(
                "There are fewer layer groups than are to be drawn.",
                got=f"num_groups={num_groups}",
                allowed=f"1 to {len(self.drawn_from)}: {', '.join(self.drawn_from) or 'none are left'}",
            )
        self.num_groups = num_groups
        self.seed = seed

    def resolve(self, *, total_updates: int | None = None, decided: int | None = None) -> LayerSampling:
        """Turn a fraction of training into a number of updates; nothing is ever decided."""
        return LayerSampling(
            self.groups,
            interval=in_updates(self.interval, total_updates),
            num_groups=self.num_groups,
            always=self.always,
            seed=self.seed,
        )

    def trainable_in(self, stage: int) -> tuple[str, ...]:
        """Names of the groups that train in a stage, bottom to top."""
        drawn = random.Random(f"lisa {self.seed} {stage}").sample(self.drawn_from, self.num_groups)
        return self.in_order({*self.always, *drawn})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "interval": self.interval,
            "groups": list(self.groups),
            "num_groups": self.num_groups,
            "always": list(self.always),
            "seed": self.seed,
        }

    def to_yaml(self) -> str:
        """The first stages."""
        lines = [
            f"# LISA: every {in_words(self.interval)}, {self.num_groups} of {len(self.drawn_from)} groups are drawn.",
            f"always: {flow(self.always)}",
            "drawn:  # the first five times",
        ]
        for stage in range(5):
            drawn = [name for name in self.trainable_in(stage) if name not in self.always]
            lines.append(f"  - {flow(drawn)}")
        return "\n".join(lines) + "\n"


class PrefixFreezing(_PeriodicSchedule):
    r"""Freeze layers from the bottom as their gradients settle: AutoFreeze (Liu et al. 2021, arXiv 2102.01386).

    All groups train at first. At the end of interval i the gradients that a group has summed up in it are compared with
    those of the interval before,

    .. math:: \eta = \frac{|G_{i-1} - G_i|}{G_{i-1}}, \qquad G = \lVert \textstyle\sum_t g_t \rVert_1,

    and all groups below the first one whose :math:`\eta` reaches the given percentile of the still trained groups are
    frozen for good. (The source measures layers, and never freezes the head; nor does this.)

    Args:
        groups: Group names from bottom to top.
        interval: Updates between two looks, or a fraction of training: 0.1 cuts training in ten, as the source does.
        frozen: Groups frozen at each look so far, from the bottom; what :meth:`chosen` adds to.

    Raises:
        ConfigurationError: A setting is not usable.

    Example:
        >>> auto = PrefixFreezing(["embeddings", "block.0", "block.1", "head"], interval=10)
        >>> auto.needs_choice(1), auto.chosen(["embeddings"]).trainable(10)
        (True, ('block.0', 'block.1', 'head'))
    """

    select = SETTLED
    _least_stages = 3  # the first look has nothing to compare with

    def __init__(
        self, groups: Iterable[str], *, interval: int | float = 0.1, frozen: Sequence[Sequence[str]] = ()
    ) -> None:
        super().__init__(groups, interval)
        self.frozen = tuple(tuple(names) for names in frozen)
        off = [name for names in self.frozen for name in names]
        if off != list(self.groups[:-1][: len(off)]):
            raise ConfigurationError(
                "Only the lowest groups can be frozen, from the bottom.", got=off, allowed=list(self.groups[:-1])
            )

    def resolve(self, *, total_updates: int | None = None, decided: int | None = None) -> PrefixFreezing:
        """Turn a fraction of training into a number of updates."""
        return PrefixFreezing(self.groups, interval=in_updates(self.interval, total_updates), frozen=self.frozen)

    def trainable_in(self, stage: int) -> tuple[str, ...]:
        """Names of the groups that train in a stage, bottom to top."""
        off = {name for names in self.frozen[:stage] for name in names}
        return tuple(name for name in self.groups if name not in off)

    def needs_choice(self, stage: int) -> bool:
        """Whether the look at the start of a stage is still to come."""
        return stage > len(self.frozen)

    def candidates(self) -> tuple[tuple[str, ...], ...]:
        """The groups that still train, but for the top one, each by itself."""
        return tuple((name,) for name in self.trainable_in(len(self.frozen))[:-1])

    def chosen(self, names: Sequence[str]) -> PrefixFreezing:
        """This schedule with the groups that the next stage freezes, which may be none.

        Raises:
            ConfigurationError: They are not the lowest ones that still train, from the bottom.
        """
        return PrefixFreezing(self.groups, interval=self.interval, frozen=(*self.frozen, tuple(names)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"interval": self.interval, "groups": list(self.groups), "frozen": [list(n) for n in self.frozen]}

    def to_yaml(self) -> str:
        """The groups, and those that are frozen already."""
        lines = [
            f"# AutoFreeze: every {in_words(self.interval)}, the lowest groups with settled gradients are frozen.",
            f"groups: {flow(self.groups)}",
        ]
        if self.frozen:
            lines += ["frozen:  # at each look so far", *(f"  - {flow(names)}" for names in self.frozen)]
        return "\n".join(lines) + "\n"


def settled_prefix(change: dict[str, float], percentile: float = 50.0) -> tuple[str, ...]:
    """AutoFreeze's choice: the groups below the first one whose change reaches a percentile of all changes.

    Args:
        change: eta of every group that still trains, bottom to top. NaN counts as a change, so that nothing above it is
            frozen, and not among those that the percentile is of.
        percentile: Of the changes, linearly interpolated, 0 to 100; 50 in the source.

    Raises:
        ConfigurationError: No percentile.

    Example:
        >>> settled_prefix({"embeddings": 0.1, "block.0": 0.2, "block.1": 0.9, "block.2": 0.8})
        ('embeddings', 'block.0')
        >>> settled_prefix({"block.0": 0.9, "block.1": 0.1})
        ()
    """
    check_number("percentile", percentile, zero=True)
    if percentile > 100:
        raise ConfigurationError("percentile is not usable.", got=repr(percentile), allowed="0 to 100")
    ordered = sorted(value for value in change.values() if not math.isnan(value))
    if not ordered:
        return ()
    place = percentile / 100 * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    threshold = low if low == high else low + (place - math.floor(place)) * (high - low)  # inf - inf is no number
    settled: list[str] = []
    for name, value in change.items():
        if not value < threshold:
            break
        settled.append(name)
    return tuple(settled)
