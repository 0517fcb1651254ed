"""Norms of mean gradients: of the loss, relative to the weights, and the one that is taken for the Fisher trace.

None of them is the Fisher trace, which is a mean of squared norms: in the norm of a mean, the gradients of different
examples cancel.

Notation: B examples in a batch, N in all, P parameter tensors, G layer groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_early_ood.checks import PARAMETER_CHOICES, check_choice
from hf_early_ood.errors import ProbeError
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.gradient_sums import gradient_sums, squared_norms
from hf_early_ood.probes.ranks import Share
from hf_early_ood.probes.trace_record import Measured

BATCH_MEAN_LABELS = ("argmax", "sampled", "empirical")


@dataclass(frozen=True)
class GradientNorm:
    """Norm of the gradient of the mean loss over all examples.

    Attributes:
        total: The L2 norm over all measured parameters.
        per_group: Layer group to the norm over its parameters. The squares of these add up to that of ``total``.
        num_parameters: Number of measured scalar parameters.
        num_examples: Number of examples N.
        num_empty: Examples of the N for which nothing is predicted (every label is -100), and which add 0.
    """

    total: float
    per_group: dict[str, float]
    num_parameters: int
    num_examples: int
    num_empty: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class RelativeGradientNorm:
    """Norm of the gradient of a batch relative to that of the weights, mean over batches.

    Attributes:
        total: Of all measured parameters taken as one layer; neither the sum nor the mean of ``per_group``.
        per_group: Layer group to its value; only groups with measured parameters that are not all zero.
        per_tensor: Parameter name to its value, as the authors' code has it; only tensors that are not all zero.
            Not part of `to_dict`.
        standard_error: Of ``total``, over batches; None where there is only one.
        zero_groups: Measured groups whose weights are all zero, so that there is nothing to be relative to.
        num_parameters: Number of measured scalar parameters.
        num_examples: Number of examples.
        batch_sizes: Examples of each batch. The smaller the batches, the larger the norms of their mean gradients.
        num_empty: As in `GradientNorm`.
    """

    total: float
    per_group: dict[str, float]
    per_tensor: dict[str, float] = field(repr=False)
    standard_error: float | None
    zero_groups: tuple[str, ...]
    num_parameters: int
    num_examples: int
    batch_sizes: tuple[int, ...]
    num_empty: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types, without the single tensors."""
        record = {key: value for key, value in asdict(self).items() if key != "per_tensor"}
        return {**record, "zero_groups": list(self.zero_groups), "batch_sizes": list(self.batch_sizes)}


@dataclass(frozen=True)
class BatchMeanTrace:
    """What is measured where the gradients of a batch are averaged before they are squared. Not the Fisher trace.

    Attributes:
        total: Mean over batches of ||mean gradient||^2 / B.
        per_group: Layer group to its part of the total; only groups with measured parameters. Sums to ``total``.
        normalized: ``total / num_parameters``.
        num_parameters: Number of measured scalar parameters.
        num_examples: Number of examples.
        standard_error: Of ``total``, over batches; None where there is only one.
        batch_sizes: Examples of each batch. The value depends on them: compare only what has the same ones.
        labels: How y was chosen.
        seed: Seed of the label draws.
        num_empty: As in `GradientNorm`.
    """

    total: float
    per_group: dict[str, float]
    normalized: float
    num_parameters: int
    num_examples: int
    standard_error: float | None
    batch_sizes: tuple[int, ...]
    labels: str
    seed: int = 0
    num_empty: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {**asdict(self), "batch_sizes": list(self.batch_sizes)}


def gradient_norm(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    parameters: str = "trainable",
    groups: LayerGroups | None = None,
) -> GradientNorm:
    r"""Norm of the gradient of the loss on all examples together.

        ||grad_w L(w)||_2,   L(w) = 1/N sum_i -log p_w(y_i|x_i)

    y are the given labels, and -log p is summed over the predictions of an example, as for `hessian_trace` (a mean
    over tokens, as the models' own losses take, has another scale). Unlike the ``grad_norm`` that a Trainer logs, it
    is of fixed examples, without dropout. Norms of groups add up in squares: total^2 = sum_G norm_G^2. Nothing is
    random and the batches do not matter. It costs a forward and a backward pass, and holds one copy of the measured
    parameters. Several processes each measure all batches: to add up a gradient over ranks costs what sharing saves.

    Args:
        model: As for `fisher_trace`.
        batches: As for `fisher_trace`, with labels. Where there is no memory for one, it is measured in halves.
        parameters: ``"trainable"``: what requires a gradient now. ``"all"``: every parameter.
        groups: Layer groups to report; by default those of `find_layer_groups`.

    Returns:
        The norm, in total and per group. It is exact: there is no standard error.

    Raises:
        ConfigurationError: An unknown choice, or no batch.
        DataError: A batch or its labels are not usable, or nothing is predicted for any example.
        ProbeError: Nothing to measure, or no memory for one example.
        NonFiniteError: A prediction or a gradient is NaN or infinite.
        UnsupportedModelError: A model without a known task.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.tensor([0, 1])}
        >>> norm = gradient_norm(BertForSequenceClassification(config), [batch])
        >>> abs(norm.total**2 - sum(value**2 for value in norm.per_group.values())) < 1e-12
        True
    """
    check_gradient_norm(parameters=parameters)
    with gradient_sums(model, "empirical", parameters, groups) as gradients:
        for _ in gradients.of_batches(batches):
            pass  # not taken batch by batch: they add up
        squares = gradients.take() / sum(gradients.batch_sizes) ** 2
    return GradientNorm(
        total=math.sqrt(squares.sum().item()),
        per_group=_named(gradients.measured, _by_group(gradients.measured, squares).sqrt()),
        num_parameters=_num_parameters(gradients.measured),
        num_examples=sum(gradients.batch_sizes),
        num_empty=gradients.num_empty,
    )


