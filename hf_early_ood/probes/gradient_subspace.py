"""How much of the gradient lies in the few directions in which the loss curves most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from hf_early_ood.checks import PARAMETER_CHOICES, check_choice, check_count, check_number
from hf_early_ood.errors import ConfigurationError, ProbeError
from hf_early_ood.probes.lanczos import largest_eigenpairs
from hf_early_ood.probes.likelihood import ClassificationLikelihood, TokenLikelihood, likelihood_for
from hf_early_ood.probes.products import curvature_matrix
from hf_early_ood.probes.trace_estimation import dots

_WITH_CLASSES = ("ForSequenceClassification", "ForTokenClassification")


@dataclass(frozen=True)
class SubspaceOverlap:
    """Share of the squared norm of the gradient in the span of the top eigenvectors of the Hessian.

    Attributes:
        value: The share, in [0, 1] up to rounding.
        num_directions: k, eigenvectors.
        eigenvalues: The k largest, in falling order.
        residuals: ||H v - lambda v|| of each.
        shares: Share of the squared norm along each eigenvector; they sum to ``value``.
        converged: Whether every residual is within the tolerance.
        gradient_norm: ||g||, as `hf_early_ood.probes.gradients.gradient_norm` has it.
        expected: Share of a random direction, k / P: what ``value`` is to be compared with.
        num_parameters: Number of measured scalar parameters P.
        num_examples: Number of examples.
        num_products: Products with the Hessian over all examples.
        seed: Of the start vector.
        num_empty: Examples for which nothing is predicted (every label is -100), and which add 0.
    """

    value: float
    num_directions: int
    eigenvalues: tuple[float, ...]
    residuals: tuple[float, ...]
    shares: tuple[float, ...]
    converged: bool
    gradient_norm: float
    expected: float
    num_parameters: int
    num_examples: int
    num_products: int
    seed: int
    num_empty: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def gradient_subspace_overlap(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    num_directions: int | None = None,
    num_products: int = 30,
    tolerance: float = 1e-3,
    parameters: str = "trainable",
    seed: int = 0,
) -> SubspaceOverlap:
    r"""Share of the squared norm of the gradient in the span of the top eigenvectors of the Hessian.

    Source: Gur-Ari, Roberts and Dyer (2018, Gradient Descent Happens in a Tiny Subspace, arXiv 1812.04754), who find
    that it grows early in training to a large part of the gradient, for k the number of classes. The definition is from
    memory of the paper, and was not compared with its text.

        sum_{i <= k} <v_i, g>^2 / ||g||^2,   g = grad L,   grad^2 L v_i = lambda_i v_i,   lambda_1 >= lambda_2 >= ...

    The loss L is that of `hf_early_ood.probes.curvature.hessian_trace`, on the same examples for g and H, in eval mode.
    The largest eigenvalues are the algebraically largest, found by Lanczos' iteration with full reorthogonalization
    (`hf_early_ood.probes.lanczos.largest_eigenpairs`). While it has not ``converged``, directions mix with those of
    smaller eigenvalues. A Hessian that has one of these eigenvalues several times has no unique top k directions.

    Args:
        model: As for `fisher_trace`.
        batches: As for `fisher_trace`, with labels; gone through once for the gradient, and once a product.
        num_directions: k; None: the number of classes, where the model has classes.
        num_products: Most products that may be made, k or more; each keeps a copy of the measured parameters in memory.
        tolerance: Stop when every residual is at most this fraction of its |lambda|.
        parameters: ``"trainable"``: what requires a gradient now, the rest held constant. ``"all"``: every parameter.
        seed: Of the start vector, which is the same at every measurement.

    Returns:
        The share, its parts, and how exact the directions are.

    Raises:
        ConfigurationError: An unknown choice, fewer products than directions, or no batch.
        DataError: A batch is not usable, or nothing is predicted for any example.
        ProbeError: Nothing to measure, more directions than parameters or products, no classes to count, or a gradient
            of zero, which has no direction.
        NonFiniteError: A prediction, the gradient or a product is NaN or infinite.
        UnsupportedModelError: An unknown task, or a model that cannot be differentiated twice.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.tensor([0, 1])}
        >>> overlap = gradient_subspace_overlap(BertForSequenceClassification(config), [batch])
        >>> overlap.num_directions, 0 <= overlap.value <= 1 + 1e-6, overlap.value > overlap.expected
        (2, True, True)
    """
    check_gradient_subspace_overlap(
        num_directions=num_directions, num_products=num_products, tolerance=tolerance, parameters=parameters
    )
    batches = list(batches)
    count = _num_classes(model) if num_directions is None else num_directions
    with curvature_matrix(model, batches, parameters=parameters, seed=seed) as whole:
        if count > min(whole.size, num_products):
            raise ProbeError(
                "There are too many directions.",
                got=f"{count}, with num_products={num_products} and {whole.size} parameters",
                allowed="as many as there are products and parameters at most",
                fix="Set num_directions, or raise num_products: each keeps a copy of the measured parameters.",
            )
        gradient = whole.gradient()
        square = float(whole.dot(gradient, gradient).sum())
        if square == 0:
            raise ProbeError(
                "The gradient is zero, so that it has no direction.",
                got=f"{whole.size} parameters, {whole.num_examples} examples",
                fix="Measure parameters that the loss depends on.",
            )
        pairs = largest_eigenpairs(whole, whole.start(), count, num_products, tolerance)
        shares = (dots(whole, [pair.vector for pair in pairs], gradient).sum(0).square() / square).tolist()
        return SubspaceOverlap(
            value=sum(shares),
            num_directions=count,
            eigenvalues=tuple(pair.value for pair in pairs),
            residuals=tuple(pair.residual for pair in pairs),
            shares=tuple(shares),
            converged=all(pair.residual <= tolerance * abs(pair.value) for pair in pairs),
            gradient_norm=square**0.5,
            expected=count / whole.size,
            num_parameters=whole.size,
            num_examples=whole.num_examples,
            num_products=pairs[0].num_products,
            seed=seed,
            num_empty=whole.num_empty,
        )


def check_gradient_subspace_overlap(
    *, num_directions: int | None, num_products: int, tolerance: float, parameters: str
) -> None:
    """Refuse settings of `gradient_subspace_overlap` that no model could be measured with.

    Raises:
        ConfigurationError: Naming the first of them.
    """
    if num_directions is not None:
        check_count("num_directions", num_directions)
    check_count("num_products", num_products)
    check_number("tolerance", tolerance, zero=True)
    check_choice("parameters", parameters, PARAMETER_CHOICES)
    if num_directions is not None and num_directions > num_products:
        raise ConfigurationError(
            "num_directions is larger than num_products.",
            got=f"{num_directions} > {num_products}",
            fix="Raise num_products: a product finds one direction at most.",
        )


def _num_classes(model: nn.Module) -> int:
    """Classes that a model tells apart.

    Raises:
        ProbeError: Its outcomes are no classes.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    named = any(kind.__name__.endswith(_WITH_CLASSES) for kind in type(base).__mro__)
    if named and isinstance(likelihood_for(model), ClassificationLikelihood | TokenLikelihood):
        return int(base.config.num_labels)
    raise ProbeError(
        "The task has no classes whose number could be that of the directions.",
        got=type(model).__name__,
        fix="Set num_directions.",
    )
