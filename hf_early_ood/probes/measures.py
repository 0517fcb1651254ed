"""All measures by name, each as one record of a series: what a callback or the command line can be asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from hf_early_ood.errors import ConfigurationError, did_you_mean, named
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.curvature import (
    check_hessian_top_eigenvalue,
    check_hessian_trace,
    hessian_top_eigenvalue,
    hessian_trace,
)
from hf_early_ood.probes.fisher import check_fisher_trace, fisher_trace
from hf_early_ood.probes.gradient_subspace import check_gradient_subspace_overlap, gradient_subspace_overlap
from hf_early_ood.probes.gradients import (
    check_fisher_trace_batch_mean,
    check_gradient_norm,
    fisher_trace_batch_mean,
    gradient_norm,
    relative_gradient_norm,
)
from hf_early_ood.probes.likelihood import Likelihood, count_empty
from hf_early_ood.probes.ranks import Share
from hf_early_ood.probes.sharpness import (
    average_sharpness,
    check_average_sharpness,
    check_worst_case_sharpness,
    worst_case_sharpness,
)
from hf_early_ood.probes.trajectory import check_trajectory, trajectory

MEASURES: dict[str, Callable[..., Any]] = {
    "fisher_trace": fisher_trace,
    "fisher_trace_batch_mean": fisher_trace_batch_mean,
    "gradient_norm": gradient_norm,
    "relative_gradient_norm": relative_gradient_norm,
    "average_sharpness": average_sharpness,
    "worst_case_sharpness": worst_case_sharpness,
    "hessian_trace": hessian_trace,
    "gauss_newton_trace": partial(hessian_trace, matrix="gauss_newton"),
    "hessian_top_eigenvalue": hessian_top_eigenvalue,
    "gradient_subspace_overlap": gradient_subspace_overlap,
    "trajectory": trajectory,
}
# What the functions check their settings with.
_CHECKS: dict[str, Callable[..., None]] = {
    "fisher_trace": check_fisher_trace,
    "fisher_trace_batch_mean": check_fisher_trace_batch_mean,
    "gradient_norm": check_gradient_norm,
    "relative_gradient_norm": check_gradient_norm,
    "average_sharpness": check_average_sharpness,
    "worst_case_sharpness": check_worst_case_sharpness,
    "hessian_trace": check_hessian_trace,
    "gauss_newton_trace": check_hessian_trace,
    "hessian_top_eigenvalue": check_hessian_top_eigenvalue,
    "gradient_subspace_overlap": check_gradient_subspace_overlap,
    "trajectory": check_trajectory,
}
# Given by whoever measures, not by the settings of a measure.
_OWN = ("model", "batches", "seed", "groups", "share", "start", "before")


def check_measures(
    measures: Sequence[str], settings: Mapping[str, Mapping[str, Any]], *, from_start: bool = False
) -> None:
    """Refuse unknown measures, and settings with which a measure would refuse to begin, whatever the model is.

    Args:
        measures: Names of measures, each once.
        settings: Further arguments by measure.
        from_start: Whether there are start weights, for the measures of what has changed since.

    Raises:
        ConfigurationError: Naming the measure, the setting and the closest known word.

    Example:
        >>> check_measures(["average_sharpness"], {"average_sharpness": {"rho": 0.05}})
        >>> check_measures(["average_sharpness"], {"average_sharpness": {"rho": -1}})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hf_early_ood.errors.ConfigurationError: average_sharpness: rho is not usable. Got: -1. ...
    """
    if isinstance(measures, str):
        raise ConfigurationError("The measures are not a list of names.", got=repr(measures), fix=f"[{measures!r}]")
    chosen = list(measures)
    if not chosen:
        raise ConfigurationError("There is nothing to measure.", allowed=", ".join(MEASURES))
    for name in chosen:
        if name not in MEASURES:
            raise ConfigurationError("Unknown measure.", got=name, fix=did_you_mean(str(name), MEASURES))
        if chosen.count(name) > 1:
            raise ConfigurationError("A measure is named twice.", got=name, fix="Name it once.")
        if "start" in _parameters(name) and not from_start:
            raise ConfigurationError(
                f"{name} is measured from where training began, which is not known here.",
                got=name,
                allowed=", ".join(known for known in MEASURES if "start" not in _parameters(known)),
                fix="Measure it with EarlyDynamicsCallback, or along checkpoints with hf-early-ood trajectory.",
            )
    if not isinstance(settings, Mapping) or not all(isinstance(values, Mapping) for values in settings.values()):
        raise ConfigurationError(
            "The settings of measures are not usable.",
            got=repr(settings),
            allowed="a mapping from measures to their settings, such as {'average_sharpness': {'rho': 0.05}}",
        )
    for name, values in settings.items():
        if name not in chosen:
            raise ConfigurationError("Settings for a measure that is not taken.", got=name, allowed=", ".join(chosen))
        known = _defaults(name)
        for key in values:
            if key not in known:
                raise ConfigurationError(f"Unknown setting of {name}.", got=key, fix=did_you_mean(str(key), known))
    for name in chosen:
        with named(name):
            _CHECKS[name](**all_settings(name, settings.get(name)))


def _defaults(name: str) -> dict[str, Any]:
    """The settings that a measure takes, with their defaults."""
    parameters = _parameters(name).items()
    return {key: item.default for key, item in parameters if key not in _OWN and key not in _fixed(name)}


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(MEASURES[name]).parameters


def all_settings(name: str, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings with which a measure is taken: those given, and its defaults.

    Example:
        >>> all_settings("fisher_trace", {"labels": "empirical"})["labels"]
        'empirical'
    """
    return {**_defaults(name), **(settings or {}), **_fixed(name)}


