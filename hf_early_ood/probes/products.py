"""Products of the Hessian and of the Gauss-Newton matrix with vectors, batch by batch.

Notation: B examples, N in all batches, P measured parameters in a row, G layer groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from hf_early_ood.checks import check_choice
from hf_early_ood.errors import NonFiniteError, ProbeError
from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.batches import check_some, num_rows
from hf_early_ood.probes.double_backward import (
    double_backward_explained,
    refuse_once_differentiable,
    twice_differentiable_attention,
)
from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import count_empty, likelihood_for
from hf_early_ood.probes.outcomes import CategoricalLikelihood, Likelihood
from hf_early_ood.probes.trace_estimation import Product
from hf_early_ood.probes.trace_record import Measured

MATRICES = ("hessian", "gauss_newton")
# Numbers whose products are summed in float32 before float64 takes over.
_CHUNK = 2**18


class CurvatureMatrix:
    """The Hessian or Gauss-Newton matrix of the mean loss over all examples, of size (P, P), as a sum over batches.

    A `SymmetricMatrix`, made by `curvature_matrix`. Vectors (P,) hold the measured parameters one after the other,
    in the model's order, in float32 or better; `named` takes them apart by name.

    Attributes:
        measured: The parameters and their layer groups.
        size: P.
        num_groups: G.
        num_examples: N.
        num_empty: Examples for which nothing is predicted (every label is -100), and which add 0.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        measured: Measured,
        batches: list[Mapping[str, Tensor]],
        matrix: str,
        seed: int,
    ) -> None:
        self.measured = measured
        self.num_examples = sum(num_rows(batch, index) for index, batch in enumerate(batches))
        self.num_empty = count_empty(likelihood, batches, "empirical" if matrix == "hessian" else "expected")
        self.size = sum(parameter.numel() for parameter in measured.parameters.values())
        self.num_groups = len(measured.group_names)
        self._model, self._likelihood, self._batches = model, likelihood, batches
        self._matrix, self._seed = matrix, seed
        parameters = list(measured.parameters.values())
        self._device = parameters[0].device
        self._dtype = torch.float32
        for parameter in parameters:
            self._dtype = torch.promote_types(self._dtype, parameter.dtype)
        self._pieces = list(_pieces([(measured.columns[name], place) for name, place in self._places()]))
        self._open: dict[int, _Graph] = {}

    def terms(self) -> Iterator[Product]:
        """Products with the part of each batch, weighted by its share of the examples.

        A batch costs a forward and a backward pass, which all products of its turn share. One graph is kept at a
        time; that of a single batch is kept for the next call as well.
        """
        for index in self._turns():
            yield partial(self._product, index)

    def gradient(self) -> Tensor:
        """Gradient (P,) of the mean loss over all examples, whose Hessian this is.

        Raises:
            NonFiniteError: It is NaN or infinite.
        """
        total = torch.zeros(self.size, dtype=self._dtype, device=self._device)
        for index in self._turns():
            total.add_(self._flat(self._open[index].first), alpha=self._weight(index))
        if not bool(torch.isfinite(total).all()):
            raise NonFiniteError(
                "The gradient is not finite.", fix="The model has diverged: look at the loss and the learning rate."
            )
        return total

    def _turns(self) -> Iterator[int]:
        """The batches, each while its graph is there."""
        for index, batch in enumerate(self._batches):
            if index not in self._open:
                self.close()
                self._open[index] = self._graph(batch, index)
            yield index

    def _weight(self, index: int) -> float:
        """Share of the examples that are in a batch."""
        return num_rows(self._batches[index], index) / self.num_examples

    def close(self) -> None:
        """Free the graph of the last batch."""
        self._open.clear()

    def signs(self, index: int) -> Tensor:
        """Random signs (P,). They depend on seed, index and name only: not on the device or what else is measured."""
        flat = torch.empty(self.size, dtype=self._dtype, device=self._device)
        for name, place in self._places():
            generator = self._generator(f"signs {index}", name)
            bits = torch.randint(2, (place.stop - place.start,), generator=generator, dtype=torch.int8)
            flat[place] = bits.to(flat.device).to(flat.dtype)
        return flat.mul_(2).sub_(1)

    def start(self) -> Tensor:
        """Random normal vector (P,), from the seed and the names in the same way as `signs`."""
        flat = torch.empty(self.size, dtype=self._dtype, device=self._device)
        for name, place in self._places():
            flat[place] = torch.randn(place.stop - place.start, generator=self._generator("start", name)).to(flat)
        return flat

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        """Inner products (G,) of two vectors (P,) by layer group, float64 on the CPU."""
        pieces = torch.stack([torch.dot(left[place], right[place]) for _, place in self._pieces])
        sums = torch.zeros(self.num_groups, dtype=torch.float64)
        return sums.index_add_(0, torch.tensor([column for column, _ in self._pieces]), pieces.cpu().double())

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """The parts of a vector (P,) by parameter name, each with shape, type and device of its parameter."""
        return {
            name: vector[place].view_as(self.measured.parameters[name]).to(self.measured.parameters[name])
            for name, place in self._places()
        }

    def _flat(self, parts: Mapping[str, Tensor]) -> Tensor:
        flat = torch.zeros(self.size, dtype=self._dtype, device=self._device)
        for name, place in self._places():
            if name in parts:
                flat[place] = parts[name].flatten().to(flat)
        return flat

    def _places(self) -> Iterator[tuple[str, slice]]:
        begin = 0
        for name, parameter in self.measured.parameters.items():
            yield name, slice(begin, begin + parameter.numel())
            begin += parameter.numel()

    def _generator(self, purpose: str, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed} {purpose} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _product(self, index: int, vector: Tensor) -> Tensor:
        if index not in self._open:
            raise ProbeError(
                "A product was asked for after the turn of its batch.",
                got=f"batch {index}",
                fix="Use each product before the next one is taken from terms().",
            )
        with double_backward_explained(self._model):
            image = self._flat(self._open[index].times(self.named(vector)))
        if not bool(torch.isfinite(image).all()):
            raise NonFiniteError(
                f"A product with the {self._matrix} matrix of probe batch {index} is not finite.",
                fix="The second derivatives overflow: measure the model in float32 or bfloat16.",
            )
        return image.mul_(self._weight(index))

    def _graph(self, batch: Mapping[str, Tensor], index: int) -> _Graph:
        on_device = {key: value.to(self._device) for key, value in batch.items()}
        with double_backward_explained(self._model):
            predictions = self._likelihood.predictions(self._model(**self._likelihood.inputs(on_device)))
            if not bool(torch.isfinite(predictions).all()):
                raise NonFiniteError(
                    f"The predictions for probe batch {index} are not finite.",
                    fix="The model has diverged or its inputs are broken: look at the loss and the learning rate.",
                )
            refuse_once_differentiable(predictions, self._model)
            if self._matrix == "gauss_newton":
                weights = output_fisher(self._likelihood, predictions.detach(), on_device) / len(predictions)
                return _GaussNewtonGraph(predictions, weights, self.measured.parameters)
            (log_likelihood,) = self._likelihood.scores(predictions, on_device, "empirical", None)
            return _HessianGraph(-log_likelihood.mean(), self.measured.parameters)


