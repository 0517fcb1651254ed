"""What all schedules have in common: a number of completed updates gives a stage, a stage gives the trained groups."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hf_early_ood.errors import ConfigurationError

AUTO = "auto"

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


class Schedule(ABC):
    """The general algorithm: every so many updates, the trained groups become what a rule selects.

    Scheduled unfreezing (Liu et al. 2024, arXiv 2301.05487, algorithm 1) adds groups and never takes one away; LISA and
    AutoFreeze freeze groups again. A schedule is immutable. Where what a stage changes is chosen from measurements
    (``select`` says which), whoever runs it asks :meth:`candidates` when the stage begins and goes on with what
    :meth:`chosen` returns.

    Attributes:
        groups: Names of all layer groups, bottom to top.
        select: What chooses the next stage; None where everything is known before training.
    """

    groups: tuple[str, ...]
    select: str | None = None

    @property
    @abstractmethod
    def is_resolved(self) -> bool:
        """Whether the length of every stage is a number of updates."""

    @abstractmethod
    def resolve(self, *, total_updates: int | None = None, decided: int | None = None) -> Schedule:
        """This schedule with fractions of training or "auto" turned into numbers of updates."""

    @abstractmethod
    def stage(self, global_step: int) -> int:
        """Stage after ``global_step`` completed updates, from 0 on, never falling."""

    @abstractmethod
    def trainable_in(self, stage: int) -> tuple[str, ...]:
        """Names of the groups that train in a stage, bottom to top."""

    @abstractmethod
    def num_stages(self, total_updates: int) -> int:
        """Stages that a training of this length goes through; the same groups may train in several of them."""

    @abstractmethod
    def check_length(self, total_updates: int) -> str | None:
        """A warning if the schedule does not fit the length of training.

        Raises:
            ConfigurationError: The schedule would have no effect at all.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""

    @abstractmethod
    def to_yaml(self) -> str:
        """The stages in words that a person can read."""

    def trainable(self, global_step: int) -> tuple[str, ...]:
        """Names of the groups that train in update ``global_step + 1``, bottom to top."""
        return self.trainable_in(self.stage(global_step))

    def needs_choice(self, stage: int) -> bool:
        """Whether a stage cannot begin before :meth:`chosen` was told what it changes."""
        return False

    def candidates(self) -> tuple[tuple[str, ...], ...]:
        """What can be chosen for the next stage: sets of groups."""
        return ()

    def chosen(self, names: Sequence[str]) -> Schedule:
        """This schedule with the choice for the next stage."""
        raise ConfigurationError("This schedule leaves nothing to choose.", got=list(names))

    def in_order(self, names: Collection[str]) -> tuple[str, ...]:
        """Names of groups, bottom to top."""
        return tuple(name for name in self.groups if name in names)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(str(self.to_dict()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()})"


def flow(names: Sequence[Any]) -> str:
    """A YAML list on one line, with quotes where a name needs them."""
    return yaml.safe_dump(list(names), default_flow_style=True, width=math.inf).strip()


def scalar(value: int | float | str) -> str:
    """A value as YAML reads it back.

    Example:
        >>> scalar(1e-05), scalar("auto")  # "1e-05" would be read as a word
        ('1.0e-05', 'auto')
    """
    return flow([value])[1:-1]


def in_words(interval: int | float) -> str:
    """How long a stage is.

    Example:
        >>> in_words(1), in_words(20), in_words(0.1)
        ('update', '20 updates', '0.1 of training')
    """
    if isinstance(interval, float):
        return f"{interval} of training"
    return "update" if interval == 1 else f"{interval} updates"


def checked_names(value: Any, what: str) -> tuple[str, ...]:
    """Names that were given as a list.

    Raises:
        ConfigurationError: One name instead of a list, no list, or something in it that is no name.
    """
    if isinstance(value, str):
        raise ConfigurationError(f"{what} is a list of group names.", got=repr(value), fix=f"Write [{value!r}].")
    if not isinstance(value, Sequence) or not all(isinstance(name, str) for name in value):
        raise ConfigurationError(f"{what} is a list of group names.", got=repr(value))
    return tuple(value)


def checked_groups(groups: Iterable[str]) -> tuple[str, ...]:
    """Names of all layer groups, bottom to top.

    Raises:
        ConfigurationError: There are none, one is there twice, or one is no name.
    """
    names = checked_names(groups if isinstance(groups, str) else list(groups), "groups")
    if not names:
        raise ConfigurationError("There are no layer groups.", fix="Let something in the model require a gradient.")
    if len(set(names)) < len(names):
        raise ConfigurationError("Group names must be unique.", got=list(names))
    return names


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


def checked_updates(value: Any, what: str, *, least: int = 1, words: Sequence[str] = ()) -> Any:
    """A number of updates, a fraction of training, or one of ``words``.

    Raises:
        ConfigurationError: Anything else.
    """
    if isinstance(value, str) and value in words:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    if isinstance(value, float) and 0.0 < value < 1.0:
        return value
    allowed = f"an integer >= {least} (updates), a float in (0, 1) (fraction of training)"
    raise ConfigurationError(
        f"{what} is not usable.", got=repr(value), allowed=allowed + "".join(f', or "{word}"' for word in words)
    )


def in_updates(value: Any, total_updates: int | None) -> Any:
    """A fraction of training as a number of updates, at least one; anything else stays what it is.

    Example:
        >>> in_updates(0.29, 100), in_updates(7, 100), in_updates(0.29, None)
        (29, 7, 0.29)
    """
    if isinstance(value, float) and total_updates is not None:
        return max(1, math.floor(value * total_updates + 1e-9))  # 0.29 of 100 are 29
    return value
