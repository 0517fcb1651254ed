"""Rank correlations of what was predicted with what was measured, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata, spearmanr, t

CONFIDENCE = 0.95
Pair = Mapping[str, Any]  # source, target, predicted (by measure), measured (by seed)


def correlations(pairs: Sequence[Pair], measure: str) -> dict[str, Any]:
    """Spearman's correlation of a measure with the measured error: within targets, and over all pairs.

    Within targets: its mean over them, with the t interval, for independent targets. Over all pairs: with the interval
    of Bonett & Wright (2000), tanh(atanh rho +- z sqrt((1 + rho^2 / 2) / (n - 3))), for independent pairs. None where
    there is none: fewer than two targets or four pairs, or all the same.
    """
    targets = list(dict.fromkeys(pair["target"] for pair in pairs))
    within = {target: spearman([pair for pair in pairs if pair["target"] == target], measure) for target in targets}
    rho = spearman(pairs, measure)
    return {
        "within_targets": mean_interval([value for value in within.values() if value is not None]),
        "targets": within,
        "all_pairs": rank_interval(rho, len(pairs)),
    }


def chance(pairs: Sequence[Pair], measure: str) -> float | None:
    """How often a mean over targets as high would come about if the measure knew nothing of the domains: a p-value.

    The names of the domains are exchanged in what was predicted, in all ways (Mantel 1967, "The detection of disease
    clustering"). Unlike the interval over targets, this does not take them for independent: they share their sources.
    None: a pair is missing, there are too many ways, or all targets have sources that are alike.
    """
    domains = list(dict.fromkeys(pair[role] for pair in pairs for role in ("source", "target")))
    k = len(domains)
    if len(pairs) != k * (k - 1) or not 2 < k <= 8:
        return None
    predicted = _ranks(pairs, domains, [pair["predicted"][measure] for pair in pairs])
    measured = _ranks(pairs, domains, [float(np.mean(pair["measured"])) for pair in pairs])
    if not (predicted.any() and measured.any()):
        return None
    ways = np.array(list(permutations(range(k))))  # the first leaves all names as they are
    sums = (predicted[ways[:, :, None], ways[:, None, :]] * measured).sum((1, 2))
    return float((sums >= sums[0] - 1e-9).mean())


def _ranks(pairs: Sequence[Pair], domains: Sequence[str], values: Sequence[float]) -> np.ndarray:
    """Ranks of the sources (rows) of each target (columns), centered and of length 1; zeros where all are alike."""
    found = np.full((len(domains), len(domains)), np.nan)
    for pair, value in zip(pairs, values, strict=True):
        found[domains.index(pair["source"]), domains.index(pair["target"])] = value
    ranks = rankdata(found, axis=0, nan_policy="omit")
    centered = np.nan_to_num(ranks - np.nanmean(ranks, axis=0))
    lengths = np.linalg.norm(centered, axis=0)
    return centered / np.where(lengths > 0, lengths, 1)


def spearman(pairs: Sequence[Pair], measure: str) -> float | None:
    """None where one of both is the same for all pairs."""
    predicted = [pair["predicted"][measure] for pair in pairs]
    measured = [float(np.mean(pair["measured"])) for pair in pairs]
    if min(len(set(predicted)), len(set(measured))) < 2:
        return None
    return round(float(spearmanr(predicted, measured).statistic), 12)  # 1 is 1


def mean_interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean over targets and its t interval, cut at -1 and 1."""
    found: dict[str, float | int | None] = {"value": None, "low": None, "high": None, "count": len(values)}
    if values:
        found["value"] = mean = float(np.mean(values))
        if len(values) > 1:
            error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
            half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
            found |= {"low": max(-1.0, mean - half), "high": min(1.0, mean + half)}
    return found


def rank_interval(rho: float | None, count: int) -> dict[str, float | int | None]:
    """A rank correlation of that many pairs and its interval."""
    found: dict[str, float | int | None] = {"value": rho, "low": None, "high": None, "count": count}
    if rho is not None and abs(rho) < 1 and count > 3:
        half = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((1 + rho**2 / 2) / (count - 3))
        found |= {"low": math.tanh(math.atanh(rho) - half), "high": math.tanh(math.atanh(rho) + half)}
    return found
