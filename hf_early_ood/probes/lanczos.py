"""Largest eigenvalues of a symmetric matrix that can only be multiplied with. Notation: P coordinates, m products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_early_ood.probes.trace_estimation import SymmetricMatrix, length, project_out


@dataclass(frozen=True)
class Eigenpair:
    """An approximate eigenvalue and what is known about it.

    Attributes:
        value: lambda, the Rayleigh quotient of ``vector``.
        vector: Of length one (P,).
        residual: ||A v - lambda v||; there is an eigenvalue within this distance of ``value``.
        num_products: Products with the matrix that were made, for all pairs that were asked for together.
    """

    value: float
    vector: Tensor
    residual: float
    num_products: int


def largest_eigenpair(matrix: SymmetricMatrix, start: Tensor, num_products: int, tolerance: float) -> Eigenpair:
    """The algebraically largest eigenvalue: the first of `largest_eigenpairs`."""
    return largest_eigenpairs(matrix, start, 1, num_products, tolerance)[0]


def largest_eigenpairs(
    matrix: SymmetricMatrix, start: Tensor, count: int, num_products: int, tolerance: float
) -> list[Eigenpair]:
    r"""Lanczos iteration with full reorthogonalization: the algebraically largest eigenvalues, in falling order.

    Source: Lanczos (1950, J. Res. Nat. Bur. Standards 45(4)); reorthogonalization and the residual after Parlett
    (1998, The Symmetric Eigenvalue Problem, ch. 13).

        A Q = Q T + beta_m q_{m+1} e_m',   T s = theta s,   v = Q s,   ||A v - theta v|| = beta_m |s_m|

    Holds one vector of length P for each product made, and one for each pair. An eigenvalue that A has several times is
    found once, unless what A makes of the start is exhausted before there are enough: then the iteration goes on from
    a random vector that is orthogonal to all before.

    Args:
        matrix: A.
        start: A vector (P,) that is not zero, random so that it leaves no eigenvector out.
        count: How many pairs, at most P and at most ``num_products``.
        num_products: Largest m.
        tolerance: Stop when the residual of every pair is at most this fraction of its |theta|.
    """
    basis = [start / length(matrix, start)]
    diagonal: list[float] = []
    beside: list[float] = []
    scale = 0.0
    while True:
        image = torch.zeros_like(start)
        for product in matrix.terms():
            image += product(basis[-1])
        scale = max(scale, length(matrix, image))
        diagonal.append(float(matrix.dot(basis[-1], image).sum()))
        rest = project_out(matrix, basis, image)
        beta = length(matrix, rest)
        if beta <= math.sqrt(len(start)) * torch.finfo(start.dtype).eps * scale:
            beta = 0.0  # nothing but rounding: the basis spans all that A makes of the start
        off = torch.tensor(beside, dtype=torch.float64)
        tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(tridiagonal)
        largest = range(len(basis) - 1, max(len(basis) - count, 0) - 1, -1)
        residuals = {i: beta * abs(float(vectors[-1, i])) for i in largest}
        close = all(residuals[i] <= tolerance * abs(float(values[i])) for i in largest)
        if len(basis) == min(num_products, matrix.size) or (close and len(basis) >= count):
            return [
                Eigenpair(float(values[i]), _combined(basis, vectors[:, i].tolist()), residuals[i], len(basis))
                for i in largest
            ]
        beside.append(beta)
        basis.append(rest / beta if beta else _outside(matrix, basis))


def _outside(matrix: SymmetricMatrix, basis: Sequence[Tensor]) -> Tensor:
    """A random vector of length one that is orthogonal to the basis, which does not span the whole space."""
    index, size, rest = 0, 0.0, torch.zeros_like(basis[0])
    while size <= math.sqrt(len(rest) * torch.finfo(rest.dtype).eps):  # in few dimensions, signs can lie in its span
        rest = project_out(matrix, basis, matrix.signs(index))
        index, size = index + 1, length(matrix, rest)
    return rest / size


def _combined(basis: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    vector = torch.zeros_like(basis[0])
    for weight, row in zip(weights, basis, strict=True):
        vector.add_(row, alpha=weight)
    return vector
