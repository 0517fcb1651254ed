from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerFast

from hf_early_ood.errors import ConfigurationError, DataError, UnsupportedModelError
from hf_early_ood.tasks.sequence_classification import SequenceClassification, data_collator, tokenize
from tests import families


def test_tokenize_single_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"text": ["a b", "c"], "label": [1, 0], "id": ["x", "y"]})
    dataset = dataset.cast_column("label", ClassLabel(names=["no", "yes"]))
    encoded = tokenize(dataset, tokenizer, max_length=8)
    assert encoded["input_ids"][:] == [[1, 4, 5, 2], [1, 6, 2]]
    assert encoded["labels"][:] == [1, 0]
    assert encoded.features["labels"].names == ["no", "yes"]
    assert not {"text", "label", "id"} & set(encoded.column_names)


def test_tokenize_pairs_cuts_the_longer_text(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"text": ["a a a a a"], "text_pair": ["b"], "label": [0]})
    assert tokenize(dataset, tokenizer, max_length=6)["input_ids"][:] == [[1, 4, 4, 2, 5, 2]]


def test_tokenize_says_what_is_missing(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"A column is not there.*Add label"):
        tokenize(Dataset.from_dict({"text": ["a"], "labels": [0]}), tokenizer, max_length=8)


def test_tokenize_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no examples to tokenize"):
        tokenize(Dataset.from_dict({"text": [], "label": []}), tokenizer, max_length=8)


def test_tokenize_many_is_quiet_and_in_order(
    tokenizer: PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = Dataset.from_dict({"text": ["a", "b c"] * 1200, "label": [0, 1] * 1200})
    encoded = tokenize(dataset, tokenizer, max_length=8)
    assert encoded["input_ids"][:] == [[1, 4, 2], [1, 5, 6, 2]] * 1200
    assert encoded["labels"][:] == [0, 1] * 1200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("max_length", [2, 21])
def test_max_length_out_of_range(tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
    with pytest.raises(ConfigurationError, match=r"max_length does not fit.*Allowed: 3 to 20"):
        tokenize(Dataset.from_dict({"text": ["a"], "label": [0]}), tokenizer, max_length=max_length)


def test_collator_pads_to_the_longest(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = tokenize(Dataset.from_dict({"text": ["a b", "c"], "label": [1, 0]}), tokenizer, max_length=8)
    batch = data_collator(tokenizer)(list(encoded))
    assert batch["input_ids"].tolist() == [[1, 4, 5, 2], [1, 6, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_collator_needs_a_padding_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = None
    with pytest.raises(UnsupportedModelError, match="no padding token"):
        data_collator(tokenizer)


