"""Columns by role: which ones are read, and what must be in each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from hf_early_ood.errors import ConfigurationError, DataError, did_you_mean
from hf_early_ood.names import CHOICES, CONTEXT, GROUP, ID, QUESTION, TEXT, TEXT_PAIR
from hf_early_ood.roles import ROLES, TARGETS, columns_by_role
from hf_early_ood.sources import SplitSpec, column_names

Columns = Mapping[str, str | Sequence[str]]
BLANK = "left out because they have no text"
_READ_WHOLE = (TEXT, TEXT_PAIR, QUESTION, CONTEXT)
_MOST_IDS = 5  # in a message


def columns_of(spec: SplitSpec, task: str, columns: Columns | None, *, labeled: bool = True) -> dict[str, Any]:
    """Role -> column of a set (`columns_by_role`).

    Bundled data has its own columns, which are named after the roles, and its group if it has one.

    Args:
        spec: The set; its own ``columns`` win.
        task: Name of the task.
        columns: Role -> column, as in all sets.
        labeled: Whether what is to be predicted is read.

    Raises:
        ConfigurationError: A role or the task is not known.
        DataError: Bundled data does not have a role.
    """
    if task not in ROLES:
        raise ConfigurationError("There is no such task.", got=task, allowed=", ".join(ROLES))
    roles = ROLES[task]
    given = {**(columns or {}), **(spec.columns or {})}
    for role in given:
        if role not in roles:
            raise ConfigurationError(
                f"{task} has no such role of a column.",
                got=role,
                allowed=", ".join(roles),
                fix=did_you_mean(role, roles),
            )
    if spec.is_bundled:
        there = column_names(spec)
        lacking = [role for role in given if role not in (*there, ID, GROUP)]
        if lacking:
            raise DataError(
                f"{spec.source} has no {' or '.join(lacking)}.",
                got=", ".join(f"{role}={given[role]}" for role in lacking),
                allowed=", ".join(there),
                fix="Leave it out, or leave the bundled set out.",
            )
        given = {**({GROUP: GROUP} if GROUP in there else {}), **(spec.columns or {})}
    chosen = columns_by_role(task, given)
    return {role: column for role, column in chosen.items() if labeled or role != TARGETS[task]}


def flat(columns: Columns) -> list[str]:
    """Names of all columns, each once."""
    names = [[column] if isinstance(column, str) else column for column in columns.values()]
    return list(dict.fromkeys(name for group in names for name in group))


def texts(dataset: Dataset, column: str) -> list[str]:
    """The texts of a column.

    Raises:
        DataError: One is missing, blank, or no text.
    """
    values = dataset[column][:]
    for row, value in enumerate(values):
        if not is_text(value):
            raise DataError(
                f"Column {column!r} has an example without text.",
                got=f"{value!r} in example {row}",
                allowed="text that is not blank",
                fix="Write it as text, remove such examples from the source, or set leave_out_blank.",
            )
    return values


def blank_rows(dataset: Dataset, columns: Columns) -> set[int]:
    """Examples in which a text, a question, a context or a choice is missing or blank. What is no text stays.

    Args:
        dataset: The set.
        columns: Role -> column.

    Example:
        >>> rows = Dataset.from_dict({"review": ["fine", " ", None]})
        >>> blank_rows(rows, {"text": "review"})
        {1, 2}
    """
    read = {role: column for role, column in columns.items() if role in (*_READ_WHOLE, CHOICES)}
    found = set()
    for column in flat(read):
        for row, value in enumerate(dataset[column][:]):
            parts = value if isinstance(value, list) else [value]
            if any(part is None or (isinstance(part, str) and not is_text(part)) for part in parts):
                found.add(row)
    return found


def is_text(value: Any) -> bool:
    """Whether a value is text with something to read in it: white space and NUL are not."""
    return isinstance(value, str) and bool(value.replace("\0", "").strip())


def lists_of_text(dataset: Dataset, column: str) -> list[list[str]]:
    """A column of lists of text, which may be empty.

    Raises:
        DataError: Something else is in it.
    """
    values = dataset[column][:]
    for row, value in enumerate(values):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise DataError(
                f"Column {column!r} is not a list of text.",
                got=f"{short(value)} in example {row}",
                allowed='lists such as ["Berlin", "is", "big"]',
                fix="Save the lists as JSON lines or Parquet: CSV has none.",
            )
    return values


def choices(dataset: Dataset, columns: str | Sequence[str]) -> list[list[str]]:
    """The choices of every example: of one column with lists, or of several columns.

    Raises:
        DataError: One is missing or blank, or there are not equally many for all examples.
    """
    if isinstance(columns, str):
        rows = lists_of_text(dataset, columns)
    else:
        rows = [list(row) for row in zip(*(texts(dataset, column) for column in columns), strict=True)]
    counts = Counter(map(len, rows))
    if len(counts) > 1 or min(counts) < 2:
        raise DataError(
            "The examples have not equally many choices.",
            got=", ".join(f"{size} choices ({count} examples)" for size, count in sorted(counts.items())),
            allowed="one number, 2 or more, for all examples of a set",
            fix="Divide the set by the number of choices, or remove the odd examples.",
        )
    blank = next((row for row, values in enumerate(rows) if not all(map(is_text, values))), None)
    if blank is not None:
        raise DataError(
            f"{CHOICES} has an example with a blank choice.",
            got=f"{rows[blank]} in example {blank}",
            fix="Remove it, or set leave_out_blank.",
        )
    return rows


def words_of(dataset: Dataset, column: str, role: str) -> list[str]:
    """Ids or groups as text; numbers are written out, and a ``ClassLabel`` by its names.

    Raises:
        DataError: One is missing, or an id occurs twice.
    """
    feature = dataset.features[column]
    values = dataset[column][:]
    for row, value in enumerate(values):
        if not isinstance(value, str | int) or value == "":
            raise DataError(
                f"Column {column!r} has an example without {role}.",
                got=f"{short(value)} in example {row}",
                allowed="text or whole numbers",
                fix=f"Fill it in, or leave {role} out of the columns.",
            )
    words = [feature.names[value] for value in values] if isinstance(feature, ClassLabel) else list(map(str, values))
    twice = [word for word, count in Counter(words).items() if count > 1] if role == ID else []
    if twice:
        raise DataError(
            f"{len(twice)} ids occur more than once.",
            got=", ".join(map(repr, twice[:_MOST_IDS])) + (" and others" if len(twice) > _MOST_IDS else ""),
            fix="Give every example an id of its own, or leave id out of the columns.",
        )
    return words


def short(value: Any) -> str:
    """A value as a message shows it."""
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
