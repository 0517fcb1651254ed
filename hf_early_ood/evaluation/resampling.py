r"""Bootstrap resamples of metrics, over examples and over seeds.

**Resampling examples.** The ordinary (not stratified) non-parametric bootstrap: n examples are drawn with replacement,
so the shares of the classes vary as they would in another test set. A metric only needs counts, and the counts of such
a draw are exactly multinomial: examples with the same (label, prediction of each model) are one cell, and one
multinomial draw over the cells replaces n draws of examples. All models are read off the same draw, which makes
differences paired. Sets are drawn independently of each other.

**Resampling seeds.** With one run per arm, an interval covers the choice of test examples only: it says nothing about
another seed. With two or more, seeds are resampled as well (hierarchical bootstrap: seeds with replacement, crossed
with examples). Plain resampling of S seeds understates their variance by (S - 1) / S; deviations from the mean are
scaled by sqrt(S / (S - 1)) to undo that (Rao & Wu 1988). In a simulation where seeds matter as much as examples,
95 % intervals held the truth 48 % of the time with one seed, 84 % with two and 93 % with three or more.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from hf_early_ood.evaluation.metrics import ClassCounts, FloatArray, IntArray, metric_from_counts

# Counts of one block of resamples stay below this many numbers.
_BLOCK = 4_000_000


def resample(
    labels: IntArray,
    predictions: IntArray,
    metrics: Sequence[str],
    num_resamples: int,
    rng: np.random.Generator,
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Metrics of M models, predictions (M, n), on the data (M,) and on R resamples of it (R, M)."""
    cells, sizes = np.unique(np.vstack([labels, predictions]), axis=1, return_counts=True)
    one_hot = np.eye(int(cells.max()) + 1)
    is_label = one_hot[cells[0]]  # (cells, C)
    is_predicted = [one_hot[prediction] for prediction in cells[1:]]

    def evaluate(counts: FloatArray) -> dict[str, FloatArray]:
        support = counts @ is_label
        by_model = [ClassCounts(support, counts @ p, counts @ (p * is_label)) for p in is_predicted]
        return {
            metric: np.stack([metric_from_counts(model, metric) for model in by_model], axis=-1) for metric in metrics
        }

    n, block = len(labels), max(1, _BLOCK // len(sizes))
    blocks = [
        evaluate(rng.multinomial(n, sizes / n, size=min(block, num_resamples - start)).astype(np.float64))
        for start in range(0, num_resamples, block)
    ]
    draws = {metric: np.concatenate([part[metric] for part in blocks]) for metric in metrics}
    return evaluate(sizes.astype(np.float64)), draws


def seed_weights(num_seeds: int, num_resamples: int, seed: int) -> FloatArray:
    """Weights (R, S) of the seeds in each resample; rows sum to 1. One seed always has weight 1."""
    if num_seeds == 1:
        return np.ones((num_resamples, 1))
    rng = np.random.default_rng([seed, zlib.crc32(b"seeds")])
    plain = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples) / num_seeds
    return 1 / num_seeds + (plain - 1 / num_seeds) * np.sqrt(num_seeds / (num_seeds - 1))
