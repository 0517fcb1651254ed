"""The series of a run: what was measured and what was released, in memory, in the checkpoint and in a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_early_ood.atomic import append_jsonl, write_jsonl


class DynamicsLog:
    """Records in the order of their steps, mirrored into a JSON-lines file as they come.

    Args:
        path: The file; it is touched by :meth:`replace` first. None keeps the records in memory only (other ranks).
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []

    def replace(self, records: Iterable[dict[str, Any]]) -> None:
        """Begin with these records.

        The file is written whole, so that lines that came after the checkpoint from which a run resumes are neither
        kept twice nor lost.
        """
        self.records = list(records)
        if self.path is not None:
            write_jsonl(self.path, self.records)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record to the series and to the file."""
        self.records.append(record)
        if self.path is not None:
            append_jsonl(self.path, record)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Event records of one kind ("stage" or "decision")."""
        return [record for record in self.records if record.get("event") == name]

    def measurements(self, measure: str) -> list[dict[str, Any]]:
        """Records of one measure."""
        return [record for record in self.records if record.get("measure") == measure]
