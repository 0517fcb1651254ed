"""Measures of one model in memory, as records of a series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import nn

from hf_early_ood import names
from hf_early_ood.callbacks.measuring import check_deterministic, measure_in_training
from hf_early_ood.checks import PARAMETER_CHOICES, check_choice, check_seed
from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.measures import check_measures


def probe_model(
    model: nn.Module,
    probe_set: ProbeSet,
    measures: Sequence[str] = (names.FISHER_TRACE,),
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    parameters: str = "trainable",
    step: int = 0,
) -> list[dict[str, Any]]:
    """Take measures of a model as it is, without a trace on it.

    Args:
        model: A model of transformers with a head, or PEFT around one, on any device.
        probe_set: What to measure on.
        measures: Names of `hf_early_ood.probes.measures.MEASURES`.
        settings: Further arguments by measure, e.g. ``{"average_sharpness": {"rho": 0.05}}``.
        seed: Seed of the measures' random numbers.
        parameters: "trainable": what requires a gradient now. "all": every parameter.
        step: Completed updates, for the records.

    Returns:
        One record a measure, as `EarlyDynamicsCallback` writes them. A measure that cannot be taken of this model
        (NaN or infinity, no memory) has None as value and says why in ``details["error"]``.

    Raises:
        ConfigurationError: An unknown measure or setting, or a value that is not usable.
        DataError: The probe set does not fit the model, or nothing is predicted for any example.
        ProbeError: The model answers differently when asked twice.
        UnsupportedModelError: A task without a known likelihood.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> data = [{"input_ids": torch.tensor([1, 2, 3])}, {"input_ids": torch.tensor([4, 5, 6])}]
        >>> collate = torch.utils.data.default_collate
        >>> probe_set = ProbeSet.from_dataset(data, collate, size=2, batch_size=2)
        >>> (record,) = probe_model(BertForSequenceClassification(config), probe_set)
        >>> record["measure"], sorted(record["per_group"])
        ('fisher_trace', ['block.0', 'embeddings', 'head'])
    """
    check_measures(measures, settings or {})
    check_seed(seed)
    check_choice("parameters", parameters, PARAMETER_CHOICES)
    return list(measurements(model, probe_set, measures, settings or {}, seed, parameters, step))


def measurements(
    model: nn.Module,
    probe_set: ProbeSet,
    measures: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    seed: int,
    parameters: str,
    step: int,
) -> Iterator[dict[str, Any]]:
    """What `probe_model` returns, one by one."""
    check_deterministic(model, probe_set, measures, settings)
    floating = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    # Of a PEFT model, only what requires a gradient is put into groups.
    with requires_grad_set(floating, floating) if parameters == "all" else nullcontext():
        groups = find_layer_groups(model).trainable()
    for name in measures:
        given = {**settings.get(name, {}), "parameters": parameters}
        record = measure_in_training(name, model, probe_set, groups, seed=seed, settings=given)
        yield {"step": step, **record, "trainable": list(groups.names)}
