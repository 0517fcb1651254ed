"""The slow, obviously right twins of the sharpness measurements: a fresh copy of the model for every point.

Nothing here is clever. Shared with what it is the twin of: the forward pass, the likelihood of the labels, and the
noise. P scalar parameters, B examples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import likelihood_for
from hf_early_ood.probes.perturbation import noise


def loss_one_by_one(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean over the B examples of the negative log-likelihood of their labels, in batches of one."""
    likelihood = likelihood_for(model)
    losses = []
    for i in range(len(next(iter(batch.values())))):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        losses.append(likelihood.nll(model(**likelihood.inputs(one)), one)[0])
    return torch.stack(losses).mean()


def average_sharpness_by_copies(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    rho: float,
    num_draws: int,
    adaptive: bool = False,
    antithetic: bool = True,
    seed: int = 0,
) -> tuple[float, list[float]]:
    """`average_sharpness` of the trainable parameters by its definition.

    Args:
        model: As there.
        batches: As there.
        rho: As there.
        num_draws: As there; even, if antithetic.
        adaptive: As there.
        antithetic: As there.
        seed: As there.

    Returns:
        Mean rise over all examples, and over the draws for each batch.
    """
    data = list(batches)
    counts = [len(next(iter(batch.values()))) for batch in data]
    deltas: list[dict[str, Tensor]] = []
    for draw in range(num_draws // 2 if antithetic else num_draws):
        delta = {
            name: rho * (p.detach() if adaptive else 1) * noise(name, p, draw=draw, seed=seed)
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        deltas += [delta, {name: -value for name, value in delta.items()}] if antithetic else [delta]
    per_batch = [0.0] * len(data)
    with isolated(model), torch.no_grad():
        for delta in deltas:
            other = copy.deepcopy(model)
            for name, parameter in other.named_parameters():
                if name in delta:
                    parameter.copy_(parameter + delta[name])
            for number, batch in enumerate(data):
                rise = loss_one_by_one(other, batch) - loss_one_by_one(model, batch)
                per_batch[number] += float(rise) / len(deltas)
    total = sum(rise * count for rise, count in zip(per_batch, counts, strict=True))
    return total / sum(counts), per_batch


def auto_pgd_losses(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    rho: float,
    norm: str,
    steps: int,
    adaptive: bool = False,
) -> list[float]:
    """Losses of one batch at all points that `worst_case_sharpness` visits, the unperturbed one first.

    Auto-PGD (Croce and Hein, 2020, arXiv 2003.01690) written down from its paper, on one long vector, with the whole
    history kept.

    Args:
        model: As there; its trainable parameters are perturbed.
        batch: B examples with labels.
        rho: As there.
        norm: As there.
        steps: As there.
        adaptive: As there.

    Returns:
        steps + 1 losses.
    """
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    scale = weights.abs() if adaptive else torch.ones_like(weights)

    def loss_and_gradient(u: Tensor) -> tuple[float, Tensor]:
        other = copy.deepcopy(model).eval()
        with torch.no_grad():
            values = weights + scale * u
            for parameter in other.parameters():
                if parameter.requires_grad:
                    parameter.copy_(values[: parameter.numel()].view(parameter.shape))
                    values = values[parameter.numel() :]
        other.zero_grad()
        loss = loss_one_by_one(other, batch)
        loss.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in other.parameters() if p.requires_grad]
        return float(loss.detach()), scale * torch.cat([g.flatten() for g in gradients])

    def project(u: Tensor) -> Tensor:
        if norm == "linf":
            return u.clamp(-rho, rho)
        return u if float(u.norm()) <= rho else u * (rho / float(u.norm()))

    marks = [Fraction(0), Fraction(22, 100)]
    while marks[-1] < 1:
        marks.append(marks[-1] + max(marks[-1] - marks[-2] - Fraction(3, 100), Fraction(6, 100)))
    looks = sorted({math.ceil(mark * steps) for mark in marks})

    points, sizes = [torch.zeros_like(weights)], [2 * rho]
    loss, gradient = loss_and_gradient(points[0])
    losses, gradients = [loss], [gradient]
    seen = [losses[0]]  # as ``losses``, but what a restart replaced is still there
    for k in range(steps):
        eta, x, g = sizes[-1], points[k], gradients[k]
        direction = g.sign() if norm == "linf" else g / g.norm()
        z = project(x + eta * direction)
        point = z if k == 0 else project(x + 0.75 * (z - x) + 0.25 * (x - points[k - 1]))
        loss, gradient = loss_and_gradient(point)
        points.append(point)
        losses.append(loss)
        gradients.append(gradient)
        seen.append(loss)
        sizes.append(eta)
        if k + 1 in looks[1:]:
            last = looks[looks.index(k + 1) - 1]
            rises = sum(losses[i + 1] > losses[i] for i in range(last, k + 1))
            unchanged = sizes[max(last - 1, 0)] == eta and max(seen[: last + 1]) == max(seen)
            if rises < 0.75 * (k + 1 - last) or unchanged:
                best = max(range(k + 2), key=lambda i: seen[i])
                points[-1], losses[-1], gradients[-1] = points[best], losses[best], gradients[best]
                sizes[-1] = eta / 2
    return seen
