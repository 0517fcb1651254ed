"""Files are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """Write to the path this yields; when the block ends well, it takes the place of ``path``.

    If the block raises, or the process dies in it, ``path`` is as it was before. Missing folders are made.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as unfinished:
        ...     _ = unfinished.write_text("whole")
        ...     target.exists()
        False
        >>> target.read_text()
        'whole'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that os.replace stays on one file system; the suffix is kept for writers that read it.
    unfinished = target.with_name(f".{target.stem}.{uuid.uuid4().hex}.tmp{target.suffix}")
    try:
        yield unfinished
        # Without fsync, a power cut after the rename could leave an empty file under the final name.
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def write_bytes(path: str | PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(data)


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | PathLike[str], value: Any) -> None:
    """Write ``value`` as `dumps` gives it to ``path``, whole or not at all."""
    write_text(path, dumps(value, indent=2) + "\n")


def write_jsonl(path: str | PathLike[str], values: Iterable[Any]) -> None:
    """Write one line of JSON for each of ``values`` to ``path``, whole or not at all."""
    write_text(path, "".join(dumps(value) + "\n" for value in values))


def append_jsonl(path: str | PathLike[str], value: Any) -> None:
    """Append one line of JSON to ``path``.

    The line is handed to the operating system before this returns, so it outlives the process. Half a line that
    an earlier process left at the end is cut off first.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    line = (dumps(value) + "\n").encode("utf-8")
    _cut_unfinished_line(target)
    with open(target, "ab") as file:
        file.write(line)
        file.flush()


def _cut_unfinished_line(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON. NaN and infinity, which JSON lacks, become null: "there is no number", never 0.

    Dataclasses, paths, tuples and numpy scalars and arrays are written as plain values.

    Raises:
        TypeError: If ``value`` holds anything else, or a key that is not text.

    Example:
        >>> dumps({"loss": float("nan"), "n": np.int64(3)})
        '{"loss": null, "n": 3}'
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """``value`` in the types that JSON has; what `dumps` writes.

    Raises:
        TypeError: If ``value`` holds something that has no such form.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"A key of a JSON object must be text. Got: {key!r}.")
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(f"A {type(value).__name__} has no form in JSON. Allowed: numbers, text, lists, mappings.")
