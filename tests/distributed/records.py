"""Measurements on several ranks: what they give, and what becomes of a failure on one rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, default_data_collator, set_seed

from hf_early_ood.callbacks.measuring import measure_in_training
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.batches import ProbeSet
from tests import families
from tests.training import Rows

MEASURED: dict[str, tuple[str, dict[str, Any]]] = {
    "fisher": ("fisher_trace", {}),
    "fisher, signs": ("fisher_trace", {"estimator": "rademacher"}),
    "fisher, signs and classes": ("fisher_trace", {"estimator": "rademacher", "labels": "expected", "num_draws": 2}),
    "batch means": ("fisher_trace_batch_mean", {"labels": "sampled"}),
    "gradient": ("gradient_norm", {}),
    "relative gradient": ("relative_gradient_norm", {}),
    "average": ("average_sharpness", {"num_draws": 4}),
    "worst case": ("worst_case_sharpness", {"steps": 3}),
    "worst case, random start": ("worst_case_sharpness", {"steps": 3, "random_start": True}),
    "trace": ("hessian_trace", {"num_products": 6}),
    "eigenvalue": ("hessian_top_eigenvalue", {"num_products": 4}),
}
# Examples and batch size: 4 batches of different sizes; 3 batches; fewer batches than ranks.
PROBE_SETS = {"four": (14, 4), "three": (12, 4), "one": (4, 4)}


def tiny() -> PreTrainedModel:
    set_seed(5)
    return families.build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def record(model: PreTrainedModel, measured: str, probe_set: str, strict: bool = False) -> dict[str, Any]:
    name, settings = MEASURED[measured]
    size, batch_size = PROBE_SETS[probe_set]
    probes = ProbeSet.from_dataset(Rows(20), default_data_collator, size=size, batch_size=batch_size)
    groups = find_layer_groups(model)
    return measure_in_training(name, model, probes, groups, seed=3, settings=settings, strict=strict)


def all_of_them() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (measured, probe_set): record(tiny(), measured, probe_set) for measured in MEASURED for probe_set in PROBE_SETS
    }


def on_rank_1(do: Callable[[], None]) -> Callable[..., None]:
    """A hook before the forward pass of the whole model."""

    def hook(module: nn.Module, args: Any) -> None:
        if torch.distributed.get_rank() == 1:
            do()

    return hook


def fail(error: Exception) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


def failures() -> dict[str, Any]:
    """What every rank sees when rank 1 cannot measure."""
    seen: dict[str, Any] = {}
    no_memory = on_rank_1(fail(RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")))
    for measured in ("fisher", "average"):
        model = tiny()
        model.register_forward_pre_hook(no_memory)
        seen[f"memory, {measured}"] = record(model, measured, "four")
    for measured in ("fisher", "worst case", "trace"):
        model = tiny()
        if torch.distributed.get_rank() == 1:
            model.classifier.bias.data.fill_(float("nan"))
        seen[f"nan, {measured}"] = record(model, measured, "four")
    for name, strict, error in (
        ("strict", True, RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")),
        ("bug", False, TypeError("a bug")),
    ):
        model = tiny()
        model.register_forward_pre_hook(on_rank_1(fail(error)))
        try:
            record(model, "fisher", "four", strict=strict)
        except Exception as caught:
            seen[name] = f"{type(caught).__name__}: {caught}"
    model = tiny()
    model.register_forward_pre_hook(on_rank_1(lambda: time.sleep(0.2)))
    seen["slow"] = record(model, "fisher", "one")
    seen["afterwards"] = record(tiny(), "fisher", "four")
    return seen