def _pieces(places: list[tuple[int, slice]]) -> Iterator[tuple[int, slice]]:
    """Runs of one group in the vector, in pieces that are short enough to be summed."""
    for column, run in groupby(places, key=lambda pair: pair[0]):
        inside = [place for _, place in run]
        for begin in range(inside[0].start, inside[-1].stop, _CHUNK):
            yield column, slice(begin, min(begin + _CHUNK, inside[-1].stop))


class _Graph:
    """The autograd graph of one batch: what its products share.

    Attributes:
        first: The first derivatives of what it is the graph of, by parameter name; names without an entry have zeros.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self.first: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}

    def times(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The product, by parameter name; names without an entry have zeros."""
        raise NotImplementedError

    def _backward(self, outcome: Tensor, weights: Tensor | None, create_graph: bool) -> dict[str, Tensor]:
        """Gradients of <outcome, weights> by parameter name, where there are any."""
        if not outcome.requires_grad:
            return {}
        return self._used(
            torch.autograd.grad(
                outcome,
                list(self._parameters.values()),
                weights,
                create_graph=create_graph,
                retain_graph=True,
                allow_unused=True,
            )
        )

    def _used(self, gradients: Iterable[Tensor | None]) -> dict[str, Tensor]:
        pairs = zip(self._parameters, gradients, strict=True)
        return {name: gradient for name, gradient in pairs if gradient is not None}


