"""Sharpness: how much the loss rises when the weights are moved a little, on average or in the worst direction.

L(w) is the mean over examples of the negative log-likelihood of their given labels. B examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hf_early_ood.checks import PARAMETER_CHOICES, check_choice, check_count, check_flags, check_number
from hf_early_ood.errors import NonFiniteError, ProbeError
from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.probes.apgd import NORMS, Ball, Evaluate, Point, ascend
from hf_early_ood.probes.batches import check_some, num_rows
from hf_early_ood.probes.given_loss import GivenLoss, mean_loss
from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import count_empty
from hf_early_ood.probes.perturbation import PerturbedWeights, measured_parameters, noise, perturbed, squared_norm
from hf_early_ood.probes.ranks import Share

Batch = Mapping[str, Tensor]

# What Liu and Gurevych (2024, arXiv 2403.15210, section 4 and appendix B) say they used: rho = 0.01 for both,
# p = 2, "15 samples", 2048 training examples in batches of 256 (SQuAD: 32). Their text does not state c and the
# normalization of the logits; False is the default of the code they name (Andriushchenko et al., 2023), which
# draws without mirrored pairs, and whose one option of 15 is both the draws and the Auto-PGD steps.
PAPER_AVERAGE = MappingProxyType(
    {"rho": 0.01, "num_draws": 15, "adaptive": False, "normalize_logits": False, "antithetic": False}
)
PAPER_WORST_CASE = MappingProxyType(
    {"rho": 0.01, "norm": "l2", "steps": 15, "adaptive": False, "normalize_logits": False}
)


@dataclass(frozen=True)
class Sharpness:
    """Rise of the loss of a model on a set of examples when its weights are perturbed.

    Attributes:
        value: Mean rise over examples. Signed: a negative one says that the loss fell.
        loss: Mean loss L(w) over examples, of the weights as they are.
        per_batch: Mean rise over the examples of each batch; ``value`` is their mean, weighted by examples.
        standard_error: Of ``value``, over draws of the noise (pairs of them, if mirrored) and not over examples;
            None where there is only one, and for the worst case.
        num_examples: Number of examples.
        batch_sizes: Examples of each batch. The worst case is searched batch by batch (m-sharpness), and grows as
            batches get smaller: compare only what was measured with the same sizes.
        num_parameters: Number of perturbed scalar parameters P. At equal rho the average case moves the weights
            about sqrt(P) times as far as the worst case in L2.
        kind: "average" or "worst_case".
        settings: How it was measured.
        num_empty: Examples for which nothing is predicted (every label is -100), and which add 0 to the loss.
    """

    value: float
    loss: float
    per_batch: tuple[float, ...]
    standard_error: float | None
    num_examples: int
    batch_sizes: tuple[int, ...]
    num_parameters: int
    kind: str
    settings: dict[str, Any]
    num_empty: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        record = asdict(self)
        return {**record, "per_batch": list(self.per_batch), "batch_sizes": list(self.batch_sizes)}


def average_sharpness(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    rho: float = 0.01,
    num_draws: int = 15,
    adaptive: bool = False,
    normalize_logits: bool = False,
    antithetic: bool = True,
    parameters: str = "trainable",
    seed: int = 0,
    share: Share | None = None,
) -> Sharpness:
    r"""Average-case sharpness: the mean rise of the loss under Gaussian noise on the weights.

    Source: Liu and Gurevych (2024, arXiv 2403.15210, eq. 3), after Andriushchenko et al. (2023, arXiv 2302.07011).

        E_delta L(w + delta) - L(w),   delta_i ~ N(0, rho^2 c_i^2)

    For small rho this is rho^2 / 2 times the trace of the Hessian (times c^2). One draw of the noise serves all
    batches, so that L is the loss of the whole probe set; the public code draws anew for each batch. The noise
    depends on ``seed``, the number of the draw and the name of the parameter only: successive measurements of a
    model in training see the same noise, and differ only because the model does. It costs one forward pass over
    the batches per draw and one without noise, and holds one copy of the measured weights.

    Args:
        model: A model that `GivenLoss` knows the loss of; unwrapped, not DDP.
        batches: A `ProbeSet`, or dictionaries of tensors whose leading dimension is the B examples, with labels.
        rho: Standard deviation of the noise of each weight, relative to c. Not a radius.
        num_draws: Noise draws. With ``antithetic``, an odd number is rounded up: half a pair would bring back
            the first-order noise that pairs cancel. ``settings`` says how many were made.
        adaptive: c = |w|, so that the value does not depend on how layers are scaled; otherwise c = 1. Weights
            that are zero stay zero: for LoRA with B = 0, only A moves, which changes nothing.
        normalize_logits: Subtract from the logits of an example their mean and divide by their Euclidean norm, so
            that the value does not depend on how confident the model is. With C = 2 only their sign is left.
        antithetic: Use every draw with both signs: the first-order term, most of the variance, cancels.
        parameters: ``"trainable"``: perturb what requires a gradient now. ``"all"``: every parameter.
        seed: Seed of the noise.
        share: The batches that this process measures, where several do it together; the result is that of all.

    Returns:
        The signed value, with its standard error over draws.

    Raises:
        ConfigurationError: A setting is not usable, or there is no batch.
        DataError: A batch or its labels are not usable, or nothing is predicted for any example.
        NonFiniteError: A loss is NaN or infinite.
        ProbeError: Nothing to perturb, or a perturbation that the weights cannot hold.
        UnsupportedModelError: A task without a known likelihood.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        ...                     intermediate_size=8)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.tensor([0, 1])}
        >>> sharpness = average_sharpness(model, [batch], num_draws=3)
        >>> sharpness.num_examples, sharpness.settings["num_draws"], abs(sharpness.value) < 0.1
        (2, 4, True)
    """
    check_average_sharpness(
        rho=rho,
        num_draws=num_draws,
        adaptive=adaptive,
        normalize_logits=normalize_logits,
        antithetic=antithetic,
        parameters=parameters,
    )
    signs = 2 if antithetic else 1
    units = math.ceil(num_draws / signs)
    loss = GivenLoss.of(model, normalize_logits)
    measured = measured_parameters(model, parameters)
    data, sizes = _materialized(batches)
    empty = count_empty(loss.likelihood, data, "empirical")
    share = share or Share()
    own = {index: batch for index, batch in enumerate(data) if index in share}
    rises: list[list[float]] = []  # of each unit: the rise of every batch of the share
    with (
        isolated(model),
        torch.inference_mode(False),
        torch.no_grad(),
        perturbed(measured, adaptive) as weights,
    ):

        def losses(moved: bool) -> list[float]:
            return [loss.of_batch(batch, index, moved=moved) for index, batch in own.items()]

        clean = losses(moved=False)
        for draw in range(units):
            weights.move_to(noise(name, p, draw=draw, seed=seed).mul_(rho) for name, p in measured.items())
            perturbed_losses = losses(moved=True)
            if antithetic:
                weights.mirror()
                pairs = zip(perturbed_losses, losses(moved=True), strict=True)
                perturbed_losses = [(plus + minus) / 2 for plus, minus in pairs]
            rises.append([after - before for after, before in zip(perturbed_losses, clean, strict=True)])
    of_all = share.gathered({index: (clean[k], [unit[k] for unit in rises]) for k, index in enumerate(own)})
    clean, rises = [before for before, _ in of_all], [list(unit) for unit in zip(*(r for _, r in of_all), strict=True)]
    means = [_weighted(unit, sizes) for unit in rises]
    value = math.fsum(means) / units
    error = None
    if units > 1:
        error = math.sqrt(math.fsum((mean - value) ** 2 for mean in means) / (units - 1) / units)
    return Sharpness(
        value=value,
        loss=_weighted(clean, sizes),
        per_batch=tuple(math.fsum(batch) / units for batch in zip(*rises, strict=True)),
        standard_error=error,
        num_examples=sum(sizes),
        batch_sizes=tuple(sizes),
        num_parameters=sum(parameter.numel() for parameter in measured.values()),
        kind="average",
        settings={
            "rho": rho,
            "num_draws": signs * units,
            "adaptive": adaptive,
            "normalize_logits": normalize_logits,
            "antithetic": antithetic,
            "parameters": parameters,
            "seed": seed,
        },
        num_empty=empty,
    )


def worst_case_sharpness(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    rho: float = 0.01,
    norm: str = "l2",
    steps: int = 15,
    adaptive: bool = False,
    normalize_logits: bool = False,
    random_start: bool = False,
    parameters: str = "trainable",
    seed: int = 0,
    share: Share | None = None,
) -> Sharpness:
    r"""Worst-case sharpness: the largest rise of the loss that Auto-PGD finds in a ball around the weights.

    Source: Liu and Gurevych (2024, arXiv 2403.15210, eq. 4), after Andriushchenko et al. (2023, arXiv 2302.07011);
    the search is `ascend`.

        max_{||delta / c||_p <= rho} L(w + delta) - L(w),   batch by batch, averaged over examples

    The search moves u = delta / c, for which the ball is round: no projection on an ellipsoid is needed, and the
    search itself, like the ball, does not depend on how layers are scaled if c = |w|. The value is the largest
    over the points visited *after* the start. It is a lower bound of the maximum, which is never below 0; a
    negative one says that the search found no ascent and that ``steps`` are too few or rho too large for it. It
    costs ``steps`` forward and backward passes and one forward pass, and holds up to seven copies of the measured
    weights: the original, three points, two gradients, and the gradient that the backward pass returns.

    Args:
        model: A model that `GivenLoss` knows the loss of; unwrapped, not DDP.
        batches: A `ProbeSet`, or dictionaries of tensors whose leading dimension is the B examples, with labels.
        rho: Radius of the ball, for all weights together (L2) or for each (L-infinity), relative to c.
        norm: ``"l2"`` or ``"linf"``.
        steps: Steps of the search.
        adaptive: c = |w|; otherwise c = 1. Weights that are zero stay zero: for LoRA with B = 0, only A moves.
        normalize_logits: As in `average_sharpness`. Not with C = 2, where it leaves no gradient.
        random_start: Start at a random point, on the sphere (L2) or in the cube (L-infinity), instead of at w.
        parameters: ``"trainable"``: perturb what requires a gradient now. ``"all"``: every parameter.
        seed: Seed of the random start; the same for every batch. Without one nothing is random.
        share: The batches that this process measures, where several do it together; the result is that of all.

    Returns:
        The signed value. Its ``batch_sizes`` are part of what was measured.

    Raises:
        ConfigurationError: A setting is not usable, or there is no batch.
        DataError: A batch or its labels are not usable, or nothing is predicted for any example.
        NonFiniteError: A loss or a gradient is NaN or infinite.
        ProbeError: Nothing to perturb, a perturbation that the weights cannot hold, or no gradient to follow.
        UnsupportedModelError: A task without a known likelihood.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        ...                     intermediate_size=8)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.tensor([0, 1])}
        >>> sharpness = worst_case_sharpness(model, [batch], steps=5)
        >>> sharpness.value > 0, sharpness.batch_sizes
        (True, (2,))
    """
    check_worst_case_sharpness(
        rho=rho,
        norm=norm,
        steps=steps,
        adaptive=adaptive,
        normalize_logits=normalize_logits,
        random_start=random_start,
        parameters=parameters,
    )
    loss = GivenLoss.of(model, normalize_logits)
    measured = measured_parameters(model, parameters)
    data, sizes = _materialized(batches)
    empty = count_empty(loss.likelihood, data, "empirical")
    ball = Ball(norm, rho)
    share = share or Share()
    losses: dict[int, tuple[float, float]] = {}  # of each batch of the share: at w, and the largest found
    every = dict(model.named_parameters())
    with (
        isolated(model),
        torch.inference_mode(False),
        requires_grad_set(every, measured),
        perturbed(measured, adaptive) as weights,
    ):
        for index, batch in enumerate(data):
            if index not in share:
                continue
            if not bool(loss.likelihood.answered(batch, "empirical").any()):
                losses[index] = 0.0, 0.0  # the loss is 0 everywhere
                continue
            start, clean = weights.zero(), None
            if random_start:
                weights.move_to(weights.by_parameter(start))
                with torch.no_grad():
                    clean = loss.of_batch(batch, index)
                _randomize(dict(zip(measured, weights.by_parameter(start), strict=True)), ball, seed)
            objective = _objective(loss, weights, measured, batch, index, random_start)
            visited = ascend(objective, start, ball, steps)
            losses[index] = (visited.start if clean is None else clean, visited.best)
    of_all = share.gathered(losses)
    rises = [best - before for before, best in of_all]
    return Sharpness(
        value=_weighted(rises, sizes),
        loss=_weighted([before for before, _ in of_all], sizes),
        per_batch=tuple(rises),
        standard_error=None,
        num_examples=sum(sizes),
        batch_sizes=tuple(sizes),
        num_parameters=sum(parameter.numel() for parameter in measured.values()),
        kind="worst_case",
        settings={
            "rho": rho,
            "norm": norm,
            "steps": steps,
            "adaptive": adaptive,
            "normalize_logits": normalize_logits,
            "random_start": random_start,
            "parameters": parameters,
            "seed": seed,
        },
        num_empty=empty,
    )


def check_average_sharpness(
    *, rho: float, num_draws: int, adaptive: bool, normalize_logits: bool, antithetic: bool, parameters: str
) -> None:
    """Refuse settings of `average_sharpness` that no model could be measured with.

    Raises:
        ConfigurationError: Naming the first of them.
    """
    check_number("rho", rho)
    check_count("num_draws", num_draws)
    check_flags(adaptive=adaptive, normalize_logits=normalize_logits, antithetic=antithetic)
    check_choice("parameters", parameters, PARAMETER_CHOICES)


def check_worst_case_sharpness(
    *,
    rho: float,
    norm: str,
    steps: int,
    adaptive: bool,
    normalize_logits: bool,
    random_start: bool,
    parameters: str,
) -> None:
    """Refuse settings of `worst_case_sharpness` that no model could be measured with.

    Raises:
        ConfigurationError: Naming the first of them.
    """
    check_number("rho", rho)
    check_choice("norm", norm, NORMS)
    check_count("steps", steps)
    check_flags(adaptive=adaptive, normalize_logits=normalize_logits, random_start=random_start)
    check_choice("parameters", parameters, PARAMETER_CHOICES)


def _objective(
    loss: GivenLoss,
    weights: PerturbedWeights,
    measured: Mapping[str, nn.Parameter],
    batch: Batch,
    index: int,
    moved: bool,
) -> Evaluate:
    """Loss of one batch and its gradient with respect to u, for `ascend`; ``moved``: the first point is not w."""
    at_start = True

    def evaluate(point: Point, gradient: Point | None) -> float:
        nonlocal at_start
        weights.move_to(weights.by_parameter(point))
        with torch.set_grad_enabled(gradient is not None):
            losses = loss.per_example(batch)
        value = mean_loss(losses, index, moved=moved or not at_start)
        if gradient is None:
            return value
        found: Sequence[Tensor | None] = [None] * len(measured)
        if losses.requires_grad:
            found = torch.autograd.grad(losses.mean(), list(measured.values()), allow_unused=True)
        weights.pull_back(found, gradient)
        if at_start:
            _check_gradient(gradient, index, moved)
            at_start = False
        return value

    return evaluate


def _check_gradient(gradient: Point, index: int, moved: bool) -> None:
    """Raise an error if there is no direction to start in; ``moved``: the starting point is not w."""
    length = squared_norm(gradient)
    if not math.isfinite(length):
        raise NonFiniteError(
            f"The gradient of the loss of probe batch {index} is not finite.",
            fix="The gradients overflow: measure the model in float32 or bfloat16.",
        )
    if length == 0:
        # With LoRA, A has no gradient while B = 0, and c = |w| takes that of B away.
        raise ProbeError(
            f"The loss of probe batch {index} has no gradient, so there is no direction to search in.",
            got="zero for every measured parameter" + (", also at a random start" if moved else ""),
            fix="Perturb parameters that the loss depends on. For LoRA with adaptive=True: measure after the first "
            "updates, when B is no longer zero. At a stationary point: random_start=True.",
        )


def _randomize(point: Mapping[str, Tensor], ball: Ball, seed: int) -> None:
    """Fill a point, by parameter: of norm rho in a random direction (L2), or uniform in the cube (L-infinity)."""
    for name, u in point.items():
        u.copy_(noise(name, u, draw=0, seed=seed))
        if ball.norm == "linf":
            u.div_(math.sqrt(2)).erf_().mul_(ball.radius)
    if ball.norm == "l2":
        length = math.sqrt(squared_norm(list(point.values())))
        for u in point.values():
            u.mul_(ball.radius / length)


def _materialized(batches: Iterable[Batch]) -> tuple[list[Batch], list[int]]:
    """The batches, to be gone through many times, and their numbers of examples."""
    data = list(batches)
    check_some(data)
    return data, [num_rows(batch, index) for index, batch in enumerate(data)]


def _weighted(values: Sequence[float], sizes: Sequence[int]) -> float:
    return math.fsum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
