r"""How far, and where, the weights have gone since training began: in total and by layer group.

Source: Frankle, Schwab and Morcos (2020, The Early Phase of Neural Network Training, arXiv 2002.10365), whose telemetry
this follows. The definitions are ours, written down from memory of the paper, and were not compared with its text.

Notation: n weights, w now, w_0 at the start, d = w - w_0, u the change that the last update made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from hf_early_ood.checks import check_choice
from hf_early_ood.errors import ConfigurationError, NonFiniteError, ProbeError
from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.probes.adapters import AdaptedWeight, adapted_weights
from hf_early_ood.probes.ranks import Share
from hf_early_ood.sharding import check_whole

MERGED, RAW = "merged", "raw"
ADAPTERS = (MERGED, RAW)

# Weights that are looked at together in float64: what fits into the cache of a processor, and what keeps a GPU busy.
_ON_CPU, _ELSEWHERE = 2**15, 2**22
# Rows of a table of them; two are for signs.
_W, _W0, _D, _U = 0, 1, 2, 5
# Sums over weights: their number, |w|, changed signs, w w, w_0 w_0, w w_0, d d, u u, u d.
_COUNT, _MAGNITUDE, _FLIPS, _NOW, _START, _BOTH, _MOVED, _UPDATE, _ALONG = range(9)


@dataclass(frozen=True)
class Movement:
    """Where some weights are, as seen from the start. None where there is nothing to divide by.

    Attributes:
        num_parameters: n.
        distance: ||d||, L2.
        mean_magnitude: mean |w|.
        sign_changes: Share of the weights with sign(w) != sign(w_0), where the sign of zero is 0: a weight that leaves
            zero, or comes to it, counts.
        relative_distance: ||d|| / ||w_0||; None where all weights began at zero.
        cosine: <w, w_0> / (||w|| ||w_0||); None where one of the two is all zero.
        share_of_movement: ||d||^2 of these weights as a share of that of all; None where nothing has moved.
        update_length: ||u||; None where the weights before the update were not kept.
        update_cosine: <u, d> / (||u|| ||d||), 1 in the first update; None as above, and where one of the two is zero.
    """

    num_parameters: int
    distance: float
    mean_magnitude: float
    sign_changes: float
    relative_distance: float | None
    cosine: float | None
    share_of_movement: float | None
    update_length: float | None = None
    update_cosine: float | None = None


QUANTITIES = tuple(item.name for item in fields(Movement) if item.name not in ("num_parameters", "distance"))


@dataclass(frozen=True)
class Trajectory:
    """Movement of a model since the start of training.

    Attributes:
        total: Of all counted weights.
        groups: Layer group to its movement, bottom first.
        num_merged: Weights with adapters, which are counted as what the layer computes with.
    """

    total: Movement
    groups: dict[str, Movement]
    num_merged: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types: the distance as ``value``, what else there is under ``quantities``."""
        quantities = {}
        for name in QUANTITIES:
            per_group = {group: getattr(movement, name) for group, movement in self.groups.items()}
            if any(value is not None for value in (getattr(self.total, name), *per_group.values())):
                quantities[name] = {"value": getattr(self.total, name), "per_group": per_group}
        return {
            "value": self.total.distance,
            "per_group": {group: movement.distance for group, movement in self.groups.items()},
            "num_examples": None,
            "num_parameters": self.total.num_parameters,
            "num_merged": self.num_merged,
            "quantities": quantities,
        }


def trajectory(
    model: nn.Module,
    *,
    start: Mapping[str, Tensor] | None,
    before: Mapping[str, Tensor] | None = None,
    groups: LayerGroups | None = None,
    adapters: str = MERGED,
    share: Share | None = None,
) -> Trajectory:
    r"""Movement of the weights since the start, and in the last update.

    Source: after Frankle, Schwab and Morcos (2020, arXiv 2002.10365); see the head of this file. For each layer group,
    and for all weights together:

        mean |w|,   share of sign(w) != sign(w_0),   ||d||,   ||d|| / ||w_0||,   <w, w_0> / (||w|| ||w_0||),
        ||d_group||^2 / ||d||^2,   ||u||,   <u, d> / (||u|| ||d||)

    What is counted: every parameter in ``groups``, whether it is frozen now or not, a shared one once. What trains at
    some time is in the groups of `EarlyDynamicsCallback`, so that a total is of the same weights at every update.

    LoRA: counted is W + s B A, what an adapted layer computes with, in the group of its adapter, and not W, B and A.
    The movement s (B A - B_0 A_0) is computed from the factors, so that W is read but not copied. A total thus has as
    many weights as the adapted layers have, plus what trains beside them.

    Everything is accumulated in float64, a piece of a tensor after the other, whatever the weights are in. It costs
    about one reading of w and of w_0, and makes no copy of either.

    Args:
        model: The model, whole (under FSDP2 inside `hf_early_ood.sharding.gathered`).
        start: w_0 by parameter name, from `copied`; may be memory-mapped. Of several processes all but one give None.
        before: The weights just before the last update, from `copied`; without them nothing is said about it.
        groups: Layer groups; by default those of `find_layer_groups`, of what requires a gradient now.
        adapters: ``"merged"``: as above. ``"raw"``: the parameters of adapters as they are; for adapters other than
            plain LoRA.
        share: What makes the result of one process that of all.

    Returns:
        The movement, in total and per group.

    Raises:
        ConfigurationError: An unknown choice, or start weights of another model.
        ProbeError: There are no start weights on any process.
        NonFiniteError: A weight is NaN or infinite.
        UnsupportedModelError: A sharded model, or ``"merged"`` with adapters that cannot be merged exactly; see
            `adapted_weights`.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> model = BertForSequenceClassification(config)
        >>> start = copied(model, find_layer_groups(model))
        >>> _ = model.classifier.weight.data.mul_(-1)
        >>> moved = trajectory(model, start=start)
        >>> moved.groups["head"].share_of_movement, moved.groups["embeddings"].distance
        (1.0, 0.0)
        >>> abs(moved.total.distance - 2 * model.classifier.weight.norm().item()) < 1e-6
        True
    """
    check_choice("adapters", adapters, ADAPTERS)
    groups = find_layer_groups(model).trainable() if groups is None else groups
    own = {} if start is None else {0: _measured(model, start, before, groups, adapters)}
    found = (share or Share()).gathered(own)
    if not found:
        raise ProbeError(
            "There are no start weights to measure a movement from.",
            got="start=None",
            fix="Keep them with start=copied(model, groups) before training, or use EarlyDynamicsCallback.",
        )
    return found[0]


