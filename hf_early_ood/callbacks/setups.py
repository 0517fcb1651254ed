"""What is refused before the first update, because the result could not be correct."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, is_compiled_module
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import ParallelMode
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.errors import UnsupportedSetupError
from hf_early_ood.sharding import is_split_otherwise, sharded_modules
from hf_early_ood.tasks.loading import task_of_model

logger = logging.get_logger(__name__)

_ALLOWED = "one process, DistributedDataParallel, or FSDP2"

_SCALED_WRONGLY = (names.SEQUENCE_CLASSIFICATION, names.TOKEN_CLASSIFICATION, names.MULTIPLE_CHOICE)

_IN_BACKWARD = ("LayerWiseDummyOptimizer", "Lomo", "AdaLomo")


def check_launcher(args: TrainingArguments, model: nn.Module, rewraps: bool = False) -> None:
    """Refuse launchers under which layers cannot change between frozen and trainable.

    Raises:
        UnsupportedSetupError: DeepSpeed, what `check_shards` refuses, or DistributedDataParallel that cannot follow a
            changing graph.
    """
    if args.deepspeed or _distributed_type() == DistributedType.DEEPSPEED:
        raise UnsupportedSetupError(
            "Gradual unfreezing cannot run under DeepSpeed: ZeRO fills the missing gradients of frozen layers with"
            " zeros, and weight decay and momentum would move them.",
            got="deepspeed is set in TrainingArguments or in the accelerate configuration",
            allowed=_ALLOWED,
            fix="Shard with FSDP2 instead of ZeRO: accelerate launch --use_fsdp --fsdp_version 2, or"
            ' TrainingArguments(fsdp=True, fsdp_config={"version": 2}), without a deepspeed setting.',
        )
    check_shards(model)
    if sharded_modules(model):
        _check_fsdp2(args)
    elif args.parallel_mode == ParallelMode.DISTRIBUTED:
        _check_ddp(args, model, rewraps)


def check_shards(model: nn.Module) -> None:
    """Refuse models whose parameters are split in a way in which groups of them can be neither frozen nor measured.

    Raises:
        UnsupportedSetupError: FSDP1, Megatron-LM, tensor parallelism, or FSDP2 around a compiled model.
    """
    kind, is_fsdp2 = _distributed_type(), bool(sharded_modules(model))
    if kind == DistributedType.FSDP and not is_fsdp2:
        raise UnsupportedSetupError(
            "FSDP1 joins the parameters of a module into one, which is frozen or trained as a whole from the start.",
            got="FSDP version 1",
            allowed=_ALLOWED,
            fix='Use FSDP2: "fsdp_version: 2" in the accelerate configuration (accelerate launch --fsdp_version 2), or'
            ' fsdp_config={"version": 2} in TrainingArguments.',
        )
    if kind == DistributedType.MEGATRON_LM or is_split_otherwise(model):
        raise UnsupportedSetupError(
            "Layer groups cannot be told apart in parameters that tensor parallelism has split.",
            got=f"distributed type {kind}",
            allowed=_ALLOWED,
            fix="Launch without tensor parallelism.",
        )
    if is_fsdp2 and any(is_compiled_module(module) for module in model.modules()):
        raise UnsupportedSetupError(
            "FSDP2 around a compiled model is not supported: its parameters cannot be gathered for the self-check and"
            " the measurements.",
            got="torch.compile",
            fix="Set torch_compile=False, and dynamo_backend: 'NO' in the accelerate configuration.",
        )


def _distributed_type() -> DistributedType:
    """What accelerate made of arguments, environment and its own configuration file."""
    return AcceleratorState().distributed_type


def _check_fsdp2(args: TrainingArguments) -> None:
    if args.auto_find_batch_size:
        raise UnsupportedSetupError(
            "A second attempt with a smaller batch cannot begin from the same weights: they are sharded by then.",
            got="auto_find_batch_size=True with FSDP2",
            fix="Set per_device_train_batch_size, and auto_find_batch_size=False.",
        )
    kind = getattr(getattr(AcceleratorState(), "fsdp_plugin", None), "state_dict_type", None)
    if args.load_best_model_at_end and "SHARDED" in str(kind):
        raise UnsupportedSetupError(
            "With sharded checkpoints, each rank may load its part of another checkpoint at the end: transformers looks"
            " for the best one before it is written (transformers 5.23).",
            got=f"load_best_model_at_end=True, state_dict_type {kind}",
            fix='Set "fsdp_state_dict_type: FULL_STATE_DICT" in the accelerate configuration, or'
            ' fsdp_config={"state_dict_type": "FULL_STATE_DICT"} in TrainingArguments.',
        )


def _check_ddp(args: TrainingArguments, model: nn.Module, rewraps: bool) -> None:
    functions = _checkpointing(model)
    find_unused = args.ddp_find_unused_parameters
    if find_unused is None:
        find_unused = not functions  # the Trainer's own default
    if not find_unused and not rewraps:
        raise UnsupportedSetupError(
            "DistributedDataParallel waits for the gradients of frozen layers, which never come.",
            got=f"ddp_find_unused_parameters={args.ddp_find_unused_parameters}"
            + (", activation checkpointing (which switches the default off)" if functions else ""),
            fix="Set ddp_find_unused_parameters=True in TrainingArguments, or ddp_rewrap=True in EarlyOODArguments.",
        )
    if getattr(args, "ddp_static_graph", None):
        raise UnsupportedSetupError(
            "A static DDP graph cannot follow layers that are released during training.",
            got="ddp_static_graph=True",
            fix="Remove ddp_static_graph from TrainingArguments.",
        )
    _refuse_reentrant(args, functions, "marks a parameter ready twice under DDP with frozen layers")


def _checkpointing(model: nn.Module) -> list[Any]:
    """What the blocks of a model are run through where activations are checkpointed, whoever has switched it on."""
    return [
        getattr(module, "_gradient_checkpointing_func", None)
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False)
    ]


def _refuse_reentrant(args: TrainingArguments, functions: Iterable[Any], why: str) -> None:
    # PyTorch takes the reentrant kind where nothing is said.
    if all(getattr(function, "keywords", {}).get("use_reentrant") is False for function in functions):
        return
    setting = 'activation_checkpointing_kwargs={"use_reentrant": False}'
    by_trainer = getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing
    raise UnsupportedSetupError(
        f"Reentrant activation checkpointing {why}.",
        got="use_reentrant=True, which is what PyTorch takes where nothing is said",
        fix=f"Set {setting}." if by_trainer else f"Call model.activation_checkpointing_enable({setting}).",
    )


def without_input_gradients(model: nn.Module, args: TrainingArguments) -> Callable[[], None]:
    """Switch off that inputs require gradients, which activation checkpointing switches on; return how to undo it.

    With it, every layer above the embeddings would be differentiated, frozen or not, and freezing would save
    nothing. Only the reentrant kind of checkpointing needs it: the lowest block that trains would have no gradient.
    """
    _refuse_reentrant(args, _checkpointing(model), "needs gradients at the inputs: frozen layers would save nothing")
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not getattr(inner, "_require_grads_hooks", None):
        return lambda: None
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
            " in an attempt that was interrupted; an optimizer that works layer by layer in the backward pass holds"
            " none.",
            got=f"{len(missing)} of {len(managed)} missing, such as {missing[0]}",
            fix="Give the Trainer a model whose layers are all trainable and let it build the optimizer, none of the"
            " layerwise ones.",
        )


def check_step(optimizer: torch.optim.Optimizer, unusual: Sequence[str] = ()) -> None:
    """Refuse an optimizer whose ``step()`` makes no update: what is changed around it would be logged and no more.

    Args:
        optimizer: As a Trainer's callbacks get it.
        unusual: Further parts of class names that are refused.

    Raises:
        UnsupportedSetupError: DeepSpeed, or an optimizer that makes its updates in the backward pass.
    """
    kind = type(getattr(optimizer, "optimizer", optimizer)).__name__  # accelerate wraps it
    if _distributed_type() == DistributedType.DEEPSPEED or any(name in kind for name in (*_IN_BACKWARD, *unusual)):
        raise UnsupportedSetupError(
            "This optimizer does not make its updates in step(), or keeps weights of its own: they cannot be changed"
            " from outside.",
            got=f"{kind}, distributed type {_distributed_type()}",
            fix="Use another one, such as optim='adamw_torch' or 'sgd', without DeepSpeed.",
        )


def warn_about_resuming(args: TrainingArguments, model: nn.Module) -> None:
    """Say so when a plain ``Trainer`` will not be able to resume what it saves, or to begin again.

    Under FSDP2, PyTorch (2.13) wants a saved optimizer state for every parameter that is trainable when a checkpoint is
    loaded; those of layers that were not released by then have none. With ``auto_find_batch_size``, transformers (5.23)
    begins again with the weights and the optimizer of the attempt that failed: it counts on that being the first one.
    """
    if args.auto_find_batch_size:
        logger.warning(
            "auto_find_batch_size of a plain Trainer keeps what an attempt has trained that ran out of memory when a"
            " layer was released: use hf_early_ood.EarlyOODTrainer, which begins again from the start."
        )
    if sharded_modules(model) and args.save_strategy != SaveStrategy.NO:
        logger.warning(
            "Under FSDP2 a plain Trainer cannot resume a checkpoint that was written before all layers were released: "
            "use hf_early_ood.EarlyOODTrainer, also to resume."
        )


def warn_about_loss_scale(args: TrainingArguments, model: nn.Module) -> None:
    """Say so when transformers scales the loss of a classification of sequences, tokens or choices wrongly.

    transformers takes ``**kwargs`` in ``forward`` for the ability to divide the loss by ``num_items_in_batch``. The
    models of these tasks ignore it, so that accumulation and several processes multiply the gradient (measured with
    transformers 5.23), and with it clipping and everything that is logged from gradients.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    factor = args.gradient_accumulation_steps * max(1, args.world_size)
    wrong = task_of_model(model) in _SCALED_WRONGLY and getattr(inner, "accepts_loss_kwargs", True)
    if wrong and factor > 1:
        logger.warning(
            f"Trainer makes the gradient of {type(inner).__name__} up to {factor} times too large (gradient "
            f"accumulation {args.gradient_accumulation_steps} x {args.world_size} processes). Set "
            "model.accepts_loss_kwargs = False before Trainer(...), or use hf_early_ood.EarlyOODTrainer."
        )
