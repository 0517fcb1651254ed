"""torch.compile and layers that change between frozen and trainable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DynamoBackend, is_compiled_module
from torch import nn
from transformers import TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

# A stage is compiled for training and for evaluation.
_PER_STAGE = 2


def is_compiled(model: nn.Module, args: TrainingArguments) -> bool:
    """Whether the Trainer compiles the model, as a whole or block by block, or somebody has."""
    backend = AcceleratorState().dynamo_plugin.backend
    compiled = any(is_compiled_module(module) for module in model.modules())
    return bool(args.torch_compile) or backend != DynamoBackend.NO or compiled


def recompilation_allowed(num_stages: int) -> Callable[[], None]:
    """Make room for one more compilation of the model per stage and mode; return how to undo it.

    A compiled model is guarded by the flags of its parameters, so that every stage in which others train compiles it
    anew (a draw of LISA that was there before does not). Above
    ``torch._dynamo.config.recompile_limit``, 8 by default, PyTorch goes on without compiling, which only its log tells.

    Args:
        num_stages: Stages of the schedule, as many as need it at most; the recompilations for other reasons keep the
            room they had.

    Example:
        >>> from torch._dynamo import config
        >>> before = config.recompile_limit
        >>> undo = recompilation_allowed(12)
        >>> config.recompile_limit - before
        24
        >>> undo()
        >>> config.recompile_limit == before
        True
    """
    config = torch._dynamo.config
    limit, accumulated = config.recompile_limit, config.accumulated_recompile_limit
    config.recompile_limit = limit + _PER_STAGE * num_stages
    config.accumulated_recompile_limit = accumulated + _PER_STAGE * num_stages
    logger.info(f"torch.compile compiles the model anew in up to {num_stages} stages.")

    def undo() -> None:
        config.recompile_limit, config.accumulated_recompile_limit = limit, accumulated

    return undo
