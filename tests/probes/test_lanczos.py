"""Lanczos iteration on matrices that are known."""

from __future__ import annotations

import pytest
import torch

from hf_early_ood.probes.lanczos import largest_eigenpair, largest_eigenpairs
from tests.probes.dense import DenseMatrix, with_spectrum

SPECTRA = {
    "decaying": 1 / torch.arange(1, 61.0),
    "signed": torch.linspace(-5, 3, 60),
    "negative": torch.linspace(-5, -1, 60),
    "double": torch.cat([torch.tensor([2.0, 2.0]), torch.linspace(-1, 1, 58)]),
}


def start(size: int = 60, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SPECTRA)
def test_equals_the_largest_eigenvalue(name: str) -> None:
    matrix = DenseMatrix(with_spectrum(SPECTRA[name]))
    pair = largest_eigenpair(matrix, start(), 60, 1e-9)
    assert pair.value == pytest.approx(float(SPECTRA[name].max()), rel=1e-9)
    true_residual = float((matrix.whole @ pair.vector - pair.value * pair.vector).norm())
    assert true_residual == pytest.approx(pair.residual, abs=1e-12)
    assert float(pair.vector.norm()) == pytest.approx(1, abs=1e-12)
    assert pair.num_products == matrix.num_products <= 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stops_at_the_tolerance_and_says_how_far_it_is(dtype: torch.dtype) -> None:
    matrix = DenseMatrix(with_spectrum(SPECTRA["signed"]).to(dtype))
    few = largest_eigenpair(matrix, start().to(dtype), 5, 1e-3)
    assert few.num_products == 5
    assert few.residual > 1e-3 * few.value
    enough = largest_eigenpair(matrix, start().to(dtype), 60, 1e-3)
    assert 5 < enough.num_products < 60
    assert enough.residual <= 1e-3 * enough.value
    assert abs(enough.value - 3) <= enough.residual + 1e-6
    assert few.value < enough.value < 3 + 1e-5
    for pair in (few, enough):
        actual = float((matrix.whole @ pair.vector - pair.value * pair.vector).norm())
        assert actual == pytest.approx(pair.residual, rel=1e-2)


def test_an_invariant_subspace_ends_it() -> None:
    low_rank = DenseMatrix(with_spectrum(torch.cat([torch.tensor([4.0, -7.0]), torch.zeros(58)])))
    pair = largest_eigenpair(low_rank, start(), 60, 0.0)
    assert (pair.value, pair.residual, pair.num_products) == (pytest.approx(4), 0, 3)
    identity = largest_eigenpair(DenseMatrix(3 * torch.eye(60, dtype=torch.float64)), start(), 60, 0.0)
    assert (identity.value, identity.num_products) == (pytest.approx(3), 1)
    zero = largest_eigenpair(DenseMatrix(torch.zeros(60, 60, dtype=torch.float64)), start(), 60, 1e-3)
    assert (zero.value, zero.residual, zero.num_products) == (0, 0, 1)


def test_one_coordinate() -> None:
    pair = largest_eigenpair(DenseMatrix(torch.tensor([[-2.0]]).double()), start(1), 10, 1e-3)
    assert (pair.value, pair.num_products) == (-2, 1)


@pytest.mark.parametrize("name", ["decaying", "signed", "negative"])
@pytest.mark.parametrize("count", [1, 4, 60])
def test_several_pairs_are_those_of_the_matrix(name: str, count: int) -> None:
    matrix = DenseMatrix(with_spectrum(SPECTRA[name]))
    pairs = largest_eigenpairs(matrix, start(), count, 60, 1e-9)
    expected = SPECTRA[name].sort(descending=True).values[:count].tolist()
    assert [pair.value for pair in pairs] == pytest.approx(expected, rel=1e-7, abs=1e-9)
    vectors = torch.stack([pair.vector for pair in pairs])
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(count, dtype=torch.float64), atol=1e-9, rtol=0)
    for pair in pairs:
        actual = float((matrix.whole @ pair.vector - pair.value * pair.vector).norm())
        assert actual == pytest.approx(pair.residual, abs=1e-11)


def test_an_exhausted_start_is_followed_by_another() -> None:
    """Of a matrix of rank two, whose start spans three directions, and of one with a single eigenvalue."""
    low_rank = DenseMatrix(with_spectrum(torch.cat([torch.tensor([4.0, 3.0]), torch.zeros(58)])))
    values = [pair.value for pair in largest_eigenpairs(low_rank, start(), 5, 60, 1e-9)]
    assert values == pytest.approx([4, 3, 0, 0, 0], abs=1e-12)
    pairs = largest_eigenpairs(DenseMatrix(3 * torch.eye(2, dtype=torch.float64)), torch.ones(2).double(), 2, 2, 0.0)
    assert [pair.value for pair in pairs] == pytest.approx([3, 3])
    assert abs(float(pairs[0].vector @ pairs[1].vector)) < 1e-12
