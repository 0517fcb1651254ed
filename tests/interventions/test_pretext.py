"""Pretexts on batches: what is drawn, for whom, and what stays as it is."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForLanguageModeling

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.interventions.pretext import (
    Vocabulary,
    label_counts,
    with_masked_tokens,
    with_random_labels,
    with_random_spans,
    with_shuffled_tokens,
)
from tests.tasks import tokenizers

PAD, CLS, SEP, UNK, MASK, FIRST, SIZE = 0, 1, 2, 3, 4, 5, 400
WORDS = Vocabulary(special=(PAD, CLS, SEP, UNK, MASK), structural=(PAD, CLS, SEP, MASK), mask=MASK, size=SIZE)
HALF = torch.tensor([1, 1])


def batch_of(rows: list[list[int]], *, left: bool = False, length: int | None = None) -> dict[str, Any]:
    """Rows of ids, padded to the longest, or to ``length``, on one side."""
    length = length or max(map(len, rows))
    pads = [[PAD] * (length - len(row)) for row in rows]
    ids = [pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)]
    seen = [
        [0] * len(pad) + [1] * len(row) if left else [1] * len(row) + [0] * len(pad)
        for row, pad in zip(rows, pads, strict=True)
    ]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(seen),
        "labels": torch.zeros(len(rows)).long(),
    }


def texts(count: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    """Random texts, some with an unknown word, some of two parts."""
    generator = torch.Generator().manual_seed(seed)

    def part(number: int) -> list[int]:
        words = torch.randint(FIRST, SIZE, (3 + number % longest,), generator=generator).tolist()
        return [UNK, *words] if number % 5 == 0 else words

    return [[CLS, *part(number), SEP, *([*part(number + 1), SEP] if number % 2 else [])] for number in range(count)]


def unpadded(batch: dict[str, Any], key: str = "input_ids") -> list[list[int]]:
    return [row[mask.bool()].tolist() for row, mask in zip(batch[key], batch["attention_mask"], strict=True)]


def transformed(kind: str, batch: dict[str, Any], seed: int = 0, step: int = 3) -> dict[str, Any]:
    if kind == "random_labels":
        return with_random_labels(batch, HALF, seed=seed)
    if kind == "shuffled_tokens":
        return with_shuffled_tokens(batch, WORDS, seed=seed)
    return with_masked_tokens(batch, WORDS, probability=0.4, seed=seed, step=step)


def shown(kind: str, batch: dict[str, Any], **settings: Any) -> list[Any]:
    """What the model is shown of each example, without padding."""
    found = transformed(kind, batch, **settings)
    if kind == "random_labels":
        return found["labels"].tolist()
    parts = ("input_ids", "labels") if kind == "masked_lm" else ("input_ids",)
    return list(zip(*(unpadded(found, key) for key in parts), strict=True))


KINDS = ["random_labels", "shuffled_tokens", "masked_lm"]


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_those_of_the_example_wherever_it_is(kind):
    rows = texts(12)
    expected = shown(kind, batch_of(rows))
    assert shown(kind, batch_of(rows, left=True)) == expected
    assert shown(kind, batch_of(rows, length=50)) == expected
    assert [shown(kind, batch_of([row]))[0] for row in rows] == expected
    assert shown(kind, batch_of(rows[::-1])) == expected[::-1]
    assert shown(kind, batch_of(rows), seed=1) != expected


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_changed_in_place_and_no_random_number_used_up(kind):
    batch, state = batch_of(texts(6)), torch.get_rng_state()
    before = {key: value.clone() for key, value in batch.items()}
    transformed(kind, batch)
    assert all(torch.equal(batch[key], value) for key, value in before.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_padding_is_known_without_a_mask():
    batch = batch_of(texts(12))
    without = {key: value for key, value in batch.items() if key != "attention_mask"}
    for change in (
        lambda given: with_random_labels(given, HALF, seed=0, pad=PAD)["labels"],
        lambda given: with_shuffled_tokens(given, WORDS, seed=0, pad=PAD)["input_ids"],
        lambda given: with_masked_tokens(given, WORDS, probability=0.5, seed=0, step=0, pad=PAD)["labels"],
    ):
        assert torch.equal(change(without), change(batch))


def test_only_masks_are_drawn_anew():
    batch = batch_of(texts(6))
    assert shown("masked_lm", batch, step=3) == shown("masked_lm", batch, step=3)
    assert shown("masked_lm", batch, step=3) != shown("masked_lm", batch, step=4)


# Random labels


def test_labels_have_the_frequencies_of_the_training_set():
    rows = [[CLS, FIRST + number % 90, FIRST + number // 90, SEP] for number in range(4000)]
    counts = torch.tensor([600, 300, 0, 100])
    drawn = torch.bincount(with_random_labels(batch_of(rows), counts, seed=0)["labels"], minlength=4) / len(rows)
    for share, count in zip(drawn.tolist(), (counts / 1000).tolist(), strict=True):
        assert share == pytest.approx(count, abs=4 * math.sqrt(count * (1 - count) / len(rows)))


def test_labels_do_not_follow_those_of_the_task():
    rows = texts(3000)
    batch = batch_of(rows)
    batch["labels"] = torch.arange(len(rows)) % 2
    drawn = with_random_labels(batch, HALF, seed=0)["labels"]
    assert abs((drawn == batch["labels"]).float().mean() - 0.5) < 0.04


def test_labels_of_tokens_are_drawn_where_there_are_some_whatever_the_padding():
    rows = texts(5)
    of_row = [[-100, *(word % 3 for word in row[1:-1]), -100] for row in rows]

    def drawn(left: bool) -> list[list[int]]:
        batch = batch_of(rows, left=left)
        pads = [[-100] * (batch["input_ids"].shape[1] - len(row)) for row in rows]
        labels = [pad + own if left else own + pad for own, pad in zip(of_row, pads, strict=True)]
        batch["labels"] = torch.tensor(labels)
        found = with_random_labels(batch, torch.tensor([1, 1, 1]), seed=0)
        assert torch.equal(found["labels"] == -100, batch["labels"] == -100)
        assert not torch.equal(found["labels"], batch["labels"])
        return unpadded(found, "labels")

    assert drawn(left=True) == drawn(left=False)


def test_a_choice_is_drawn_for_all_choices_together():
    ids = torch.tensor([[[CLS, 7, SEP], [CLS, 8, SEP]], [[CLS, 9, SEP], [CLS, 8, SEP]]])
    batch = {"input_ids": ids.repeat(50, 1, 1), "labels": torch.zeros(100).long()}
    labels = with_random_labels(batch, HALF, seed=1)["labels"]
    assert torch.equal(labels, labels[:2].repeat(50))


def test_counts_of_labels():
    rows = [{"labels": torch.tensor(2)}, {"label": 0}, {"labels": [-100, 2, 1]}]
    assert label_counts(rows, 4).tolist() == [1, 1, 2, 0]
    assert label_counts(rows).tolist() == [1, 1, 2]
    assert label_counts(Dataset.from_dict({"labels": [0, 1, 1]}), 2).tolist() == [1, 2]
    made = Dataset.from_dict({"text": ["a", "b"], "label": [0, 0]})
    made.set_transform(lambda rows: {"input_ids": rows["text"], "labels": [1 - label for label in rows["label"]]})
    assert label_counts(made, 2).tolist() == [0, 2]
    with pytest.raises(DataError, match=r"no class.*Got: 2.*less than 2"):
        label_counts(rows, 2)
    with pytest.raises(DataError, match=r"no class.*Got: 0\.5"):
        label_counts([{"labels": 0.5}])
    with pytest.raises(DataError, match="No example of the training set has a label"):
        label_counts(Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(DataError, match="only as it comes"):
        label_counts(iter(rows))
    with pytest.raises(DataError, match="The batch has no labels"):
        with_random_labels({"input_ids": torch.ones(1, 2)}, HALF, seed=0)


@pytest.mark.parametrize("kind", ["word pieces", "sentence pieces"])
def test_spans_lie_in_the_context(kind):
    tokenizer = tokenizers.KINDS[kind]()
    words = Vocabulary.of(tokenizer)
    pairs = [(f"Where was number {n}?", "It was " + "here and there " * (n % 7) + "again.") for n in range(40)]
    encoded = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
    batch = {**encoded, "start_positions": torch.zeros(40).long(), "end_positions": torch.zeros(40).long()}
    found = with_random_spans(batch, words, seed=0)
    starts, ends = found["start_positions"], found["end_positions"]
    assert bool((starts <= ends).all())
    for row in range(40):
        of_context = [place for place, part in enumerate(encoded.sequence_ids(row)) if part == 1]
        assert of_context[0] <= starts[row] <= ends[row] <= of_context[-1]
    assert len(set(starts.tolist())) > 10
    again = with_random_spans({key: value[:3] for key, value in batch.items()}, words, seed=0)
    assert torch.equal(again["start_positions"], starts[:3])
    with pytest.raises(DataError, match="no token that could be an answer"):
        with_random_spans(batch_of([[CLS, SEP]]), WORDS, seed=0)


# Shuffled tokens


def test_words_are_permuted_between_special_tokens_and_nothing_else_moves():
    rows = texts(200)
    batch = batch_of(rows)
    batch["labels"] = batch["input_ids"] * 10
    found = with_shuffled_tokens(batch, WORDS, seed=0)
    assert torch.equal(found["labels"], found["input_ids"] * 10)  # they move with their tokens
    moved = 0
    for row, new in zip(rows, unpadded(found), strict=True):
        assert [word if word in (CLS, SEP) else 0 for word in row] == [
            word if word in (CLS, SEP) else 0 for word in new
        ]
        breaks = [place for place, word in enumerate(row) if word in (CLS, SEP)]
        for first, last in pairwise(breaks):
            assert sorted(row[first:last]) == sorted(new[first:last])
        moved += row != new
    assert moved > 190
    assert any(new.index(UNK) != row.index(UNK) for row, new in zip(rows, unpadded(found), strict=True) if UNK in row)


def test_every_order_is_equally_probable():
    rows = [[CLS, 5, 6, 7, SEP, 10 + n % 50, 100 + n // 50, SEP] for n in range(1200)]
    found = with_shuffled_tokens(batch_of(rows), WORDS, seed=0)["input_ids"][:, 1:4]
    orders, counts = found.unique(dim=0, return_counts=True)
    assert len(orders) == 6
    assert (counts / 1200).tolist() == pytest.approx([1 / 6] * 6, abs=0.045)


def test_token_types_and_choices_are_shuffled_by_themselves():
    ids = torch.arange(FIRST, FIRST + 40).view(1, 2, 20)
    types = (torch.arange(20) >= 8).long().expand(1, 2, 20)
    found = with_shuffled_tokens({"input_ids": ids, "token_type_ids": types}, WORDS, seed=0)["input_ids"]
    for choice in range(2):
        for part in (slice(8), slice(8, 20)):
            assert sorted(found[0, choice, part].tolist()) == ids[0, choice, part].tolist()
    assert not torch.equal(found[0, 0] + 20, found[0, 1])


# Masked tokens


def test_masked_shares_are_those_of_bert():
    rows = texts(800, longest=30)
    batch = batch_of(rows)
    ids = batch["input_ids"]
    found = with_masked_tokens(batch, WORDS, probability=0.15, seed=0, step=0)
    masked, labels = found["input_ids"], found["labels"]
    chosen = labels != -100
    allowed = ~torch.isin(ids, torch.tensor(WORDS.special))
    assert not (chosen & ~allowed).any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    count, total = int(allowed.sum()), int(chosen.sum())
    assert total / count == pytest.approx(0.15, abs=4 * math.sqrt(0.15 * 0.85 / count))
    replaced, same = masked[chosen] == MASK, masked[chosen] == ids[chosen]
    for share, expected in ((replaced, 0.8), (same, 0.1), (~replaced & ~same, 0.1)):
        assert share.float().mean().item() == pytest.approx(expected, abs=4 * math.sqrt(expected / total))
    random = masked[chosen][~replaced & ~same]
    assert random.min() < 40
    assert random.max() > SIZE - 40
    assert found["output_hidden_states"] is True


def test_masks_are_as_those_of_the_collator_of_transformers():
    """The same tokens may be chosen, as often, and become the same things."""
    tokenizer = tokenizers.word_pieces()
    words = Vocabulary.of(tokenizer)
    ids = tokenizer("the film was \u2603 great and so was the phone", return_tensors="pt")["input_ids"].repeat(3000, 1)
    ids[:, 1] = torch.arange(3000) + 2000  # otherwise all would be one example
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=0)
    collator.create_rng()
    theirs_ids, theirs = collator.torch_mask_tokens(ids.clone())
    ours = with_masked_tokens({"input_ids": ids}, words, probability=0.3, seed=0, step=0)

    def shares(masked: Tensor, labels: Tensor) -> Tensor:
        chosen = labels != -100
        return torch.stack([chosen, masked == words.mask, masked != ids]).float().mean(1)

    torch.testing.assert_close(shares(ours["input_ids"], ours["labels"]), shares(theirs_ids, theirs), atol=0.05, rtol=0)
    assert (theirs == tokenizer.unk_token_id).sum() == (ours["labels"] == tokenizer.unk_token_id).sum() == 0


def test_answers_of_the_task_are_not_shown():
    batch = {**batch_of(texts(2)), "start_positions": torch.ones(2), "end_positions": torch.ones(2)}
    found = with_masked_tokens(batch, WORDS, probability=0.5, seed=0, step=0)
    assert set(found) == {"input_ids", "attention_mask", "labels", "output_hidden_states"}
    assert found["labels"].shape == found["input_ids"].shape
    choices = {"input_ids": torch.full((2, 3, 4), 9), "labels": torch.zeros(2)}
    assert with_masked_tokens(choices, WORDS, probability=0.5, seed=0, step=0)["labels"].shape == (2, 3, 4)


# The vocabulary


def test_vocabulary_of_tokenizers():
    roberta_like = Vocabulary.of(tokenizers.sentence_pieces())
    assert roberta_like == Vocabulary((0, 1, 2, 3), (0, 1, 2), None, len(tokenizers.sentence_pieces()))
    gpt_like = Vocabulary.of(tokenizers.byte_pairs())
    assert gpt_like.special == gpt_like.structural == (0,)
    assert Vocabulary.of(tokenizers.word_pieces()).within(100).size == 100
    with pytest.raises(ConfigurationError, match="no mask token"):
        with_masked_tokens(batch_of(texts(1)), roberta_like, probability=0.5, seed=0, step=0)
    with pytest.raises(DataError, match="no token ids"):
        with_shuffled_tokens({"inputs_embeds": torch.zeros(1)}, WORDS, seed=0)
