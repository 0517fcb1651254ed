"""What is refused before the first update, because the result could not be correct."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments
from transformers.training_args import ParallelMode
from transformers.utils import logging

from hf_early_ood.errors import UnsupportedSetupError
from hf_early_ood.tasks.sequence_classification import is_sequence_classification

logger = logging.get_logger(__name__)


def check_launcher(args: TrainingArguments) -> None:
    """Refuse launchers under which layers cannot change between frozen and trainable.

    Raises:
        UnsupportedSetupError: DeepSpeed, FSDP, or DistributedDataParallel that cannot follow a changing graph.
    """
    kind = _distributed_type()
    if args.deepspeed or kind == DistributedType.DEEPSPEED:
        raise UnsupportedSetupError(
            "Gradual unfreezing cannot run under DeepSpeed: ZeRO fills the missing gradients of frozen layers with"
            " zeros, and weight decay and momentum would move them.",
            got="deepspeed is set in TrainingArguments or in the accelerate configuration",
            allowed="one process, or DistributedDataParallel",
            fix="Launch with DistributedDataParallel (no deepspeed setting).",
        )
    if args.fsdp or kind in (DistributedType.FSDP, DistributedType.MEGATRON_LM):
        raise UnsupportedSetupError(
            "Gradual unfreezing does not run on sharded parameters.",
            got=f"fsdp={args.fsdp}, distributed type {kind}",
            allowed="one process, or DistributedDataParallel",
            fix="Launch with DistributedDataParallel (no fsdp setting, here or in the accelerate configuration).",
        )
    if args.parallel_mode == ParallelMode.DISTRIBUTED:
        _check_ddp(args)


def _distributed_type() -> DistributedType:
    """What accelerate made of arguments, environment and its own configuration file."""
    return AcceleratorState().distributed_type


def _check_ddp(args: TrainingArguments) -> None:
    checkpointing = bool(getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing)
    find_unused = args.ddp_find_unused_parameters
    if find_unused is None:
        find_unused = not checkpointing  # the Trainer's own default
    if not find_unused:
        raise UnsupportedSetupError(
            "DistributedDataParallel waits for the gradients of frozen layers, which never come.",
            got=f"ddp_find_unused_parameters={args.ddp_find_unused_parameters}"
            + (", activation checkpointing (which switches the default off)" if checkpointing else ""),
            fix="Set ddp_find_unused_parameters=True in TrainingArguments.",
        )
    if getattr(args, "ddp_static_graph", None):
        raise UnsupportedSetupError(
            "A static DDP graph cannot follow layers that are released during training.",
            got="ddp_static_graph=True",
            fix="Remove ddp_static_graph from TrainingArguments.",
        )
    kwargs: Any = getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs or {}
    if checkpointing and kwargs.get("use_reentrant"):
        raise UnsupportedSetupError(
            "Reentrant activation checkpointing marks a parameter ready twice under DDP with frozen layers.",
            got="use_reentrant=True",
            fix='Set activation_checkpointing_kwargs={"use_reentrant": False}.',
        )


def without_input_gradients(model: nn.Module, args: TrainingArguments) -> Callable[[], None]:
    """Switch off that inputs require gradients, which activation checkpointing switches on; return how to undo it.

    With it, every layer above the embeddings would be differentiated, frozen or not, and freezing would save
    nothing. Only the reentrant kind of checkpointing needs it.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not getattr(inner, "_require_grads_hooks", None):
        return lambda: None
    kwargs: Any = getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs or {}
    if kwargs.get("use_reentrant"):
        raise UnsupportedSetupError(
            "Reentrant activation checkpointing needs gradients at the inputs: frozen layers would save nothing.",
            got="use_reentrant=True",
            fix='Set activation_checkpointing_kwargs={"use_reentrant": False}, the default.',
        )
    inner.disable_input_require_grads()
    return inner.enable_input_require_grads


def check_optimizer(optimizer: torch.optim.Optimizer | None, managed: Mapping[str, nn.Parameter]) -> None:
    """Refuse an optimizer that would never move a group, however often it is released.

    Raises:
        UnsupportedSetupError: A managed parameter is in no parameter group of the optimizer.
    """
    if optimizer is None:
        raise UnsupportedSetupError("The Trainer has no optimizer at on_train_begin.", fix="Use transformers.Trainer.")
    covered = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, parameter in managed.items() if id(parameter) not in covered]
    if missing:
        raise UnsupportedSetupError(
            "The optimizer does not hold every trainable parameter: what it lacks would never train, without an"
            " error. This happens when layers were frozen before Trainer.train() built the optimizer, for example"
            " in an attempt that was interrupted.",
            got=f"{len(missing)} of {len(managed)} missing, such as {missing[0]}",
            fix="Give the Trainer a model whose layers are all trainable and let it build the optimizer.",
        )


def warn_about_loss_scale(args: TrainingArguments, model: nn.Module) -> None:
    """Say so when transformers scales the loss of sequence classification wrongly.

    transformers takes ``**kwargs`` in ``forward`` for the ability to divide the loss by ``num_items_in_batch``.
    Sequence classification models ignore it, so that accumulation and several processes multiply the gradient
    (measured with transformers 5.23), and with it clipping and everything that is logged from gradients.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    factor = args.gradient_accumulation_steps * max(1, args.world_size)
    wrong = is_sequence_classification(model) and getattr(inner, "accepts_loss_kwargs", True)
    if wrong and factor > 1:
        logger.warning(
            f"Trainer makes the gradient of {type(inner).__name__} up to {factor} times too large (gradient "
            f"accumulation {args.gradient_accumulation_steps} x {args.world_size} processes). Set "
            "model.accepts_loss_kwargs = False before Trainer(...), or use hf_early_ood.EarlyOODTrainer."
        )
