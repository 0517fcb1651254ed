"""What it takes to differentiate a model twice: attention without fused kernels, and errors that say what failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from hf_early_ood.errors import UnsupportedModelError

# Attention that can be differentiated twice, given the right kernel; None is that of models without a choice.
_POSSIBLE = (None, "eager", "sdpa")
# What torch says when a backward pass cannot be differentiated itself.
_NOT_TWICE = ("derivative for", "differentiate twice", "double backward")
# The code that the decorator wraps around a backward function: it tells whether one is decorated.
_ONCE = once_differentiable(lambda ctx: None).__code__
_FIX = "Measure the Fisher trace, which needs first derivatives only."


@contextmanager
def twice_differentiable_attention(model: nn.Module) -> Iterator[None]:
    """Compute attention inside the block with operations that can be differentiated twice, and go back after it.

    The fused kernels of ``scaled_dot_product_attention`` cannot: inside the block it uses plain operations. Other
    implementations than "sdpa" and "eager" are replaced by "eager".

    Raises:
        UnsupportedModelError: The implementation is another one and cannot be replaced.

    Example:
        >>> import torch
        >>> from torch.nn.functional import scaled_dot_product_attention as attention
        >>> x = torch.ones(1, 1, 2, 3, requires_grad=True)
        >>> with twice_differentiable_attention(nn.Identity()):
        ...     (slope,) = torch.autograd.grad(attention(x, x, x).square().sum(), x, create_graph=True)
        ...     (curvature,) = torch.autograd.grad(slope.sum(), x)
        >>> curvature.shape
        torch.Size([1, 1, 2, 3])
    """
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        if any(name not in _POSSIBLE for _, name in before):
            base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
            base.set_attn_implementation("eager")
        left = [config for config, _ in before if config._attn_implementation not in _POSSIBLE]
        if left:
            raise UnsupportedModelError(
                "The attention of this model cannot be differentiated twice.",
                got=f"{type(left[0]).__name__} with attn_implementation={left[0]._attn_implementation!r}",
                allowed="'sdpa' or 'eager'",
                fix="Load the model with attn_implementation='eager'.",
            )
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for config, name in before:
            if config._attn_implementation != name:
                config._attn_implementation = name


def _configs(model: nn.Module) -> list[Any]:
    """All configs in use, each once, those of a whole before those of its parts."""
    todo = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    found: list[Any] = []
    while todo:
        config = todo.pop(0)
        if not any(config is other for other in found):
            found.append(config)
            todo += [part for key in config.sub_configs if (part := getattr(config, key, None)) is not None]
    return found


@contextmanager
def double_backward_explained(model: nn.Module, fix: str = _FIX) -> Iterator[None]:
    """Turn torch's message about a missing second derivative into one that names the model.

    Args:
        model: What is differentiated.
        fix: What the user can do about it.

    Raises:
        UnsupportedModelError: Instead of torch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _NOT_TWICE):
            raise
        raise UnsupportedModelError(
            "An operation of this model cannot be differentiated twice.",
            got=f"{type(model).__name__}: {str(error).splitlines()[0]}",
            fix=fix,
        ) from error


def refuse_once_differentiable(outcome: Tensor, model: nn.Module, fix: str = _FIX) -> None:
    """Refuse functions in the graph of ``outcome`` that are marked as differentiable once only.

    Where such a function does not lie on a path that needs its second derivative, torch does not complain but
    leaves out that part of the product.

    Args:
        outcome: What is differentiated.
        model: What it is an outcome of, for the message.
        fix: What the user can do about it.

    Raises:
        UnsupportedModelError: There is one.
    """
    todo = [outcome.grad_fn]
    done = set(todo)
    while todo:
        node: Any = todo.pop()
        if isinstance(node, BackwardCFunction) and node._forward_cls.backward.__code__ is _ONCE:  # type: ignore[attr-defined]
            raise UnsupportedModelError(
                "A function of this model is marked as differentiable once only.",
                got=f"{node._forward_cls.__name__} in {type(model).__name__}",  # type: ignore[attr-defined]
                fix=fix,
            )
        new = {following for following, _ in getattr(node, "next_functions", ()) if following is not None} - done
        done |= new
        todo += list(new)
