r"""Per-example squared gradient norms from what a layer saw, without per-example gradients.

A layer ``y = x W`` that is used at T positions has the gradient sum_t x_t g_t^T for one example, with g the
gradient of its output. Its squared norm needs the T x T inner products only:

    ||sum_t x_t g_t^T||^2 = sum_{t,s} <x_t, x_s> <g_t, g_s>

(Goodfellow 2015, arXiv 1510.01799, for T = 1; Li et al. 2022, arXiv 2110.05679, section 4, for sequences.)
Where T is large it is cheaper to form x^T g, one example at a time.

A *factor* is what one use of a parameter adds to its gradient. Uses of one parameter, by a block that is called
several times or by layers that share it, are joined along T (or summed) before the norm is taken: that is where
the cross terms come from. A table whose rows are read by id and which is also the weight of a linear layer, as in a
language model with a tied head, has the cross term 2 sum_{t,s} <r_t, x_s> g_s[id_t], with r_t the gradient of the
row that position t reads. Notation: B examples, T positions, D, E widths, V rows of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_CHUNK = 1 << 24  # entries of the largest temporary: 64 MiB in float32


@dataclass(frozen=True)
class Outer:
    """sum_t x_t g_t^T, of a matrix.

    Attributes:
        x: (B, T, D).
        g: (B, T, E).
        source: The tensor that x is a view of; layers with the same one share the inner products of x.
    """

    x: Tensor
    g: Tensor
    source: Tensor


@dataclass(frozen=True)
class Rows:
    """g_t added to row ids_t, of a table with V rows.

    Attributes:
        ids: (B, T), whole numbers below V.
        g: (B, T, D).
    """

    ids: Tensor
    g: Tensor


@dataclass(frozen=True)
class Vector:
    """The gradient itself, of a bias or a scale.

    Attributes:
        value: (B, D).
    """

    value: Tensor


Factor = Outer | Rows | Vector


@dataclass
class InnerProducts:
    """x x^T of the last input: query, key and value read the same one."""

    source: Tensor | None = field(default=None, repr=False)
    products: Tensor | None = field(default=None, repr=False)

    def of(self, factor: Outer) -> Tensor:
        """Inner products (B, T, T) of ``factor.x``."""
        if self.products is None or self.source is not factor.source or self.products.dtype != factor.x.dtype:
            self.source, self.products = factor.source, factor.x @ factor.x.mT
        return self.products

    def clear(self) -> None:
        """Let the tensors go."""
        self.source = self.products = None


def squared_norms(factors: Sequence[Factor], cache: InnerProducts) -> Tensor:
    """Squared norm (B,) of the sum of factors of one parameter: of one kind, or `Outer` and `Rows` together.

    In the latter case the parameter is a (V, D) weight whose linear layer has V outputs.

    Example:
        >>> x, g = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
        >>> norms = squared_norms([Outer(x, g, x)], InnerProducts())
        >>> torch.allclose(norms, (x.mT @ g).square().sum((1, 2)), rtol=1e-4)
        True
    """
    outers = [factor for factor in factors if isinstance(factor, Outer)]
    rows = [factor for factor in factors if isinstance(factor, Rows)]
    vectors = [factor for factor in factors if isinstance(factor, Vector)]
    if len(vectors) == len(factors):
        return torch.stack([f.value for f in vectors]).sum(0).square().sum(-1)
    if vectors:
        raise TypeError("factors of different kinds")  # can_be_joined keeps such parameters out
    if not rows:
        return _outer_norms(_joined_outer(outers), cache).clamp(min=0)  # inner products round to either side of zero
    table = Rows(torch.cat([f.ids for f in rows], 1), torch.cat([f.g for f in rows], 1))
    if not outers:
        return _row_norms(table)
    outer = _joined_outer(outers)
    return (_outer_norms(outer, cache) + _row_norms(table) + 2 * _tied_products(outer, table)).clamp(min=0)


def _joined_outer(outers: Sequence[Outer]) -> Outer:
    if len(outers) == 1:
        return outers[0]
    x = torch.cat([f.x for f in outers], 1)
    return Outer(x, torch.cat([f.g for f in outers], 1), x)


def _outer_norms(factor: Outer, cache: InnerProducts) -> Tensor:
    x, g = factor.x, factor.g
    (rows, length, width), out = x.shape, g.shape[-1]
    if length == 1:
        return x.square().sum((1, 2)) * g.square().sum((1, 2))
    if length * (width + out) <= width * out:
        return (cache.of(factor) * (g @ g.mT)).sum((1, 2))
    step = max(1, _CHUNK // (width * out))
    chunks = [slice(start, start + step) for start in range(0, rows, step)]
    return torch.cat([(x[chunk].mT @ g[chunk]).square().sum((1, 2)) for chunk in chunks])


def _tied_products(outer: Outer, rows: Rows) -> Tensor:
    """Inner products (B,) of the two gradients of a tied table: sum_{t,s} <r_t, x_s> g_s[id_t]."""
    read = rows.ids[:, None].expand(-1, outer.g.shape[1], -1)
    return (outer.x @ rows.g.mT * outer.g.gather(2, read)).sum((1, 2))


def _row_norms(rows: Rows) -> Tensor:
    """Sum the gradients that meet in one row of one example, then take norms."""
    ids, g = rows.ids, rows.g
    span = int(ids.max()) + 1
    keys = ids + span * torch.arange(len(ids), device=ids.device)[:, None]
    unique, place = keys.flatten().unique(return_inverse=True)
    sums = g.new_zeros(len(unique), g.shape[-1]).index_add_(0, place, g.flatten(0, 1))
    return g.new_zeros(len(ids)).index_add_(0, unique // span, sums.square().sum(-1))
