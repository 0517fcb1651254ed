r"""WiSE-FT: weights on the line between where fine-tuning began and where it ended.

Source: Wortsman, Ilharco, Kim, Li, Kornblith, Roelofs, Gontijo-Lopes, Hajishirzi, Farhadi, Namkoong, Schmidt 2022,
"Robust fine-tuning of zero-shot models" (arXiv 2109.01903). After training, and without any more of it,

.. math:: \theta_\alpha = (1 - \alpha)\, \theta_0 + \alpha\, \theta_1, \qquad \alpha \in [0, 1],

with :math:`\theta_0` the weights before fine-tuning and :math:`\theta_1` those after it. The curve over alpha, made by
`hf_early_ood.interventions.interpolation_curve`, shows what fine-tuning has gained on its own distribution and lost
elsewhere.

When it helps, and when not. For CLIP, whose head at alpha = 0 is a zero-shot classifier, the source reports 8.7 points
more than before on shifts of ImageNet, at unchanged accuracy on ImageNet itself. Two things must hold: both ends are
good models, and no barrier of the loss lies between them. A head that was drawn at random breaks the first: at
alpha < 1 the fine-tuned head is mixed with noise, and at alpha = 0 the model guesses. So the head of
:math:`\theta_0` must be a trained one, see `starting_point`. A large learning rate or long training may break the
second, which shows as a dip of the curve between its ends.

LoRA. The product of two interpolated factors is not an interpolated product, so only B is moved: it starts at zero, and
:math:`(\alpha B) A = \alpha (B A)` is every adapter scaled by alpha. The weights below it are not touched.

Cost: a copy of the weights that move while it lasts, and no training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_early_ood.checks import check_choice
from hf_early_ood.errors import ConfigurationError, UnsupportedModelError
from hf_early_ood.freezing import frozen_by
from hf_early_ood.layer_rules import HEAD
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.adapters import parts_of, plain_lora_layers
from hf_early_ood.probes.isolation import weights_kept
from hf_early_ood.sharding import holds_shards

FIRST_STAGE, FINAL = "first_stage", "final"
HEADS = (FIRST_STAGE, FINAL)

_MIXED = ("lora_B", "lora_embedding_B")
_KEPT = ("lora_A", "lora_embedding_A")


def moving_weights(model: nn.Module) -> dict[str, Tensor]:
    """What differs between the two ends, by name: the parameters that require a gradient, and the saved buffers.

    A shared parameter has one name, the first. Of LoRA the factors A are left out. The user's flags count, and not
    those of a schedule: ask before training or after it.

    Args:
        model: The model.

    Raises:
        UnsupportedModelError: The model is sharded, or has adapters that are not plain LoRA: no number of them scales
            what they add to the weights.
        ConfigurationError: Nothing requires a gradient, or a schedule has frozen layers and not released them yet.
    """
    if holds_shards(model):
        raise UnsupportedModelError(
            "The weights of a sharded model cannot be interpolated.",
            got=f"{type(model).__name__} with parameters of which this process holds a part",
            fix="Load the trained model in one process.",
        )
    if frozen_by(model) is not None:
        raise ConfigurationError(
            "Layers of the model are frozen by a schedule now: what they hold would be left out.",
            got="a training that has not ended",
            fix="Interpolate after Trainer.train().",
        )
    kept = {id(parameter) for layer in _lora_layers(model) for parameter in parts_of(layer, _KEPT)}
    moving: dict[str, Tensor] = {
        name: p.detach() for name, p in model.named_parameters() if p.requires_grad and id(p) not in kept
    }
    if not moving:
        raise ConfigurationError(
            "The model has no trainable parameter, so that nothing says what fine-tuning has moved.",
            got="requires_grad is False everywhere",
            fix="Set requires_grad=True on what was trained. With PEFT, load the adapter with is_trainable=True.",
        )
    saved = model.state_dict()
    moving |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return moving


def copied_weights(model: nn.Module) -> dict[str, Tensor]:
    r"""A copy, on the CPU, of what fine-tuning will move: :math:`\theta_0`, if asked before training.

    Example:
        >>> sorted(copied_weights(nn.Linear(2, 2)))
        ['bias', 'weight']
    """
    return {name: weight.to("cpu", copy=True) for name, weight in moving_weights(model).items()}


def starting_point(
    model: nn.Module,
    start: Mapping[str, Tensor],
    *,
    head: str = FIRST_STAGE,
    first_stage: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""The weights before fine-tuning, with a head that was trained.

    Not needed where the pretrained model brings a head for the task: then ``start`` itself is :math:`\theta_0`.

    Args:
        model: The fine-tuned model, :math:`\theta_1`.
        start: From `copied_weights`, before training.
        head: "first_stage": what has trained by the first release of gradual unfreezing or LP-FT is taken from that
            moment, so that :math:`\theta_0` is a model that was trained with all else withheld (a linear probe, if that
            was the head). "final": the head after fine-tuning, at every alpha. The features at alpha = 0 were not
            trained with it, and differ most from those it knows.
        first_stage: What `hf_early_ood.callbacks.first_stage.read_first_stage` gives; for "first_stage".

    Returns:
        :math:`\theta_0` by name.

    Raises:
        ConfigurationError: An unknown choice, or "first_stage" without those weights, or with names that training does
            not move (with LoRA, only the head can be in the first stage), or a model without a head.
    """
    check_choice("head", head, HEADS)
    moving = moving_weights(model)
    if head == FINAL:
        owned = find_layer_groups(model)[HEAD].parameters
        return {**start, **{name: moving[name].to("cpu", copy=True) for name in owned if name in moving}}
    if first_stage is None:
        raise ConfigurationError(
            "The weights at the first release are needed for head='first_stage'.",
            got="first_stage=None",
            fix="Train with FirstStageCallback() and read them with read_first_stage(output_dir), or use head='final'.",
        )
    unknown = sorted(set(first_stage) - set(moving))
    if unknown:
        raise ConfigurationError(
            "The first stage has trained what cannot be interpolated.",
            got=f"{len(unknown)} of {len(first_stage)} tensors, such as {unknown[0]}",
            fix="Use the weights of this very training. With LoRA, begin with the head alone: initial=['head'].",
        )
    return {**start, **first_stage}


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    r""":math:`(1 - \alpha)\, \theta_0 + \alpha\, \theta_1`, by name, in the precision of the weights.

    alpha = 0 and alpha = 1 give the two ends bit for bit, and so does every alpha where the ends agree. What is no real
    number (counters, masks) cannot be mixed: it is that of the start at alpha = 0, else that of the end.

    Args:
        start: :math:`\theta_0`.
        end: :math:`\theta_1`; same names, shapes and types.
        alpha: In [0, 1].

    Returns:
        New tensors, on the devices of ``end``.

    Raises:
        ConfigurationError: alpha is out of range, or the two do not belong together.

    Example:
        >>> interpolate({"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([4.0, 1.0])}, 0.25)["w"].tolist()
        [1.0, 1.0]
    """
    check_alphas([alpha])
    _check_ends(start, end)
    return {name: _mixed(start[name].to(weight.device), weight, alpha) for name, weight in end.items()}


