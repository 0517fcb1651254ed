"""Where parameters enter a computation, and what each such use adds to the gradient of one example.

Uses are found where the computation happens, in calls like ``F.linear(x, weight, bias)`` with ``weight`` a
measured parameter, and not by the class of a module: so subclasses with their own ``forward``, adapters, tied
weights and layers that bypass ``__call__`` are all seen. The one exception is a normalization that is written
out in Python (RMSNorm and its relatives), which is recognized, and checked numerically, as a module.

Notation: B examples, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hf_early_ood.probes.per_example import Factor, Outer, Rows, Vector

# Takes a tensor whose leading dimensions are those of the layer's output and gives it the shape (B, T, ...).
Split = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Use:
    """One use of one parameter.

    Attributes:
        parameter: The parameter.
        kind: What the gradient is made of; see `can_be_joined`.
        factor: Makes the factor from the split and the output gradient (B, T, D), in float32 or float64.
    """

    parameter: Tensor
    kind: str
    factor: Callable[[Split, Tensor], Factor]


def can_be_joined(kinds: Collection[str]) -> bool:
    """Whether the uses of one parameter add up to a gradient whose norm is known: one kind, or a tied table.

    Example:
        >>> can_be_joined({"rows", "linear"}), can_be_joined({"rows", "addmm"})
        (True, False)
    """
    return len(set(kinds)) == 1 or set(kinds) == {"linear", "rows"}


def _summed(parameter: Tensor) -> Use:
    return Use(parameter, "vector", lambda split, g: Vector(g.sum(1)))


def _scaled(parameter: Tensor, unscaled: Callable[[], Tensor]) -> Use:
    def factor(split: Split, g: Tensor) -> Factor:
        return Vector((split(unscaled()).to(g.dtype) * g).sum(1))

    return Use(parameter, "vector", factor)


def _multiplied(kind: str, parameter: Tensor, x: Tensor) -> Use:
    return Use(parameter, kind, lambda split, g: Outer(split(x).to(g.dtype), g, x))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Use]:
    uses = [_multiplied("linear", weight, input)]
    return uses if bias is None else [*uses, _summed(bias)]


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> list[Use]:
    # GPT-2's Conv1D: bias + x W.
    if beta != 1 or alpha != 1 or input.dim() != 1:
        return []
    return [_multiplied("addmm", mat2, mat1), _summed(input)]


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> list[Use]:
    if max_norm is not None or scale_grad_by_freq:
        return []  # the weights change in forward, or autograd's gradient is not the gradient of the loss
    skipped = None if padding_idx is None else padding_idx % len(weight)

    def factor(split: Split, g: Tensor) -> Factor:
        ids = split(input[..., None])[..., 0]
        return Rows(ids, g if skipped is None else g.masked_fill((ids == skipped)[..., None], 0.0))

    return [Use(weight, "rows", factor)]


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> list[Use]:
    if len(normalized_shape) != 1:
        return []
    uses = [] if bias is None else [_summed(bias)]
    if weight is not None:
        uses.append(_scaled(weight, lambda: F.layer_norm(input, normalized_shape, eps=eps)))
    return uses


def _rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> list[Use]:
    if len(normalized_shape) != 1 or weight is None:
        return []
    return [_scaled(weight, lambda: F.rms_norm(input, normalized_shape, eps=eps))]


def _conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> list[Use]:
    # A linear layer on windows of K positions. With groups it is small enough to write the gradient out.
    if input.dim() != 3 or isinstance(padding, str):
        return []
    step, border, gap = (v[0] if isinstance(v, tuple) else v for v in (stride, padding, dilation))
    outputs, _, kernel = weight.shape

    def windows(split: Split, g: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, S, Cin, T, K) and output gradients (B, S, Cout, T), of S sequences per example."""
        x = F.pad(split(input).unflatten(1, (-1, input.shape[1])).to(g.dtype), (border, border))
        return x.unfold(-1, gap * (kernel - 1) + 1, step)[..., ::gap], g.unflatten(1, (-1, outputs))

    def dense(split: Split, g: Tensor) -> Factor:
        x, g = windows(split, g)
        x = x.movedim(3, 2).flatten(3).flatten(1, 2)
        return Outer(x, g.mT.flatten(1, 2), x)

    def grouped(split: Split, g: Tensor) -> Factor:
        x, g = windows(split, g)
        x, g = x.unflatten(2, (groups, -1)), g.unflatten(2, (groups, -1))
        return Vector(torch.einsum("bsgctk,bsgot->bgock", x, g).flatten(1))

    uses = [Use(weight, "conv1d", dense) if groups == 1 else Use(weight, "vector", grouped)]
    if bias is not None:
        uses.append(Use(bias, "vector", lambda split, g: Vector(g.unflatten(1, (-1, outputs)).sum((1, 3)))))
    return uses


