"""The series of a run: what was measured and what was released, in memory, in the checkpoint and in a file."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from hf_early_ood.atomic import append_jsonl, write_jsonl
from hf_early_ood.dynamics import read_records

_SOURCE = "source"


class DynamicsLog:
    """Records in the order of their steps, mirrored into a JSON-lines file as they come.

    Several callbacks may write into one file: each line says which one it is from.

    Args:
        path: The file; it is touched by :meth:`replace` first. None keeps the records in memory only (other ranks).
        source: Name of the writer.
        writers: Names of all that may write in this training; None: what others wrote is not this writer's to judge.
        step: Completed updates at which it begins, or goes on.
    """

    def __init__(self, path: Path | None, source: str, writers: Collection[str] | None = None, step: int = 0) -> None:
        self.path = path
        self.source = source
        self.writers = writers
        self.step = step
        self.records: list[dict[str, Any]] = []

    def replace(self, records: Iterable[dict[str, Any]]) -> None:
        """Begin with these records.

        The file is written whole, so that lines that came after the checkpoint from which a run resumes are neither
        kept twice nor lost. In a training, lines of its other writers stay, up to the update at which it goes on;
        all others are of another training, or of updates that will be made again without their writer.

        Raises:
            ResumeError: There is something else in the file.
        """
        self.records = list(records)
        if self.path is not None:
            there = read_records(self.path) if self.path.is_file() else []
            others = [
                line
                for line in there
                if line.get(_SOURCE, self.source) != self.source
                and (self.writers is None or (line[_SOURCE] in self.writers and line["step"] <= self.step))
            ]
            lines = [*others, *map(self._line, self.records)]
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
