"""Which of the frozen groups comes next: measured on all of them, with training left as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.utils import logging

from hf_early_ood.callbacks.measuring import measure_in_training
from hf_early_ood.errors import ProbeError
from hf_early_ood.freezing import Freezer, requires_grad_set
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.batches import ProbeSet

logger = logging.get_logger(__name__)


def scores_of(
    measure: str,
    model: nn.Module,
    freezer: Freezer,
    probe_set: ProbeSet,
    groups: LayerGroups,
    *,
    seed: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """A measure, by group, of everything that trains at some time, frozen now or not.

    Must be called on every rank. The arguments are those of `measure_in_training`.

    Raises:
        ProbeError: The measure cannot be taken: nothing could be selected, and a guess would not be the method.
    """
    everything = {name: p for parameters in freezer.managed.values() for name, p in parameters.items()}
    with requires_grad_set(everything, everything):
        record = measure_in_training(measure, model, probe_set, groups, seed=seed, settings=settings)
    if not record["per_group"]:
        raise ProbeError(
            f"The next layer group cannot be selected: there is no {measure}.",
            got=str(record["details"].get("error", "a measure without values by group")),
            fix="Look at the loss and the learning rate, or use an order that needs no measurement.",
        )
    return {**record, "trainable": list(freezer.managed)}


def select_largest(candidates: Sequence[Sequence[str]], per_group: Mapping[str, float | None]) -> Sequence[str]:
    """The candidate whose groups have the largest sum of scores; of equal ones the first.

    Example:
        >>> select_largest([("block.0",), ("block.1",)], {"block.0": 1.0, "block.1": 2.0, "head": 9.0})
        ('block.1',)
    """
    return max(candidates, key=lambda unit: math.fsum(per_group.get(name) or 0.0 for name in unit))
