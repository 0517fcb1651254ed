from __future__ import annotations

import itertools

import numpy as np
import pytest

from hf_early_ood.errors import DataError
from hf_early_ood.tasks.answer_windows import Tokens, cut_into_windows, place_of_answer, token_positions
from tests.tasks.tokenizers import KINDS, QUESTIONS, word_pieces


@pytest.mark.parametrize("kind", KINDS)
def test_windows_cover_the_context_and_overlap(kind):
    tokenizer = KINDS[kind]()
    for row in QUESTIONS:
        length = len(tokenizer(row["question"])["input_ids"]) + 16
        windows = cut_into_windows([row["question"]], [row["context"]], tokenizer, max_length=length, overlap=5)
        whole = tokenizer(row["context"], add_special_tokens=False)["input_ids"]
        (of_question,) = windows.by_question
        rows = zip(windows.inputs["input_ids"], of_question, strict=True)
        parts = [[ids[position] for position in tokens.positions] for ids, tokens in rows]
        assert parts[0] + [token for part in parts[1:] for token in part[5:]] == whole
        assert all(before[-5:] == after[:5] for before, after in itertools.pairwise(parts))
        assert all(len(ids) <= length for ids in windows.inputs["input_ids"])
        assert len(parts) > 1 or len(whole) < 10  # Thai words that English word pieces do not know


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_those_of_the_answer(kind):
    """In every language, in every window: what the tokens cover is the answer, or the words it is in."""
    tokenizer, held = KINDS[kind](), 0
    for row in QUESTIONS:
        place = place_of_answer(row["answers"], row["context"])
        length = len(tokenizer(row["question"])["input_ids"]) + 60
        windows = cut_into_windows([row["question"]], [row["context"]], tokenizer, max_length=length, overlap=40)
        (of_question,) = windows.by_question
        found = token_positions(of_question, place)
        for tokens, pair in zip(of_question, found, strict=True):
            if pair is None:
                continue
            held += 1
            first, last = np.searchsorted(tokens.positions, pair)
            covered = (tokens.offsets[first][0], tokens.offsets[last][1])
            assert covered[0] <= place[0] < place[1] <= covered[1]
            if kind == "word pieces" and row["language"] != "th":  # unknown words are one token, of which it is a part
                assert row["context"][slice(*covered)] == row["answers"]["text"][0]
            # Not one token more than is needed.
            assert tokens.offsets[first][1] > place[0]
            assert tokens.offsets[last][0] < place[1]
        assert any(found) == (place is not None)
    assert held >= 13


def test_an_answer_at_the_edge_of_a_window_is_held_as_a_whole_or_not():
    tokens = [Tokens(np.arange(2, 5), np.array([[i, i + 1] for i in range(start, start + 3)]), 0) for start in (0, 2)]
    assert token_positions(tokens, (1, 3)) == [(3, 4), None]
    assert token_positions(tokens, (2, 3)) == [(4, 4), (2, 2)]
    assert token_positions(tokens, (1, 4)) == [None, None]
    assert token_positions(tokens, (9, 10)) == token_positions(tokens, None) == [None, None]


def test_tokens_that_share_the_first_character_are_all_of_the_answer():
    """What XLM-R's tokenizer makes of a Chinese text: a mark of the beginning that covers the first character."""
    tokens = Tokens(np.array([4, 5, 6]), np.array([[0, 1], [0, 1], [1, 3]]), 0)
    assert token_positions([tokens], (0, 1)) == [(4, 5)]
    assert token_positions([tokens], (1, 2)) == [(6, 6)]


def test_a_question_is_never_cut():
    tokenizer = word_pieces()
    settings = {"max_length": 12, "overlap": 2}
    # 12 positions, less 3 special ones and 2 that windows share: 6 leave one token of the context to go on with.
    windows = cut_into_windows(["a " * 6], ["b c d e"], tokenizer, **settings)
    assert [len(ids) for ids in windows.inputs["input_ids"]] == [12, 12]
    with pytest.raises(DataError, match=r"leaves no room.*Got: 7 tokens.*Allowed: 6 or fewer.*lower doc_stride"):
        cut_into_windows(["a " * 7], ["b c d e"], tokenizer, **settings)


def test_white_space_is_no_part_of_an_answer():
    assert place_of_answer({"text": [" Bob\n"], "answer_start": [3]}, "Ann Bob\n saw") == (4, 7)


@pytest.mark.parametrize(("text", "start"), [("Bob", 3), ("Bob", -4), ("  ", 3), ("", 0), ("Bob", 40), ("bob", 4)])
def test_answers_that_are_not_there(text, start):
    with pytest.raises(DataError, match="not where it is said to be"):
        place_of_answer({"text": [text], "answer_start": [start]}, "Ann Bob  saw")
