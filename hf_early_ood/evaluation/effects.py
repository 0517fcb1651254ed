"""How large a difference is, and whether an arm is better out of distribution without being worse in distribution."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.evaluation.metrics import FloatArray

MARGIN = 0.01
"""What may be lost in distribution, unless another margin is chosen: one point. Choose it before the results are in."""

BETTER, WORSE, NOT_WORSE, UNDECIDED = "better", "worse", "not worse", "undecided"


@dataclass(frozen=True)
class EffectSize:
    """A difference on three scales.

    Attributes:
        points: Arm minus baseline, times 100.
        in_seed_sds: The difference in standard deviations of the baseline over its seeds (Glass 1976, delta): how it
            compares with what another seed does. ``None`` with one seed, or where all seeds give the same value.
        cohens_h: 2 arcsin sqrt(arm) - 2 arcsin sqrt(baseline), Cohen (1988): the same for shares near 1 and near 0.5;
            0.2 is called small. ``None`` where a value is not between 0 and 1.
    """

    points: float
    in_seed_sds: float | None
    cohens_h: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, for JSON."""
        return asdict(self)


def effect_size(baseline: FloatArray, arm: FloatArray) -> EffectSize:
    """Size of the difference of two arms.

    Args:
        baseline: (S,) metric of each run of the baseline.
        arm: (S',) metric of each run of the arm.

    Returns:
        The difference on three scales.

    Raises:
        DataError: If an arm has no runs.

    Example:
        >>> size = effect_size(np.array([0.80, 0.82]), np.array([0.83, 0.83]))
        >>> round(size.points, 3), round(size.in_seed_sds, 3), round(size.cohens_h, 3)
        (2.0, 1.414, 0.052)
    """
    if not len(baseline) or not len(arm):
        raise DataError("An arm has no runs.", got=f"{len(baseline)} and {len(arm)}", allowed="one or more each")
    first, second = float(np.mean(baseline)), float(np.mean(arm))
    spread = float(np.std(baseline, ddof=1)) if len(baseline) > 1 else 0.0
    shares = min(first, second) >= 0 and max(first, second) <= 1
    return EffectSize(
        points=100 * (second - first),
        in_seed_sds=(second - first) / spread if spread > 1e-12 else None,
        cohens_h=float(2 * np.arcsin(second**0.5) - 2 * np.arcsin(first**0.5)) if shares else None,
    )


@dataclass(frozen=True)
class Pareto:
    """Whether an arm gains out of distribution without a loss in distribution.

    Attributes:
        id: ``not worse`` (the interval is above -margin), ``worse`` (it is below 0 and reaches -margin) or
            ``undecided``.
        ood: ``better`` (the interval is above 0), ``worse`` (it is below 0) or ``undecided``.
        improves: ``not worse`` and ``better``. Both must hold, so nothing is to be corrected for testing two: with
            95 % intervals, an arm that does not improve is said to at most 2.5 % of the time.
        margin: What may be lost in distribution.
        statement: One sentence.
    """

    id: str
    ood: str
    improves: bool
    margin: float
    statement: str

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, for JSON."""
        return asdict(self)


def pareto(
    id_difference: tuple[float, float],
    ood_difference: tuple[float, float],
    *,
    margin: float = MARGIN,
    significant: bool = True,
) -> Pareto:
    """State whether an arm is not worse in distribution (by more than a margin) and better out of distribution.

    Source: non-inferiority by an interval, e.g. Wellek (2010); both claims at once by the intersection-union test of
    Berger (1982).

    Args:
        id_difference: Ends of the interval of arm minus baseline in distribution.
        ood_difference: The same out of distribution.
        margin: What may be lost in distribution, in units of the metric: 0.01 is one point. Choose it beforehand.
        significant: Whether the difference out of distribution withstands a correction for several arms; False: it is
            undecided whatever its interval.

    Returns:
        The statement and its two parts.

    Raises:
        ConfigurationError: If the margin is negative.
        DataError: If an interval has its ends exchanged or is not finite.

    Example:
        >>> print(pareto((-0.004, 0.006), (0.01, 0.03)).statement)
        Better out of distribution, and at most 1 point worse in distribution.
        >>> pareto((-0.02, 0.006), (0.01, 0.03)).id
        'undecided'
    """
    if not 0 <= margin < float("inf"):
        raise ConfigurationError("The margin is out of range.", got=margin, allowed="0 or more, e.g. 0.01")
    for low, high in (id_difference, ood_difference):
        if not low <= high:
            raise DataError("An interval is not usable.", got=f"{low} to {high}", allowed="low <= high")
    (id_low, id_high), (ood_low, ood_high) = id_difference, ood_difference
    in_distribution = NOT_WORSE if id_low > -margin else WORSE if id_high < 0 else UNDECIDED
    out = UNDECIDED if not significant else BETTER if ood_low > 0 else WORSE if ood_high < 0 else UNDECIDED
    size = f"{100 * margin:g} point{'' if 100 * margin == 1 else 's'}"
    first = {
        BETTER: "Better out of distribution",
        WORSE: "Worse out of distribution",
        UNDECIDED: "Whether it is better out of distribution is open",
    }[out]
    second = {
        NOT_WORSE: f"at most {size} worse in distribution",
        WORSE: "worse in distribution",
        UNDECIDED: f"whether it is more than {size} worse in distribution is open",
    }[in_distribution]
    improves = in_distribution == NOT_WORSE and out == BETTER
    return Pareto(in_distribution, out, improves, margin, f"{first}, and {second}.")
