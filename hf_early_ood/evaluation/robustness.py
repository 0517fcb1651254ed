r"""Effective robustness: what a model keeps out of distribution beyond what its ID accuracy makes one expect.

Taori et al. 2020 (arXiv 2007.00644, section 2, eq. 1): rho(f) = acc_ood(f) - beta(acc_id(f)), with beta the line fitted
to *baseline* models in logit coordinates: logit beta(x) = a + b logit(x). The baselines are models that were trained
without any attempt at robustness and differ in ID accuracy (sizes, amounts of data, lengths of training): seeds of one
arm all lie at one place, and no line can be fitted to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from hf_early_ood.errors import DataError

MIN_BASELINES = 5
MIN_SPREAD = 0.05
"""Smallest range of the ID accuracies of the baselines, 5 points."""


@dataclass(frozen=True)
class EffectiveRobustness:
    """Of one model, in units of accuracy.

    Attributes:
        value: rho: OOD accuracy minus what the baselines have at this ID accuracy.
        expected: beta(ID accuracy), the OOD accuracy that the baselines make one expect.
        slope: b of the line, in logit coordinates.
        intercept: a of the line.
        r_squared: Share of the variance of the baselines' OOD logits that the line explains; NaN if they do not vary.
        num_baselines: Models that the line rests on.
        extrapolated: Whether the ID accuracy lies outside of those of the baselines, where the line is a guess.
    """

    value: float
    expected: float
    slope: float
    intercept: float
    r_squared: float
    num_baselines: int
    extrapolated: bool


def effective_robustness(
    baselines: Sequence[tuple[float, float]], id_accuracy: float, ood_accuracy: float
) -> EffectiveRobustness:
    """Residual of a model from the line of the baselines.

    Args:
        baselines: (ID accuracy, OOD accuracy) of each baseline model, 5 or more.
        id_accuracy: Of the model.
        ood_accuracy: Of the model, on the same sets.

    Returns:
        The residual, and the line that it is taken from.

    Raises:
        DataError: If there are fewer than 5 baselines, if their ID accuracies are within 5 points of each other, or if
            an accuracy is not between 0 and 1, both excluded: it has no logit.

    Example:
        >>> line = [(x, float(expit(logit(x) - 1))) for x in (0.6, 0.7, 0.8, 0.9, 0.95)]
        >>> found = effective_robustness(line, 0.85, 0.75)
        >>> round(found.expected, 4), round(found.value, 4)
        (0.6758, 0.0742)
    """
    if len(baselines) < MIN_BASELINES:
        raise DataError(
            "There are too few baselines for effective robustness.",
            got=len(baselines),
            allowed=f"{MIN_BASELINES} or more models that differ in ID accuracy",
            fix="Report relative robustness and the gap instead.",
        )
    points = np.array(baselines, dtype=np.float64)
    everything = np.append(points, [[id_accuracy, ood_accuracy]], axis=0)
    if not ((everything > 0) & (everything < 1)).all():
        broken = everything[~((everything > 0) & (everything < 1))][0]
        raise DataError("An accuracy has no logit.", got=broken, allowed="0 < accuracy < 1")
    at_home, away = points.T
    if np.ptp(at_home) < MIN_SPREAD:
        raise DataError(
            "The baselines have nearly the same ID accuracy: no line can be fitted to them.",
            got=f"{at_home.min():.3f} to {at_home.max():.3f}",
            allowed=f"a range of {MIN_SPREAD} or more",
            fix="Add baselines of other sizes, or trained on less data; seeds alone do not differ enough.",
        )
    slope, intercept = np.polyfit(logit(at_home), logit(away), deg=1)
    residuals = logit(away) - intercept - slope * logit(at_home)
    variance = np.var(logit(away))
    expected = float(expit(intercept + slope * logit(id_accuracy)))
    return EffectiveRobustness(
        value=float(ood_accuracy - expected),
        expected=expected,
        slope=float(slope),
        intercept=float(intercept),
        r_squared=float(1 - np.var(residuals) / variance) if variance > 0 else float("nan"),
        num_baselines=len(baselines),
        extrapolated=not at_home.min() <= id_accuracy <= at_home.max(),
    )
