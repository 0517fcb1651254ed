"""Plain values to typed settings: every problem is noted under its dotted key, none stops the search."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union

from hf_early_ood.errors import ConfigurationError, did_you_mean

T = TypeVar("T")
KnownKeys = Callable[[], Iterable[str]]


class _Mark:
    """A value of its own, told from every setting a user could write."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


# Stands in for a value that was already reported, so that the checks between keys can leave it out.
INVALID: Any = _Mark("INVALID")
_NOT_GIVEN: Any = _Mark("NOT_GIVEN")


class _MismatchError(Exception):
    """A value is not of the wanted type."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration, and the dotted key it is about."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class Problems:
    """All that is wrong with one configuration.

    Example:
        >>> problems = Problems()
        >>> problems.add("seed", "is not usable", got=-1, allowed="a whole number >= 0")
        >>> print(problems.found[0])
        seed: is not usable. Got: -1. Allowed: a whole number >= 0.
    """

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, path: str, what: str, *, got: object = _NOT_GIVEN, allowed: str | None = None) -> None:
        """Note a problem of the key ``path``; a problem noted twice is kept once."""
        text = what if what.endswith((".", "?")) else f"{what}."
        if got is not _NOT_GIVEN:
            shown = repr(got)
            text += f" Got: {shown if len(shown) <= 80 else shown[:77] + '...'}."
        if allowed is not None:
            text += f" Allowed: {allowed}."
        problem = Problem(path, text)
        if problem not in self.found:
            self.found.append(problem)

    def raise_if_any(self, where: str) -> None:
        """Report everything at once.

        Args:
            where: What was read, as in ``run.yaml``.

        Raises:
            ConfigurationError: If any problem was noted; its text has one line a problem.
        """
        if self.found:
            count = "1 problem" if len(self.found) == 1 else f"{len(self.found)} problems"
            lines = "".join(f"\n  {problem}" for problem in self.found)
            raise ConfigurationError(f"{count} in {where}:{lines}")


def usable(*values: object) -> bool:
    """Whether all of ``values`` were read without a problem."""
    return all(value is not INVALID for value in values)


def join(path: str, key: object) -> str:
    """The dotted key of ``key`` inside ``path``."""
    return f"{path}.{key}" if path else str(key)


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    allowed: str | None = None,
) -> Any:
    """A dataclass field that knows its help text and its range.

    Args:
        help: What the setting does, for ``--help``.
        default: Its default; without one the setting is required. A class is called to make the default.
        at_least: Smallest value that is allowed.
        above: The value must be larger than this.
        below: The value must be smaller than this.
        allowed: The allowed values in words, where type and range do not say it.
    """
    limits = {"at_least": at_least, "above": above, "below": below}
    metadata = {"help": help, "limits": limits, "allowed": allowed}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """The resolved types of the fields of ``cls``."""
    return typing.get_type_hints(cls)


def type_in_words(hint: Any) -> str:
    """What a user may write for a setting of type ``hint``.

    Example:
        >>> type_in_words(Literal["auto"] | int), type_in_words(tuple[str, ...])
        ('auto or a whole number', 'a list, each item text')
    """
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    if hint in words:
        return words[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_in_words(argument) for argument in arguments)
    if origin is tuple:
        return f"a list, each item {type_in_words(arguments[0])}"
    return "a section of keys"


def field_in_words(field: dataclasses.Field[Any], hint: Any) -> str:
    """What a user may write for ``field``: its type and its range."""
    if field.metadata["allowed"] is not None:
        return str(field.metadata["allowed"])
    signs = {"at_least": ">=", "above": ">", "below": "<"}
    limits = [f"{signs[name]} {limit}" for name, limit in field.metadata["limits"].items() if limit is not None]
    words = f"{type_in_words(hint).removesuffix(' or null')} {' and '.join(limits)}".strip()
    return f"{words}, or null" if type(None) in typing.get_args(hint) else words


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether ``field`` has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def convert(value: Any, hint: Any) -> Any:
    """``value`` as a ``hint``, where that loses nothing.

    Numbers may be written as text (PyYAML reads ``2e-5`` as text), whole numbers only as whole numbers.

    Raises:
        _MismatchError: If ``value`` is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for argument in arguments:
            try:
                return convert(value, argument)
            except _MismatchError:
                continue
    elif origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(convert(item, arguments[0]) for item in value)
    elif hint is type(None):
        if value is None:
            return None
    elif hint is bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is float:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return _finite(value)
    elif hint is str:
        if isinstance(value, str):
            return value
    else:  # Any, or a type that only its owner knows
        return value
    raise _MismatchError


def _finite(value: int | float | str) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _MismatchError from None
    if not math.isfinite(number):
        raise _MismatchError
    return number