class _HessianGraph(_Graph):
    """v -> H v by Pearlmutter's double backward pass: the gradient of <gradient, v>."""

    def __init__(self, loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(parameters)
        gradients = self._backward(loss, None, create_graph=True)
        self.first = {name: gradient.detach() for name, gradient in gradients.items()}
        # A gradient that no parameter influences is constant: its row of the Hessian is zero.
        self._gradients = {name: gradient for name, gradient in gradients.items() if gradient.requires_grad}

    def times(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self._gradients:
            return {}
        return self._used(
            torch.autograd.grad(
                list(self._gradients.values()),
                list(self._parameters.values()),
                [vector[name] for name in self._gradients],
                retain_graph=True,
                allow_unused=True,
            )
        )


class _GaussNewtonGraph(_Graph):
    """v -> J' W J v, where J v is had from two backward passes: J' u is linear in u, and its gradient is J v.

    Forward-mode differentiation would need one pass only, but attention does not implement it.
    """

    def __init__(self, predictions: Tensor, weights: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(parameters)
        self._predictions, self._weights = predictions, weights
        self._dummy = torch.zeros_like(predictions, requires_grad=True)  # u
        gradients = self._backward(predictions, self._dummy, create_graph=True)
        self._gradients = {name: gradient for name, gradient in gradients.items() if gradient.requires_grad}

    def times(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self._gradients:
            return {}
        directions = [vector[name] for name in self._gradients]
        (change,) = torch.autograd.grad(list(self._gradients.values()), self._dummy, directions, retain_graph=True)
        return self._backward(self._predictions, self._weights * change, create_graph=False)


def output_fisher(likelihood: Likelihood, predictions: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    r"""Diagonal W of the Fisher information of the outcome with respect to what the model predicts.

    For classes c with log-probabilities l_c it is p_c = exp(l_c) where something is predicted, else 0; for
    regression 1. With it J' W J is the Gauss-Newton matrix, and the Fisher information:

        sum_c p_c grad l_c grad l_c' = J_z' (diag(p) - p p') J_z,   z the logits, l = log_softmax(z)

    Args:
        likelihood: Of the task.
        predictions: (B, ...), without a graph.
        batch: Where they come from; its labels only tell what is predicted.
    """
    if not isinstance(likelihood, CategoricalLikelihood):
        return torch.ones_like(predictions)
    counts = likelihood.predicted(likelihood.given(batch, predictions), batch, predictions)
    return predictions.exp() * counts[..., None]


@contextmanager
def curvature_matrix(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    matrix: str = "hessian",
    parameters: str = "trainable",
    seed: int = 0,
    groups: LayerGroups | None = None,
) -> Iterator[CurvatureMatrix]:
    r"""The Hessian or the Gauss-Newton matrix of a model as something to multiply with, inside the block.

    Source of the products: Pearlmutter (1994, Neural Computation 6(1)); Schraudolph (2002, Neural Computation 14(7)).

        L(w) = 1/N sum_i -log p_w(y_i|x_i),   H = grad^2 L,   G = 1/N sum_i J_i' W_i J_i

    The model is in eval mode inside the block, with attention that can be differentiated twice, and otherwise
    isolated from what happens there; see `isolated`.

    Args:
        model: As for `fisher_trace`.
        batches: As for `fisher_trace`; they are gone through several times.
        matrix: ``"hessian"`` (needs labels) or ``"gauss_newton"``.
        parameters: ``"trainable"`` or ``"all"``: the others are held constant.
        seed: Of the random vectors.
        groups: Layer groups; by default those of `find_layer_groups`.

    Raises:
        ConfigurationError: An unknown choice, or no batch.
        DataError: A batch is not usable, or nothing is predicted for any example.
        ProbeError: Nothing to measure.
        UnsupportedModelError: An unknown task, or a model that cannot be differentiated twice.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.tensor([0, 1])}
        >>> with curvature_matrix(BertForSequenceClassification(config), [batch]) as hessian:
        ...     vector = hessian.signs(0)
        ...     image = sum(product(vector) for product in hessian.terms())
        >>> image.shape == vector.shape == (hessian.size,)
        True
    """
    check_choice("matrix", matrix, MATRICES)
    likelihood = likelihood_for(model)
    measured = Measured.of(model, parameters, groups)
    listed = list(batches)
    check_some(listed)
    whole = CurvatureMatrix(model, likelihood, measured, listed, matrix, seed)
    with (
        isolated(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        requires_grad_set(dict(model.named_parameters()), measured.parameters),
        twice_differentiable_attention(model),
    ):
        try:
            yield whole
        finally:
            whole.close()
