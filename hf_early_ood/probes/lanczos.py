"""Largest eigenvalue of a symmetric matrix that can only be multiplied with. Notation: P coordinates, m products."""

from __future__ import annotations

import math
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
        num_products: Products with the matrix that were made.
    """

    value: float
    vector: Tensor
    residual: float
    num_products: int


def largest_eigenpair(matrix: SymmetricMatrix, start: Tensor, num_products: int, tolerance: float) -> Eigenpair:
    r"""Lanczos iteration with full reorthogonalization: the algebraically largest eigenvalue.

    Source: Lanczos (1950, J. Res. Nat. Bur. Standards 45(4)); reorthogonalization and the residual after Parlett
    (1998, The Symmetric Eigenvalue Problem, ch. 13).

        A Q = Q T + beta_m q_{m+1} e_m',   T s = theta s,   v = Q s,   ||A v - theta v|| = beta_m |s_m|

    Holds one vector of length P for each product made.

    Args:
        matrix: A.
        start: A vector (P,) that is not zero, random so that it leaves no eigenvector out.
        num_products: Largest m.
        tolerance: Stop when the residual is at most this fraction of |theta|.
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
        value, weights = float(values[-1]), vectors[:, -1].tolist()
        residual = beta * abs(weights[-1])
        if residual <= tolerance * abs(value) or len(basis) == min(num_products, matrix.size):
            vector = torch.zeros_like(start)
            for weight, row in zip(weights, basis, strict=True):
                vector.add_(row, alpha=weight)
            return Eigenpair(value, vector, residual, len(basis))
        beside.append(beta)
        basis.append(rest / beta)
