"""Trace of a symmetric matrix that can only be multiplied with, whole and by groups of its coordinates.

Notation: P coordinates, G groups of them, m products; A = sum_t A_t is the matrix, given as a sum of terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hf_early_ood.checks import check_count
from hf_early_ood.errors import ConfigurationError

Product = Callable[[Tensor], Tensor]
# Relative length below which what is left of a vector counts as rounding, in units of the precision.
_ROUNDING = 100
LEAST_PRODUCTS = {"hutch++": 4, "hutchinson": 2}


class SymmetricMatrix(Protocol):
    """A = sum_t A_t of size (P, P), and the inner products of its space."""

    @property
    def size(self) -> int:
        """P."""

    @property
    def num_groups(self) -> int:
        """G."""

    def terms(self) -> Iterator[Product]:
        """Products v (P,) -> A_t v (P,), one t after the other; each is valid until the next is asked for."""

    def signs(self, index: int) -> Tensor:
        """Random vector number ``index`` (P,) of independent -1 and 1: the same one whenever it is asked for."""

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        """Inner product of two vectors (P,), each group of coordinates by itself: (G,), float64, on the CPU."""


@dataclass(frozen=True)
class TraceEstimate:
    """Trace of a matrix.

    Attributes:
        groups: Traces of the diagonal blocks (G,), float64; the trace is their sum.
        samples: Independent estimates of the random part by block (m', G); empty where nothing is random.
        num_products: Products with the matrix that were made.
    """

    groups: Tensor
    samples: Tensor
    num_products: int

    @property
    def total(self) -> float:
        """The trace."""
        return math.fsum(self.groups.tolist())

    @property
    def standard_error(self) -> float:
        """Standard error of the trace: s / sqrt(m'), s the standard deviation of the m' samples."""
        return float(_standard_error(self.samples.sum(1)))

    @property
    def group_standard_errors(self) -> Tensor:
        """Standard errors of the traces of the blocks (G,)."""
        return _standard_error(self.samples)


def _standard_error(samples: Tensor) -> Tensor:
    count = len(samples)
    return samples.std(0) / math.sqrt(count) if count else torch.zeros(samples.shape[1:], dtype=torch.float64)


def exact(matrix: SymmetricMatrix) -> TraceEstimate:
    """Trace by its definition, from the products with all P unit vectors."""
    unit = torch.zeros_like(matrix.signs(0))
    groups = matrix.dot(unit, unit)
    for product in matrix.terms():
        for index in range(matrix.size):
            unit[index] = 1
            groups += matrix.dot(unit, product(unit))
            unit[index] = 0
    return TraceEstimate(groups, groups.new_zeros(0, len(groups)), matrix.size)


def hutchinson(matrix: SymmetricMatrix, num_products: int) -> TraceEstimate:
    r"""Estimate of Hutchinson: the mean of v' A v over random signs v.

    Source: Hutchinson (1990, Communications in Statistics 19(2)).

        E[v_g' (A v)_g] = tr A_gg,   Var[v' A v] = 2 sum_{i != j} A_ij^2

    so that the blocks are as unbiased as the whole, and sum to it. Holds two vectors of length P.

    Args:
        matrix: A.
        num_products: m, at least 2.

    Raises:
        ConfigurationError: Too few products for a standard error.
    """
    check_products(num_products, "hutchinson")
    samples = torch.zeros(num_products, matrix.num_groups, dtype=torch.float64)
    for product in matrix.terms():
        for index in range(num_products):
            signs = matrix.signs(index)
            samples[index] += matrix.dot(signs, product(signs))
    return TraceEstimate(samples.mean(0), samples, num_products)


def hutch_plus_plus(matrix: SymmetricMatrix, num_products: int) -> TraceEstimate:
    r"""Estimate of Meyer et al.: exact on the range of a sketch, Hutchinson's on the rest.

    Source: Meyer, Musco, Musco and Woodruff (2021, arXiv 2010.09649, Algorithm 1).

        Q = orth(A S),   tr A = tr(Q' A Q) + E[g' A g],   g = (I - Q Q') v

    with m / 3 columns in S, as many products with Q and the remaining ones with g. Few large eigenvalues, as loss
    surfaces have, are taken in by Q, and only the rest is random. Given Q the estimate is unbiased and the samples
    g' A g are independent, so the standard error is an ordinary one. (XTrace, of Epperly, Tropp and Webber, 2024,
    arXiv 2301.07825, is somewhat more accurate at equal m, but keeps half as much again in memory, and its samples
    share their sketch: their spread understates its error.)

    The blocks cost nothing more. Let R = I - Q Q'. Since A is symmetric, A = (A Q Q' + Q Q' A - Q Q' A Q Q') + R A R,
    where the diagonal of the bracket follows from Q and A Q, block by block, and the last term is sampled:

        tr A_gg = 2 tr(Q_g' (A Q)_g) - tr(Q' A Q Q_g' Q_g) + E[g_g' (R A g)_g]

    Their sum over groups is the estimate above. Holds m / 3 + 2 vectors of length P.

    Args:
        matrix: A.
        num_products: m, at least 4.

    Raises:
        ConfigurationError: Too few products for a standard error.
    """
    check_products(num_products, "hutch++")
    num_sketched = num_products // 3
    num_samples = num_products - 2 * num_sketched
    basis = orthonormal(matrix, _sketch(matrix, num_sketched))
    rank, groups = len(basis), matrix.num_groups

    def deflated(index: int) -> Tensor:
        """g, from other signs than those of the sketch."""
        return project_out(matrix, basis, matrix.signs(num_sketched + index), passes=1)

    inside = torch.zeros(rank, groups, rank, dtype=torch.float64)  # [j]: Q_g' (A q_j)_g
    outside = torch.zeros(num_samples, groups, dtype=torch.float64)  # [i]: g_g' (A g)_g
    across = torch.zeros(num_samples, rank, dtype=torch.float64)  # [i]: Q' A g
    overlaps = torch.zeros(num_samples, groups, rank, dtype=torch.float64)  # [i]: Q_g' g_g, the same for all terms
    for product in matrix.terms():
        for j, row in enumerate(basis):
            inside[j] += dots(matrix, basis, product(row))
        for i in range(num_samples):
            vector = deflated(i)
            image = product(vector)
            outside[i] += matrix.dot(vector, image)
            across[i] += dots(matrix, basis, image).sum(0)
            overlaps[i] = dots(matrix, basis, vector)
    samples = outside - (overlaps * across[:, None]).sum(-1)
    gram = [dots(matrix, basis, row) for row in basis]  # [j]: Q_g' (q_j)_g
    blocks = samples.mean(0)
    for j in range(rank):
        blocks += 2 * inside[j, :, j] - (gram[j] * inside[j].sum(0)).sum(-1)
    return TraceEstimate(blocks, samples, num_sketched + rank + num_samples)


def _sketch(matrix: SymmetricMatrix, count: int) -> Tensor:
    """A S for ``count`` random sign vectors S, as rows (count, P)."""
    rows = torch.zeros_like(matrix.signs(0)).repeat(count, 1)
    for product in matrix.terms():
        for index in range(count):
            rows[index] += product(matrix.signs(index))
    return rows


def orthonormal(matrix: SymmetricMatrix, rows: Tensor) -> Tensor:
    """Orthonormal basis (rank, P) of the span of rows (k, P), which are overwritten.

    Gram and Schmidt's process, each projection made twice. Rows that the ones before span are left out.
    """
    rank = 0
    for row in rows:
        before = length(matrix, row)
        if before == 0:
            continue
        vector = project_out(matrix, rows[:rank], row / before)
        after = length(matrix, vector)
        if after > _ROUNDING * torch.finfo(rows.dtype).eps:
            rows[rank] = vector / after
            rank += 1
    return rows[:rank]


def dots(matrix: SymmetricMatrix, rows: Sequence[Tensor] | Tensor, vector: Tensor) -> Tensor:
    """Inner products of k rows (P,) with a vector (P,), each group of coordinates by itself: (G, k)."""
    columns = [matrix.dot(row, vector) for row in rows]
    return torch.stack(columns, 1) if columns else torch.zeros(matrix.num_groups, 0, dtype=torch.float64)


def project_out(matrix: SymmetricMatrix, basis: Sequence[Tensor] | Tensor, vector: Tensor, passes: int = 2) -> Tensor:
    """The part of a vector (P,) that is orthogonal to orthonormal rows (P,); overwrites the vector.

    One pass leaves rounding of the size of what it removed: enough where that is little, and two are always enough.
    """
    for _ in range(passes):
        for row in basis:
            vector.sub_(row, alpha=float(matrix.dot(row, vector).sum()))
    return vector


def length(matrix: SymmetricMatrix, vector: Tensor) -> float:
    """Euclidean length of a vector (P,)."""
    return math.sqrt(float(matrix.dot(vector, vector).sum()))


def check_products(num_products: int, method: str) -> None:
    """Refuse fewer products than an estimate with a standard error takes.

    Args:
        num_products: m.
        method: ``"hutch++"`` or ``"hutchinson"``.

    Raises:
        ConfigurationError: Too few of them, or not a whole number.
    """
    check_count("num_products", num_products, least=0)
    if num_products < LEAST_PRODUCTS[method]:
        raise ConfigurationError(
            "There are too few products for an estimate with a standard error.",
            got=f"num_products={num_products}",
            allowed=f"{LEAST_PRODUCTS[method]} or more with method={method!r}",
        )
