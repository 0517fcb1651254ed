"""From the section ``intervention`` of a configuration to the callbacks that do it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from transformers import TrainerCallback

from hf_early_ood import names
from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.first_stage import FirstStageCallback
from hf_early_ood.callbacks.fisher_penalty import FisherPenaltyCallback
from hf_early_ood.callbacks.generations import GenerationsCallback
from hf_early_ood.callbacks.learning_rates import LearningRatesCallback
from hf_early_ood.callbacks.perturbing import PerturbationCallback
from hf_early_ood.callbacks.pretext import PretextCallback
from hf_early_ood.callbacks.refreezing import AutoFreezeCallback, LISACallback
from hf_early_ood.callbacks.staged import StagedCallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.config.checks import SCHEDULE_KEYS
from hf_early_ood.config.dynamics import DynamicsConfig
from hf_early_ood.config.interventions import AutoFreezeConfig, InterventionConfig, LISAConfig
from hf_early_ood.errors import ConfigurationError, named
from hf_early_ood.interventions.pretext import MASKED_LM
from hf_early_ood.probes.measures import all_settings
from hf_early_ood.results import InterventionRecord, PerturbationRecord

_PROBE = ("probe_size", "probe_batch_size", "probe_seed")
_GRADUAL = (*SCHEDULE_KEYS, "schedule", "signal", "vote", "signal_settings")
_SECTIONS: dict[str, Callable[..., TrainerCallback]] = {
    "learning_rates": LearningRatesCallback,
    "generations": GenerationsCallback,
    "fisher_penalty": FisherPenaltyCallback,
    "perturbation": PerturbationCallback,
    "pretext": PretextCallback,
}


def make_callbacks(settings: InterventionConfig) -> list[TrainerCallback]:
    """The callbacks of an intervention, the one that freezes layers first; none for standard fine-tuning.

    Raises:
        ConfigurationError: A setting is not usable, naming its section.
    """
    callbacks: list[TrainerCallback] = []
    staged = make_staged(settings)
    if staged is not None:
        callbacks.append(staged)
    for section, make in _SECTIONS.items():
        values = getattr(settings, section)
        if values is not None:
            with named(f"intervention.{section}"):
                callbacks.append(make(**asdict(values)))
    interpolation = settings.weight_interpolation
    if interpolation is not None and interpolation.head == "first_stage":
        callbacks.append(FirstStageCallback())
    return callbacks


def make_dynamics(settings: DynamicsConfig | None) -> list[TrainerCallback]:
    """The callback that measures, if something is to be measured. It goes before those that change what trains.

    Raises:
        ConfigurationError: A setting is not usable, naming its section.
    """
    if settings is None:
        return []
    own = {key: value for key, value in asdict(settings).items() if key != "probe"}
    probe = {f"probe_{key}": value for key, value in asdict(settings.probe).items()}
    with named("dynamics"):
        return [EarlyDynamicsCallback(**own, **probe)]


def make_staged(settings: InterventionConfig) -> StagedCallback | None:
    """The callback that freezes layers; None for standard fine-tuning.

    Raises:
        ConfigurationError: A setting is not usable, naming its section.
    """
    if settings.method == names.LISA:
        with named("intervention.lisa"):
            return LISACallback(**asdict(settings.lisa or LISAConfig()))
    if settings.method == names.AUTOFREEZE:
        with named("intervention.autofreeze"):
            return AutoFreezeCallback(**asdict(settings.autofreeze or AutoFreezeConfig()))
    if settings.method != names.GRADUAL_UNFREEZING:
        return None
    own: dict[str, Any] = {key: getattr(settings, key) for key in _GRADUAL}
    probe = {f"probe_{key}": value for key, value in asdict(settings.probe).items()}
    with named("intervention"):
        return GradualUnfreezingCallback(**own, **asdict(settings.detector), **probe)


def also(settings: InterventionConfig) -> tuple[str, ...]:
    """The sections of an intervention that are on beside its method."""
    sections = (*_SECTIONS, "weight_interpolation")
    return tuple(section for section in sections if getattr(settings, section) is not None)


def record_of(
    settings: InterventionConfig, callbacks: Sequence[TrainerCallback], **of_stages: Any
) -> InterventionRecord:
    """What the callbacks of an intervention have done, once training is over.

    Args:
        settings: Of the intervention.
        callbacks: Those of the Trainer.
        **of_stages: What the record says about stages.
    """
    events = [one.records[-1] for one in callbacks if isinstance(one, PerturbationCallback) and one.records]
    perturbation = None
    if events:
        further = {} if settings.perturbation is None else settings.perturbation.further
        known = {key: value for key, value in events[-1].items() if key != "event"}
        perturbation = PerturbationRecord.from_dict({**known, "settings": further})
    return InterventionRecord(settings.method, also=also(settings), perturbation=perturbation, **of_stages)


def check_together(callbacks: Sequence[TrainerCallback]) -> None:
    """Refuse callbacks that undo each other; what a configuration holds was checked when it was read.

    Raises:
        ConfigurationError: The Fisher penalty with layers that ascend; masked language modeling with what needs the
            head of the task; one series of one measure of two kinds.
    """
    _check_series(callbacks)
    masks = any(isinstance(one, PretextCallback) and one.settings["kind"] == MASKED_LM for one in callbacks)
    whole = StagedCallback | FisherPenaltyCallback | GenerationsCallback | PerturbationCallback
    others = [one for one in callbacks if isinstance(one, whole)]
    if masks and others:
        raise ConfigurationError(
            "Masked language modeling leaves out the loss and the head of the task, and freezes the latter.",
            got=f"PretextCallback('masked_lm') and {type(others[0]).__name__}",
            fix="Leave one of them out, or take random_labels or shuffled_tokens.",
        )
    ascends = any(isinstance(one, GenerationsCallback) and one.settings["ascent"] is not None for one in callbacks)
    if ascends and any(isinstance(one, FisherPenaltyCallback) for one in callbacks):
        raise ConfigurationError(
            "The Fisher penalty would be raised, not lowered, by the layers that go up the gradient.",
            got="FisherPenaltyCallback and GenerationsCallback with ascent",
            fix="Leave one of them out, or set ascent=None.",
        )


def _check_series(callbacks: Sequence[TrainerCallback]) -> None:
    """What is measured twice must be the same, for it is one series in the file and in trackers."""
    deciding = [one for one in callbacks if isinstance(one, GradualUnfreezingCallback)]
    measuring = [one for one in callbacks if isinstance(one, EarlyDynamicsCallback)]
    for one, other in itertools.product(deciding, measuring):
        for measure, settings in one.series.items():
            if measure not in other.settings["measures"]:
                continue
            differing = [key for key in _PROBE if one.settings[key] != other.settings[key]]
            theirs = all_settings(measure, other.settings["settings"].get(measure))
            differing += [key for key in settings if settings[key] != theirs[key]]
            if one.probe_dataset is not other.probe_dataset:
                differing.append("probe_dataset")
            if differing:
                raise ConfigurationError(
                    f"{measure} would be one series of two kinds: it is measured for the interval and otherwise, too.",
                    got=f"different {', '.join(differing)}",
                    fix="Measure it in the same way for both (in a recipe: dynamics and intervention.probe), or leave"
                    " it out of the measures.",
                )
