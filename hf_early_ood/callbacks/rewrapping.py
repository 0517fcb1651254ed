"""DistributedDataParallel (DDP) that knows the layers of the stage only, so that frozen ones are not communicated."""

from __future__ import annotations

from typing import Any

from accelerate.utils import DistributedDataParallelKwargs, is_compiled_module
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def ddp_of(wrapper: nn.Module) -> DistributedDataParallel | None:
    """The DDP that a Trainer has wrapped its model in, also below ``torch.compile``; None where there is none.

    Example:
        >>> ddp_of(nn.Linear(2, 2)) is None
        True
    """
    inner: Any = wrapper._orig_mod if is_compiled_module(wrapper) else wrapper
    return inner if isinstance(inner, DistributedDataParallel) else None


def rewrap(wrapper: nn.Module, handler: DistributedDataParallelKwargs | None) -> None:
    """Build DDP anew, around what requires a gradient now; nothing where there is no DDP.

    It is the same object that is built anew: the Trainer's loop and ``accelerate`` hold on to it, and would go on with
    the old one. The old buckets are freed first. Gradients and weights are left alone: nothing is broadcast, as the
    ranks hold the same weights. Must be called on every rank, between updates.

    Args:
        wrapper: ``trainer.model_wrapped``.
        handler: ``trainer.accelerator.ddp_handler``: the settings that the Trainer has for DDP.
    """
    ddp = ddp_of(wrapper)
    if ddp is None:
        return
    settings: dict[str, Any] = handler.to_kwargs() if handler is not None else {}
    del ddp.reducer, ddp.logger  # both hold the buckets, and the hooks on the parameters
    DistributedDataParallel.__init__(
        ddp,
        ddp.module,
        device_ids=ddp.device_ids,
        output_device=ddp.output_device,
        process_group=ddp.process_group,
        init_sync=False,
        **settings,
    )
    if handler is not None:
        handler.register_comm_hook(ddp)