def checked(value: Any, hint: Any, path: str, problems: Problems, allowed: str | None = None) -> Any:
    """``value`` as a ``hint``; if it is none, a problem is noted and ``INVALID`` comes back."""
    try:
        return convert(value, hint)
    except _MismatchError:
        what = "has the wrong type"
        if isinstance(value, (bool, int, float)) and str in (hint, *typing.get_args(hint)):
            what = "has the wrong type: write text that YAML would read as something else in quotes"
        problems.add(path, what, got=value, allowed=allowed or type_in_words(hint))
        return INVALID


def build(cls: type[T], data: Any, path: str, problems: Problems, known: KnownKeys = tuple) -> T:
    """An instance of the dataclass ``cls`` from a mapping.

    Args:
        cls: A dataclass whose fields were made by `option`.
        data: What was written under ``path``; null counts as an empty section, except for one that null switches off.
        path: Dotted key of the section, empty for the whole.
        problems: Where problems are noted. Settings with a problem become ``INVALID``.
        known: Gives the dotted keys of the whole configuration, for "did you mean"; called only then.

    Returns:
        The instance, or ``INVALID`` if ``data`` is not a mapping.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    hints = type_hints(typing.cast(Any, cls))
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        problems.add(path, "must be a section of keys", got=data, allowed=", ".join(fields))
        return typing.cast(T, INVALID)
    for key in data:
        if key not in fields:
            problems.add(join(path, key), f"unknown key. {_suggest(path, key, fields, known())}")
    values = {}
    for name, field in fields.items():
        key, hint = join(path, name), hints[name]
        if name in data:
            values[name] = _field_value(data[name], field, hint, key, problems, known)
        elif is_required(field):
            problems.add(key, "this key is required and missing", allowed=field_in_words(field, hint))
            values[name] = INVALID
    return cls(**values)


def _field_value(
    value: Any, field: dataclasses.Field[Any], hint: Any, path: str, problems: Problems, known: KnownKeys
) -> Any:
    section = section_of(hint)
    if section is not None:
        off = value is None and not dataclasses.is_dataclass(hint)
        return None if off else build(section, value, path, problems, known)
    if typing.get_origin(hint) is dict:
        return _dict_value(value, hint, path, problems, known)
    value = checked(value, hint, path, problems, allowed=field_in_words(field, hint))
    limits = field.metadata["limits"]
    if isinstance(value, (int, float)) and (
        (limits["at_least"] is not None and value < limits["at_least"])
        or (limits["above"] is not None and value <= limits["above"])
        or (limits["below"] is not None and value >= limits["below"])
    ):
        problems.add(path, "is out of range", got=value, allowed=field_in_words(field, hint))
        return INVALID
    return value


def section_of(hint: Any) -> type | None:
    """The dataclass that a setting is a section of, also where null switches the section off; None for other types."""
    for member in (hint, *typing.get_args(hint)):
        if isinstance(member, type) and dataclasses.is_dataclass(member) and typing.get_origin(hint) is not dict:
            return member
    return None


def _dict_value(value: Any, hint: Any, path: str, problems: Problems, known: KnownKeys) -> Any:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        problems.add(path, "must be a section of keys", got=value)
        return INVALID
    hint = typing.get_args(hint)[1]
    result: Any = {}
    names_are_text = True
    for key, item in value.items():
        if not isinstance(key, str):
            # The language code "no" is the classic case: YAML reads it as false.
            problems.add(
                path, "a name in it is not text: put names that YAML reads as something else in quotes", got=key
            )
            names_are_text = False
        elif dataclasses.is_dataclass(hint):
            result[key] = build(typing.cast(type, hint), item, join(path, key), problems, known)
        elif typing.get_origin(hint) is dict:
            result[key] = _dict_value(item, hint, join(path, key), problems, known)
        else:
            result[key] = checked(item, hint, join(path, key), problems)
    return result if names_are_text else INVALID


def _suggest(path: str, key: Any, siblings: Iterable[str], elsewhere: Iterable[str]) -> str:
    """The same key in another section, else the closest sibling, else the closest key anywhere."""
    siblings = list(siblings)
    leaves: dict[str, str] = {}
    for dotted in elsewhere:
        leaves.setdefault(dotted.rsplit(".", 1)[-1], dotted)  # the first is the plainest
    if key in leaves:
        return f"Did you mean '{leaves[key]}'?"
    close = difflib.get_close_matches(str(key), siblings, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{join(path, close[0])}'?"
    close = difflib.get_close_matches(str(key), list(leaves), n=1, cutoff=0.8)
    if close:
        return f"Did you mean '{leaves[close[0]]}'?"
    return did_you_mean(str(key), siblings)
