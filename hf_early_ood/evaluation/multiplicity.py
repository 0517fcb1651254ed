"""Several tests at once: p-values adjusted so that the chance of any false finding is bounded."""

from __future__ import annotations

from collections.abc import Mapping

from hf_early_ood.errors import DataError


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values that bound the chance of one or more false findings, however the tests depend on each other.

    Source: Holm (1979, Scandinavian Journal of Statistics 6). The i-th smallest of m p-values (i from 0) is multiplied
    by m - i, made no smaller than the one before it, and cut at 1.

    Args:
        p_values: Name of a test, e.g. of an OOD set, -> its p-value.

    Returns:
        The same names, in the same order, with adjusted p-values: below 0.05 is significant at 0.05 over all tests.

    Raises:
        DataError: If a p-value is not between 0 and 1.

    Example:
        >>> holm({"movie": 0.01, "amazon": 0.04, "nyt": 0.03})
        {'movie': 0.03, 'amazon': 0.06, 'nyt': 0.06}
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise DataError(f"The p-value of {name} is out of range.", got=p, allowed="0 to 1")
    adjusted: dict[str, float] = {}
    largest = 0.0
    for position, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
