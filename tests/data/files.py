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


def write_texts(path: Path, labels: list[Any], texts: list[Any] | None = None, **more: list[Any]) -> SplitSpec:
    texts = SENTENCES[: len(labels)] if texts is None else texts
    columns = {"text": texts, "label": labels, **more}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return SplitSpec(str(path))


def save_texts(path: Path, labels: list[int], names: list[str]) -> SplitSpec:
    dataset = Dataset.from_dict({"text": SENTENCES[: len(labels)], "label": labels})
    dataset.cast_column("label", ClassLabel(names=names)).save_to_disk(str(path))
    return SplitSpec(str(path))


def write_lines(path: Path, *rows: dict[str, Any], **fields: Any) -> SplitSpec:
    """JSON lines, and the set that they are; the fields are those of `SplitSpec`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SplitSpec(str(path), **fields)
