"""What a recorded number depends on besides the code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from typing import Any

import torch

from hf_early_ood.environment import capture_environment, timestamp


def environment(device: str | None = None, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Interpreter, machine, versions, threads, date and command line, as JSON types.

    Args:
        device: "cpu" or "cuda"; None: CUDA if there is one.
        packages: Further distributions whose version is recorded, if they are installed.
    """
    cuda = torch.cuda.is_available() if device is None else device != "cpu"
    captured = asdict(capture_environment(device=torch.cuda.get_device_name() if cuda else "cpu"))
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            captured["packages"][package] = metadata.version(package)
    return {
        **captured,
        "threads": torch.get_num_threads(),
        "date": timestamp(),
        "command": shlex.join(["python", *sys.argv]),
    }
