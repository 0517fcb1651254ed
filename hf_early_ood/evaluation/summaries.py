"""One metric over all sets, from its resamples: means, worst set, gaps, each with an interval.

Intervals are percentile intervals. Where nothing varies (all predictions right) they have no width, which does not mean
certainty: look at n. The worst set is an extreme, whose bootstrap leans to its side when sets are nearly equal. Where a
metric is not defined in some resample, its interval is NaN: there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hf_early_ood.evaluation.metrics import FloatArray
from hf_early_ood.names import ID_TEST, is_ood


@dataclass(frozen=True)
class Estimate:
    """A number with an interval.

    Attributes:
        value: Point estimate from the data.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Examples it rests on.
    """

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Summary:
    """One metric over all sets: of an arm, or of the difference between two arms.

    Attributes:
        splits: Split -> estimate.
        ood_mean: Mean over the OOD sets, each with the same weight; ``None`` without OOD sets.
        ood_worst: Smallest value over the OOD sets, of errors the largest; in a difference, that of the arm minus that
            of the baseline, which may be on different sets.
        worst_set: The set of ``ood_worst``; ``None`` in a difference.
        gap: ``id_test`` minus ``ood_mean``: positive where the model does worse out of distribution (of errors:
            negative); ``None`` without ``id_test``. In a difference, negative means that the arm loses less than the
            baseline.
        relative_robustness: ``ood_mean`` / ``id_test``: the share of the ID value that is kept. ``None`` for errors,
            for metrics that can be negative, and where the ID value is 0.
        transfer_gaps: OOD split -> ``id_test`` minus its value; where sets are languages, what the transfer to each
            costs. Empty without ``id_test``.
    """

    splits: dict[str, Estimate]
    ood_mean: Estimate | None
    ood_worst: Estimate | None
    worst_set: str | None
    gap: Estimate | None
    relative_robustness: Estimate | None = None
    transfer_gaps: dict[str, Estimate] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, for JSON."""
        return asdict(self)


class Resampled(NamedTuple):
    """A metric of M models on one set of n examples: on the data (M,), and on R resamples of it (R, M)."""

    values: FloatArray
    draws: FloatArray
    n: int
    higher_is_better: bool = True
    lowest: float = 0.0
    highest: float = 1.0

    def first(self) -> Sample:
        """The first model alone."""
        return Sample(float(self.values[0]), self.draws[:, 0], self.n, self.lowest, self.highest)

    def mean(self, runs: slice, weights: FloatArray) -> Sample:
        """Mean over some of the models, with weights (R, models) of ``resampling.seed_weights``."""
        draws = (self.draws[:, runs] * weights).sum(axis=1)
        return Sample(float(self.values[runs].mean()), draws, self.n, self.lowest, self.highest)


class Sample(NamedTuple):
    """A number, what it would be in each resample (R,), the examples it rests on, and its range."""

    value: float
    draws: FloatArray
    n: int
    lowest: float = 0.0  # resampled seeds can leave the range of a metric, so intervals are cut there
    highest: float = 1.0

    def minus(self, other: Sample) -> Sample:
        """The difference, paired: both are read off the same resamples."""
        lowest, highest = self.lowest - other.highest, self.highest - other.lowest
        return Sample(self.value - other.value, self.draws - other.draws, self.n, lowest, highest)

    def estimate(self, confidence: float) -> Estimate:
        """With its percentile interval."""
        tail = (1 - confidence) / 2
        low, high = np.clip(np.quantile(self.draws, [tail, 1 - tail]), self.lowest, self.highest)
        return Estimate(float(self.value), float(low), float(high), self.n)


@dataclass(frozen=True, eq=False)
class Samples:
    """What a `Summary` is made of.

    Attributes:
        splits: Split -> sample.
        over_sets: Attribute of `Summary` -> sample; what is not defined is not there.
        transfer_gaps: OOD split -> sample.
        worst_set: The OOD set with the worst value.
    """

    splits: dict[str, Sample]
    over_sets: dict[str, Sample]
    transfer_gaps: dict[str, Sample]
    worst_set: str | None

    def minus(self, other: Samples) -> Samples:
        """The difference, of what both have."""
        return Samples(
            _minus(self.splits, other.splits),
            _minus(self.over_sets, other.over_sets),
            _minus(self.transfer_gaps, other.transfer_gaps),
            None,
        )

    def summary(self, confidence: float) -> Summary:
        """With intervals."""
        over_sets = {name: sample.estimate(confidence) for name, sample in self.over_sets.items()}
        return Summary(
            splits={split: sample.estimate(confidence) for split, sample in self.splits.items()},
            ood_mean=over_sets.get("ood_mean"),
            ood_worst=over_sets.get("ood_worst"),
            worst_set=self.worst_set,
            gap=over_sets.get("gap"),
            relative_robustness=over_sets.get("relative_robustness"),
            transfer_gaps={split: sample.estimate(confidence) for split, sample in self.transfer_gaps.items()},
        )


def _minus(ours: Mapping[str, Sample], theirs: Mapping[str, Sample]) -> dict[str, Sample]:
    return {name: sample.minus(theirs[name]) for name, sample in ours.items() if name in theirs}


def over_sets(resampled: Mapping[str, Resampled], runs: slice, weights: FloatArray) -> Samples:
    """Mean over some of the runs (seeds) of one metric: on every split, and over the OOD sets.

    Args:
        resampled: Split -> one metric of all runs.
        runs: Those to take.
        weights: (R, runs) from ``resampling.seed_weights``.

    Example:
        >>> sets = {"id_test": Resampled(np.array([0.9]), np.full((5, 1), 0.9), 10)}
        >>> over_sets(sets, slice(None), np.ones((5, 1))).summary(0.95).splits["id_test"].value
        0.9
    """
    splits = {split: part.mean(runs, weights) for split, part in resampled.items()}
    ood = {split: sample for split, sample in splits.items() if is_ood(split)}
    if not ood:
        return Samples(splits, {}, {}, None)
    kind = resampled[next(iter(ood))]
    num_examples = sum(sample.n for sample in ood.values())
    all_draws = np.stack([sample.draws for sample in ood.values()])
    mean = Sample(
        float(np.mean([sample.value for sample in ood.values()])),
        all_draws.mean(axis=0),
        num_examples,
        kind.lowest,
        kind.highest,
    )
    sign = 1 if kind.higher_is_better else -1
    worst_set = min(ood, key=lambda split: (sign * ood[split].value, split))
    worst_draws = all_draws.min(axis=0) if kind.higher_is_better else all_draws.max(axis=0)
    worst = Sample(ood[worst_set].value, worst_draws, num_examples, kind.lowest, kind.highest)
    found = {"ood_mean": mean, "ood_worst": worst}
    if ID_TEST not in splits:
        return Samples(splits, found, {}, worst_set)
    at_home = splits[ID_TEST]
    both = num_examples + at_home.n
    found["gap"] = at_home.minus(mean)._replace(n=both)
    if kind.higher_is_better and kind.lowest == 0 and at_home.value > 0:
        ratios = np.divide(mean.draws, at_home.draws, out=np.full_like(mean.draws, np.nan), where=at_home.draws > 0)
        found["relative_robustness"] = Sample(mean.value / at_home.value, ratios, both, 0.0, np.inf)
    transfer = {split: at_home.minus(sample)._replace(n=sample.n + at_home.n) for split, sample in ood.items()}
    return Samples(splits, found, transfer, worst_set)