@contextmanager
def interpolated(model: nn.Module, start: Mapping[str, Tensor], alpha: float) -> Iterator[None]:
    r"""Give a fine-tuned model the weights :math:`\theta_\alpha` inside the block, and its own back after it.

    What is saved inside the block, also as a PEFT adapter, is the interpolated model.

    Args:
        model: The fine-tuned model, which holds :math:`\theta_1`.
        start: :math:`\theta_0`: from `copied_weights` or `starting_point`.
        alpha: In [0, 1].

    Raises:
        ConfigurationError: alpha is out of range; ``start`` does not belong to the model; or, with LoRA, an adapter did
            not start at zero.
        UnsupportedModelError: See `moving_weights`.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> start = copied_weights(model)
        >>> _ = model.weight.data.add_(1)
        >>> with interpolated(model, start, 0.0):
        ...     print(torch.equal(model.weight, start["weight"]))
        True
        >>> torch.equal(model.weight, start["weight"])
        False
    """
    check_alphas([alpha])
    moving = moving_weights(model)
    _check_ends(start, moving)
    _check_adapters(model, start)
    with weights_kept(moving) as end:
        for name, weight in moving.items():
            weight.data.copy_(_mixed(start[name].to(weight.device), end[name], alpha))
        torch.clear_autocast_cache()
        yield


def _mixed(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    if alpha in (0.0, 1.0) or not end.is_floating_point():
        return (start if alpha == 0.0 else end).clone()
    wide = torch.promote_types(end.dtype, torch.float32)
    mixed = (start.to(wide) * (1 - alpha)).add_(end.to(wide), alpha=alpha).to(end.dtype)
    return torch.where(start == end, end, mixed)  # rounding would move what does not differ


def check_alphas(alphas: Sequence[float]) -> None:
    """Check that numbers are different and from 0 to 1.

    Raises:
        ConfigurationError: They are not, or there is none.

    Example:
        >>> check_alphas([0.0, 0.5, 1.0])
    """
    usable = all(isinstance(a, int | float) and not isinstance(a, bool) and 0 <= a <= 1 for a in alphas)
    if not usable or not alphas or len(set(alphas)) != len(alphas):
        raise ConfigurationError("alpha is not usable.", got=list(alphas), allowed="different numbers from 0 to 1")


def _check_ends(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(set(end) - set(start)), sorted(set(start) - set(end))
    if missing or unknown:
        raise ConfigurationError(
            "The start weights are not those of this model.",
            got=f"{len(missing)} missing{_such_as(missing)}, {len(unknown)} unknown{_such_as(unknown)}",
            allowed="a weight for everything that fine-tuning moves",
            fix="Copy them with copied_weights(model) before training, with the same layers trainable.",
        )
    for name, weight in end.items():
        if start[name].shape != weight.shape or start[name].dtype != weight.dtype:
            raise ConfigurationError(
                f"The start weight {name} does not fit the model.",
                got=f"{start[name].dtype} of shape {tuple(start[name].shape)}",
                allowed=f"{weight.dtype} of shape {tuple(weight.shape)}",
                fix="Load both models in the same precision.",
            )


def _such_as(several: Sequence[str]) -> str:
    return f" (such as {several[0]})" if several else ""


def _lora_layers(model: nn.Module) -> list[Any]:
    return plain_lora_layers(
        model,
        "What these adapters add to the weights cannot be scaled by alpha.",
        "Interpolate whole models instead: merge_and_unload() the adapters at both ends.",
    )


def _check_adapters(model: nn.Module, start: Mapping[str, Tensor]) -> None:
    owners = {id(parameter) for layer in _lora_layers(model) for parameter in parts_of(layer, _MIXED)}
    for name, parameter in model.named_parameters():
        if id(parameter) in owners and name in start and bool(start[name].any()):
            raise ConfigurationError(
                "An adapter did not start at zero: scaled by alpha, it does not lead back to where it began.",
                got=name,
                allowed="LoRA with B = 0 at the start",
                fix="Train with init_lora_weights=True, and with the head alone before the first release.",
            )
