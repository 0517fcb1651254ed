"""Output folders: whether they can be written, whether they are free, and in what two results in them differ."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from hf_early_ood.errors import ConfigurationError

_CHUNK = 1 << 20


def check_writable(folder: Path) -> None:
    """Find out before any work that nothing could be written.

    Raises:
        ConfigurationError: The folder is none, or it or what it would be made in is not writable.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigurationError(
            "The output folder cannot be written.",
            got=f"{folder}: {there} is {'not writable' if there.is_dir() else 'no folder'}",
            fix="Give another output folder.",
        )


def is_free(folder: Path) -> bool:
    """Whether nothing is there; what a killed process has left unfinished counts for nothing.

    Example:
        >>> is_free(Path("no/such/folder"))
        True
    """
    return not folder.exists() or all(".tmp" in file.name and file.name.startswith(".") for file in folder.iterdir())


def differing_keys(first: Any, second: Any, path: str = "") -> list[str]:
    """Dotted keys in which two nested mappings differ.

    Example:
        >>> differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})
        ['a.c', 'd']
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return [
            name
            for key in sorted(first.keys() | second.keys())
            for name in differing_keys(first.get(key), second.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if first == second else [path]


def sha256(*files: Path) -> str:
    """Hash of the contents of files, one after the other.

    Example:
        >>> sha256()[:8]
        'e3b0c442'
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
