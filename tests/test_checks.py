"""Checks of single settings: what is refused, and what must not be."""

from __future__ import annotations

import math

import pytest

from hf_early_ood.checks import check_choice, check_count, check_flags, check_number
from hf_early_ood.errors import ConfigurationError


@pytest.mark.parametrize("value", [0, -1, 1.0, math.nan, True, "1", None])
def test_counts_that_are_none(value):
    with pytest.raises(ConfigurationError, match=r"^steps is not usable\. Got: .*whole number, 1 or more\.$"):
        check_count("steps", value)


def test_least_count():
    check_count("seed", 0, least=0)
    with pytest.raises(ConfigurationError, match=r"Got: -1. Allowed: a whole number, 0 or more"):
        check_count("seed", -1, least=0)


@pytest.mark.parametrize("value", [0, 0.0, -1, math.nan, math.inf, True, "0.1", None])
def test_numbers_that_are_none(value):
    with pytest.raises(ConfigurationError, match=r"rho is not usable.*a finite number above 0"):
        check_number("rho", value)


def test_numbers():
    check_number("rho", 1)
    check_number("rho", 1e-9)
    check_number("tolerance", 0, zero=True)
    with pytest.raises(ConfigurationError, match="a finite number, 0 or more"):
        check_number("tolerance", -1e-9, zero=True)


def test_words_and_flags():
    check_choice("norm", "l2", ["l2", "linf"])
    check_flags(adaptive=True, antithetic=False)
    with pytest.raises(ConfigurationError, match=r"Unknown norm. Got: 2. Allowed: l2, linf"):
        check_choice("norm", 2, ["l2", "linf"])
    with pytest.raises(ConfigurationError, match=r"antithetic is not usable. Got: 1. Allowed: true or false"):
        check_flags(adaptive=True, antithetic=1)
