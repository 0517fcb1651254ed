r"""One temperature for a model's probabilities, fitted on ID validation and on nothing else.

Guo et al. 2017 (arXiv 1706.04599, section 4.2): softmax(z / T) with the T that minimizes the negative log-likelihood.
Ranking, and so every prediction, is the same. With b = 1 / T the loss is convex: its derivative,
mean_i(\sum_c p_ic(b) z_ic - z_{i, y_i}), grows with b, and its only zero is found by bisection.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.evaluation.metrics import FloatArray, IntArray, check_predictions

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of T: where every prediction is right, the likelihood grows without end as T goes to 0."""


def fit_temperature(labels: IntArray, probabilities: FloatArray) -> float:
    """Temperature T at which the labels are most likely.

    Args:
        labels: (n,) class ids.
        probabilities: (n, C) of the model at T = 1. Of two equal to 0 (less than 1e-38), nobody knows which was less:
            both count as 1e-38.

    Returns:
        T in [0.05, 20]; a bound where the likelihood grows beyond it (all predictions right, or none better than
        guessing), 1 where it is the same for all T (all probabilities equal).

    Raises:
        DataError: If there are no examples, or labels and probabilities do not fit.

    Example:
        >>> labels = np.array([0] * 6 + [1] * 4)
        >>> too_sure = np.tile([0.9, 0.1], (10, 1))  # right in 6 of 10
        >>> temperature = fit_temperature(labels, too_sure)
        >>> at_temperature(too_sure, temperature)[0].round(3)
        array([0.6, 0.4])
    """
    logits = _logits(probabilities)
    labels, _ = check_predictions(labels, logits.argmax(axis=1))
    if labels.max() >= logits.shape[1]:
        raise DataError("A label has no probability.", got=labels.max(), allowed=f"< {logits.shape[1]}")
    of_label = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        return float(((softmax(inverse * logits, axis=1) * logits).sum(axis=1) - of_label).mean())

    weakest, strongest = 1 / HIGHEST, 1 / LOWEST
    if np.ptp(logits, axis=1).max() == 0:
        return 1.0
    if slope(strongest) <= 0:
        return LOWEST
    if slope(weakest) >= 0:
        return HIGHEST
    return 1 / brentq(slope, weakest, strongest)


def at_temperature(probabilities: FloatArray, temperature: float) -> FloatArray:
    """Probabilities (n, C) at temperature T, in float64: softmax(log p / T).

    Raises:
        ConfigurationError: If T is not positive and finite.

    Example:
        >>> at_temperature(np.array([[0.8, 0.2]]), 0.5).round(3)
        array([[0.941, 0.059]])
    """
    if not 0 < temperature < np.inf:
        raise ConfigurationError("A temperature is not usable.", got=temperature, allowed="positive and finite")
    return softmax(_logits(probabilities) / temperature, axis=1)


def _logits(probabilities: FloatArray) -> FloatArray:
    """Logits up to a constant in each row, which softmax does not see."""
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or not np.isfinite(probabilities).all():
        raise DataError("Probabilities are not usable.", got=probabilities.shape, allowed="finite numbers (n, C)")
    smallest = float(np.finfo(np.float32).tiny)
    return np.log(np.maximum(probabilities.astype(np.float64), smallest))
