"""The slow, obviously right twins of the curvature probes: whole matrices, one example and one row at a time.

Nothing here shares code with what it is the twin of, beyond the forward pass. P measured parameters, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import likelihood_for

Batch = Mapping[str, Tensor]


def dense_hessian(model: nn.Module, batches: Iterable[Batch], names: Iterable[str]) -> Tensor:
    """Hessian (P, P) of the mean loss over examples, in the named parameters one after the other."""
    likelihood = likelihood_for(model)

    def rows(example: Batch, parameters: list[nn.Parameter]) -> Tensor:
        loss = likelihood.nll(model(**likelihood.inputs(example)), example).sum()
        gradient = _flat(torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True))
        return torch.stack([_row(entry, parameters) for entry in gradient])

    return _mean_over_examples(model, batches, names, rows)


def dense_gauss_newton(model: nn.Module, batches: Iterable[Batch], names: Iterable[str]) -> Tensor:
    """Gauss-Newton matrix (P, P) of a sequence classifier: the mean over examples of J' (diag(p) - p p') J."""

    def rows(example: Batch, parameters: list[nn.Parameter]) -> Tensor:
        logits = model(**{key: value for key, value in example.items() if key != "labels"}).logits[0]
        jacobian = torch.stack([_row(entry, parameters) for entry in logits])  # (C, P)
        p = logits.detach().softmax(0)
        return jacobian.T @ (p.diag() - p.outer(p)) @ jacobian

    return _mean_over_examples(model, batches, names, rows)


def difference_product(
    model: nn.Module, batches: Iterable[Batch], vector: Mapping[str, Tensor], step: float = 1e-5
) -> dict[str, Tensor]:
    """Product of the Hessian with a vector, by name, from first derivatives only: a central difference of gradients.

        H v = (grad L(w + h v) - grad L(w - h v)) / 2 h + O(h^2)

    Args:
        model: In float64, or the differences drown in rounding.
        batches: Examples with labels.
        vector: Parameter name to direction; parameters without one are held constant. Zero in the rows of embeddings
            for padding, which autograd takes for constants.
        step: h.
    """
    likelihood = likelihood_for(model)
    listed = list(batches)
    examples = sum(len(next(iter(batch.values()))) for batch in listed)

    def gradient(shift: float) -> list[Tensor]:
        moved = {
            name: (parameter.detach() + shift * vector[name]).requires_grad_()
            for name, parameter in model.named_parameters()
            if name in vector
        }
        loss = torch.zeros(())
        for batch in listed:
            outputs = torch.func.functional_call(model, moved, kwargs=likelihood.inputs(batch))
            loss = loss + likelihood.nll(outputs, batch).sum() / examples
        return list(torch.autograd.grad(loss, [moved[name] for name in vector], materialize_grads=True))

    with isolated(model), torch.enable_grad():
        pairs = zip(vector, gradient(step), gradient(-step), strict=True)
        return {name: (plus - minus) / (2 * step) for name, plus, minus in pairs}


def gradient_in_top_directions(
    model: nn.Module, batches: Iterable[Batch], names: Iterable[str], count: int
) -> tuple[list[float], float]:
    """The largest eigenvalues of the Hessian, and the share of the squared gradient in the span of their eigenvectors.

    The gradient is a mean over single examples, and all eigenvectors are those of the whole matrix.
    """
    listed, chosen = list(batches), list(names)
    likelihood = likelihood_for(model)

    def gradient(example: Batch, parameters: list[nn.Parameter]) -> Tensor:
        loss = likelihood.nll(model(**likelihood.inputs(example)), example).sum()
        return _flat(torch.autograd.grad(loss, parameters, materialize_grads=True))

    mean = _mean_over_examples(model, listed, chosen, gradient)
    values, vectors = torch.linalg.eigh(dense_hessian(model, listed, chosen))
    order = values.argsort(descending=True)[:count]
    projected = vectors[:, order] @ (vectors[:, order].T @ mean)
    return values[order].tolist(), float(projected.square().sum() / mean.square().sum())


def _mean_over_examples(
    model: nn.Module,
    batches: Iterable[Batch],
    names: Iterable[str],
    rows: Callable[[Batch, list[nn.Parameter]], Tensor],
) -> Tensor:
    every = dict(model.named_parameters())
    chosen = {name: every[name] for name in names}
    matrices = []
    with isolated(model), torch.enable_grad(), requires_grad_set(every, chosen), sdpa_kernel(SDPBackend.MATH):
        for batch in batches:
            for i in range(len(next(iter(batch.values())))):
                one = {key: value[i : i + 1] for key, value in batch.items()}
                matrices.append(rows(one, list(chosen.values())).detach())
    return torch.stack(matrices).mean(0)


def _row(entry: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Gradient (P,) of one number; zeros where it depends on nothing."""
    if not entry.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters), dtype=entry.dtype)
    return _flat(torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True))


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
