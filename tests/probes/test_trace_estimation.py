"""Trace estimators on matrices that are known: unbiased, with the error they state, exact where they should be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.probes.trace_estimation import (
    exact,
    hutch_plus_plus,
    hutchinson,
    orthonormal,
    project_out,
)
from tests.probes.dense import DenseMatrix, with_spectrum

ESTIMATORS = [hutchinson, hutch_plus_plus]
GROUPS = (20, 1, 39)
DECAYING = 1 / torch.arange(1, 61, dtype=torch.float64)
SIGNED = DECAYING * torch.where(torch.arange(60) % 3 == 0, -1, 1)


def two_terms(values: Tensor) -> tuple[Tensor, Tensor]:
    matrix = with_spectrum(values)
    other = with_spectrum(torch.randn(len(values)), seed=1)
    return matrix - other, other


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("values", [DECAYING, SIGNED, torch.ones(60)], ids=["decaying", "signed", "identity"])
def test_unbiased_with_the_stated_error(estimator, values: Tensor) -> None:
    terms = two_terms(values)
    runs = [estimator(DenseMatrix(*terms, groups=GROUPS, seed=seed), 12) for seed in range(150)]
    truth = DenseMatrix(*terms, groups=GROUPS).block_traces
    blocks = torch.stack([run.groups for run in runs])
    errors = blocks.std(0) / math.sqrt(len(runs)) + 1e-12
    assert bool(((blocks.mean(0) - truth).abs() < 4 * errors).all())
    totals = torch.tensor([run.total for run in runs], dtype=torch.float64)
    assert torch.allclose(totals, blocks.sum(1))
    # The mean of the squared stated errors is the variance of the estimates, as far as 150 of them tell.
    stated = torch.tensor([run.standard_error for run in runs], dtype=torch.float64).square().mean().sqrt()
    assert float(stated) == pytest.approx(float(totals.std()), rel=0.25, abs=1e-10)
    stated_groups = torch.stack([run.group_standard_errors for run in runs]).square().mean(0).sqrt()
    # A block shares the sketch with its neighbors: their part of it varies too, so the error is a little larger.
    assert bool((stated_groups < 1.3 * blocks.std(0) + 1e-10).all())
    assert bool((stated_groups > 0.6 * blocks.std(0) - 1e-10).all())


def test_hutch_plus_plus_is_the_better_one_where_few_eigenvalues_matter() -> None:
    terms = two_terms(torch.cat([torch.tensor([10.0, 5.0, -4.0]), 0.05 * torch.randn(57)]))
    truth = float(DenseMatrix(*terms).block_traces)
    rms = []
    for estimator in ESTIMATORS:
        wrong = [estimator(DenseMatrix(*terms, seed=seed), 18).total - truth for seed in range(60)]
        rms.append(math.sqrt(sum(error**2 for error in wrong) / len(wrong)))
    assert rms[1] < rms[0] / 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exact_on_a_matrix_of_low_rank(dtype: torch.dtype) -> None:
    values = torch.cat([torch.tensor([3.0, -2.0, 1.0, 0.5]), torch.zeros(56)])
    matrix = DenseMatrix(with_spectrum(values).to(dtype), groups=GROUPS)
    estimate = hutch_plus_plus(matrix, 15)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    assert torch.allclose(estimate.groups, matrix.block_traces, atol=tolerance)
    assert estimate.standard_error < tolerance
    if dtype == torch.float64:
        assert estimate.num_products == matrix.num_products == 5 + 4 + 5  # the fifth direction was rounding


def test_hutchinson_has_no_error_on_a_diagonal_matrix() -> None:
    matrix = DenseMatrix(torch.arange(60.0).diag().double(), groups=GROUPS)
    assert torch.allclose(hutchinson(matrix, 2).groups, matrix.block_traces)


def test_the_definition() -> None:
    terms = two_terms(SIGNED)
    matrix = DenseMatrix(*terms, groups=GROUPS)
    estimate = exact(matrix)
    assert torch.allclose(estimate.groups, matrix.block_traces)
    assert estimate.total == pytest.approx(float(SIGNED.sum()))
    assert (estimate.num_products, matrix.num_products) == (60, 60)
    assert estimate.standard_error == 0
    assert estimate.group_standard_errors.tolist() == [0, 0, 0]


@pytest.mark.parametrize("estimator", [*ESTIMATORS, lambda matrix, _: exact(matrix)])
def test_nothing_but_zeros(estimator) -> None:
    estimate = estimator(DenseMatrix(torch.zeros(60, 60, dtype=torch.float64), groups=GROUPS), 9)
    assert estimate.groups.tolist() == [0, 0, 0]
    assert estimate.standard_error == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_products_are_counted(estimator) -> None:
    for wanted in (4, 5, 6, 20):
        matrix = DenseMatrix(*two_terms(SIGNED))
        assert estimator(matrix, wanted).num_products == matrix.num_products == wanted


@pytest.mark.parametrize(("estimator", "least"), [(hutchinson, 2), (hutch_plus_plus, 4)])
def test_too_few_products(estimator, least: int) -> None:
    matrix = DenseMatrix(*two_terms(SIGNED))
    assert math.isfinite(estimator(matrix, least).standard_error)
    with pytest.raises(ConfigurationError, match=f"Got: num_products={least - 1}. Allowed: {least} or more"):
        estimator(matrix, least - 1)


def test_orthonormal_leaves_out_what_is_spanned() -> None:
    rows = torch.randn(3, 60, dtype=torch.float64)
    rows = torch.stack([rows[0], 2 * rows[0], rows[1], torch.zeros(60), rows[0] - rows[1] + 1e-9 * rows[2]]).double()
    matrix = DenseMatrix(torch.eye(60, dtype=torch.float64))
    basis = orthonormal(matrix, rows.clone())
    assert len(basis) == 3
    assert torch.allclose(basis @ basis.T, torch.eye(3, dtype=torch.float64), atol=1e-14)
    left = project_out(matrix, basis, rows[4].clone())
    assert float(left.norm()) < 1e-13