def check_trajectory(*, adapters: str) -> None:
    """Refuse settings of `trajectory` that no model could be measured with.

    Raises:
        ConfigurationError: An unknown choice.
    """
    check_choice("adapters", adapters, ADAPTERS)


def copied(model: nn.Module, groups: LayerGroups) -> dict[str, Tensor]:
    """A copy, on the CPU and in their own precision, of the parameters in layer groups, by name.

    Args:
        model: The model, whole.
        groups: Its layer groups; they say which parameters.

    Example:
        >>> from hf_early_ood.layers import LayerGroup
        >>> layer = nn.Linear(2, 2)
        >>> sorted(copied(layer, LayerGroups([LayerGroup("all", dict(layer.named_parameters()))])))
        ['bias', 'weight']
    """
    return {name: weight.to("cpu", copy=True).contiguous() for name, weight in _grouped(model, groups).items()}


def _grouped(model: nn.Module, groups: LayerGroups) -> dict[str, Tensor]:
    """The values of the parameters in groups. The groups may hold shards of what the model holds whole now."""
    values = dict(model.named_parameters())
    return {name: values[name].detach() for group in groups for name in group.parameters}


def _measured(
    model: nn.Module,
    start: Mapping[str, Tensor],
    before: Mapping[str, Tensor] | None,
    groups: LayerGroups,
    adapters: str,
) -> Trajectory:
    check_whole(model)
    now = _grouped(model, groups)
    _check_fits(now, start)
    if before is not None:
        _check_fits(now, before)
    adapted = adapted_weights(model) if adapters == MERGED else []
    adapted = [weight for weight in adapted if any(name in now for name in (weight.base, *weight.names))]
    in_adapters = {name for weight in adapted for name in (weight.base, *weight.names)}
    group_names = [group.name for group in groups]
    sums = torch.zeros(len(group_names), 9, dtype=torch.float64)
    with torch.no_grad():
        for group in groups:
            for name in group.parameters:
                if name not in in_adapters:
                    blocks = _plain(now[name], start[name], None if before is None else before[name])
                    sums[group_names.index(group.name)] += _summed(blocks)
        everything = {name: parameter.detach() for name, parameter in model.named_parameters()}
        for weight in adapted:
            owner = next(groups.group_of(name) for name in (*weight.names, weight.base) if name in now)
            sums[group_names.index(owner)] += _summed(_merged(weight, everything, start, before))
    _check_finite(sums, group_names)
    square = float(sums[:, _MOVED].sum())
    per_group = {
        name: _movement(row, square, before is not None)
        for name, row in zip(group_names, sums, strict=True)
        if row[_COUNT] > 0
    }
    return Trajectory(_movement(sums.sum(0), square, before is not None), per_group, len(adapted))


def _plain(now: Tensor, start: Tensor, before: Tensor | None) -> Iterator[Tensor]:
    """Pieces of a tensor as columns of a table, in float64: w, w_0, d, two rows to compute with, and u if it is known.

    The table is the same for all pieces, which is faster than new memory for each.
    """
    flat = [tensor.reshape(-1) for tensor in (now, start, *(() if before is None else (before,)))]
    table = _table(now, len(flat[0]), before is not None)
    for begin in range(0, len(flat[0]), table.shape[1]):
        here, *others = [tensor[begin : begin + table.shape[1]] for tensor in flat]
        rows = table[:, : len(here)]
        for row, values in zip((rows[_W], rows[_W0]), (here, others[0]), strict=True):
            row.copy_(values)
        torch.sub(rows[_W], rows[_W0], out=rows[_D])
        if len(others) > 1:
            torch.sub(rows[_W], others[1].to(rows), out=rows[_U])
        yield rows


