r"""Bootstrap intervals, and paired comparison of two arms over ID and OOD sets.

Examples, and with two or more runs per arm also seeds, are resampled as ``resampling`` describes. Intervals are
percentile intervals. Where nothing varies (all predictions right) they have no width, which does not mean certainty:
look at n. The worst set is a minimum, whose bootstrap leans low when sets are nearly equal.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.evaluation.metrics import (
    METRICS,
    FloatArray,
    IntArray,
    check_predictions,
)
from hf_early_ood.evaluation.resampling import resample, seed_weights
from hf_early_ood.names import BALANCED_ACCURACY, ID_TEST, is_ood

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95

Run = Mapping[str, tuple[IntArray, IntArray]]
"""Split -> (labels, predictions) of one trained model."""


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
        ood_worst: Smallest value over the OOD sets; in a difference, that of the arm minus that of the baseline,
            which may be on different sets.
        worst_set: The set of ``ood_worst``; ``None`` in a difference.
        gap: ``id_test`` minus ``ood_mean``: positive where the model does worse out of distribution; ``None`` without
            ``id_test``. In a difference, negative means that the arm loses less than the baseline.
    """

    splits: dict[str, Estimate]
    ood_mean: Estimate | None
    ood_worst: Estimate | None
    worst_set: str | None
    gap: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ArmComparison:
    """Two arms on the same examples.

    Attributes:
        metric: Name of the metric.
        baseline: Means over the seeds of the baseline arm.
        arm: Means over the seeds of the other arm.
        difference: Arm minus baseline, paired.
        num_seeds: Runs of baseline and arm.
        covers: What the intervals cover: ``examples``, or ``examples and seeds``.
        paired_seeds: Whether run i of both arms was taken to share its seed.
    """

    metric: str
    baseline: Summary
    arm: Summary
    difference: Summary
    num_seeds: tuple[int, int]
    covers: str
    paired_seeds: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, for JSON."""
        return asdict(self)


class _Sample(NamedTuple):
    """A number, what it would be in each resample (R,), the examples it rests on, and the smallest it can be."""

    value: float
    draws: FloatArray
    n: int
    lowest: float = 0.0  # resampled seeds can leave the range of a metric, so intervals are cut there

    def minus(self, other: _Sample) -> _Sample:
        return _Sample(self.value - other.value, self.draws - other.draws, self.n, lowest=-1.0)


def bootstrap_metrics(
    labels: IntArray,
    predictions: IntArray,
    *,
    metrics: Sequence[str] = METRICS,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics of one model on one set, with bootstrap intervals over examples.

    Args:
        labels: (n,) class ids.
        predictions: (n,) class ids.
        metrics: Names of metrics.
        num_resamples: Number of resamples R.
        confidence: Coverage of the interval.
        seed: Seed of the resampling.

    Returns:
        Metric -> estimate.

    Raises:
        DataError: If there are no examples, or labels and predictions do not fit.
        ConfigurationError: If a setting is not usable.

    Example:
        >>> labels = np.array([0, 1] * 50)
        >>> estimate = bootstrap_metrics(labels, np.where(np.arange(100) < 20, 0, labels))["accuracy"]
        >>> estimate.value, estimate.low < 0.9 < estimate.high
        (0.9, True)
    """
    _check_settings(num_resamples, confidence)
    labels, predictions = check_predictions(labels, predictions)
    rng = np.random.default_rng(seed)
    values, draws = resample(labels, predictions[None], metrics, num_resamples, rng)
    return {
        metric: _estimate(_Sample(values[metric][0], draws[metric][:, 0], len(labels)), confidence)
        for metric in metrics
    }


