"""Which of the frozen groups comes next: measured on all of them, with training left as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers.utils import logging

from hf_early_ood import names
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


def select_largest(
    candidates: Sequence[Sequence[str]], per_group: Mapping[str, float | None], measure: str
) -> Sequence[str]:
    """The candidate with the largest score; of equal ones the first.

    The score of several groups that are released together is the sum of theirs for traces, which add up over groups,
    and the largest one for ratios, which do not. A group without a value (its weights are all zero, so that a gradient
    has no norm relative to theirs) adds nothing. A candidate of such groups alone comes after all others; of several
    such the first, with a warning.

    Args:
        candidates: What can be released next: sets of groups that are released together.
        per_group: Score by group.
        measure: What the scores are.

    Example:
        >>> per_group = {"embeddings": 1.0, "block.0": 1.5, "block.1": 2.0, "head": 9.0}
        >>> units = [("embeddings", "block.0"), ("block.1",)]
        >>> select_largest(units, per_group, "fisher_trace"), select_largest(units, per_group, "relative_gradient_norm")
        (('embeddings', 'block.0'), ('block.1',))
    """
    combined: Callable[[list[float]], float] = max if measure == names.RELATIVE_GRADIENT_NORM else math.fsum
    values = {tuple(unit): [v for name in unit if (v := per_group.get(name)) is not None] for unit in candidates}
    scores = {unit: combined(known) for unit, known in values.items() if known}
    if not scores:
        if len(candidates) > 1:
            left = ", ".join(name for unit in candidates for name in unit)
            logger.warning(f"None of {left} has a {measure}: they are released in this order.")
        return candidates[0]
    return max(scores, key=lambda unit: scores[unit])
