"""Checks of one key against another, and against the disk."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_early_ood.config.dynamics import check_dynamics, check_probe_set, may_decide
from hf_early_ood.config.parsing import Problems, usable
from hf_early_ood.config.perturbations import PerturbationConfig, faults
from hf_early_ood.names import QUESTION_ANSWERING, SEQUENCE_CLASSIFICATION
from hf_early_ood.schedules import AUTO, RELEASES

if TYPE_CHECKING:
    from hf_early_ood.config.interventions import (
        InterventionConfig,
        PretextConfig,
        WeightInterpolationConfig,
    )
    from hf_early_ood.config.schema import RunConfig

# The keys that a schedule file replaces.
SCHEDULE_KEYS = ("interval", "order", "initial", "release", "first", "start", "embeddings", "order_seed")
# The keys of gradual unfreezing.
_GRADUAL_KEYS = (*SCHEDULE_KEYS, "schedule", "signal", "vote", "signal_settings", "detector", "probe")
FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
HUB_FILE = "hf://"
_PATH_STARTS = (".", "/", "~")
# Names become folders and parts of dotted keys.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
NAME_IN_WORDS = "letters, digits, - and _, beginning with a letter or a digit"


def is_file_source(source: str) -> bool:
    """Whether ``source`` means files on this machine rather than a data set's name.

    Example:
        >>> is_file_source("data/train.csv"), is_file_source("stanfordnlp/sst2"), is_file_source("hf://datasets/a/b.csv")
        (True, False, False)
    """
    if source.startswith(HUB_FILE):
        return False
    return source.startswith(_PATH_STARTS) or source.lower().endswith(FILE_SUFFIXES)


def is_local(name: str) -> bool:
    """Whether the name of a model or of data means files of this machine: by its form, or because they are there.

    Example:
        >>> is_local("~/models/mine"), is_local("google-bert/bert-base-uncased")
        (True, False)
    """
    return is_file_source(name) or (not name.startswith(HUB_FILE) and Path(name).exists())


def check_name(name: str, path: str, problems: Problems) -> None:
    """Note a problem if ``name`` cannot be the name of a run, an arm or an OOD set."""
    if usable(name) and not _NAME.fullmatch(name):
        problems.add(path, "is not a usable name", got=name, allowed=NAME_IN_WORDS)


def check_run(config: RunConfig, problems: Problems) -> None:
    """Note every problem between the keys of one run."""
    check_name(config.name, "name", problems)
    if usable(config.output_dir) and not config.output_dir.strip():
        problems.add("output_dir", "is empty", allowed="a folder")
    if usable(config.model) and usable(config.model.name):
        name = config.model.name
        if not name.strip():
            problems.add("model.name", "is empty", allowed="a model's name on the Hub, or its folder")
        elif name.startswith(_PATH_STARTS) and not Path(name).expanduser().is_dir():
            problems.add("model.name", "this folder does not exist", got=name)
    judged = config.evaluation
    if usable(judged, config.task) and usable(judged.prediction_depth) and judged.prediction_depth is not None:
        check_depth_task(config.task, problems)
    max_steps = None
    if usable(config.training):
        steps = config.training.get("max_steps")
        max_steps = steps if isinstance(steps, int) and steps > 0 else None
    if usable(config.intervention):
        check_intervention(config.intervention, max_steps, problems)
        if usable(config.dynamics) and config.dynamics is not None:
            check_dynamics(config.dynamics, config.intervention, problems)
        perturbation = config.intervention.perturbation
        best = usable(config.training) and config.training.get("load_best_model_at_end")
        if usable(perturbation) and perturbation is not None and best:
            problems.add(
                "training.load_best_model_at_end",
                "the best checkpoint may be one from before the perturbation",
                got=True,
                allowed="false, where intervention.perturbation is given",
            )
        if usable(config.intervention.pretext, config.task) and config.intervention.pretext is not None:
            _check_pretext_of_run(config.intervention.pretext, config.task, max_steps, problems)


def _check_pretext_of_run(pretext: PretextConfig, task: str, max_steps: int | None, problems: Problems) -> None:
    if pretext.kind == "shuffled_tokens" and task == QUESTION_ANSWERING:
        problems.add(
            "intervention.pretext.kind",
            "would tear the answers apart",
            got="shuffled_tokens",
            allowed=f"random_labels or masked_lm for task {QUESTION_ANSWERING}",
        )
    if max_steps and isinstance(pretext.updates, int) and pretext.updates >= max_steps:
        problems.add(
            "intervention.pretext.updates",
            f"the task would never be trained in training.max_steps={max_steps} updates, of which these are part",
            got=pretext.updates,
            allowed=f"less than {max_steps}",
        )


def check_depth_task(task: str, problems: Problems) -> None:
    """Note a problem if examples of the task have no prediction depth."""
    if task != SEQUENCE_CLASSIFICATION:
        problems.add(
            "evaluation.prediction_depth",
            f"is not defined for {task}",
            allowed=f"task {SEQUENCE_CLASSIFICATION}, where each text has one class",
        )


def check_method_written(section: object, problems: Problems) -> None:
    """Note the keys of gradual unfreezing that were written where no method was: they would have no effect.

    With ``method: standard`` they have none either, but that was said: an arm may switch off what all arms share.

    Args:
        section: What was written under ``intervention``, presets included, before it is read.
        problems: Where problems are noted.
    """
    if not isinstance(section, Mapping) or "method" in section:
        return
    for key in _GRADUAL_KEYS:
        value = section.get(key)
        if value is not None and value != {}:
            problems.add(
                f"intervention.{key}",
                "has no effect without intervention.method",
                got=value,
                allowed="method: gradual_unfreezing beside it, or method: standard where it is to have none",
            )


def check_intervention(settings: InterventionConfig, max_steps: int | None, problems: Problems) -> None:
    """Note every problem between the keys of an intervention."""
    gradual = settings.method == "gradual_unfreezing"
    interval, detector, probe = settings.interval, settings.detector, settings.probe
    _check_count_or_fraction(interval, "intervention.interval", problems, whole=False)
    if gradual and max_steps and isinstance(interval, int) and interval >= max_steps:
        problems.add(
            "intervention.interval",
            f"no layer would be released before training ends after training.max_steps={max_steps} updates",
            got=interval,
            allowed=f"less than {max_steps}",
        )
    for key in ("initial", "order"):
        names = getattr(settings, key)
        if isinstance(names, tuple):
            _check_groups(names, f"intervention.{key}", problems)
    if isinstance(settings.schedule, str):
        _check_schedule(settings, problems)
    if isinstance(settings.release, int | float):
        _check_count_or_fraction(settings.release, "intervention.release", problems, whole=False, words=RELEASES)
    _check_combination(settings, problems)
    if usable(detector):
        _check_count_or_fraction(detector.max_step, "intervention.detector.max_step", problems, whole=True)
        automatic = gradual and interval == "auto" and settings.schedule is None
        if automatic and isinstance(detector.max_step, int):
            _check_fallback(settings, detector.max_step, max_steps, problems)
        if isinstance(detector.transient, int) and detector.transient < 0:
            problems.add(
                "intervention.detector.transient",
                "is out of range",
                got=detector.transient,
                allowed="auto, or a whole number of updates >= 0",
            )
    if usable(probe):
        check_probe_set(probe, "intervention.probe", problems)


def _check_combination(settings: InterventionConfig, problems: Problems) -> None:
    """Interventions combine where it makes sense; here is what does not, and why."""
    knows = usable(settings.method)
    for method in ("lisa", "autofreeze"):
        if knows and getattr(settings, method) is not None and settings.method != method:
            problems.add(
                f"intervention.{method}",
                f"is given, but intervention.method is {settings.method}",
                allowed=f"null, or method: {method}",
            )
    if knows and settings.method in ("lisa", "autofreeze"):
        defaults = type(settings)()
        for key in _GRADUAL_KEYS:
            value = getattr(settings, key)
            if usable(value) and value != getattr(defaults, key):
                problems.add(
                    f"intervention.{key}",
                    f"has no effect with method {settings.method}",
                    allowed=f"leave it out; the settings of the method are in intervention.{settings.method}",
                )
    generations, interpolation = settings.generations, settings.weight_interpolation
    if usable(generations) and generations is not None:
        if knows and settings.method != "standard":
            problems.add(
                "intervention.generations",
                "the early layers must train to go up the gradient, and later generations begin anew what a schedule"
                f" has long released: it does not go with method {settings.method}",
                allowed="method: standard",
            )
        penalty = settings.fisher_penalty
        if usable(generations.ascent, penalty) and generations.ascent is not None and penalty is not None:
            problems.add(
                "intervention.fisher_penalty",
                "would be raised, not lowered, by the layers that go up the gradient",
                allowed="null, or generations without ascent",
            )
        if usable(interpolation) and interpolation is not None and generations.forget is True:
            problems.add(
                "intervention.weight_interpolation",
                "layers that were re-initialized have nothing to do with the weights before: there is no path between",
                allowed="null, or generations without forget",
            )
    if usable(settings.perturbation) and settings.perturbation is not None:
        _check_perturbation(settings, settings.perturbation, problems)
    if usable(interpolation) and interpolation is not None:
        _check_interpolation(interpolation, problems)
        late = usable(settings.start) and settings.start != 0
        if interpolation.head == "first_stage" and knows and (settings.method != "gradual_unfreezing" or late):
            problems.add(
                "intervention.weight_interpolation.head",
                "training does not begin with a stage in which the head trains alone",
                got="first_stage",
                allowed="final, or method: gradual_unfreezing with start: 0",
            )
    if usable(settings.pretext) and settings.pretext is not None:
        _check_pretext(settings, problems)
    rates = settings.learning_rates
    if usable(rates) and rates is not None and rates.switch_at == "auto" and knows and not may_decide(settings):
        problems.add(
            "intervention.learning_rates.switch_at",
            "nothing decides a moment",
            got="auto",
            allowed="a number of updates, a fraction of training, or method: gradual_unfreezing with interval: auto",
        )


def _check_pretext(settings: InterventionConfig, problems: Problems) -> None:
    pretext = settings.pretext
    if pretext is None:
        return
    _check_count_or_fraction(pretext.updates, "intervention.pretext.updates", problems, whole=False, words=())
    if pretext.kind != "masked_lm":
        if (
            usable(pretext.kind, pretext.mask_probability)
            and pretext.mask_probability != type(pretext).mask_probability
        ):
            problems.add(
                "intervention.pretext.mask_probability",
                f"has no effect with kind {pretext.kind}",
                got=pretext.mask_probability,
                allowed="leave it out, or kind: masked_lm",
            )
        return
    if usable(settings.method) and settings.method != "standard":
        problems.add(
            "intervention.pretext.kind",
            f"masked_lm trains all layers but the head, and method {settings.method} says otherwise",
            got="masked_lm",
            allowed="method: standard, or kind: random_labels or shuffled_tokens",
        )
    for section in ("generations", "fisher_penalty", "perturbation"):
        if usable(getattr(settings, section)) and getattr(settings, section) is not None:
            problems.add(
                f"intervention.{section}",
                "is about the task, whose loss masked_lm leaves out and whose head it freezes",
                allowed="null, or pretext.kind: random_labels or shuffled_tokens",
            )


def _check_perturbation(settings: InterventionConfig, own: PerturbationConfig, problems: Problems) -> None:
    for key, what, got, allowed in faults(own):
        problems.add(f"intervention.perturbation.{key}", what, got=got, allowed=allowed)
    if usable(settings.method) and settings.method != "standard":
        problems.add(
            "intervention.perturbation",
            "a layer that waits frozen is at its start, and must not move: it does not go with method"
            f" {settings.method}",
            allowed="method: standard",
        )
    if usable(settings.weight_interpolation) and settings.weight_interpolation is not None:
        problems.add(
            "intervention.weight_interpolation",
            "the weights were perturbed on the way from those before to those after: there is no path between",
            allowed="null, or no perturbation",
        )


def _check_interpolation(settings: WeightInterpolationConfig, problems: Problems) -> None:
    if not usable(settings.alphas):
        return
    if (
        not settings.alphas
        or len(set(settings.alphas)) < len(settings.alphas)
        or not all(0 <= alpha <= 1 for alpha in settings.alphas)
    ):
        problems.add(
            "intervention.weight_interpolation.alphas",
            "are not usable",
            got=list(settings.alphas),
            allowed="a list of different numbers from 0 to 1",
        )
    elif isinstance(settings.alpha, float) and settings.alpha not in settings.alphas:
        problems.add(
            "intervention.weight_interpolation.alpha",
            "is not one of alphas",
            got=settings.alpha,
            allowed=f"id_validation, {', '.join(map(str, settings.alphas))}",
        )


def _check_count_or_fraction(
    value: object, path: str, problems: Problems, *, whole: bool, words: Sequence[str] = (AUTO,)
) -> None:
    """A whole number counts updates from 1 on; another number is a fraction of training."""
    if isinstance(value, int):
        fits = value >= 1
    elif isinstance(value, float):
        fits = 0 < value <= 1 if whole else 0 < value < 1
    else:
        return
    if not fits:
        top = "at most 1" if whole else "less than 1"
        numbers = ("a whole number of updates >= 1", f"or a fraction of training above 0 and {top}")
        problems.add(path, "is out of range", got=value, allowed=", ".join((*words, *numbers)))


def _check_groups(names: Iterable[str], path: str, problems: Problems) -> None:
    names = list(names)
    if not names:
        problems.add(path, "names no layer group", allowed="one name or more, as in [head]")
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(path, "names a layer group twice", got=name)


def _check_schedule(settings: InterventionConfig, problems: Problems) -> None:
    if not Path(str(settings.schedule)).expanduser().is_file():
        problems.add("intervention.schedule", "this file does not exist", got=settings.schedule)
    defaults = type(settings)()
    for key in SCHEDULE_KEYS:
        value = getattr(settings, key)
        if usable(value) and value != getattr(defaults, key):
            problems.add(
                f"intervention.{key}",
                "is given here and by the file in intervention.schedule: leave one of them out",
                got=value,
            )


def _check_fallback(settings: InterventionConfig, max_step: int, max_steps: int | None, problems: Problems) -> None:
    detector, probe = settings.detector, settings.probe
    path = "intervention.detector.max_step"
    if max_steps and max_step >= max_steps:
        problems.add(
            path,
            f"the fallback would come after training ends at training.max_steps={max_steps} updates",
            got=max_step,
            allowed=f"less than {max_steps}",
        )
    if isinstance(detector.transient, int) and detector.transient >= max_step:
        problems.add(
            "intervention.detector.transient",
            "ends after the fallback, so the signal would never be read",
            got=detector.transient,
            allowed=f"less than max_step={max_step}",
        )
    if usable(probe) and usable(probe.every, detector.window) and max_step < probe.every * detector.window:
        problems.add(
            path,
            f"the fallback comes before the detector can compare two averages (a measurement every "
            f"{probe.every} updates, window of {detector.window})",
            got=max_step,
            allowed=f"at least {probe.every * detector.window}, or a smaller intervention.probe.every",
        )
