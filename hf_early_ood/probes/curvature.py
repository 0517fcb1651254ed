"""Curvature of the loss: trace and largest eigenvalue of its Hessian and of the Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from hf_early_ood.checks import PARAMETER_CHOICES, check_choice, check_count, check_number
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.lanczos import largest_eigenpair
from hf_early_ood.probes.products import MATRICES, curvature_matrix
from hf_early_ood.probes.trace_estimation import check_products, exact, hutch_plus_plus, hutchinson

_METHODS = {"hutch++": hutch_plus_plus, "hutchinson": hutchinson}
METHODS = tuple(_METHODS)


@dataclass(frozen=True)
class CurvatureTrace:
    """Trace of the Hessian or of the Gauss-Newton matrix of a model on a set of examples.

    Attributes:
        value: The trace.
        standard_error: Of ``value``, over the random vectors, for these examples; 0 where nothing was random.
        per_group: Layer group to the trace of its diagonal block. Sums to ``value``.
        per_group_standard_error: The standard errors of these.
        normalized: ``value / num_parameters``.
        num_parameters: Number of measured scalar parameters.
        num_examples: Number of examples.
        num_products: Products with the matrix over all examples.
        method: ``"hutch++"``, ``"hutchinson"``, or ``"exact"``.
        matrix: ``"hessian"`` or ``"gauss_newton"``.
        seed: Of the random vectors.
        num_empty: Examples for which nothing is predicted (every label is -100), and which add 0.
    """

    value: float
    standard_error: float
    per_group: dict[str, float]
    per_group_standard_error: dict[str, float]
    normalized: float
    num_parameters: int
    num_examples: int
    num_products: int
    method: str
    matrix: str
    seed: int
    num_empty: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class TopEigenvalue:
    """Largest eigenvalue of the Hessian or of the Gauss-Newton matrix of a model on a set of examples.

    Attributes:
        value: lambda, approached from below.
        residual: ||H v - lambda v|| for the unit vector v found; an eigenvalue is within this distance of ``value``.
        converged: Whether the residual is within the tolerance.
        num_parameters: Number of measured scalar parameters.
        num_examples: Number of examples.
        num_products: Products with the matrix over all examples.
        matrix: ``"hessian"`` or ``"gauss_newton"``.
        seed: Of the start vector.
        vector: v by parameter name, on the device of the model; not part of `to_dict`.
        num_empty: As in `CurvatureTrace`.
    """

    value: float
    residual: float
    converged: bool
    num_parameters: int
    num_examples: int
    num_products: int
    matrix: str
    seed: int
    vector: dict[str, Tensor] = field(repr=False, compare=False)
    num_empty: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types, without the vector."""
        return {key: value for key, value in vars(self).items() if key != "vector"}


def hessian_trace(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    matrix: str = "hessian",
    method: str = "hutch++",
    num_products: int = 30,
    parameters: str = "trainable",
    seed: int = 0,
    groups: LayerGroups | None = None,
) -> CurvatureTrace:
    r"""Trace of the Hessian of the loss, or of its Gauss-Newton matrix, with a standard error.

    Source: `hutch_plus_plus` and `hutchinson` in `hf_early_ood.probes.trace_estimation`.

        L(w) = 1/N sum_i -log p_w(y_i|x_i),   tr grad^2 L   or   tr 1/N sum_i J_i' W_i J_i

    The loss is the mean over examples of the negative log-likelihood of the given labels, summed over the
    predictions of an example (a mean over tokens, as the models' own losses take, has another scale). The trace of
    the Gauss-Newton matrix is that of the Fisher information, tr F with expected labels, which `fisher_trace` gives
    without randomness and for less. A measurement takes about ``num_products`` double backward passes over
    the examples.

    Args:
        model: As for `fisher_trace`.
        batches: As for `fisher_trace`, with labels where ``matrix="hessian"``; gone through twice.
        matrix: ``"hessian"`` or ``"gauss_newton"``.
        method: ``"hutch++"``: a third of the products finds the directions of large curvature, whose part of the
            trace is then exact. Keeps ``num_products / 3`` copies of the measured parameters in memory.
            ``"hutchinson"``: the mean of v' H v over random signs v; two copies.
        num_products: m, products with the matrix, 4 or more (``"hutchinson"``: 2). From the number of parameters on,
            the trace is computed exactly.
        parameters: ``"trainable"``: what requires a gradient now, the rest held constant. ``"all"``: every parameter.
        seed: Of the random vectors. They are the same at every measurement, so that values can be compared.
        groups: Layer groups to report; by default those of `find_layer_groups`.

    Returns:
        The trace, in total and per group.

    Raises:
        ConfigurationError: An unknown choice, too few products, or no batch.
        DataError: A batch is not usable, or nothing is predicted for any example.
        ProbeError: Nothing to measure.
        NonFiniteError: A prediction or a product is NaN or infinite.
        UnsupportedModelError: An unknown task, or a model that cannot be differentiated twice.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.tensor([0, 1])}
        >>> trace = hessian_trace(BertForSequenceClassification(config), [batch], num_products=6)
        >>> trace.num_products, sorted(trace.per_group)
        (6, ['block.0', 'embeddings', 'head'])
    """
    check_hessian_trace(matrix=matrix, method=method, num_products=num_products, parameters=parameters)
    with curvature_matrix(model, batches, matrix=matrix, parameters=parameters, seed=seed, groups=groups) as whole:
        if num_products >= whole.size:
            method, estimate = "exact", exact(whole)
        else:
            estimate = _METHODS[method](whole, num_products)
        names = whole.measured.group_names
        return CurvatureTrace(
            value=estimate.total,
            standard_error=estimate.standard_error,
            per_group=dict(zip(names, estimate.groups.tolist(), strict=True)),
            per_group_standard_error=dict(zip(names, estimate.group_standard_errors.tolist(), strict=True)),
            normalized=estimate.total / whole.size,
            num_parameters=whole.size,
            num_examples=whole.num_examples,
            num_products=estimate.num_products,
            method=method,
            matrix=matrix,
            seed=seed,
            num_empty=whole.num_empty,
        )