def _merged(
    weight: AdaptedWeight,
    now: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    before: Mapping[str, Tensor] | None,
) -> Iterator[Tensor]:
    """The same of a weight and its adapters together. What never trains is not in ``start``: it is what it is now."""
    names = (weight.base, *weight.names)
    then = {name: start.get(name, now[name]) for name in names}
    previous = None if before is None else {name: before.get(name, now[name]) for name in names}
    base = now[weight.base]
    width = base[0].numel()
    table = _table(base, base.numel(), before is not None, width)
    count = table.shape[1] // width
    for begin in range(0, len(base), count):
        place = slice(begin, begin + count)
        under = base[place].to(table)

        def difference(values: Mapping[str, Tensor], place: slice = place, under: Tensor = under) -> Tensor:
            """What was added then, and how the weight below differed from now: usually not at all."""
            added = weight.added(values, place, under)
            same = values[weight.base] is base
            return (added if same else added + (values[weight.base][place].to(under) - under)).reshape(-1)

        added, added_then = difference(now), difference(then)
        rows, under = table[:, : under.numel()], under.reshape(-1)
        torch.add(under, added, out=rows[_W])
        torch.add(under, added_then, out=rows[_W0])
        torch.sub(added, added_then, out=rows[_D])
        if previous is not None:
            torch.sub(added, difference(previous), out=rows[_U])
        yield rows


def _table(weight: Tensor, size: int, has_update: bool, width: int = 1) -> Tensor:
    """Room for a piece, in float64, where that can be computed with: on the device of a weight, or else on the CPU."""
    device = torch.device("cpu") if weight.device.type == "mps" else weight.device
    most = max(width, (_ON_CPU if device.type == "cpu" else _ELSEWHERE) // width * width)
    return torch.empty(6 if has_update else 5, max(1, min(most, size)), dtype=torch.float64, device=device)


def _summed(pieces: Iterator[Tensor]) -> Tensor:
    """Sums (9,) over pieces, on the CPU."""
    total = torch.zeros(9, dtype=torch.float64)
    for rows in pieces:
        now, start, moved, sign, sign_then, *update = rows
        torch.sign(now, out=sign)
        torch.sign(start, out=sign_then)
        pairs = [(sign, sign), (sign_then, sign_then), (sign, sign_then), (now, sign)]
        pairs += [(now, now), (start, start), (now, start), (moved, moved)]
        pairs += [pair for u in update for pair in ((u, u), (u, moved))]
        same, same_then, both, magnitude, *others = torch.stack([torch.dot(*pair) for pair in pairs]).tolist()
        count = rows.shape[1]
        # Without a zero on either side, a product of signs is 1 or -1.
        exact = same == same_then == count
        changes = (count - both) / 2 if exact else int((sign != sign_then).sum())
        total[: 3 + len(others)] += torch.tensor([count, magnitude, changes, *others], dtype=torch.float64)
    return total


def _movement(sums: Tensor, square: float, has_update: bool) -> Movement:
    """The quantities from sums (9,); ``square`` is ||d||^2 of all weights."""
    values = sums.tolist()
    count, distance = values[_COUNT], math.sqrt(values[_MOVED])
    return Movement(
        num_parameters=int(count),
        distance=distance,
        mean_magnitude=values[_MAGNITUDE] / count,
        sign_changes=values[_FLIPS] / count,
        relative_distance=_ratio(distance, math.sqrt(values[_START])),
        cosine=_cosine(values[_BOTH], values[_NOW], values[_START]),
        share_of_movement=_ratio(values[_MOVED], square),
        update_length=math.sqrt(values[_UPDATE]) if has_update else None,
        update_cosine=_cosine(values[_ALONG], values[_UPDATE], values[_MOVED]) if has_update else None,
    )


def _ratio(value: float, of: float) -> float | None:
    return value / of if of > 0 else None


def _cosine(product: float, first: float, second: float) -> float | None:
    """From an inner product and two squared norms."""
    ratio = _ratio(product, math.sqrt(first) * math.sqrt(second))
    return None if ratio is None else max(-1.0, min(1.0, ratio))


def _check_fits(now: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> None:
    for name, weight in now.items():
        if name not in then or then[name].shape != weight.shape:
            raise ConfigurationError(
                "The weights to compare with are not those of this model.",
                got=f"{name} of shape {tuple(then[name].shape)}" if name in then else f"none for {name}",
                allowed=f"shape {tuple(weight.shape)}",
                fix="Take them with copied(model, groups), of the same layer groups.",
            )


def _check_finite(sums: Tensor, group_names: list[str]) -> None:
    finite = torch.isfinite(sums).all(1).tolist()
    broken = [name for name, whole in zip(group_names, finite, strict=True) if not whole]
    if broken:
        raise NonFiniteError(
            "A weight is not finite, or too large to be squared.",
            got=f"groups {', '.join(broken)}",
            fix="The model has diverged: look at the loss and the learning rate.",
        )
