from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_early_ood.bundled import read_domain
from hf_early_ood.duplicates import NearDuplicate, near_duplicates, normalize_text
from hf_early_ood.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("  Great\tMOVIE !! ", "great movie"),
        ("Don't", "dont"),
        ("Don\u2019t", "dont"),
        ("@you see https://x.org/a?b=1 now", "see now"),
        ("me@home.org", "me home org"),  # an address is not a mention
        ("\uff46\uff55\uff4c\uff4c width", "full width"),
        (":)", ":)"),
        ("  :(  ", ":("),
        ("", ""),
        ("这很好。", "这 很 好"),
        ("बहुत अच्छा!", "बहुत अच्छा"),  # vowel signs are marks, not punctuation
    ],
)
def test_normalize_text(text: str, normalized: str) -> None:
    assert normalize_text(text) == normalized


def _slow(left: list[str], right: list[str], threshold: float, size: int) -> list[tuple[int, int]]:
    def shingles(text: str) -> set[str]:
        words = normalize_text(text).split()
        return {" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}

    found = []
    for i, a in enumerate(map(shingles, left)):
        for j, b in enumerate(map(shingles, right)):
            if len(a & b) / len(a | b) >= threshold - 1e-9:
                found.append((i, j))
    return found


texts = st.lists(st.text(alphabet="ab c!", max_size=12), max_size=8)


@settings(max_examples=150, deadline=None)
@given(left=texts, right=texts, threshold=st.sampled_from([0.3, 0.5, 0.8, 1.0]), size=st.integers(1, 3))
def test_equals_comparison_of_all_pairs(left: list[str], right: list[str], threshold: float, size: int) -> None:
    pairs = near_duplicates(left, right, threshold=threshold, shingle_size=size)
    assert [(pair.left, pair.right) for pair in pairs] == _slow(left, right, threshold, size)


def test_long_texts_equal_comparison_of_all_pairs() -> None:
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(300)]
    left = [" ".join(rng.choices(vocabulary, k=rng.choice([20, 60, 150]))) for _ in range(40)]
    right = []
    for text in left:  # shares from nearly all to half of its words with one of the left
        words = text.split()
        changed = rng.randrange(len(words) // 2)
        right.append(" ".join(words[changed:] + rng.choices(vocabulary, k=rng.randrange(changed + 1))))
    for threshold in (0.5, 0.8, 0.95):
        found = _slow(left, right, threshold, 1)
        assert [(pair.left, pair.right) for pair in near_duplicates(left, right, threshold=threshold)] == found
        assert len(found) > 3


@settings(max_examples=50, deadline=None)
@given(left=texts)
def test_within_one_set_each_pair_comes_once(left: list[str]) -> None:
    pairs = [(pair.left, pair.right) for pair in near_duplicates(left)]
    assert pairs == [(i, j) for i, j in _slow(left, left, 0.8, 1) if i < j]


def test_four_of_five_words_are_enough_at_the_threshold() -> None:
    # 0.8 * 5 is 4.000000000000001 or 4.0 depending on how it is rounded: the pair must be found.
    assert near_duplicates(["a b c d e"], ["a b c d"]) == [NearDuplicate(0, 0, 0.8)]
    assert near_duplicates(["a b c d e"], ["a b c"]) == []


def test_empty_sets_have_no_pairs() -> None:
    assert near_duplicates([], []) == near_duplicates(["a"], []) == near_duplicates([]) == []


@pytest.mark.parametrize("threshold", [0, -1, 1.5, float("nan")])
def test_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ConfigurationError, match="threshold is out of range"):
        near_duplicates(["a"], ["a"], threshold=threshold)


def test_shingle_size_out_of_range() -> None:
    with pytest.raises(ConfigurationError, match="shingle size is out of range"):
        near_duplicates(["a"], ["a"], shingle_size=0)


def test_ten_thousand_texts_take_seconds() -> None:
    movie = [row.text for row in read_domain("movie")]
    shuffled = random.Random(0).sample(movie, len(movie))
    start = time.perf_counter()
    pairs = near_duplicates(movie, shuffled)
    assert time.perf_counter() - start < 20
    assert len({pair.left for pair in pairs}) == len(movie)
