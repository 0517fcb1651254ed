"""Metrics as functions of sums over examples, so that a point estimate and its resamples share one formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hf_early_ood.evaluation.metrics import FloatArray, IntArray


@dataclass(frozen=True)
class Formula:
    """A metric of a set.

    Attributes:
        of_sums: Column sums (..., K) -> values (...).
        higher_is_better: False for errors such as ECE.
        lowest: Smallest value that it can take.
        highest: Largest.
    """

    of_sums: Callable[[FloatArray], FloatArray]
    higher_is_better: bool = True
    lowest: float = 0.0
    highest: float = 1.0


@dataclass(frozen=True, eq=False)
class Scores:
    """What every example of a set adds to the metrics of one model.

    Attributes:
        columns: (n, K), e.g. exact match, F1 and 1 of each question; their sums determine every metric.
        formulas: Metric -> its formula.
        examples: SHA-256 of what was to be predicted: only scores with the same one can be compared.
        groups: (n,) group of each example, for worst-group metrics.
    """

    columns: FloatArray
    formulas: Mapping[str, Formula]
    examples: str
    groups: IntArray | None = None
