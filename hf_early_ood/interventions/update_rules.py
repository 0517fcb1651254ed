"""How the update of a layer group differs from the optimizer's own, and optimizers that can tell groups apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.layers import LayerGroups

LAYER_GROUP = "layer_group"
"""Key of an optimizer's parameter group with the name of the layer group that it belongs to."""


@dataclass(frozen=True)
class UpdateRule:
    """How one layer group is updated, compared with what the optimizer would do."""

    learning_rate: float = 1.0
    """Factor on the scheduled learning rate."""
    ascends: bool = False
    """Whether the group goes up the gradient; then without weight decay, which would push the other way."""

    def __and__(self, other: UpdateRule) -> UpdateRule:
        """Both rules at once: factors multiply, and two ascents are a mistake of the user that is refused elsewhere."""
        return UpdateRule(self.learning_rate * other.learning_rate, self.ascends or other.ascends)


def split_by_layer_group(optimizer: torch.optim.Optimizer, groups: LayerGroups) -> None:
    """Cut the optimizer's parameter groups so that each holds parameters of one layer group only.

    All settings of a parameter group (learning rate, weight decay) are kept by its parts, which follow one another from
    bottom to top and carry the name of their layer group under "layer_group". Splitting twice changes nothing.

    Args:
        optimizer: Any torch optimizer, before its state or a scheduler exists.
        groups: The layer groups; every parameter of the optimizer must be in one.

    Raises:
        ConfigurationError: The optimizer holds a parameter that is in no layer group.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_early_ood import find_layer_groups
        >>> config = BertConfig(
        ...     hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
        >>> model = BertForSequenceClassification(config)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> split_by_layer_group(optimizer, find_layer_groups(model))
        >>> [group["layer_group"] for group in optimizer.param_groups]
        ['embeddings', 'block.0', 'head']
    """
    owner = {id(parameter): group.name for group in groups for parameter in group.parameters.values()}
    parts: list[dict[str, Any]] = []
    for whole in optimizer.param_groups:
        settings = {key: value for key, value in whole.items() if key != "params"}
        of: dict[str, list[torch.Tensor]] = {group.name: [] for group in groups}
        for parameter in whole["params"]:
            if id(parameter) not in owner:
                raise ConfigurationError(
                    "The optimizer holds a parameter that is in no layer group of the model.",
                    got=f"a tensor of shape {tuple(parameter.shape)}",
                    fix="Let the Trainer build the optimizer, or build it from this model's parameters only.",
                )
            of[owner[id(parameter)]].append(parameter)
        parts += [{"params": held, **settings, LAYER_GROUP: name} for name, held in of.items() if held]
    optimizer.param_groups[:] = parts


@contextmanager
def in_force(optimizer: torch.optim.Optimizer, rules: Mapping[str, UpdateRule]) -> Iterator[None]:
    r"""Let ``optimizer.step()`` inside the block follow ``rules``; everything but the weights is put back after it.

    For a layer group with factor f the step is made with learning rate f times the scheduled one; one that ascends is
    stepped with the gradient's sign turned and without weight decay. For SGD that is
    :math:`w \leftarrow w + f \eta g`; for Adam the turned gradient also enters the moments.

    Args:
        optimizer: Split by :func:`split_by_layer_group`.
        rules: By layer group; groups without a rule are updated as ever.
    """
    # Not every optimizer has a weight decay.
    keys = ("lr", "weight_decay")
    before: list[dict[str, Any]] = [{key: g[key] for key in keys if key in g} for g in optimizer.param_groups]
    turned = []
    for group in optimizer.param_groups:
        rule = rules.get(group.get(LAYER_GROUP, ""), UpdateRule())
        group["lr"] = group["lr"] * rule.learning_rate
        if rule.ascends:
            if "weight_decay" in group:
                group["weight_decay"] = 0.0
            turned += [parameter for parameter in group["params"] if parameter.grad is not None]
    _turn(turned)
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.update(values)
        _turn(turned)


def _turn(parameters: list[torch.Tensor]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:  # an optimizer may have dropped it
            parameter.grad.neg_()
