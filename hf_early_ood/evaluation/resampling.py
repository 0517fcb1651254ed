r"""Bootstrap resamples of metrics over examples.

The ordinary (not stratified) non-parametric bootstrap: n examples are drawn with replacement,
so the shares of the classes vary as they would in another test set. A metric only needs sums over examples, and the
sums of such a draw are those of multinomial counts: examples with the same scores for each model are one cell, and one
multinomial draw over the cells replaces n draws of examples (where most examples are a cell of their own, as
probabilities are, examples are drawn, which is faster). All models are read off the same draw, which makes differences
paired. Sets are drawn independently of each other.

Seeds are not resampled: resamples of three to ten seeds vary too little (``benchmarks/bench_statistics.py`` has both).
What another seed would change is read off the runs themselves: see ``inference``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array

from hf_early_ood.evaluation.metrics import FloatArray, IntArray
from hf_early_ood.evaluation.scores import Scores

# Counts of one block of resamples stay below this many numbers.
_BLOCK = 4_000_000


def resample(
    scores: Sequence[Scores], metric: str, num_resamples: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """A metric of M models on the same n examples: on the data (M,) and on R resamples of it (R, M)."""
    formulas = [model.formula(metric).of_sums for model in scores]
    ids, rows = zip(*(_alike(model.used(metric)) for model in scores), strict=True)
    cells, cell_of, sizes = np.unique(np.stack(ids), axis=1, return_inverse=True, return_counts=True)
    # Transposed, and sparse: of many classes, an example has one.
    weights = [csr_array(rows[model][cells[model]].T) for model in range(len(scores))]

    def evaluate(counts: FloatArray) -> FloatArray:
        by_cell = np.ascontiguousarray(counts.T)
        pairs = zip(formulas, weights, strict=True)
        return np.stack([of_sums((weight @ by_cell).T) for of_sums, weight in pairs], axis=-1)

    draws = [evaluate(counts) for counts in _counts(cell_of.ravel(), sizes, num_resamples, rng)]
    return evaluate(sizes[None].astype(np.float64))[0], np.concatenate(draws)


def resample_indices(n: int, num_resamples: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """The examples (n,) of one resample after the other, for metrics that are no function of sums."""
    for _ in range(num_resamples):
        yield rng.integers(0, n, n)


def _counts(cell_of: IntArray, sizes: IntArray, num_resamples: int, rng: np.random.Generator) -> Iterator[FloatArray]:
    """How often each cell is drawn: blocks (r, cells) of resamples."""
    n, block = len(cell_of), max(1, _BLOCK // len(sizes))
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        if 2 * len(sizes) <= n:
            yield rng.multinomial(n, sizes / n, size=size).astype(np.float64)
        else:
            drawn = [np.bincount(cell_of[indices], minlength=len(sizes)) for indices in resample_indices(n, size, rng)]
            yield np.stack(drawn).astype(np.float64)


def _alike(columns: FloatArray) -> tuple[IntArray, FloatArray]:
    """For each example the number of its row among the different ones (n,), and those in descending order (U, K).

    In this order, cells of classes are sorted by label and predictions.
    """
    columns = np.ascontiguousarray(columns, dtype=np.float64)
    data, width = columns.tobytes(), columns.shape[1] * columns.itemsize
    seen: dict[bytes, int] = {}  # much faster than np.unique(axis=0), whose time grows with K
    ids = np.array([seen.setdefault(data[at : at + width], len(seen)) for at in range(0, len(data), width)])
    rows = np.frombuffer(b"".join(seen)).reshape(len(seen), -1)
    order = np.lexsort(-rows.T[::-1])
    return np.argsort(order)[ids], rows[order]
