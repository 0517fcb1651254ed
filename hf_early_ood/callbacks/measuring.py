"""One measurement inside training: on the device, timed, and the same on every rank."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.errors import NonFiniteError
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.fisher import fisher_trace

logger = logging.get_logger(__name__)


def measure_fisher_trace(
    model: nn.Module, probe_set: ProbeSet, groups: LayerGroups, *, labels: str, seed: int
) -> dict[str, Any]:
    """Fisher trace of the parameters that train now, as a record of the dynamics file.

    A model that gives NaN or infinity has no Fisher trace: the value is None, a warning says why, and training goes
    on as it would have without the measurement.
    """
    started = time.perf_counter()
    device = next(model.parameters()).device
    try:
        trace = fisher_trace(model, probe_set.to(device), labels=labels, seed=seed, groups=groups)
        values = {
            "value": trace.total,
            "normalized": trace.normalized,
            "per_group": trace.per_group,
            "standard_error": trace.standard_error,
        }
        if trace.fallbacks:
            logger.warning_once(
                f"{len(trace.fallbacks)} parameters without an exact rule are measured by another estimator, such as "
                + ", ".join(f"{name} ({how})" for name, how in list(trace.fallbacks.items())[:3])
            )
    except NonFiniteError as error:
        logger.warning(f"No {names.FISHER_TRACE}: {error}")
        values = {"value": None, "normalized": None, "per_group": {}, "standard_error": None}
    return {
        "measure": names.FISHER_TRACE,
        **values,
        "num_examples": probe_set.num_examples,
        "seconds": time.perf_counter() - started,
    }


def from_main_process(record: dict[str, Any]) -> dict[str, Any]:
    """Rank 0's record on every rank: all must take the same decision."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return broadcast_object_list([record], from_process=0)[0]
    return record
