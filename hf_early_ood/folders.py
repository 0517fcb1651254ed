"""Output folders: whether they can be written, whether they are free, and in what two results in them differ."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_early_ood.errors import ConfigurationError, ResumeError
from hf_early_ood.names import CLAIM_FILE

_CHUNK = 1 << 20


def check_writable(folder: Path) -> None:
    """Find out before any work that nothing could be written.

    Tried, with a file that is removed again: what the flags of a folder say is not the truth for every user.

    Raises:
        ConfigurationError: The folder is none, or it or what it would be made in is not writable.
    """
    with writing(folder):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(f"{there} is no folder")
        with tempfile.TemporaryFile(dir=there):
            pass


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say of what cannot be written that it is the output folder.

    Raises:
        ConfigurationError: Instead of any `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            "The output folder cannot be written.", got=f"{folder}: {error}", fix="Give another output folder."
        ) from error


def is_free(folder: Path) -> bool:
    """Whether nothing is there; what a killed process has left unfinished counts for nothing.

    Example:
        >>> is_free(Path("no/such/folder"))
        True
    """
    try:
        return all(_is_unfinished(file) or file.name == CLAIM_FILE for file in folder.iterdir())
    except FileNotFoundError:  # or another process has just removed it
        return True


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process has left unfinished; nobody else may be writing there.

    Example:
        >>> remove_unfinished(Path("no/such/folder"))
    """
    for file in folder.glob(".*"):
        if _is_unfinished(file):
            file.unlink(missing_ok=True)


def _is_unfinished(file: Path) -> bool:
    """Whether `hf_early_ood.atomic.replacing` has named it."""
    return file.name.startswith(".") and ".tmp" in file.name and not file.is_dir()


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


def check_replaceable(folder: Path, file: str, what: str) -> None:
    """Make sure that a folder is free, or holds a result of the same kind, which is replaced.

    Args:
        folder: The output folder.
        file: That says what the folder holds.
        what: It is, for the message.

    Raises:
        ConfigurationError: It cannot be written.
        ResumeError: It holds something else.
    """
    check_writable(folder)
    if not is_free(folder) and not (folder / file).is_file():
        raise ResumeError(
            f"The output folder is not empty and holds no {what}.", got=folder, fix="Give another output folder."
        )


def model_sha256(folder: Path) -> dict[str, str]:
    """Hash of each file of a saved model or adapter, with its tokenizer, by its path inside; not of a model card.

    Example:
        >>> model_sha256(Path("no/such/folder"))
        {}
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "README.md"]
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def known_sha256(*files: Path) -> str:
    """`sha256` that does not read files again as long as their size and time of change are the same.

    Example:
        >>> known_sha256() == sha256()
        True
    """
    return _known_sha256(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=8)
def _known_sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    return sha256(*(path for path, _, _ in files))


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
