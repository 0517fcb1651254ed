"""Sharpness by this package, and by the algorithm of the evaluation of Andriushchenko et al. (2023, arXiv 2302.07011).

The latter is written anew here from its description: a model is perturbed through dictionaries of its weights, noise is
drawn for each batch and each draw; the worst case is searched by Auto-PGD in the weights themselves, with a copy of the
state of the model at each improvement.
"""

from __future__ import annotations

import argparse
import copy
import math
from functools import partial
from itertools import count

import torch
from harness import Batch, Job
from peers import AS_IT_COMES, AVERAGE, WORST, Answer, Attempt, Method, loss_of
from torch import Tensor, nn

from hf_early_ood.probes.sharpness import average_sharpness, worst_case_sharpness

RHO = 0.01
PASSES = 15  # draws, and steps of the search


def own_average(options: argparse.Namespace, model: nn.Module, batch: Batch, *, mirrored: bool) -> Job:
    """This package; with mirrored pairs one draw more, to have whole pairs."""
    seeds = count()

    def run() -> Answer:
        found = average_sharpness(model, [batch], rho=RHO, num_draws=PASSES, antithetic=mirrored, seed=next(seeds))
        return Answer(found.value, found.standard_error)

    return run


def own_worst(options: argparse.Namespace, model: nn.Module, batch: Batch) -> Job:
    """This package."""
    return lambda: Answer(worst_case_sharpness(model, [batch], rho=RHO, steps=PASSES).value)


def published_average(options: argparse.Namespace, model: nn.Module, batch: Batch) -> Job:
    """Mean loss under fresh noise, minus the loss without."""
    model.eval()

    def run() -> Answer:
        original = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        with torch.no_grad():
            clean = float(loss_of(model, batch))
            losses = []
            for _ in range(PASSES):
                for name, parameter in model.named_parameters():
                    parameter.copy_(original[name] + RHO * torch.randn_like(parameter))
                losses.append(float(loss_of(model, batch)))
            for name, parameter in model.named_parameters():
                parameter.copy_(original[name])
        rises = torch.tensor(losses) - clean
        return Answer(float(rises.mean()), float(rises.std()) / math.sqrt(PASSES))

    return run


def published_worst(options: argparse.Namespace, model: nn.Module, batch: Batch) -> Job:
    """Auto-PGD in the ball of radius rho around the weights, in L2: step size 2 rho, halved at checkpoints."""
    model.eval()

    def run() -> Answer:
        original = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        delta = {name: torch.zeros_like(parameter) for name, parameter in original.items()}
        losses: list[float] = []
        best, best_state = -math.inf, None
        step, rose, since, gap = 2 * RHO, 0, 0, max(int(0.22 * PASSES), 1)
        at_checkpoint = (step, best)
        for _ in range(PASSES):
            model.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            losses.append(loss.item())
            if losses[-1] > best:
                best, best_state = losses[-1], copy.deepcopy(model.state_dict())
            rose, since = rose + (losses[-1] > losses[max(len(losses) - 2, 0)]), since + 1
            delta = moved(model, delta, step)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(original[name] + delta[name])
            if since == gap:
                stalled = (step, best) == at_checkpoint
                at_checkpoint = (step, best)
                if rose < 0.75 * since or stalled:
                    step /= 2
                    model.load_state_dict(best_state)  # and not delta
                rose, since, gap = 0, 0, max(gap - max(int(0.03 * PASSES), 1), max(int(0.06 * PASSES), 1))
        with torch.no_grad():
            best = max(best, float(loss_of(model, batch)))
        model.load_state_dict(original, strict=False)
        return Answer(best - losses[0])

    return run


@torch.no_grad()
def moved(model: nn.Module, delta: dict[str, Tensor], step: float) -> dict[str, Tensor]:
    """Three quarters of a step along the gradient, back into the ball, and a quarter of staying."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    length = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    new = {name: part + step * gradients[name] / length if name in gradients else part for name, part in delta.items()}
    norm = float(torch.stack([part.norm() for part in new.values()]).norm())
    return {name: 0.75 * part * min(1.0, RHO / norm) + 0.25 * delta[name] for name, part in new.items()}


METHODS = (
    Method("hf_early_ood, mirrored pairs", AVERAGE, (Attempt(AS_IT_COMES, partial(own_average, mirrored=True)),)),
    Method("hf_early_ood, independent draws", AVERAGE, (Attempt(AS_IT_COMES, partial(own_average, mirrored=False)),)),
    Method("published algorithm", AVERAGE, (Attempt(AS_IT_COMES, published_average),)),
    Method("hf_early_ood, Auto-PGD", WORST, (Attempt(AS_IT_COMES, own_worst),)),
    Method("published algorithm, Auto-PGD", WORST, (Attempt(AS_IT_COMES, published_worst),)),
)
