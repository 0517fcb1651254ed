"""Checks of single settings: the same rules wherever a setting is given, in Python or on the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from hf_early_ood.errors import ConfigurationError, did_you_mean

KEEP, RESET = OPTIMIZER_STATES = ("keep", "reset")  # what becomes of the optimizer's state of a layer group
LARGEST_SEED = 2**32  # what every generator takes
PARAMETER_CHOICES = ("trainable", "all")  # which parameters a measurement is of


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Check that a setting is one of the allowed words.

    Raises:
        ConfigurationError: It is not.

    Example:
        >>> check_choice("parameters", "all", PARAMETER_CHOICES)
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ConfigurationError(
            f"Unknown {name}.", got=value, allowed=", ".join(allowed), fix=did_you_mean(str(value), allowed)
        )


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Check that a setting is a whole number from ``least`` on.

    Raises:
        ConfigurationError: It is not.

    Example:
        >>> check_count("steps", 2.0)
        Traceback (most recent call last):
        hf_early_ood.errors.ConfigurationError: steps is not usable. Got: 2.0. Allowed: a whole number, 1 or more.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name} is not usable.", got=repr(value), allowed=f"a whole number, {least} or more")


def check_seed(value: Any) -> None:
    """Check that a seed is one that every generator takes.

    Raises:
        ConfigurationError: It is not.

    Example:
        >>> check_seed(2**70)
        Traceback (most recent call last):
        hf_early_ood.errors.ConfigurationError: seed is not usable. Got: 1180591620717411303424. Allowed: below 2**32.
    """
    check_count("seed", value, least=0)
    if value >= LARGEST_SEED:
        raise ConfigurationError("seed is not usable.", got=value, allowed="below 2**32")


def check_number(name: str, value: Any, *, zero: bool = False) -> None:
    """Check that a setting is a finite number above 0, or, with ``zero``, 0 itself.

    Raises:
        ConfigurationError: It is not.

    Example:
        >>> check_number("rho", float("nan"))
        Traceback (most recent call last):
        hf_early_ood.errors.ConfigurationError: rho is not usable. Got: nan. Allowed: a finite number above 0.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0 or (value == 0 and not zero):
        allowed = "a finite number, 0 or more" if zero else "a finite number above 0"
        raise ConfigurationError(f"{name} is not usable.", got=repr(value), allowed=allowed)


def check_flags(**values: Any) -> None:
    """Check that settings are True or False.

    Raises:
        ConfigurationError: Naming the first that is not.

    Example:
        >>> check_flags(adaptive=True, antithetic=False)
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ConfigurationError(f"{name} is not usable.", got=repr(value), allowed="true or false")
