"""A snapshot of where a result is made."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from os import PathLike
from pathlib import Path

from hf_early_ood.results import EnvironmentRecord

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "peft", "hf-early-ood")


def capture_environment(device: str | None = None, folder: str | PathLike[str] = ".") -> EnvironmentRecord:
    """Record interpreter, machine, versions and the commit of the repository around ``folder``.

    Args:
        device: Name of the device that trains; None: asked of torch, which is imported for it.
        folder: A folder of the user's project.

    Example:
        >>> capture_environment(device="cpu").device
        'cpu'
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain") if commit else None
    return EnvironmentRecord(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        device=device or _device(),
        packages={name.replace("-", "_"): _version(name) for name in PACKAGES},
        git_commit=commit,
        git_dirty=None if changes is None else bool(changes),
    )


def timestamp() -> str:
    """Now, as ISO 8601 with time zone."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(folder: str | PathLike[str], *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