def relative_gradient_norm(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    parameters: str = "trainable",
    groups: LayerGroups | None = None,
    share: Share | None = None,
) -> RelativeGradientNorm:
    r"""Norm of the gradient relative to that of the weights: by which Auto-RGN tells which layers to train.

    Source: Lee et al. (2023, Surgical Fine-Tuning, arXiv 2210.11466), relative gradient norm.

        RGN_G = mean_b ||grad_G L_b||_2 / ||w_G||_2,   L_b = 1/B sum_{i in b} -log p_w(y_i|x_i)

    G is a layer group, whose parameters are taken together, as one layer of the paper; ``total`` takes all measured
    parameters together. The authors' code has one value for each weight matrix and bias vector: ``per_tensor``. Taken
    together, a small tensor (a bias, LoRA's B in its first updates) cannot make the value of its group explode, and
    one that is all zeros is no special case. A group that is all zeros has no value and is named in ``zero_groups``.

    Batches count equally, whatever their size. The code leaves out batch norm; here every measured parameter counts,
    layer norm too. It divides by the largest value, to scale learning rates: here nothing is scaled. The model is
    in eval mode, y are the given labels, and the loss is that of `gradient_norm`.

    Args:
        model: As for `fisher_trace`.
        batches: As for `fisher_trace`, with labels. Where there is no memory for one, it is measured in halves.
        parameters: ``"trainable"``: what requires a gradient now; of LoRA, the adapter. ``"all"``: every parameter.
        groups: Layer groups to report; by default those of `find_layer_groups`.
        share: The batches that this process measures, where several do it together; the result is that of all.

    Returns:
        The ratio, in total, per group and per tensor, with a standard error over batches.

    Raises:
        ConfigurationError: An unknown choice, or no batch.
        DataError: A batch or its labels are not usable, or nothing is predicted for any example.
        ProbeError: Nothing to measure, all measured weights are zero, or no memory for one example.
        NonFiniteError: A prediction, a gradient or a weight is NaN or infinite.
        UnsupportedModelError: A model without a known task.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.tensor([0, 1])}
        >>> relative = relative_gradient_norm(model, [batch])
        >>> sorted(relative.per_group), "classifier.bias" in relative.per_tensor  # it begins with zeros
        (['block.0', 'embeddings', 'head'], False)
    """
    check_gradient_norm(parameters=parameters)
    share = share or Share()
    found: dict[int, Tensor] = {}
    with gradient_sums(model, "empirical", parameters, groups) as gradients:
        measured = gradients.measured
        weights = squared_norms(measured.parameters, "A weight")
        if not bool(weights.any()):
            raise ProbeError(
                "The measured weights are all zero, so that a gradient has no norm relative to theirs.",
                got=", ".join(list(measured.parameters)[:3]),
                fix="Measure after the first updates, or more parameters.",
            )
        for index, rows in gradients.of_batches(batches, share):
            found[index] = gradients.take() / rows**2
    squares = torch.stack(share.gathered(found))  # (batches, P)
    per_group = _relative(measured.group_names, _by_group(measured, squares), _by_group(measured, weights))
    total, error = _mean_over_batches((squares.sum(1) / weights.sum()).sqrt())
    return RelativeGradientNorm(
        total=total,
        per_group=per_group,
        per_tensor=_relative(measured.parameters, squares, weights),
        standard_error=error,
        zero_groups=tuple(name for name in measured.group_names if name not in per_group),
        num_parameters=_num_parameters(measured),
        num_examples=sum(gradients.batch_sizes),
        batch_sizes=tuple(gradients.batch_sizes),
        num_empty=gradients.num_empty,
    )


