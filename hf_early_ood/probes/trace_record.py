"""What a measurement of the Fisher trace says, and how the numbers of single examples become it.

N examples, G layer groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_early_ood.checks import PARAMETER_CHOICES, check_choice
from hf_early_ood.errors import NonFiniteError, ProbeError
from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.probes.batches import check_some
from hf_early_ood.probes.likelihood import check_not_all_empty


@dataclass(frozen=True)
class FisherTrace:
    """Trace of the Fisher information of a model on a set of examples.

    Attributes:
        total: Mean over examples of the squared gradient norm of log p(y|x).
        per_group: Layer group to its part of the total; only groups with measured parameters. Sums to ``total``.
        normalized: ``total / num_parameters``.
        num_parameters: Number of measured scalar parameters.
        num_examples: Number of examples N.
        standard_error: Of ``total``, over examples (over batches, where signs mix the examples of a batch);
            None where there is only one of them.
        labels: How y was chosen.
        estimator: What measured every parameter that is not in ``fallbacks``.
        fallbacks: Parameter name to the other estimator that measured it.
        seed: Seed of the label draws and of the signs.
        num_empty: Examples of the N for which nothing is predicted, and which add 0.
    """

    total: float
    per_group: dict[str, float]
    normalized: float
    num_parameters: int
    num_examples: int
    standard_error: float | None
    labels: str
    estimator: str
    fallbacks: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    num_empty: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """The parameters to be measured and the groups they are summed in.

    Attributes:
        parameters: Name to parameter. A shared parameter has one name.
        columns: Parameter name to position of its group.
        group_names: The groups with measured parameters, bottom to top.
    """

    parameters: dict[str, nn.Parameter]
    columns: dict[str, int]
    group_names: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, parameters: str, groups: LayerGroups | None) -> Measured:
        """Pick the parameters of ``model``.

        Raises:
            ConfigurationError: ``parameters`` is neither "trainable" nor "all".
            ProbeError: There is nothing to measure.
        """
        check_choice("parameters", parameters, PARAMETER_CHOICES)
        measured = {n: p for n, p in model.named_parameters() if parameters == "all" or p.requires_grad}
        if not measured:
            raise ProbeError(
                "There is no parameter to measure.",
                got="requires_grad is False everywhere" if parameters == "trainable" else "a model without parameters",
                fix="Use parameters='all', or release a layer first.",
            )
        groups = find_layer_groups(model) if groups is None else groups
        owner = {name: groups.group_of(name) for name in measured}
        names = tuple(name for name in groups.names if name in set(owner.values()))
        return cls(measured, {name: names.index(group) for name, group in owner.items()}, names)

    def zeros(self, rows: int) -> Tensor:
        """(B, G) zeros, float64, on the CPU."""
        return torch.zeros(rows, len(self.group_names), dtype=torch.float64, device="cpu")

    def add_up(self, norms: Mapping[str, Tensor], rows: int) -> Tensor:
        """Squared norms (B,) by parameter name -> (B, G) float64 on the CPU."""
        table = self.zeros(rows)
        if norms:
            # One transfer for all of them: each would make an accelerator wait.
            device = next(iter(norms.values())).device
            values = torch.stack([value.detach().to(device) for value in norms.values()], 1).cpu().double()
            table.index_add_(1, torch.tensor([self.columns[name] for name in norms], device="cpu"), values)
        return table


def summarize(
    units: Iterable[tuple[int, Tensor]],
    measured: Measured,
    *,
    labels: str,
    estimator: str,
    fallbacks: Mapping[str, str],
    seed: int,
    num_empty: int = 0,
) -> FisherTrace:
    r"""Mean and standard error from sums over units, where a unit is an example or a batch.

    With unit u holding n_u examples and the sum S_u: total = sum_u S_u / N, and, as for any ratio of sums,
    standard_error^2 = U / (U - 1) * sum_u (S_u - n_u total)^2 / N^2. For n_u = 1 this is the usual s^2 / N.

    Args:
        units: Pairs of number of examples per row and table (rows, G) of sums.
        measured: Parameters and groups.
        labels: For the record.
        estimator: For the record.
        fallbacks: For the record.
        seed: For the record.
        num_empty: Examples for which nothing is predicted.

    Raises:
        ConfigurationError: There is no example.
        DataError: Nothing is predicted for any example.
        NonFiniteError: A gradient is not finite.
    """
    pairs = list(units)
    check_some(pairs)
    sums = torch.cat([table for _, table in pairs])
    sizes = torch.cat([table.new_full((len(table),), float(n)) for n, table in pairs])
    if not bool(torch.isfinite(sums).all()):
        raise NonFiniteError(
            "A squared gradient norm is not finite.",
            got=f"groups {_broken(sums, measured.group_names)}",
            fix="The gradients overflow: measure the model in float32 or bfloat16.",
        )
    num_examples = int(sizes.sum())
    check_not_all_empty(num_empty, num_examples)
    per_group = (sums.sum(0) / num_examples).tolist()
    total = math.fsum(per_group)
    error = None
    if len(sums) > 1:
        spread = (sums.sum(1) - sizes * total).square().sum().item()
        error = math.sqrt(len(sums) / (len(sums) - 1) * spread) / num_examples
    num_parameters = sum(parameter.numel() for parameter in measured.parameters.values())
    return FisherTrace(
        total=total,
        per_group=dict(zip(measured.group_names, per_group, strict=True)),
        normalized=total / num_parameters,
        num_parameters=num_parameters,
        num_examples=num_examples,
        standard_error=error,
        labels=labels,
        estimator=estimator,
        fallbacks=dict(fallbacks),
        seed=seed,
        num_empty=num_empty,
    )


def _broken(sums: Tensor, names: Sequence[str]) -> list[str]:
    return [name for name, finite in zip(names, torch.isfinite(sums).all(0).tolist(), strict=True) if not finite]