def _fixed(name: str) -> Mapping[str, Any]:
    """The settings that make a measure what it is."""
    function = MEASURES[name]
    return function.keywords if isinstance(function, partial) else {}


def reads_examples(name: str) -> bool:
    """Whether a measure is taken on examples, rather than of the weights alone.

    Args:
        name: A key of `MEASURES`.

    Example:
        >>> reads_examples("fisher_trace"), reads_examples("trajectory")
        (True, False)
    """
    return "batches" in _parameters(name)


def needs_labels(name: str, settings: Mapping[str, Any] | None = None) -> bool:
    """Whether a measure reads the labels of the data.

    A task can need them whatever the measure is: in masked language modeling only they tell what is predicted.

    Args:
        name: A key of `MEASURES`.
        settings: Its further arguments.

    Example:
        >>> needs_labels("fisher_trace"), needs_labels("fisher_trace", {"labels": "empirical"})
        (False, True)
        >>> needs_labels("average_sharpness"), needs_labels("gauss_newton_trace")
        (True, False)
    """
    return reads_examples(name) and labels_of(name, settings) == "empirical"


def labels_of(name: str, settings: Mapping[str, Any] | None = None) -> str:
    """Which y a measure is taken with: a word of `LABEL_CHOICES`.

    Args:
        name: A key of `MEASURES`.
        settings: Its further arguments.

    Example:
        >>> labels_of("fisher_trace"), labels_of("average_sharpness"), labels_of("gauss_newton_trace")
        ('sampled', 'empirical', 'expected')
    """
    values = all_settings(name, settings)
    # The Gauss-Newton matrix is the Fisher information with expected labels.
    return values.get("labels", "expected" if values.get("matrix") == "gauss_newton" else "empirical")


def check_examples(
    likelihood: Likelihood,
    batches: Iterable[Mapping[str, Tensor]],
    measures: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
) -> None:
    """Refuse examples for which nothing is predicted, before a measure does.

    Args:
        likelihood: Of the model's task.
        batches: What to measure on.
        measures: Names of measures.
        settings: Further arguments by measure.

    Raises:
        DataError: A measure would be 0 whatever the model is; see `count_empty`.
    """
    batches = list(batches)
    reading = [name for name in measures if reads_examples(name)]
    for labels in dict.fromkeys(labels_of(name, settings.get(name)) for name in reading):
        count_empty(likelihood, batches, labels)


def measure(
    name: str,
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    groups: LayerGroups,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    share: Share | None = None,
    start: Mapping[str, Tensor] | None = None,
    before: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Take one measure.

    The curvature measures and the gradient norm are taken of all batches on every rank: a product, or a gradient, has
    as many numbers as the measured parameters, and to add it up over ranks would cost what sharing the batches saves.

    Args:
        name: A key of `MEASURES`.
        model: The model.
        batches: Probe batches on the model's device.
        groups: Layer groups, for the measures that have a value for each.
        seed: Seed of the measure's random numbers.
        settings: Further arguments of the measure, e.g. ``{"rho": 0.05}``.
        share: What this process measures, for the measures that are means over examples or over batches.
        start: Weights at the start of training, for the measures of what has changed since; on one process.
        before: Weights before the last update, for the same.

    Returns:
        ``measure``, ``value``, ``normalized`` (per parameter; None where it makes no sense), ``per_group``,
        ``num_examples`` (None where none is read), ``standard_error`` (None where the value is exact or the error not
        known), and ``details``.

    Raises:
        ProbeError: The measure cannot be taken, or is not finite.
    """
    function, given = MEASURES[name], dict(settings or {})
    own = {"batches": batches, "seed": seed, "groups": groups, "share": share, "start": start, "before": before}
    given.update({key: value for key, value in own.items() if key in _parameters(name)})
    result = function(model, **given).to_dict()
    value = result.pop("total") if "total" in result else result.pop("value")
    return {
        "measure": name,
        "value": value,
        "normalized": result.pop("normalized", None),
        "per_group": result.pop("per_group", None) or {},
        "num_examples": result.pop("num_examples"),
        "standard_error": result.pop("standard_error", None),
        "details": result,
    }
