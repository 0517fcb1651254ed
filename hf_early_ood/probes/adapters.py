"""Layers with LoRA adapters: what they add to the weights below them, without a copy of these.

Notation: W a weight as its layer holds it, r the rank, s the scale of an adapter; rows of W are what is taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from hf_early_ood.errors import UnsupportedModelError

FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


def plain_lora_layers(model: nn.Module, what: str, fix: str) -> list[Any]:
    """The layers with LoRA adapters.

    Args:
        model: The model.
        what: What is wrong with other adapters, for the message.
        fix: What to do about them.

    Raises:
        UnsupportedModelError: There are adapters of another kind, or merged ones.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        kind = f"{type(layer).__module__}.{type(layer).__name__}"
        known = FACTORS if isinstance(layer, LoraLayer) else ()
        # Magnitudes of DoRA, singular values of AdaLoRA, or another method altogether.
        further = [name for name in layer.adapter_layer_names if name not in known and list(parts_of(layer, [name]))]
        if not known or further or layer.merged:
            raise UnsupportedModelError(
                what,
                got=f"{kind}, merged" if layer.merged else " with ".join([kind, *further[:1]]),
                allowed="plain LoRA, not merged",
                fix=fix,
            )
    return layers


def parts_of(layer: nn.Module, attributes: Sequence[str]) -> Iterator[nn.Parameter]:
    """The parameters that a layer holds under some of its attributes."""
    for attribute in attributes:
        yield from getattr(layer, attribute).parameters()


@dataclass(frozen=True)
class Factors:
    """One adapter of one layer: it adds ``scale * left @ right`` to the weight.

    Attributes:
        left: Name of the parameter whose rows go with those of the weight.
        right: Name of the other one.
        scale: s.
        transposed: The parameters hold the transposes of the two factors.
    """

    left: str
    right: str
    scale: float
    transposed: bool

    def rows(self, values: Mapping[str, Tensor], place: slice, like: Tensor) -> Tensor:
        """Rows of what the adapter adds, in the type and on the device of ``like``.

        Args:
            values: Parameter name to value.
            place: Which rows.
            like: Of the precision in which it is computed.
        """
        left, right = values[self.left], values[self.right]
        left = left[:, place].T if self.transposed else left[place]
        right = right.T if self.transposed else right
        return (left.to(like) @ right.to(like)).mul_(self.scale)


@dataclass(frozen=True)
class AdaptedWeight:
    """A weight and the active adapters on it. The layer computes with the weight plus what all of them add.

    Attributes:
        base: Name of the weight.
        factors: The adapters.
    """

    base: str
    factors: tuple[Factors, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters of the adapters."""
        return tuple(name for factors in self.factors for name in (factors.left, factors.right))

    def added(self, values: Mapping[str, Tensor], place: slice, like: Tensor) -> Tensor:
        """Rows of what all adapters add together; see `Factors.rows`."""
        total = torch.zeros_like(like)
        for factors in self.factors:
            total += factors.rows(values, place, like)
        return total


def adapted_weights(model: nn.Module) -> list[AdaptedWeight]:
    """The weights that plain LoRA changes, each with its active adapters.

    Args:
        model: With or without adapters.

    Raises:
        UnsupportedModelError: There are adapters whose sum with the weight is not W + s B A: other methods, DoRA and
            the like, LoRA with biases, on convolutions, or on weights that are quantized.

    Example:
        >>> adapted_weights(nn.Linear(2, 2))
        []
    """
    what = "The weights of these adapters cannot be merged without changing the model."
    fix = "Measure the parameters as they are: adapters='raw'."
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for layer in plain_lora_layers(model, what, fix):
        weight = getattr(layer.get_base_layer(), "weight", None)  # attention and experts have none of that name
        biased = any(getattr(layer.lora_B[name], "bias", None) is not None for name in layer.lora_B)
        kind = next((kind for kind in (lora.Linear, lora.Embedding) if isinstance(layer, kind)), None)
        if kind is None or weight is None or biased or layer.lora_variant or not weight.is_floating_point():
            variants = ", ".join(sorted({type(variant).__name__ for variant in layer.lora_variant.values()}))
            raise UnsupportedModelError(
                what,
                got=f"{type(layer).__name__} on {type(layer.get_base_layer()).__name__}"
                + ("" if weight is None else f" in {weight.dtype}")
                + (f" with {variants}" if variants else "") + (" with lora_bias" if biased else ""),
                allowed="LoRA on linear layers and embeddings with floating-point weights",
                fix=fix,
            )  # fmt: skip
        factors = []
        for adapter in [] if layer.disable_adapters else layer.active_adapters:
            if adapter not in layer.scaling:
                continue
            if kind is lora.Embedding:
                first, second, transposed = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter], True
            else:
                first, second = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                transposed = bool(layer.fan_in_fan_out)
            left, right = (first, second) if transposed else (second, first)
            factors.append(Factors(names[id(left)], names[id(right)], float(layer.scaling[adapter]), transposed))
        found.append(AdaptedWeight(names[id(weight)], tuple(factors)))
    return found
