"""What an intervention does beside releasing and freezing layers, in words, and whether it can be done at all."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_early_ood import names
from hf_early_ood.callbacks.first_stage import check_first_stage
from hf_early_ood.callbacks.generations import forgotten
from hf_early_ood.callbacks.learning_rates import check_decides
from hf_early_ood.callbacks.making import make_callbacks, make_staged
from hf_early_ood.callbacks.perturbing import check, chosen, moment
from hf_early_ood.callbacks.pretext import check_pretext
from hf_early_ood.config.dynamics import DynamicsConfig
from hf_early_ood.config.interventions import (
    FisherPenaltyConfig,
    GenerationsConfig,
    InterventionConfig,
    LearningRatesConfig,
    PretextConfig,
    WeightInterpolationConfig,
)
from hf_early_ood.config.perturbations import PerturbationConfig
from hf_early_ood.interventions.forgetting import initial_values
from hf_early_ood.interventions.generations import Generations, split_at
from hf_early_ood.interventions.language_head import LanguageHead
from hf_early_ood.interventions.learning_rates import LENGTHS, checked_length, constant_factors
from hf_early_ood.interventions.pretext import MASKED_LM, no_mask
from hf_early_ood.interventions.weight_interpolation import FIRST_STAGE
from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.schedules import Schedule
from hf_early_ood.schedules.base import in_words


def beside(
    settings: InterventionConfig,
    model: nn.Module,
    updates: int | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[str]:
    """What an intervention does to a model beside releasing and freezing layers, in lines.

    Args:
        settings: Of the intervention.
        model: The model, before training; on the meta device, initializers are not tried.
        updates: Length of training; None: not known, and nothing is compared with it.
        tokenizer: Of the model; None: what depends on it is not looked at.

    Raises:
        EarlyOODError: What the callbacks of the intervention would refuse at the start of this training.
    """
    make_callbacks(settings)  # raises
    groups, staged = find_layer_groups(model).trainable(), make_staged(settings)
    schedule = None if staged is None else staged.make_schedule(groups.names, updates)
    lines: list[str] = []
    if settings.learning_rates is not None:
        lines += _learning_rates(settings.learning_rates, groups, schedule, updates)
    if settings.generations is not None:
        lines += _generations(settings.generations, model, groups, updates)
    if settings.fisher_penalty is not None:
        lines.append(_fisher_penalty(settings.fisher_penalty))
    if settings.perturbation is not None:
        lines.append(_perturbation(settings.perturbation, model, updates))
    if settings.pretext is not None:
        lines.append(_pretext(settings.pretext, model, updates, tokenizer))
    if settings.weight_interpolation is not None:
        if settings.weight_interpolation.head == FIRST_STAGE:
            check_first_stage(schedule)
        lines.append(_weight_interpolation(settings.weight_interpolation))
    return lines


def measured(own: DynamicsConfig, updates: int) -> str:
    """What is measured beside training, in words.

    Example:
        >>> measured(DynamicsConfig(measures=("trajectory",), every=20), 100)
        'Measured every 20 updates, from update 0 to update 100: trajectory.'
    """
    last = updates if own.until is None else own.until
    end = "the decision" if last == "decision" else f"update {min(int(last), updates)}"
    return f"Measured every {own.every} updates, from update 0 to {end}: {', '.join(own.measures)}."


def _learning_rates(
    own: LearningRatesConfig, groups: LayerGroups, schedule: Schedule | None, updates: int | None
) -> Iterator[str]:
    factors = constant_factors(groups.names, own.layer_decay, own.factors)
    if updates is not None:
        for key in LENGTHS:
            checked_length(key, getattr(own, key), updates)
    if set(factors.values()) != {1.0}:
        yield "learning rates, in those of the scheduler:"
        yield from (f"  {name}: {factor:.3g}" for name, factor in reversed(factors.items()))
    if own.switch_factor is None or own.switch_at is None:
        return
    if own.switch_at == "auto":
        check_decides(schedule)
        when = "until the interval is decided"
    else:
        when = f"for the first {in_words(own.switch_at)}"
    yield f"All learning rates are multiplied by {own.switch_factor:g} {when}."


def _generations(own: GenerationsConfig, model: nn.Module, groups: LayerGroups, updates: int | None) -> Iterator[str]:
    early, later = split_at(groups, own.boundary, ascends=own.ascent is not None)
    if own.forget and not any(parameter.is_meta for parameter in model.parameters()):
        initial_values(model, forgotten(model, groups, later, norms=own.forget_norms), own.forget_seed)  # raises
    yield f"early: {', '.join(early)}\nlater: {', '.join(later)}"
    if updates is None:
        yield f"{own.generations} generations; give --updates for their table."
        return
    plan = Generations(updates, own.generations, own.ascent)
    yield "generation  updates        early layers ascend  later layers"
    for number in range(plan.count):
        begin, ascents = plan.start(number), plan.num_ascents(number)
        ascend = f"{begin} to {begin + ascents - 1}" if ascents else "-"
        anew = "begin anew" if own.forget and number else "-"
        yield f"{number:<12}{f'{begin} to {plan.start(number + 1) - 1}':<15}{ascend:<21}{anew}"


def _fisher_penalty(own: FisherPenaltyConfig) -> str:
    until = "" if own.until is None else f", for the first {in_words(own.until)}"
    every = "every update" if own.every == 1 else f"one of {own.every} updates"
    return f"The loss of {every} has {own.alpha:g} times the Fisher penalty of the batch added{until}."


def _perturbation(own: PerturbationConfig, model: nn.Module, updates: int | None) -> str:
    groups = chosen(own, model)
    if not any(parameter.is_meta for parameter in model.parameters()):
        check(own, model, groups, own.seed or 0)  # raises
    count = sum(parameter.numel() for parameters in groups.values() for parameter in parameters.values())
    after = in_words(own.at) if updates is None else f"{moment(own, updates)} of {updates} updates"
    return f"After {after}, {own.kind}: {', '.join(groups)} ({count:,} parameters)."


def _pretext(
    own: PretextConfig, model: nn.Module, updates: int | None, tokenizer: PreTrainedTokenizerBase | None
) -> str:
    check_pretext(model, own.kind)  # raises
    length = own.updates if updates is None else checked_length("updates", own.updates, updates)
    head = ""
    if own.kind == MASKED_LM:
        if tokenizer is not None and tokenizer.mask_token_id is None:
            raise no_mask()
        if not any(parameter.is_meta for parameter in model.parameters()):
            head = f" (language head: {LanguageHead(model, seed=own.seed).origin})"
    return f"For the first {in_words(length)} of the run, {own.kind} is trained, not the task{head}."


def _weight_interpolation(own: WeightInterpolationConfig) -> str:
    by = "ID validation" if own.alpha == names.ID_VALIDATION else f"alpha={own.alpha:g}"
    return (
        f"After training, {len(own.alphas)} points between the weights before and after it are evaluated;"
        f" the model of {by} is kept."
    )
