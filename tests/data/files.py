"""Small files of examples, as a user has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset

from hf_early_ood.data import SplitSpec

SENTENCES = [
    "the first text of this set",
    "a second one about something else",
    "yet another sentence follows here",
    "and nobody reads what comes last",
]


def write_texts(
    path: Path,
    values: list[Any],
    texts: list[Any] | None = None,
    more: dict[str, list[Any]] | None = None,
    **fields: Any,
) -> SplitSpec:
    """Texts with labels, and perhaps more columns; the fields are those of `SplitSpec`."""
    texts = SENTENCES[: len(values)] if texts is None else texts
    columns = {"text": texts, "label": values, **(more or {})}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return write_lines(path, *rows, **fields)


def save_texts(path: Path, values: list[int], names: list[str], **fields: Any) -> SplitSpec:
    """As `write_texts`, with a `ClassLabel` and by ``save_to_disk``."""
    dataset = Dataset.from_dict({"text": SENTENCES[: len(values)], "label": values})
    dataset.cast_column("label", ClassLabel(names=names)).save_to_disk(str(path))
    return SplitSpec(str(path), **fields)


def write_lines(path: Path, *rows: dict[str, Any], **fields: Any) -> SplitSpec:
    """JSON lines, and the set that they are; the fields are those of `SplitSpec`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SplitSpec(str(path), **fields)
