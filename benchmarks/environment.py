"""What a recorded number depends on besides the code."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from typing import Any

import torch

from hf_early_ood.environment import capture_environment, timestamp


def environment() -> dict[str, Any]:
    """Interpreter, machine, versions, threads, date and command line, as JSON types."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        **asdict(capture_environment(device=device)),
        "threads": torch.get_num_threads(),
        "date": timestamp(),
        "command": shlex.join(["python", *sys.argv]),
    }
