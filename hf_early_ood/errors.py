"""Exceptions. Every message says what is wrong, what was got, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_MOST_NAMES = 20


class EarlyOODError(Exception):
    """Base of all errors this package raises on purpose.

    Args:
        what: One sentence: what is wrong.
        got: The offending value.
        allowed: What would have been accepted.
        fix: What the user can do about it.

    Example:
        >>> print(EarlyOODError("Unknown order.", got="up", allowed="top_down, bottom_up", fix="Set order=top_down."))
        Unknown order. Got: up. Allowed: top_down, bottom_up. To fix: Set order=top_down.
    """

    def __init__(self, what: str, *, got: object = None, allowed: object = None, fix: str | None = None) -> None:
        self.what, self.got, self.allowed, self.fix = what, got, allowed, fix
        parts = [what]
        if got is not None:
            parts.append(f"Got: {got}.")
        if allowed is not None:
            parts.append(f"Allowed: {allowed}.")
        if fix is not None:
            parts.append(f"To fix: {fix}")
        super().__init__(" ".join(parts))


class ConfigurationError(EarlyOODError, ValueError):
    """A setting, alone or together with others, is not usable."""


@contextmanager
def named(section: str) -> Iterator[None]:
    """Let an error inside the block begin with what it is about: a section of settings, a set, a model.

    Example:
        >>> with named("probe"):
        ...     raise ConfigurationError("size is not usable.", got=0)
        Traceback (most recent call last):
        hf_early_ood.errors.ConfigurationError: probe: size is not usable. Got: 0.
    """
    try:
        yield
    except EarlyOODError as error:
        raise type(error)(f"{section}: {error.what}", got=error.got, allowed=error.allowed, fix=error.fix) from error


class DataError(EarlyOODError, ValueError):
    """A data set, a column or a label is missing or not usable."""


class UnsupportedModelError(EarlyOODError, ValueError):
    """The architecture of a model is not one that this function can handle."""


class UnsupportedSetupError(EarlyOODError, RuntimeError):
    """A launcher or a Trainer setting under which the result could not be correct."""


class ProbeError(EarlyOODError, RuntimeError):
    """A measurement cannot be made, or would not mean what it says."""


class NonFiniteError(ProbeError):
    """A measurement met NaN or infinity."""


class ModelChangedError(ProbeError):
    """A measurement has changed the model it measured: what is trained from here on would be something else."""


class ResumeError(EarlyOODError, RuntimeError):
    """A checkpoint or an output folder does not belong to this run."""


class BusyError(EarlyOODError, RuntimeError):
    """Another process is at work on an output folder."""


class PublishError(EarlyOODError, RuntimeError):
    """A run, or an upload of it, is not fit to be published."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name the closest known word, as the tail of an error message.

    Example:
        >>> did_you_mean("intervall", ["interval", "order"])
        "Did you mean 'interval'?"
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    shown = ", ".join(known[:_MOST_NAMES]) + (f" and {len(known) - _MOST_NAMES} more" * (len(known) > _MOST_NAMES))
    return f"Known: {shown}."
