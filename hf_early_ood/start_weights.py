"""Weights with which a training began, in a file beside its checkpoints: one copy, on disk, for whoever needs it later.

The file is written whole or not at all; its hash belongs into what a callback keeps in the checkpoint, so that a
training that is resumed gets the weights that it began with, or an error, and never those of another training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_early_ood.atomic import replacing
from hf_early_ood.errors import ResumeError
from hf_early_ood.folders import sha256


def write_start_weights(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Write weights by name; whatever was there is replaced.

    Args:
        path: The file.
        weights: Name to tensor, on any device; none shares its memory with another.

    Returns:
        The hash of the file.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "start.safetensors"
        >>> digest = write_start_weights(path, {"w": torch.ones(2)})
        >>> read_start_weights(path, digest)["w"].tolist()
        [1.0, 1.0]
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(path) as unfinished:
        save_file(kept, unfinished)
    return sha256(path)


def check_start_weights(path: Path, digest: str) -> None:
    """Refuse to go on with a file that is gone or another one.

    Raises:
        ResumeError: It is.
    """
    fix = "Put the file back (into another output folder, copy it from the one of the checkpoint), or start anew."
    if not path.is_file():
        raise ResumeError("The weights with which training began are gone.", got=f"no {path}", fix=fix)
    if sha256(path) != digest:
        raise ResumeError(
            "The weights with which training began are not those of this checkpoint.",
            got=f"{path} with another hash, as another training in this folder writes it",
            fix=fix,
        )


def read_start_weights(path: Path, digest: str) -> dict[str, Tensor]:
    """The weights by name, on the CPU; they stay on the disk until they are used.

    Args:
        path: The file.
        digest: What `write_start_weights` has returned.

    Raises:
        ResumeError: The file is gone, another one, or not readable.
    """
    check_start_weights(path, digest)
    return mapped_weights(path)


def mapped_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file by name, on the CPU, whoever wrote it; they stay on the disk until they are used.

    Raises:
        ResumeError: The file is not readable.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ResumeError(f"{path} is not readable: {error}.", fix="Start anew.") from error