def paired_difference(
    labels: IntArray,
    baseline: IntArray,
    arm: IntArray,
    *,
    metric: str = BALANCED_ACCURACY,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """Metric of ``arm`` minus metric of ``baseline`` on the same examples, with a paired interval over examples.

    Args:
        labels: (n,) class ids.
        baseline: (n,) predictions of one model.
        arm: (n,) predictions of another model for the same examples.
        metric: Name of the metric.
        num_resamples: Number of resamples R.
        confidence: Coverage of the interval.
        seed: Seed of the resampling.

    Returns:
        Estimate of the difference: positive where ``arm`` is better.

    Raises:
        DataError: If there are no examples, or labels and predictions do not fit.
        ConfigurationError: If a setting is not usable.

    Example:
        >>> labels = np.array([0, 1] * 50)
        >>> paired_difference(labels, np.zeros(100, dtype=int), labels).value
        0.5
    """
    runs = [{ID_TEST: (labels, baseline)}], [{ID_TEST: (labels, arm)}]
    comparison = compare_arms(*runs, metric=metric, num_resamples=num_resamples, confidence=confidence, seed=seed)
    return comparison.difference.splits[ID_TEST]


def summarize_runs(
    runs: Sequence[Run],
    *,
    metric: str = BALANCED_ACCURACY,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Summary:
    """Mean over the runs (seeds) of one arm: on every set, over the OOD sets, and the gap to ID.

    With one run the intervals cover examples only, with more also seeds: see ``resampling``.

    Args:
        runs: For each seed, split -> (labels, predictions); all on the same examples.
        metric: Name of the metric.
        num_resamples: Number of resamples R.
        confidence: Coverage of the intervals.
        seed: Seed of the resampling. A set has the same resamples whatever other sets there are.

    Returns:
        The summary.

    Raises:
        DataError: If there are no runs, or they are not on the same examples.
        ConfigurationError: If a setting is not usable.

    Example:
        >>> labels = np.array([0, 1] * 50)
        >>> run = {"id_test": (labels, labels), "ood/a": (labels, labels), "ood/b": (labels, 0 * labels)}
        >>> summary = summarize_runs([run])
        >>> summary.ood_mean.value, summary.worst_set, summary.gap.value
        (0.75, 'ood/b', 0.25)
    """
    _check_settings(num_resamples, confidence)
    values, draws, sizes = _resample_runs(runs, metric, num_resamples, seed)
    weights = seed_weights(len(runs), num_resamples, seed)
    return _summary(*_samples(values, draws, sizes, slice(None), weights), confidence)


def compare_arms(
    baseline: Sequence[Run],
    arm: Sequence[Run],
    *,
    metric: str = BALANCED_ACCURACY,
    paired_seeds: bool = True,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> ArmComparison:
    """Compare two arms, each with one run per seed, on the same sets: paired over examples, and over seeds.

    All runs are read off the same resampled examples, so what is hard for both arms cancels in the difference.
    With ``paired_seeds``, run i of both arms shares its seed (initial head, order of the data) and both are drawn
    together; without, the seeds of the two arms are drawn independently.

    Args:
        baseline: For each seed, split -> (labels, predictions).
        arm: The same for the other arm, on the same examples.
        metric: Name of the metric.
        paired_seeds: Whether ``baseline[i]`` and ``arm[i]`` share a seed.
        num_resamples: Number of resamples R.
        confidence: Coverage of the intervals.
        seed: Seed of the resampling.

    Returns:
        Summaries of both arms and of their difference.

    Raises:
        DataError: If an arm has no runs, runs are not on the same examples, or paired arms differ in their number.
        ConfigurationError: If a setting is not usable.

    Example:
        >>> labels = np.array([0, 1] * 50)
        >>> better = [{"id_test": (labels, labels), "ood/a": (labels, labels)}]
        >>> worse = [{"id_test": (labels, labels), "ood/a": (labels, 0 * labels)}]
        >>> comparison = compare_arms(worse, better)
        >>> comparison.difference.ood_mean.value, comparison.difference.gap.value, comparison.covers
        (0.5, -0.5, 'examples')
    """
    _check_settings(num_resamples, confidence)
    num_baseline, num_arm = len(baseline), len(arm)
    if paired_seeds and num_baseline != num_arm:
        raise DataError(
            "Paired arms need the same number of runs.",
            got=f"{num_baseline} and {num_arm}",
            fix="Leave out runs whose seed only one arm has, or set paired_seeds=False.",
        )
    if not num_baseline or not num_arm:
        raise DataError("An arm has no runs.", got=f"{num_baseline} and {num_arm}", allowed="one or more each")
    values, draws, sizes = _resample_runs([*baseline, *arm], metric, num_resamples, seed)
    baseline_weights = seed_weights(num_baseline, num_resamples, seed)
    # The same draw of seeds where they are paired, another one where they are not.
    arm_weights = baseline_weights if paired_seeds else seed_weights(num_arm, num_resamples, seed + 1)
    baseline_samples, baseline_worst = _samples(values, draws, sizes, slice(0, num_baseline), baseline_weights)
    arm_samples, arm_worst = _samples(values, draws, sizes, slice(num_baseline, None), arm_weights)
    differences = {name: sample.minus(baseline_samples[name]) for name, sample in arm_samples.items()}
    return ArmComparison(
        metric=metric,
        baseline=_summary(baseline_samples, baseline_worst, confidence),
        arm=_summary(arm_samples, arm_worst, confidence),
        difference=_summary(differences, None, confidence),
        num_seeds=(num_baseline, num_arm),
        covers="examples and seeds" if min(num_baseline, num_arm) > 1 else "examples",
        paired_seeds=paired_seeds,
    )


def _check_settings(num_resamples: int, confidence: float) -> None:
    if num_resamples < 100:
        raise ConfigurationError("There are too few resamples.", got=num_resamples, allowed="100 or more")
    if not 0 < confidence < 1:
        raise ConfigurationError("The confidence is out of range.", got=confidence, allowed="0 < confidence < 1")


def _resample_runs(
    runs: Sequence[Run], metric: str, num_resamples: int, seed: int
) -> tuple[dict[str, FloatArray], dict[str, FloatArray], dict[str, int]]:
    """Per split: metric of each run (M,), of each run in each resample (R, M), number of examples."""
    if not runs:
        raise DataError("There are no runs to summarize.", allowed="one or more")
    splits = list(runs[0])
    if not splits:
        raise DataError("A run has no splits.")
    values, draws, sizes = {}, {}, {}
    for split in splits:
        pairs = []
        for position, run in enumerate(runs):
            if set(run) != set(splits):
                raise DataError(
                    f"Run {position} was not evaluated on the same sets.",
                    got=", ".join(sorted(run)),
                    allowed=", ".join(sorted(splits)),
                )
            pairs.append(check_predictions(*run[split]))
            if not np.array_equal(pairs[0][0], pairs[-1][0]):
                raise DataError(
                    f"Run {position} was not evaluated on the same examples of {split}: the labels differ.",
                    fix="Evaluate all runs on the same splits, in the same order.",
                )
        labels = pairs[0][0]
        # Its own stream for each set: adding a set does not change the others.
        rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
        predictions = np.stack([prediction for _, prediction in pairs])
        value, draw = resample(labels, predictions, [metric], num_resamples, rng)
        values[split], draws[split], sizes[split] = value[metric], draw[metric], len(labels)
    return values, draws, sizes


_OOD_MEAN, _OOD_WORST, _GAP = "ood_mean", "ood_worst", "gap"


def _samples(
    values: Mapping[str, FloatArray],
    draws: Mapping[str, FloatArray],
    sizes: Mapping[str, int],
    runs: slice,
    weights: FloatArray,
) -> tuple[dict[str, _Sample], str | None]:
    """Mean over some of the runs: on every split, and over the OOD sets. Also the worst OOD set."""
    samples = {
        split: _Sample(float(values[split][runs].mean()), (draws[split][:, runs] * weights).sum(axis=1), sizes[split])
        for split in values
    }
    ood = {split: sample for split, sample in samples.items() if is_ood(split)}
    if not ood:
        return samples, None
    num_examples = sum(sample.n for sample in ood.values())
    all_draws = np.stack([sample.draws for sample in ood.values()])
    mean = _Sample(float(np.mean([sample.value for sample in ood.values()])), all_draws.mean(axis=0), num_examples)
    worst_set = min(ood, key=lambda split: (ood[split].value, split))
    samples[_OOD_MEAN] = mean
    samples[_OOD_WORST] = _Sample(ood[worst_set].value, all_draws.min(axis=0), num_examples)
    if ID_TEST in samples:
        samples[_GAP] = samples[ID_TEST].minus(mean)._replace(n=num_examples + sizes[ID_TEST])
    return samples, worst_set


def _summary(samples: Mapping[str, _Sample], worst_set: str | None, confidence: float) -> Summary:
    estimates = {name: _estimate(sample, confidence) for name, sample in samples.items()}
    ood_mean, ood_worst, gap = (estimates.pop(name, None) for name in (_OOD_MEAN, _OOD_WORST, _GAP))
    return Summary(estimates, ood_mean, ood_worst, worst_set, gap)


def _estimate(sample: _Sample, confidence: float) -> Estimate:
    tail = (1 - confidence) / 2
    low, high = np.clip(np.quantile(sample.draws, [tail, 1 - tail]), sample.lowest, 1.0)
    return Estimate(float(sample.value), float(low), float(high), sample.n)
