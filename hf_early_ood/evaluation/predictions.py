"""What a model predicted for every example of a set: all that scoring needs, without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of one model on one set.

    Attributes:
        task: Name of the task, which says what the columns are:

            sequence_classification, multiple_choice: ``label`` (n,) and ``prediction`` (n,) ids, ``probabilities``
            (n, C) float32.

            token_classification: ``label`` and ``prediction``, n lists of tags, one for each word that has one.

            question_answering: ``id`` (n,), ``label``: n lists of right answers (none: there is no answer),
            ``prediction``: n answers ("" for none), ``score`` (n,).
        columns: Column name -> n values.
        label_names: Name of each class id or all tags; empty for question answering.
        language: ISO 639-1 code (``zh-CN`` is ``zh``), for rules that differ between languages.
        groups: Name of the group of each example, where there are groups.
    """

    task: str
    columns: Mapping[str, Sequence[Any]]
    label_names: tuple[str, ...] = ()
    language: str | None = None
    groups: tuple[str, ...] | None = None
