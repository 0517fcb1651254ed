"""One measurement inside training: on the device, timed, harmless if it fails, and the same on every rank."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers.utils import logging

from hf_early_ood.errors import ModelChangedError, NonFiniteError, ProbeError
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import likelihood_for
from hf_early_ood.probes.measures import measure

logger = logging.get_logger(__name__)

_SAME = 1e-5  # relative; kernels of a GPU may add in another order


def measure_in_training(
    name: str,
    model: nn.Module,
    probe_set: ProbeSet,
    groups: LayerGroups,
    *,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """Take one measure of what trains now, as a record of the dynamics file with its ``seconds``.

    A measure that cannot be taken (NaN or infinity, no memory for it) is recorded as None, with a warning that says
    why, and training goes on as it would have without the measurement.

    Args:
        name: The measure.
        model: The model, unwrapped.
        probe_set: What to measure on.
        groups: The layer groups.
        seed: Seed of the measure.
        settings: Further arguments of the measure.
        strict: Raise where the measure cannot be taken at all; for the first measurement, when no time is lost yet.

    Raises:
        ProbeError: If ``strict``, but not for NaN or infinity; always if a measurement changed the model.
    """
    started = time.perf_counter()
    device = next(model.parameters()).device
    try:
        record = measure(name, model, probe_set.to(device), groups, seed=seed, settings=settings)
        fallbacks = record["details"].get("fallbacks")
        if fallbacks:
            logger.warning_once(
                f"{name}: {len(fallbacks)} parameters without an exact rule are measured by another estimator, such as "
                + ", ".join(f"{parameter} ({how})" for parameter, how in list(fallbacks.items())[:3])
            )
    except ProbeError as error:
        if isinstance(error, ModelChangedError) or (strict and not isinstance(error, NonFiniteError)):
            raise
        logger.warning(f"No {name}: {error}")
        record = {
            "measure": name,
            "value": None,
            "normalized": None,
            "per_group": {},
            "num_examples": probe_set.num_examples,
            "standard_error": None,
            "details": {"error": str(error)},
        }
    return {**record, "seconds": time.perf_counter() - started}


def check_deterministic(model: nn.Module, probe_set: ProbeSet) -> None:
    """Ask the model twice about the first probe batch: a series of measurements is worth nothing if it differs.

    Raises:
        ProbeError: The answers differ, though the model is in eval mode.
    """
    device = next(model.parameters()).device
    batch = {key: value.to(device) for key, value in probe_set.batches[0].items()}
    likelihood = likelihood_for(model)
    with isolated(model), torch.no_grad():
        first, second = (likelihood.predictions(model(**likelihood.inputs(batch))) for _ in range(2))
    if not torch.allclose(first, second, rtol=_SAME, atol=_SAME, equal_nan=True):
        raise ProbeError(
            "The model answers the same probe examples differently when asked twice in eval mode.",
            got=f"log-probabilities that differ by up to {(first - second).abs().max().item():.3g}",
            fix="Switch off what is random in the forward pass (dropout called as a function, sampling, noise).",
        )


def from_main_process(record: dict[str, Any]) -> dict[str, Any]:
    """Rank 0's record on every rank: all must take the same decision."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return broadcast_object_list([record], from_process=0)[0]
    return record
