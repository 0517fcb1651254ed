r"""Weights of layer groups perturbed once: what training has brought about, taken away one property at a time.

Frankle, Schwab & Morcos 2020 (arXiv 2002.10365) take the weights :math:`w_k` after k updates, change one thing about
them, train on, and see whether the result suffers: keep the signs and take other magnitudes, or the other way round;
permute the weights within a layer or a filter, with or without their signs; add noise. From its abstract: networks are
not robust to random magnitudes that keep their signs, and permuting the weights of the first few hundred updates hurts.
The details here are from memory and were not checked against the paper: the sources of magnitudes and signs, the scopes
of a shuffle, noise in units of a layer's initial standard deviation, and that accuracy falls with the *effective*
standard deviation, for which ours is :math:`\mathrm{std}(w' - w)`. They do it in sub-networks of networks trained from
scratch; here it is any fine-tuning, whose initial weights are the pretrained ones (of a new head, its initializer's).

Zhang, Bengio & Singer 2019 (arXiv 1902.01996) set the weights of one layer of a trained network back to what they were
before training (re-initialization) or to new random ones (re-randomization), and do not train on: `reset_to_start` and
`reset_to_random` after the last update. Layers that bear it they call ambient, the others critical.

All functions take and return {name: tensor} on the CPU. Draws depend on the seed and the names, never on the order, the
device or how many other tensors are drawn for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from hf_early_ood.checks import check_choice
from hf_early_ood.config.perturbations import (
    ABSOLUTE,
    GROUP,
    INITIALIZER,
    MOVEMENT,
    NOISE,
    RANDOM,
    REDRAW_MAGNITUDES,
    REDRAW_SIGNS,
    RESET_TO_RANDOM,
    RESET_TO_START,
    ROW,
    START,
    START_SHUFFLED,
    TENSOR,
    WITHIN,
    PerturbationConfig,
)
from hf_early_ood.errors import ConfigurationError

Tensors = Mapping[str, Tensor]


def perturbed(
    settings: PerturbationConfig,
    values: Tensors,
    seed: int,
    *,
    start: Tensors | None = None,
    initial: Tensors | None = None,
    transposed: Collection[str] = (),
) -> dict[str, Tensor]:
    """The tensors of one layer group as a perturbation leaves them; what is given is not changed.

    Args:
        settings: Of the perturbation.
        values: w, the tensors of the group now.
        seed: Of what is drawn.
        start: The same tensors before training, where `PerturbationConfig.needs_start`.
        initial: The same tensors from the initializer, where `PerturbationConfig.needs_initializer`.
        transposed: Names of the matrices whose output units are columns.

    Returns:
        w', of the same names, shapes and types.

    Example:
        >>> settings = PerturbationConfig(at=0, kind="shuffle", keep_signs=True)
        >>> perturbed(settings, {"w": torch.tensor([1.0, -2.0, 3.0])}, seed=0)["w"].sign().tolist()
        [1.0, -1.0, 1.0]
    """
    start, initial, kind = start or {}, initial or {}, settings.kind
    if kind == RESET_TO_START:
        return {name: start[name].clone() for name in values}
    if kind == RESET_TO_RANDOM:
        return {name: initial[name].clone() for name in values}
    if kind in (REDRAW_MAGNITUDES, REDRAW_SIGNS):
        source = _source(settings, values, seed, start, initial)
        return with_magnitudes(values, source) if kind == REDRAW_MAGNITUDES else with_signs(values, source)
    if kind == NOISE:
        return noisy(values, noise_stds(settings, values, start, initial), seed)
    return shuffled(values, seed, within=settings.within, keep_signs=settings.keep_signs, transposed=transposed)


def with_magnitudes(values: Tensors, source: Tensors) -> dict[str, Tensor]:
    r"""The signs of ``values`` with the magnitudes of ``source``, :math:`\mathrm{sign}(w_i)\,|s_i|`: a 0 stays 0.

    Example:
        >>> with_magnitudes({"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([-5.0, 6.0])})["w"].tolist()
        [5.0, -6.0]
    """
    return {name: value.sign() * source[name].abs() for name, value in values.items()}


def with_signs(values: Tensors, source: Tensors) -> dict[str, Tensor]:
    r"""The magnitudes of ``values`` with the signs of ``source``; a weight whose source is 0 keeps its own sign.

    Example:
        >>> with_signs({"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([-5.0, 0.0])})["w"].tolist()
        [-1.0, -2.0]
    """
    return {
        name: torch.where(source[name] == 0, value, source[name].sign() * value.abs()) for name, value in values.items()
    }


def shuffled(
    values: Tensors,
    seed: int,
    *,
    within: str = TENSOR,
    keep_signs: bool = False,
    transposed: Collection[str] = (),
) -> dict[str, Tensor]:
    """The same weights in other places, uniformly at random.

    Args:
        values: The tensors of one group.
        seed: Of the permutations.
        within: "tensor", "group" (across all the tensors), or "row": within the weights of each output unit, such as
            the filter of a convolution or the vector of a token. A bias or norm has one for each unit, and stays.
        keep_signs: Move magnitudes and leave every sign where it is; a 0 counts as positive.
        transposed: Names of the matrices whose output units are columns.

    Raises:
        ConfigurationError: ``within`` is something else.

    Example:
        >>> shuffled({"w": torch.arange(4.0)}, seed=0)["w"].sort().values.tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    check_choice("within", within, WITHIN)
    if within == GROUP:
        moved = _shuffled_across(values, seed)
    elif within == ROW:
        moved = {name: _rows_shuffled(value, seed, name, name in transposed) for name, value in values.items()}
    else:
        moved = {name: _shuffled(value.flatten(), seed, name).view_as(value) for name, value in values.items()}
    return {n: torch.copysign(moved[n].abs(), value) for n, value in values.items()} if keep_signs else moved


def noisy(values: Tensors, stds: Mapping[str, float], seed: int) -> dict[str, Tensor]:
    r"""Independent Gaussian noise on every weight, :math:`w' = w + \sigma \epsilon,\ \epsilon \sim N(0, 1)`.

    The effective standard deviation of n weights is sigma up to a relative error of about 1 / sqrt(2 n), and of
    rounding to the type of the weights.

    Args:
        values: The tensors.
        stds: Name to sigma.
        seed: Of the draws.

    Example:
        >>> zero = {"w": torch.zeros(10_000)}
        >>> round(effective_std(zero, noisy(zero, {"w": 0.5}, seed=0)), 2)
        0.5
    """
    noise = {}
    for name, value in values.items():
        full = torch.promote_types(value.dtype, torch.float32)
        drawn = torch.randn(value.shape, generator=_generator(seed, name), dtype=full)
        noise[name] = (value.to(full) + stds[name] * drawn).to(value.dtype)
    return noise


def noise_stds(settings: PerturbationConfig, values: Tensors, start: Tensors, initial: Tensors) -> dict[str, float]:
    """Standard deviation of the noise on each tensor: ``std`` times the unit, that of the whole tensor.

    Example:
        >>> settings = PerturbationConfig(at=1, kind="noise", std=0.5, unit="movement")
        >>> noise_stds(settings, {"w": torch.tensor([3.0, 5.0])}, {"w": torch.ones(2)}, {})
        {'w': 0.5}
    """
    if settings.unit == ABSOLUTE:
        return dict.fromkeys(values, settings.std)
    if settings.unit == MOVEMENT:
        return {name: settings.std * effective_std({"": start[name]}, {"": value}) for name, value in values.items()}
    of = start if settings.unit == START else initial
    return {name: settings.std * float(of[name].double().std(correction=0)) for name in values}


def effective_std(before: Tensors, after: Tensors) -> float:
    r"""Standard deviation of what was added to weights, over all of them, :math:`\mathrm{std}(w' - w)`.

    The population's (divided by n, not n - 1), after rounding to the type of the weights.

    Example:
        >>> effective_std({"a": torch.zeros(2), "b": torch.zeros(2)}, {"a": torch.ones(2), "b": -torch.ones(2)})
        1.0
    """
    count = sum(value.numel() for value in before.values())
    mean = sum(float((after[name].double() - value.double()).sum()) for name, value in before.items()) / count
    squares = sum(
        float((after[name].double() - value.double() - mean).square().sum()) for name, value in before.items()
    )
    return math.sqrt(squares / count)


def check_sources(settings: PerturbationConfig, start: Tensors, initial: Tensors) -> None:
    """Refuse, before training, tensors from which nothing can be taken: B of LoRA and new biases are all 0.

    Args:
        settings: Of the perturbation.
        start: The tensors before training, where they are needed.
        initial: The tensors from the initializer, where they are needed.

    Raises:
        ConfigurationError: A tensor without magnitudes, signs or spread is to give them.
    """
    if settings.kind == NOISE and settings.unit in (START, INITIALIZER):
        of, what = (start if settings.unit == START else initial), "standard deviation"
        empty = [name for name, value in of.items() if bool((value == value.flatten()[:1]).all())]
    elif settings.taken_from in (START, START_SHUFFLED, INITIALIZER):
        of = initial if settings.taken_from == INITIALIZER else start
        what = "magnitudes" if settings.kind == REDRAW_MAGNITUDES else "signs"
        empty = [name for name, value in of.items() if not bool(value.any())]
    else:
        return
    if empty:
        where = "from the initializer" if of is initial else "at the start"
        raise ConfigurationError(
            f"There are tensors that have no {what} {where}: they are constant.",
            got=f"{len(empty)} of {len(of)}, such as {empty[0]}",
            fix="Use parameters='matrices' if these are norms and biases, other groups, or another source or unit.",
        )


def _source(settings: PerturbationConfig, values: Tensors, seed: int, start: Tensors, initial: Tensors) -> Tensors:
    source = settings.taken_from
    if source == RANDOM:
        return {name: _random_signs(value, seed, name) for name, value in values.items()}
    if source == INITIALIZER:
        return initial
    return shuffled(start, seed) if source == START_SHUFFLED else start


def _random_signs(value: Tensor, seed: int, name: str) -> Tensor:
    return (2 * torch.randint(2, value.shape, generator=_generator(seed, name)) - 1).to(value.dtype)


def _shuffled(flat: Tensor, seed: int, name: str) -> Tensor:
    return flat[torch.randperm(flat.numel(), generator=_generator(seed, name))]


def _rows_shuffled(value: Tensor, seed: int, name: str, by_column: bool) -> Tensor:
    if value.ndim < 2:
        return value.clone()
    rows = value.T if by_column else value
    flat = rows.reshape(rows.shape[0], -1)
    # In double precision, so that ties, which would favor the first places, do not occur.
    order = torch.rand(flat.shape, generator=_generator(seed, name), dtype=torch.float64).argsort(dim=1)
    moved = flat.gather(1, order).view_as(rows)
    return moved.T.contiguous() if by_column else moved


def _shuffled_across(values: Tensors, seed: int) -> dict[str, Tensor]:
    names = sorted(values)
    flat = _shuffled(torch.cat([values[name].flatten() for name in names]), seed, "\n".join(names))
    parts = flat.split([values[name].numel() for name in names])
    moved = {name: part.view_as(values[name]).to(values[name].dtype) for name, part in zip(names, parts, strict=True)}
    return {name: moved[name] for name in values}


def _generator(seed: int, name: str) -> torch.Generator:
    """The same for a name whatever else is drawn, and no other draw of a training."""
    return torch.Generator().manual_seed(seed_for(seed, name))


def seed_for(seed: int, name: str) -> int:
    """A seed for one name: not that of the training itself, with which its own first draws would be repeated.

    Example:
        >>> seed_for(0, "head") == seed_for(0, "head"), seed_for(0, "head") == seed_for(1, "head")
        (True, False)
    """
    digest = hashlib.sha256(f"perturbation {seed} {name}".encode()).digest()
    return int.from_bytes(digest[:7], "little")
