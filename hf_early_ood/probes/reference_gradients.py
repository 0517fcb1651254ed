"""The slow twins of the norms of mean gradients: one example at a time, in float64. B examples in a batch, N in all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.probes.batches import num_rows
from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import Scorer, likelihood_for

Values = tuple[float, dict[str, float]]
"""In total, and by layer group."""


def summed_gradients(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    labels: str = "empirical",
    parameters: str = "trainable",
    seed: int = 0,
) -> list[tuple[int, dict[str, Tensor]]]:
    """B of every batch, and sum_i grad log p(y_i|x_i) by parameter name in float64, from batches of one.

    The arguments are those of `fisher_trace`.
    """
    scorer = Scorer(model, likelihood_for(model), labels)
    every = dict(model.named_parameters())
    chosen = {name: p for name, p in every.items() if parameters == "all" or p.requires_grad}
    generator = torch.Generator("cpu").manual_seed(seed)
    found = []
    with isolated(model), torch.enable_grad(), requires_grad_set(every, chosen):
        for index, batch in enumerate(batches):
            rows = num_rows(batch, index)
            uniforms = torch.rand(rows, generator=generator, dtype=torch.float64, device="cpu")
            sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in chosen.items()}
            for i in range(rows):
                one = {key: value[i : i + 1] for key, value in batch.items()}
                (score,) = scorer.scores(scorer.predictions(one), one, uniforms[i : i + 1], index)
                if not score.requires_grad:
                    continue  # the outcome depends on none of the parameters
                gradients = torch.autograd.grad(score.sum(), list(chosen.values()), allow_unused=True)
                for name, gradient in zip(chosen, gradients, strict=True):
                    sums[name] += 0.0 if gradient is None else gradient
            found.append((rows, sums))
    return found


def gradient_norm_loop(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    parameters: str = "trainable",
    groups: LayerGroups | None = None,
) -> Values:
    """The norm of the mean over all examples; the arguments are those of `gradient_norm`."""
    of_batches = summed_gradients(model, batches, parameters=parameters)
    count = sum(rows for rows, _ in of_batches)
    mean = {name: torch.stack([sums[name] for _, sums in of_batches]).sum(0) / count for name in of_batches[0][1]}
    return _norm(mean), {group: _norm(part) for group, part in _split(model, mean, groups).items()}


def relative_gradient_norm_loop(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    parameters: str = "trainable",
    groups: LayerGroups | None = None,
) -> Values:
    """Mean over batches of ||g|| / ||w||; the arguments are those of `relative_gradient_norm`.

    Groups whose weights are all zero are left out.
    """
    of_batches = summed_gradients(model, batches, parameters=parameters)
    weights = {name: model.get_parameter(name).detach() for name in of_batches[0][1]}
    of_groups = {name: _norm(part) for name, part in _split(model, weights, groups).items()}
    total, per_group = 0.0, {name: 0.0 for name, norm in of_groups.items() if norm}
    for rows, sums in of_batches:
        mean = {name: value / rows for name, value in sums.items()}
        total += _norm(mean) / _norm(weights) / len(of_batches)
        for group, part in _split(model, mean, groups).items():
            if group in per_group:
                per_group[group] += _norm(part) / of_groups[group] / len(of_batches)
    return total, per_group


def fisher_trace_batch_mean_loop(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    labels: str = "argmax",
    parameters: str = "trainable",
    seed: int = 0,
    groups: LayerGroups | None = None,
) -> Values:
    """Mean over batches of ||mean gradient||^2 / B; the arguments are those of `fisher_trace_batch_mean`."""
    of_batches = summed_gradients(model, batches, labels=labels, parameters=parameters, seed=seed)
    per_group: dict[str, float] = {}
    for rows, sums in of_batches:
        mean = {name: value / rows for name, value in sums.items()}
        for group, part in _split(model, mean, groups).items():
            per_group[group] = per_group.get(group, 0.0) + _norm(part) ** 2 / rows / len(of_batches)
    return math.fsum(per_group.values()), per_group


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def _split(model: nn.Module, tensors: Mapping[str, Tensor], groups: LayerGroups | None) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer group that has any, bottom to top."""
    groups = find_layer_groups(model) if groups is None else groups
    parts = {group: {n: t for n, t in tensors.items() if groups.group_of(n) == group} for group in groups.names}
    return {group: part for group, part in parts.items() if part}
