"""All measures by name, each as one record of a series: what a callback or the command line can be asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.curvature import hessian_top_eigenvalue, hessian_trace
from hf_early_ood.probes.fisher import fisher_trace
from hf_early_ood.probes.ranks import Share
from hf_early_ood.probes.sharpness import average_sharpness, worst_case_sharpness

MEASURES: dict[str, Callable[..., Any]] = {
    "fisher_trace": fisher_trace,
    "average_sharpness": average_sharpness,
    "worst_case_sharpness": worst_case_sharpness,
    "hessian_trace": hessian_trace,
    "gauss_newton_trace": partial(hessian_trace, matrix="gauss_newton"),
    "hessian_top_eigenvalue": hessian_top_eigenvalue,
}
# Given by whoever measures, not by the settings of a measure.
_OWN = ("model", "batches", "seed", "groups", "share")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def check_measures(measures: Iterable[str], settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse unknown measures and unknown settings of a measure.

    Raises:
        ConfigurationError: Naming the closest known word.

    Example:
        >>> check_measures(["average_sharpness"], {"average_sharpness": {"rho": 0.05}})
    """
    chosen = list(measures)
    if not chosen:
        raise ConfigurationError("There is nothing to measure.", allowed=", ".join(MEASURES))
    for name in chosen:
        if name not in MEASURES:
            raise ConfigurationError("Unknown measure.", got=name, fix=did_you_mean(name, MEASURES))
    for name, values in settings.items():
        if name not in chosen:
            raise ConfigurationError("Settings for a measure that is not taken.", got=name, allowed=", ".join(chosen))
        known = {key: value for key, value in inspect.signature(MEASURES[name]).parameters.items() if key not in _OWN}
        for key, value in values.items():
            if key not in known:
                raise ConfigurationError(f"Unknown setting of {name}.", got=key, fix=did_you_mean(str(key), known))
            default = known[key].default
            if default is None:
                continue
            fits = isinstance(value, bool) == isinstance(default, bool) and isinstance(value, type(default))
            if not fits and not (type(default) is float and type(value) is int):
                raise ConfigurationError(
                    f"{key} of {name} is not usable.",
                    got=repr(value),
                    allowed=f"{_KINDS[type(default)]}, such as {default!r}",
                )


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
    values = {key: item.default for key, item in inspect.signature(MEASURES[name]).parameters.items()}
    values |= settings or {}
    if "labels" in values:
        return values["labels"] == "empirical"
    return values.get("matrix", "hessian") == "hessian"


def measure(
    name: str,
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    groups: LayerGroups,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    share: Share | None = None,
) -> dict[str, Any]:
    """Take one measure.

    The curvature measures are taken of all batches on every rank: a product of theirs has as many numbers as the
    measured parameters, and to add it up over ranks, once a product, would cost what sharing the batches saves.

    Args:
        name: A key of `MEASURES`.
        model: The model.
        batches: Probe batches on the model's device.
        groups: Layer groups, for the measures that have a value for each.
        seed: Seed of the measure's random numbers.
        settings: Further arguments of the measure, e.g. ``{"rho": 0.05}``.
        share: What this process measures, for the measures that are means over examples or over batches.

    Returns:
        ``measure``, ``value``, ``normalized`` (per parameter; None where it makes no sense), ``per_group``,
        ``num_examples``, ``standard_error`` (None where the value is exact or the error not known), and ``details``.

    Raises:
        ProbeError: The measure cannot be taken, or is not finite.
    """
    function, given = MEASURES[name], dict(settings or {})
    if "groups" in inspect.signature(function).parameters:
        given["groups"] = groups
    if "share" in inspect.signature(function).parameters:
        given["share"] = share
    result = function(model, batches, seed=seed, **given).to_dict()
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
