"""Near-duplicates between or within sets of texts: the leak that makes an evaluation set look easy."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hf_early_ood.errors import ConfigurationError

DEFAULT_THRESHOLD = 0.8
_SHINGLES_PER_SHARED = 8  # for speed only

_URL = re.compile(r"(?:https?://|www\.)\S+")
_MENTION = re.compile(r"(?<!\w)@\w+")
# Scripts written without spaces between words: every character counts as a word.
_UNSPACED = re.compile(r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")


class _PunctuationTable(dict[int, str]):
    """``str.translate`` table that drops apostrophes and turns all but letters, marks and digits into spaces."""

    def __missing__(self, codepoint: int) -> str:
        character = chr(codepoint)
        if character in "'\u2019":
            self[codepoint] = ""
        else:
            self[codepoint] = character if unicodedata.category(character)[0] in "LMN" else " "
        return self[codepoint]


_PUNCTUATION = _PunctuationTable()


def normalize_text(text: str) -> str:
    """Fold what does not make a text a different one: case, punctuation, white space, URLs, @mentions.

    A text that holds nothing but punctuation (an emoticon) keeps it, so that ``:)`` and ``:(`` stay apart.

    Args:
        text: Any text.

    Returns:
        Words joined by single spaces.

    Example:
        >>> normalize_text("@you   It's  GREAT!! http://x.org/1")
        'its great'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = _MENTION.sub(" ", _URL.sub(" ", folded)).translate(_PUNCTUATION)
    return " ".join(_UNSPACED.sub(r" \1 ", plain).split()) or " ".join(folded.split())


@dataclass(frozen=True)
class NearDuplicate:
    """One pair of texts that are nearly the same.

    Attributes:
        left: Index into the first set.
        right: Index into the second set.
        similarity: Jaccard similarity of the two sets of word shingles, 1.0 for the same normalized text.
    """

    left: int
    right: int
    similarity: float


def near_duplicates(
    left: Sequence[str],
    right: Sequence[str] | None = None,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    shingle_size: int = 1,
) -> list[NearDuplicate]:
    r"""All pairs of texts whose word shingles overlap by at least ``threshold``.

    The Jaccard similarity \|a & b\| / \|a | b\| is taken over the sets of runs of ``shingle_size`` words of the
    normalized texts (a shorter text is one shingle). The search is exact, not sampled: two sets
    with similarity >= t must share l of their s - ceil(t s) + l rarest shingles (s: size of the set), for any l, so
    only those are indexed; l grows with s, or long texts would have too many in common by chance.

    Args:
        left: Texts of the first set.
        right: Texts of the second set; ``None`` compares ``left`` with itself (each pair once, left < right).
        threshold: Smallest similarity that counts, in (0, 1].
        shingle_size: Words in a shingle, at least 1.

    Returns:
        Pairs, ordered by left index, then right index.

    Raises:
        ConfigurationError: If ``threshold`` or ``shingle_size`` is out of range.

    Example:
        >>> near_duplicates(["The food was really good!"], ["the food was REALLY good", "bad"])
        [NearDuplicate(left=0, right=0, similarity=1.0)]
    """
    if not 0 < threshold <= 1:
        raise ConfigurationError(
            "The near-duplicate threshold is out of range.", got=threshold, allowed="0 < threshold <= 1"
        )
    if shingle_size < 1:
        raise ConfigurationError("The shingle size is out of range.", got=shingle_size, allowed="1 or more words")
    left_sets = [_shingles(text, shingle_size) for text in left]
    right_sets = left_sets if right is None else [_shingles(text, shingle_size) for text in right]
    return list(_matching_pairs(left_sets, right_sets, threshold, same=right is None))


def _shingles(text: str, size: int) -> frozenset[str]:
    words = normalize_text(text).split()
    return frozenset(" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1)))


def _matching_pairs(
    left: Sequence[frozenset[str]], right: Sequence[frozenset[str]], threshold: float, *, same: bool
) -> Iterator[NearDuplicate]:
    frequency = Counter(shingle for shingles in (left if same else [*left, *right]) for shingle in shingles)
    rank = {shingle: place for place, shingle in enumerate(sorted(frequency, key=lambda one: (frequency[one], one)))}

    def rarest(shingles: frozenset[str]) -> tuple[list[int], int]:
        """The ranks of the rarest shingles, and how many of them a similar set must share."""
        # The tolerance keeps ceil(0.8 * 5) at 4 under float rounding.
        needed = math.ceil(threshold * len(shingles) - 1e-9)
        common = min(needed, 1 + len(shingles) // _SHINGLES_PER_SHARED)
        return sorted(rank[shingle] for shingle in shingles)[: len(shingles) - needed + common], common

    postings: dict[int, list[int]] = defaultdict(list)
    shared = np.zeros(len(right), dtype=np.int64)
    for position, shingles in enumerate(right):
        prefix, shared[position] = rarest(shingles)
        for place in prefix:
            postings[place].append(position)
    index = {place: np.array(positions, dtype=np.int64) for place, positions in postings.items()}
    for position, shingles in enumerate(left):
        prefix, own = rarest(shingles)
        found = [index[place] for place in prefix if place in index]
        if not found:
            continue
        others, counts = np.unique(np.concatenate(found), return_counts=True)
        for other in others[counts >= np.minimum(own, shared[others])].tolist():
            if same and other <= position:
                continue
            common = len(shingles & right[other])
            similarity = common / (len(shingles) + len(right[other]) - common)
            if similarity >= threshold - 1e-9:
                yield NearDuplicate(position, other, similarity)
