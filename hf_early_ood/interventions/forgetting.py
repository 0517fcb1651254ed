"""Initialize some parameters of a model anew, by the model's own initializer, and leave everything else alone.

How transformers 5 does it: `PreTrainedModel.initialize_weights` walks through the modules, children before parents, and
calls `_init_weights(module)` of the nearest model around each. That method writes to the weights of the module and, in
some architectures, to those of its children once more (GPT-2 scales the projections into the residual stream). Tensors
and modules that carry `_is_hf_initialized` are skipped, and a checkpoint that was loaded leaves these marks behind.

So here all parameters and buffers are replaced for the moment: those to be initialized by new ones full of NaN, without
marks, all others by tensors without storage, which cost nothing and draw no random numbers. What is NaN at the end has
no initializer, and is refused instead of being kept. Weights are shared after the initialization of a new model: the
first module that holds one decides, such as the embeddings and not the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from hf_early_ood.errors import UnsupportedModelError
from hf_early_ood.probes.isolation import random_state_kept

# Initializers of LoRA that look at neither the base weights nor data.
_LORA_INITIALIZERS = (True, "gaussian")


def initial_values(model: nn.Module, parameters: Mapping[str, nn.Parameter], seed: int) -> dict[str, nn.Parameter]:
    """What the model's own initializer draws for some of its parameters; the model is left as it is, bit for bit.

    Weights are drawn on the CPU, so that all ranks and devices get the same ones. Adapters of LoRA get the initializer
    of PEFT (A random, B = 0); what transformers knows none for, such as a layer outside of any ``PreTrainedModel``,
    its own ``reset_parameters``. The global random generators are put back.

    Args:
        model: The model, not wrapped.
        parameters: Name to parameter, of those to initialize.
        seed: Of the draws.

    Returns:
        Name to initial value, on the CPU, of the parameter's shape and type.

    Raises:
        UnsupportedModelError: Nothing initializes one of the parameters, or an adapter's initial values cannot be made
            again.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> values = initial_values(model, dict(model.named_parameters()), seed=0)
        >>> torch.equal(values["1.weight"], initial_values(model, dict(model.named_parameters()), 0)["1.weight"])
        True
    """
    adapters = _adapters(model, parameters)
    with random_state_kept(), torch.no_grad(), _replaced(model, parameters) as drawn:
        torch.manual_seed(seed)
        _initialize(model, None)
        for layer, adapter, how in adapters:
            layer.reset_lora_parameters(adapter, how)
        left = {values for values in drawn.values() if bool(values.isnan().any())}
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset) and left & set(module.parameters(recurse=False)):
                reset()
    missing = [name for name, values in drawn.items() if bool(values.isnan().any())]
    if missing:
        raise UnsupportedModelError(
            "These parameters cannot be initialized anew: no initializer writes to them.",
            got=f"{len(missing)} of {len(drawn)}, such as {missing[0]}",
            fix="Leave them out (a boundary above them, other groups), or give the model an _init_weights for them.",
        )
    return drawn


def reinitialize(model: nn.Module, parameters: Mapping[str, nn.Parameter], seed: int) -> None:
    """Give parameters their `initial_values`, in place; a shared one changes wherever it is used, nothing else does.

    Raises:
        UnsupportedModelError: As `initial_values`; the model is unchanged then.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = layer.weight.tolist()
        >>> reinitialize(layer, {"bias": layer.bias}, seed=0)
        >>> layer.weight.tolist() == before
        True
    """
    with torch.no_grad():
        for name, values in initial_values(model, parameters, seed).items():
            parameters[name].copy_(values)


def without_norms(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of the parameters that no normalization layer holds.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        >>> list(without_norms(model, dict(model.named_parameters())))
        ['0.weight', '0.bias']
    """
    # By name, as transformers tells them: every architecture has classes of its own for them.
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    held = {id(parameter) for module in norms for parameter in module.parameters(recurse=False)}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) not in held}


@contextmanager
def _replaced(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, nn.Parameter]]:
    """Let the model hold new tensors inside the block: yields those of ``parameters``, by name."""
    drawn = {name: nn.Parameter(torch.full_like(p, math.nan, device="cpu")) for name, p in parameters.items()}
    waiting = {parameters[name]: values for name, values in drawn.items()}
    chosen = set(waiting)
    held = {module: (dict(module._parameters), dict(module._buffers)) for module in model.modules()}
    try:
        for module, (own, buffers) in held.items():
            for name, parameter in own.items():
                if parameter in waiting:
                    module._parameters[name] = waiting.pop(parameter)
                elif parameter is not None:
                    # The other uses of a shared parameter draw random numbers, as in a model that is being built.
                    device = "cpu" if parameter in chosen else "meta"
                    module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device=device), False)
            for name, buffer in buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty_like(buffer, device="meta")
        yield drawn
    finally:
        for module, (own, buffers) in held.items():
            module._parameters.update(own)
            module._buffers.update(buffers)


def _initialize(module: nn.Module, model: PreTrainedModel | None) -> None:
    """What ``PreTrainedModel.initialize_weights`` does, whatever was initialized before."""
    inner = module if isinstance(module, PreTrainedModel) else model
    for child in module.children():
        _initialize(child, inner)
    if inner is not None:
        inner._init_weights(module)


def _adapters(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[tuple[LoraLayer, str, bool | str]]:
    """Layer, name and initializer of the adapters that hold one of the parameters.

    Raises:
        UnsupportedModelError: An adapter whose initial values depend on more than a seed.
    """
    chosen = set(parameters.values())
    found: list[tuple[LoraLayer, str, bool | str]] = []
    configs = {
        name: config
        for module in model.modules()
        if isinstance(owned := getattr(module, "peft_config", None), dict)
        for name, config in owned.items()
    }
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        for adapter in _names_of_adapters(module):
            if not chosen & set(_held_by(module, adapter)):
                continue
            how = getattr(configs[adapter], "init_lora_weights", None)
            if not isinstance(module, LoraLayer) or how not in _LORA_INITIALIZERS:
                raise UnsupportedModelError(
                    "The initial values of this adapter cannot be made again.",
                    got=f"{type(module).__name__} with init_lora_weights={how!r}",
                    allowed=f"LoRA with init_lora_weights of {', '.join(map(repr, _LORA_INITIALIZERS))}",
                    fix="Choose such an adapter, or do without its initial values (forget=False, another kind).",
                )
            found.append((module, adapter, how))
    return found


def _names_of_adapters(layer: BaseTunerLayer) -> list[str]:
    return sorted({name for kind in layer.adapter_layer_names for name in getattr(layer, kind, {})})


def _held_by(layer: BaseTunerLayer, adapter: str) -> Iterator[nn.Parameter]:
    """Parameters of one adapter of a layer."""
    for kind in layer.adapter_layer_names:
        owned = getattr(layer, kind, {})
        if adapter in owned:
            part = owned[adapter]
            yield from (part.parameters() if isinstance(part, nn.Module) else [part])
