"""What the columns of a data set are for, by task."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from hf_early_ood.names import (
    ANSWERS,
    CHOICES,
    CONTEXT,
    GROUP,
    ID,
    LABEL,
    MULTIPLE_CHOICE,
    QUESTION,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TAGS,
    TEXT,
    TEXT_PAIR,
    TOKEN_CLASSIFICATION,
    TOKENS,
)

Column = TypeVar("Column")

_FOR_ALL = {ID: False, GROUP: False}

ROLES: Mapping[str, Mapping[str, bool]] = MappingProxyType(
    {
        SEQUENCE_CLASSIFICATION: {TEXT: True, TEXT_PAIR: False, LABEL: True, **_FOR_ALL},
        TOKEN_CLASSIFICATION: {TOKENS: True, TAGS: True, **_FOR_ALL},
        QUESTION_ANSWERING: {QUESTION: True, CONTEXT: True, ANSWERS: True, **_FOR_ALL},
        MULTIPLE_CHOICE: {TEXT: True, TEXT_PAIR: False, CHOICES: True, LABEL: True, **_FOR_ALL},
    }
)
"""Task -> role -> whether it must be there. A loaded data set has its columns in this order, named after the roles."""

TARGETS: Mapping[str, str] = MappingProxyType(
    {SEQUENCE_CLASSIFICATION: LABEL, TOKEN_CLASSIFICATION: TAGS, QUESTION_ANSWERING: ANSWERS, MULTIPLE_CHOICE: LABEL}
)
"""Task -> the role that is to be predicted."""


def columns_by_role(task: str, given: Mapping[str, Column]) -> dict[str, str | Column]:
    """Role -> column, in the order of the task's roles.

    What must be there is in the column of its own name unless another is given; what need not be there is read where a
    column is given.

    Example:
        >>> columns_by_role("sequence_classification", {"text_pair": "hypothesis", "text": "premise"})
        {'text': 'premise', 'text_pair': 'hypothesis', 'label': 'label'}
    """
    chosen: dict[str, str | Column] = {role: role for role, required in ROLES[task].items() if required}
    chosen.update(given)
    return {role: chosen[role] for role in ROLES[task] if role in chosen}