def hessian_top_eigenvalue(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    matrix: str = "hessian",
    num_products: int = 30,
    tolerance: float = 1e-3,
    parameters: str = "trainable",
    seed: int = 0,
) -> TopEigenvalue:
    r"""Largest eigenvalue of the Hessian of the loss, or of its Gauss-Newton matrix.

    Source: `hf_early_ood.probes.lanczos.largest_eigenpair`. The loss is that of `hessian_trace`.

        lambda = max_{||v|| = 1} v' H v

    This is the algebraically largest eigenvalue: the sharpest direction upwards, not the largest in magnitude, which
    may be a negative one. A value that has not converged is a lower bound, up to rounding.

    Args:
        model: As for `fisher_trace`.
        batches: As for `fisher_trace`, with labels where ``matrix="hessian"``; gone through once a product.
        matrix: ``"hessian"`` or ``"gauss_newton"``.
        num_products: Most products that may be made; each keeps a copy of the measured parameters in memory.
        tolerance: Stop when the residual is at most this fraction of |lambda|.
        parameters: ``"trainable"``: what requires a gradient now, the rest held constant. ``"all"``: every parameter.
        seed: Of the start vector, which is the same at every measurement.

    Returns:
        The eigenvalue, how exact it is, and its eigenvector.

    Raises:
        ConfigurationError: An unknown choice, no product or a negative tolerance, or no batch.
        DataError: A batch is not usable, or nothing is predicted for any example.
        ProbeError: Nothing to measure.
        NonFiniteError: A prediction or a product is NaN or infinite.
        UnsupportedModelError: An unknown task, or a model that cannot be differentiated twice.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.tensor([0, 1])}
        >>> top = hessian_top_eigenvalue(BertForSequenceClassification(config), [batch])
        >>> top.converged, top.residual <= 1e-3 * top.value
        (True, True)
    """
    check_hessian_top_eigenvalue(matrix=matrix, num_products=num_products, tolerance=tolerance, parameters=parameters)
    with curvature_matrix(model, batches, matrix=matrix, parameters=parameters, seed=seed) as whole:
        top = largest_eigenpair(whole, whole.start(), num_products, tolerance)
        return TopEigenvalue(
            value=top.value,
            residual=top.residual,
            converged=top.residual <= tolerance * abs(top.value),
            num_parameters=whole.size,
            num_examples=whole.num_examples,
            num_products=top.num_products,
            matrix=matrix,
            seed=seed,
            vector=whole.named(top.vector),
            num_empty=whole.num_empty,
        )


def check_hessian_trace(*, matrix: str, method: str, num_products: int, parameters: str) -> None:
    """Refuse settings of `hessian_trace` that no model could be measured with.

    Raises:
        ConfigurationError: Naming the first of them.
    """
    check_choice("matrix", matrix, MATRICES)
    check_choice("method", method, METHODS)
    check_products(num_products, method)
    check_choice("parameters", parameters, PARAMETER_CHOICES)


def check_hessian_top_eigenvalue(*, matrix: str, num_products: int, tolerance: float, parameters: str) -> None:
    """Refuse settings of `hessian_top_eigenvalue` that no model could be measured with.

    Raises:
        ConfigurationError: Naming the first of them.
    """
    check_choice("matrix", matrix, MATRICES)
    check_count("num_products", num_products)
    check_number("tolerance", tolerance, zero=True)
    check_choice("parameters", parameters, PARAMETER_CHOICES)
