"""Checkpoints of a Trainer that was killed: which one can be resumed; and going back to where a training began."""

from __future__ import annotations

import copy
import json
import re
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_early_ood.errors import ResumeError

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


def check_resumable(checkpoint: str | PathLike[str]) -> None:
    """Refuse to resume from weights alone: transformers would begin the learning rate and the optimizer anew, silently.

    Raises:
        ResumeError: The checkpoint was made with ``save_only_model``.
    """
    if not (Path(checkpoint) / SCHEDULER_NAME).is_file():
        raise ResumeError(
            "The checkpoint holds weights, but neither the optimizer nor the learning rate.",
            got=f"{checkpoint} without {SCHEDULER_NAME}",
            fix="Leave save_only_model out where a training is to be resumed. To go on from the weights, load them with"
            " from_pretrained and start anew.",
        )


class Beginning:
    """Where a training began, to begin it again after an attempt that failed.

    Args:
        model: Its parameters and buffers are copied to the CPU.
        optimizer: The user's own, if there is one.
        scheduler: The user's own, if there is one.
        folder: ``output_dir`` of the Trainer.
    """

    def __init__(self, model: nn.Module, optimizer: Any, scheduler: Any, folder: str) -> None:
        self.optimizer = optimizer
        self._tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(model).items()}
        given = [part for part in (optimizer, scheduler) if part is not None]
        self._states = [(part, copy.deepcopy(part.state_dict())) for part in given]
        groups = [] if optimizer is None else optimizer.param_groups
        self._groups = [{**group, "params": list(group["params"])} for group in groups]
        self._folder, self._checkpoints = folder, set(checkpoints(folder))

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Go back there, and remove the checkpoints that were made since."""
        for name, tensor in _tensors(model).items():
            tensor.copy_(self._tensors[name])
        if self.optimizer is not None:  # an intervention may have split its groups
            self.optimizer.param_groups[:] = [{**group, "params": list(group["params"])} for group in self._groups]
        for part, state in self._states:
            part.load_state_dict(copy.deepcopy(state))
        if PartialState().is_main_process:
            for step, path in checkpoints(self._folder).items():
                if step not in self._checkpoints:
                    shutil.rmtree(path)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Whatever training may change; quantized weights it does not."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}
