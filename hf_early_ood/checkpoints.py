"""Checkpoints of a Trainer that was killed: which one can be resumed, and what is left to do."""

from __future__ import annotations

import json
import re
import shutil
from os import PathLike
from pathlib import Path

from accelerate import PartialState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)

_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(0|[1-9][0-9]*)")


def step_of(folder: str | PathLike[str]) -> int | None:
    """The number in the name ``checkpoint-<step>``; None for another name.

    Example:
        >>> step_of("out/checkpoint-20"), step_of("out/checkpoint-best")
        (20, None)
    """
    match = _CHECKPOINT.fullmatch(Path(folder).name)
    return int(match[1]) if match else None


def checkpoints(folder: str | PathLike[str]) -> dict[int, Path]:
    """The ``checkpoint-<step>`` folders in a folder, whole or not, by step.

    Example:
        >>> checkpoints("no/such/folder")
        {}
    """
    found = {path: step_of(path) for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()}
    return {step: path for path, step in found.items() if step is not None}


def last_whole_checkpoint(folder: str | PathLike[str]) -> Path | None:
    """The newest checkpoint that was written to its end; what a killed process has begun is removed.

    transformers writes a checkpoint in place, and its ``trainer_state.json`` last; it would resume from one that lacks
    weights or state, or fail. On several processes every one must call this, and all get the same answer.

    Args:
        folder: ``output_dir`` of a Trainer; it need not exist.

    Returns:
        The folder of the checkpoint; None if there is none to go on from.

    Example:
        >>> last_whole_checkpoint("no/such/folder") is None
        True
    """
    everyone = PartialState()
    found = None
    for _, path in sorted(checkpoints(folder).items(), reverse=True):
        if completed_updates(path) is not None:
            found = path
            break
        logger.warning(f"{path} was not written to its end and is removed.")
        everyone.wait_for_everyone()  # all have read it
        if everyone.is_main_process:
            shutil.rmtree(path)
    everyone.wait_for_everyone()
    return found


def completed_updates(checkpoint: str | PathLike[str]) -> int | None:
    """Updates made before a checkpoint; None if that cannot be read: it was not written to its end."""
    try:
        state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        return int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
