"""The weights at the start of training in a file: written once, found again by their hash, read when needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_early_ood.atomic import replacing
from hf_early_ood.errors import ResumeError
from hf_early_ood.folders import sha256


class WeightsFile(Mapping[str, Tensor]):
    """Weights that stay on disk: what is asked for is mapped into memory, and the system may drop it again.

    Args:
        path: A file in the format of safetensors.

    Raises:
        ResumeError: There is none, or it is not readable.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
        except (OSError, SafetensorError) as error:
            raise ResumeError(
                "The weights at the start of training are not readable.",
                got=f"{path} ({type(error).__name__}: {error})",
                fix="Put the file back, or start anew.",
            ) from error
        self._names = tuple(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_weights(path: str | PathLike[str], weights: Mapping[str, Tensor]) -> str:
    """Write weights on the CPU to a file, whole or not at all, and give its SHA-256.

    Example:
        >>> import pathlib, tempfile, torch
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.safetensors"
        >>> write_weights(path, {"w": torch.zeros(2)}) == sha256(path)
        True
        >>> WeightsFile(path)["w"].tolist()
        [0.0, 0.0]
    """
    with replacing(path) as unfinished:
        save_file(dict(weights), unfinished)
        digest = sha256(unfinished)
    return digest
