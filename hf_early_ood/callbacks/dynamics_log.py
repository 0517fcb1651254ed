"""The series of a run: what was measured and what was released, in memory, in the checkpoint and in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_early_ood.atomic import append_jsonl, write_jsonl

_SOURCE = "source"


class DynamicsLog:
    """Records in the order of their steps, mirrored into a JSON-lines file as they come.

    Several callbacks may write into one file: each line says which one it is from.

    Args:
        path: The file; it is touched by :meth:`replace` first. None keeps the records in memory only (other ranks).
        source: Name of the writer.
    """

    def __init__(self, path: Path | None, source: str) -> None:
        self.path = path
        self.source = source
        self.records: list[dict[str, Any]] = []

    def replace(self, records: Iterable[dict[str, Any]]) -> None:
        """Begin with these records.

        The file is written whole, so that lines that came after the checkpoint from which a run resumes are neither
        kept twice nor lost. Lines of other writers stay.
        """
        self.records = list(records)
        if self.path is not None:
            lines = [*_lines_of_others(self.path, self.source), *map(self._line, self.records)]
            write_jsonl(self.path, sorted(lines, key=lambda line: line["step"]))

    def append(self, record: dict[str, Any]) -> None:
        """Add one record to the series and to the file."""
        self.records.append(record)
        if self.path is not None:
            append_jsonl(self.path, self._line(record))

    def _line(self, record: dict[str, Any]) -> dict[str, Any]:
        return {**record, _SOURCE: self.source}

    def events(self, name: str) -> list[dict[str, Any]]:
        """Event records of one kind ("stage" or "decision")."""
        return [record for record in self.records if record.get("event") == name]


def _lines_of_others(path: Path, source: str) -> list[dict[str, Any]]:
    """Whole lines of a file that other writers have put there; a line cut off by a crash is none."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "step" in line and line.get(_SOURCE, source) != source:
            lines.append(line)
    return lines
