"""A symmetric matrix that is known entry by entry, as the estimators see it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hf_early_ood.probes.trace_estimation import Product


class DenseMatrix:
    """The given matrices (P, P), to be added up; the coordinates are split into groups of the given sizes."""

    def __init__(self, *terms: Tensor, groups: tuple[int, ...] | None = None, seed: int = 0) -> None:
        self.whole, self.seed, self.num_products = sum(terms), seed, 0
        self._terms = terms
        self._sizes = groups if groups is not None else (len(terms[0]),)

    @property
    def size(self) -> int:
        return len(self.whole)

    @property
    def num_groups(self) -> int:
        return len(self._sizes)

    def terms(self) -> Iterator[Product]:
        for number, term in enumerate(self._terms):

            def product(vector: Tensor, term: Tensor = term, number: int = number) -> Tensor:
                self.num_products += number == 0
                return term @ vector

            yield product

    def signs(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        return torch.randint(2, (self.size,), generator=generator).to(self.whole) * 2 - 1

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([part.double().sum() for part in (left * right).split(self._sizes)])

    @property
    def block_traces(self) -> Tensor:
        return torch.stack([part.double().sum() for part in self.whole.diagonal().split(self._sizes)])


def with_spectrum(values: Tensor, seed: int = 0) -> Tensor:
    """A random symmetric matrix with the given eigenvalues."""
    noise = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation = torch.linalg.qr(noise)[0]
    return (rotation * values.double()) @ rotation.T
