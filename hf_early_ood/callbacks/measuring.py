"""One measurement inside training: on the device, timed, harmless if it fails, and the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn
from transformers.utils import logging

from hf_early_ood.errors import ModelChangedError, NonFiniteError, ProbeError
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import likelihood_for
from hf_early_ood.probes.measures import check_examples, measure
from hf_early_ood.probes.memory import is_out_of_memory
from hf_early_ood.probes.ranks import RankShare, Share
from hf_early_ood.sharding import gathered, is_distributed

T = TypeVar("T")

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
    start: Mapping[str, Tensor] | None = None,
    before: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Take one measure of what trains now, as a record of the dynamics file with its ``seconds``.

    Must be called on every rank: each measures some of the batches (all of them, for the curvature measures), and
    every rank gets the record that one process would have made. ``seconds`` are those of the slowest rank.

    A measure that cannot be taken (NaN or infinity, no memory for it) is recorded as None, with a warning that says
    why, on every rank, and training goes on as it would have without the measurement.

    Args:
        name: The measure.
        model: The model, unwrapped.
        probe_set: What to measure on.
        groups: The layer groups.
        seed: Seed of the measure.
        settings: Further arguments of the measure.
        strict: Raise where the measure cannot be taken at all; for the first measurement, when no time is lost yet.
        start: Weights at the start of training, on the main process; see `measure`.
        before: Weights before the last update, on the main process; see `measure`.

    Raises:
        ProbeError: If ``strict``, but not for NaN or infinity; always if a measurement changed the model.
    """
    share = _share_of(probe_set)
    try:
        # The share outside: whoever fails to gather the model still comes to the meeting of the ranks.
        with share, _memory_explained(name), gathered(model):
            device = next(model.parameters()).device
            batches = probe_set.to(device)
            record = measure(
                name, model, batches, groups, seed=seed, settings=settings, share=share, start=start, before=before
            )
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
    return {**record, "seconds": share.seconds}


@contextmanager
def _memory_explained(name: str) -> Iterator[None]:
    """Let a lack of memory be an error of the measurement, which training survives."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, ProbeError) or not is_out_of_memory(error):
            raise
        raise ProbeError(
            f"There is no memory for {name}.",
            got=str(error).splitlines()[0],
            fix="Measure with smaller or shorter probe batches, or fewer parameters, or make room on the device.",
        ) from error


def _share_of(probe_set: ProbeSet) -> Share:
    """The batches that this rank measures."""
    if not is_distributed() or torch.distributed.get_world_size() == 1:
        return Share()
    # ZeRO may gather parameters in every pass: all ranks must make the same passes.
    if AcceleratorState().distributed_type == DistributedType.DEEPSPEED:
        return Share()
    return RankShare(probe_set.batches)


def check_deterministic(
    model: nn.Module,
    probe_set: ProbeSet,
    measures: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Ask the model twice about the first probe batch: a series of measurements is worth nothing if it differs.

    Args:
        model: The model, unwrapped.
        probe_set: What to measure on.
        measures: What is to be measured, to make sure that the examples say something about it.
        settings: Further arguments by measure.

    Raises:
        DataError: Nothing is predicted for any example.
        ProbeError: The answers differ, though the model is in eval mode.
    """
    # The share, of which nothing is asked, makes all ranks raise what one of them does.
    with _share_of(probe_set), gathered(model), isolated(model), torch.no_grad():
        likelihood = likelihood_for(model)
        check_examples(likelihood, probe_set, measures, settings or {})
        device = next(model.parameters()).device
        batch = {key: value.to(device) for key, value in probe_set.batches[0].items()}
        first, second = (likelihood.predictions(model(**likelihood.inputs(batch))) for _ in range(2))
        if not torch.allclose(first, second, rtol=_SAME, atol=_SAME, equal_nan=True):
            raise ProbeError(
                "The model answers the same probe examples differently when asked twice in eval mode.",
                got=f"log-probabilities that differ by up to {(first - second).abs().max().item():.3g}",
                fix="Switch off what is random in the forward pass (dropout called as a function, sampling, noise).",
            )


def from_main_process(value: T) -> T:
    """Rank 0's value on every rank: all must measure the same examples, and take the same decision."""
    if is_distributed():
        return broadcast_object_list([value], from_process=0)[0]
    return value