def fisher_trace_batch_mean(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    labels: str = "argmax",
    parameters: str = "trainable",
    seed: int = 0,
    groups: LayerGroups | None = None,
    share: Share | None = None,
) -> BatchMeanTrace:
    r"""What the released code of FUN selects layers by: squared norms of batch-mean gradients. Not the Fisher trace.

    Source: the code of Liu, Pfeiffer, Vulic and Gurevych (2024, arXiv 2301.05487); their text has the Fisher trace.

        mean_b 1/B ||1/B sum_{i in b} grad_w log p_w(y_i|x_i)||^2

    The code divides by the batch size of training and adds up over batches: with full batches, its number is the
    number of batches times this one. It takes the most likely y. `fisher_trace` squares the gradient of every example
    *before* the mean, so that gradients of different examples cannot cancel; there is no factor between the two:

    * ``"sampled"``: the gradient of log p has mean zero under p, so that cross terms vanish in expectation, and
      E ||1/B sum_i grad log p||^2 = tr F / B. With batches of one size, B^2 times the value is an unbiased estimate
      of `fisher_trace`, by one number for each batch: a noisy one. With B = 1 the two are the same.
    * ``"argmax"``, ``"empirical"``: the cross terms stay. The value then says how much the examples of a batch pull
      in one direction, as the norm of a gradient does, and no multiple of it is a Fisher trace.

    Each batch counts with its own B, also a smaller last one. log p of an example is the sum over its predictions, as
    in `fisher_trace`, and for the same seed the same labels are drawn.

    Args:
        model: As for `fisher_trace`.
        batches: As for `fisher_trace`. Where there is no memory for one, it is measured in halves.
        labels: ``"argmax"``: the most likely y, as in the code; a regression has no gradient there, and is refused.
            ``"sampled"``: one draw of y per example. ``"empirical"``: y from the data.
        parameters: ``"trainable"``: what requires a gradient now. ``"all"``: every parameter.
        seed: Seed of the label draws.
        groups: Layer groups to report; by default those of `find_layer_groups`.
        share: The batches that this process measures, where several do it together; the result is that of all.

    Returns:
        The value, in total and per group, with a standard error over batches.

    Raises:
        ConfigurationError: An unknown choice, or no batch.
        DataError: A batch is not usable, nothing is predicted for any example, or ``"empirical"`` without usable
            labels.
        ProbeError: Nothing to measure, or no memory for one example.
        NonFiniteError: A prediction or a gradient is NaN or infinite.
        UnsupportedModelError: A model without a known task.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_early_ood.probes.fisher import fisher_trace
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}
        >>> trace = fisher_trace(model, [batch], labels="argmax").total
        >>> trace >= 2 * fisher_trace_batch_mean(model, [batch]).total > 0  # it cannot be more than 1/B of the trace
        True
    """
    check_fisher_trace_batch_mean(labels=labels, parameters=parameters)
    share = share or Share()
    found: dict[int, Tensor] = {}
    with gradient_sums(model, labels, parameters, groups) as gradients:
        measured = gradients.measured
        for index, rows in gradients.of_batches(batches, share, seed):
            found[index] = gradients.take() / rows**3
    values = torch.stack(share.gathered(found))  # (batches, P)
    total, error = _mean_over_batches(values.sum(1))
    num_parameters = _num_parameters(measured)
    return BatchMeanTrace(
        total=total,
        per_group=_named(measured, _by_group(measured, values).mean(0)),
        normalized=total / num_parameters,
        num_parameters=num_parameters,
        num_examples=sum(gradients.batch_sizes),
        standard_error=error,
        batch_sizes=tuple(gradients.batch_sizes),
        labels=labels,
        seed=seed,
        num_empty=gradients.num_empty,
    )


def check_gradient_norm(*, parameters: str) -> None:
    """Refuse settings of `gradient_norm` and `relative_gradient_norm` that no model could be measured with.

    Raises:
        ConfigurationError: Naming the first of them.
    """
    check_choice("parameters", parameters, PARAMETER_CHOICES)


def check_fisher_trace_batch_mean(*, labels: str, parameters: str) -> None:
    """Refuse settings of `fisher_trace_batch_mean` that no model could be measured with.

    Raises:
        ConfigurationError: Naming the first of them.
    """
    check_choice("labels", labels, BATCH_MEAN_LABELS)
    check_choice("parameters", parameters, PARAMETER_CHOICES)


def _by_group(measured: Measured, values: Tensor) -> Tensor:
    """Values (..., P) of the parameters -> sums (..., G) of the groups."""
    columns = torch.tensor([measured.columns[name] for name in measured.parameters], device="cpu")
    return values.new_zeros(*values.shape[:-1], len(measured.group_names)).index_add(-1, columns, values)


def _relative(names: Iterable[str], squares: Tensor, weights: Tensor) -> dict[str, float]:
    """Squared norms of gradients (batches, n) and of weights (n,) -> mean ratio of norms, where it is not x / 0."""
    ratios = (squares / weights).sqrt().mean(0).tolist()
    return {name: ratio for name, ratio, weight in zip(names, ratios, weights.tolist(), strict=True) if weight > 0}


def _named(measured: Measured, values: Tensor) -> dict[str, float]:
    """Values (G,) by name of the group."""
    return dict(zip(measured.group_names, values.tolist(), strict=True))


def _num_parameters(measured: Measured) -> int:
    return sum(parameter.numel() for parameter in measured.parameters.values())


def _mean_over_batches(values: Tensor) -> tuple[float, float | None]:
    """Mean of one value for each batch, and its standard error."""
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return values.mean().item(), error
