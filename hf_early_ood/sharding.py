"""Models whose parameters FSDP2 (``torch.distributed.fsdp.fully_shard``) holds in shards on several processes.

Three things follow from how it works (torch 2.13):

* A module holds either its shards (``DTensor``) or, from its forward pass on, gathered copies. The optimizer knows the
  shards only, so that their flags are those that count. A copy takes them over when it is gathered; one that is left
  over from an evaluation keeps its old flags for one more update. So: `reshard` before names, flags or parameters are
  read or set.
* At the first forward pass of the model, each module decides in which precision its gradients are reduced, and cannot
  if nothing in it is trainable then: in mixed precision it fails when it is released. So: `begin` before anything is
  frozen.
* Every pass is a conversation of all processes, which one that fails or retries would leave waiting, and a backward
  pass that fails leaves the state of FSDP broken. So: measurements are made on a `gathered` model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import AcceleratorState, is_initialized
from torch import nn

from hf_early_ood.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_distributed() -> bool:
    """Whether this is one of several processes; then the parts of torch that this needs are there to be imported."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules of a model that FSDP2 gathers and reshards; none, if it is not sharded.

    Example:
        >>> sharded_modules(nn.Linear(2, 2))
        []
    """
    if not is_distributed():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def holds_shards(model: nn.Module) -> bool:
    """Whether parameters are there in part only: not inside `gathered`.

    Example:
        >>> holds_shards(nn.Linear(2, 2))
        False
    """
    if not is_distributed():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def check_whole(model: nn.Module) -> None:
    """Refuse a model of which this process holds a part only.

    Raises:
        UnsupportedModelError: Parameters are sharded now.

    Example:
        >>> check_whole(nn.Linear(2, 2))
    """
    if holds_shards(model):
        raise UnsupportedModelError(
            "A sharded model cannot be measured.",
            got=f"{type(model).__name__} with parameters of which this process holds a part",
            fix="Measure inside `with hf_early_ood.sharding.gathered(model):`, on every process.",
        )


def is_split_otherwise(model: nn.Module) -> bool:
    """Whether parameters are split over processes by something else than FSDP2, or by that and something else.

    Example:
        >>> is_split_otherwise(nn.Linear(2, 2))
        False
    """
    if not is_distributed():
        return False
    from torch.distributed.tensor import DTensor

    split = [
        sum(not placement.is_replicate() for placement in parameter.placements)
        for parameter in model.parameters()
        if isinstance(parameter, DTensor)
    ]
    return max(split, default=0) > (1 if sharded_modules(model) else 0)


def reshard(model: nn.Module) -> None:
    """Drop gathered copies of parameters, so that the model holds its shards; nothing if it has none."""
    for module in sharded_modules(model):
        module.reshard()


def begin(model: nn.Module) -> None:
    """Let FSDP2 look at a model in which everything is trainable, as its first forward pass would; then `reshard`."""
    if not sharded_modules(model):
        return
    from torch.distributed.fsdp import register_fsdp_forward_method

    def look() -> None:
        """Run between what FSDP2 does before and after a forward pass of the whole model."""

    model._look = look  # type: ignore[assignment]
    register_fsdp_forward_method(model, "_look")
    with torch.no_grad():
        model._look()  # type: ignore[operator]
    del model._look
    reshard(model)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Make a model that FSDP2 shards an ordinary one inside the block: whole parameters, and no FSDP in its passes.

    The parameters are whole on every process, in the precision in which they are trained. They are copies, except where
    there is one process only: what is written to them must be put back. In mixed precision the forward pass runs under
    autocast, as ``accelerate`` has it in one process. Every process must enter the block, and none waits for another
    inside it. A model that is not sharded is left as it is.

    Args:
        model: The whole model.
    """
    modules: list[Any] = sharded_modules(model)
    if not modules:
        yield
        return
    from torch.distributed.tensor import DTensor

    reshard(model)
    shards = {module: dict(module._parameters) for module in model.modules()}
    hooks = [owned for module in modules for owned in (module._forward_pre_hooks, module._forward_hooks)]
    all_hooks = [dict(owned) for owned in hooks]
    own_forward = model.__dict__.get("forward")
    try:
        copies: dict[nn.Parameter, nn.Parameter] = {}  # a shared parameter has one
        for module, owned in shards.items():
            for name, parameter in owned.items():
                if isinstance(parameter, DTensor):
                    if parameter not in copies:
                        # Shards may wait on the CPU; they are needed on the device.
                        whole = parameter.detach().to(parameter.device_mesh.device_type).full_tensor()
                        copies[parameter] = nn.Parameter(whole, parameter.requires_grad)
                    module._parameters[name] = copies[parameter]
        for current in hooks:
            for key in [key for key, hook in current.items() if hook.__module__.startswith("torch.distributed")]:
                del current[key]
        model.forward = _under_autocast(model.forward)
        yield
    finally:
        for module, owned in shards.items():
            module._parameters.update(owned)
        for current, before in zip(hooks, all_hooks, strict=True):
            current.clear()
            current.update(before)
        model.__dict__.pop("forward", None)
        if own_forward is not None:
            model.forward = own_forward


def _under_autocast(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass in the precision that ``accelerate`` trains in."""
    state = AcceleratorState() if is_initialized() else None
    precision = _PRECISIONS.get(state.mixed_precision) if state is not None else None
    if state is None or precision is None:
        return forward
    return torch.autocast(state.device.type, dtype=precision)(forward)