RULES: dict[Any, Callable[..., list[Use]]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.conv1d: _conv1d,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
}


def may_be_elementwise(module: nn.Module) -> bool:
    """Whether a module could be a normalization written out in Python: a leaf with vectors only."""
    if type(module).__module__.startswith("torch.nn") or any(True for _ in module.children()):
        return False  # said first: it is asked of every module, and parameters() goes through all below
    owned = list(module.parameters())
    return bool(owned) and all(parameter.dim() == 1 for parameter in owned)


def elementwise_uses(module: nn.Module, x: Tensor) -> list[Use]:
    """Uses of the vectors of a module that passes `is_elementwise`.

    Each position gets its own copy of the vectors; the derivative of the output by its copy is then all there is
    to know, also where the weight enters as 1 + w or is zero.
    """
    with torch.enable_grad():
        copies = _copies(module, x)
        output = functional_call(module, copies, (x.detach(),))
        slopes = torch.autograd.grad(output.sum(), list(copies.values()))
    pairs = zip(module.parameters(), slopes, strict=True)
    return [_scaled(parameter, lambda slope=slope: slope) for parameter, slope in pairs]  # type: ignore[misc]


def is_elementwise(module: nn.Module, x: Tensor, output: Tensor) -> bool:
    """Check numerically that every output entry is affine in the parameter entries of its own last-dim index.

    With a copy w + d of the vectors at each position, d random and different everywhere, the output must be
    f(w) + f'(w) d, entry by entry. Whatever mixes positions or is curved in w fails. Done in float32 at least: in
    bfloat16 no such equation would hold.
    """
    close = 0.05 if output.dtype in (torch.bfloat16, torch.float16) else 1e-3
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    if output.shape != x.shape or any(len(p) != x.shape[-1] for p in module.parameters()):
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.enable_grad():
        copies = _copies(module, x)
        try:
            same = functional_call(module, copies, (x,))
        except RuntimeError:  # the vectors are used in a way that one copy per position does not allow
            return False
        if same.shape != output.shape or not torch.allclose(same, output.to(same), rtol=close, atol=close):
            return False
        if not same.requires_grad:
            return False  # none of the vectors is used
        slopes = torch.autograd.grad(same.sum(), list(copies.values()), allow_unused=True)
    if any(slope is None for slope in slopes):
        return False
    steps = [torch.rand(x.shape, generator=generator, device="cpu").to(x) for _ in copies]
    with torch.no_grad():
        moved = functional_call(module, {n: w + d for (n, w), d in zip(copies.items(), steps, strict=True)}, (x,))
        predicted = same + sum(slope * step for slope, step in zip(slopes, steps, strict=True))
    return torch.allclose(moved, predicted, rtol=1e-3, atol=1e-3)


def _copies(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    owned = module.named_parameters()
    return {name: parameter.detach().to(x.dtype).expand(x.shape).clone().requires_grad_() for name, parameter in owned}
