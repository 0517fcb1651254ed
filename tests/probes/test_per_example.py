"""Norms from factors equal norms of gradients that are written out."""

from __future__ import annotations

import pytest
import torch

from hf_early_ood.probes import per_example
from hf_early_ood.probes.per_example import InnerProducts, Outer, Rows, Vector, squared_norms

B, D, E, V = 3, 4, 5, 6


def outer(length: int, source: torch.Tensor | None = None) -> Outer:
    x = torch.randn(B, length, D, dtype=torch.float64) if source is None else source
    return Outer(x, torch.randn(B, length, E, dtype=torch.float64), x)


@pytest.mark.parametrize("length", [1, 2, 3, 50])  # by the scalar, the inner product and the outer product rule
@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_matrix(length: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_example, "_CHUNK", chunk)
    uses = [outer(length), outer(length)]
    written_out = [use.x.mT @ use.g for use in uses]
    for count in (1, 2):
        expected = sum(written_out[:count]).square().sum((1, 2))
        torch.testing.assert_close(squared_norms(uses[:count], InnerProducts()), expected)


def test_table() -> None:
    uses = [Rows(torch.randint(V, (B, n)), torch.randn(B, n, D, dtype=torch.float64)) for n in (7, 2)]
    table = torch.zeros(B, V, D, dtype=torch.float64)
    for use in uses:
        for b in range(B):
            table[b].index_add_(0, use.ids[b], use.g[b])
    torch.testing.assert_close(squared_norms(uses, InnerProducts()), table.square().sum((1, 2)))


def test_tied_table() -> None:
    """Read by id, and the weight of a linear layer with V outputs."""
    rows = [Rows(torch.randint(V, (B, n)), torch.randn(B, n, D, dtype=torch.float64)) for n in (7, 2)]
    x, g = torch.randn(B, 3, D, dtype=torch.float64), torch.randn(B, 3, V, dtype=torch.float64)
    for outers in ([Outer(x, g, x)], [Outer(x[:, :1], g[:, :1], x), Outer(x[:, 1:], g[:, 1:], x)]):
        table = g.mT @ x
        for use in rows:
            for b in range(B):
                table[b].index_add_(0, use.ids[b], use.g[b])
        actual = squared_norms([*rows[:1], *outers, *rows[1:]], InnerProducts())
        torch.testing.assert_close(actual, table.square().sum((1, 2)))


def test_norms_are_not_negative() -> None:
    g = torch.ones(B, 2, E, dtype=torch.float64)
    g[:, 1] = -1 - 1e-16
    x = torch.full((B, 2, D), 0.1, dtype=torch.float64)
    assert bool((squared_norms([Outer(x, g, x)], InnerProducts()) >= 0).all())


def test_vector() -> None:
    uses = [Vector(torch.randn(B, D)) for _ in range(3)]
    expected = (uses[0].value + uses[1].value + uses[2].value).square().sum(1)
    torch.testing.assert_close(squared_norms(uses, InnerProducts()), expected)


def test_inner_products_are_shared_by_layers_with_the_same_input_only() -> None:
    cache = InnerProducts()
    first = outer(2)
    same = Outer(first.x.clone(), torch.randn_like(first.g), first.source)
    other = outer(2)
    products = cache.of(first)
    assert cache.of(same) is products
    torch.testing.assert_close(cache.of(other), other.x @ other.x.mT)
    for use in (first, same, other, first):
        torch.testing.assert_close(squared_norms([use], cache), (use.x.mT @ use.g).square().sum((1, 2)))


def test_different_kinds_do_not_mix() -> None:
    with pytest.raises(TypeError, match="different kinds"):
        squared_norms([outer(2), Vector(torch.zeros(B, D))], InnerProducts())
