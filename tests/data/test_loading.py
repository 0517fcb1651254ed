from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_early_ood.data import SplitSpec, load_split
from hf_early_ood.errors import DataError
from tests.data.files import save_texts, write_texts


def _named(dataset: Dataset) -> list[str]:
    return [dataset.features["label"].names[label] for label in dataset["label"][:]]


# Labels


def test_string_labels_are_numbered_in_order_of_their_names(tmp_path: Path) -> None:
    dataset = load_split(write_texts(tmp_path / "a.jsonl", ["pos", "neg", "pos"]))
    assert dataset.features["label"].names == ["neg", "pos"]
    assert dataset["label"][:] == [1, 0, 1]


def test_labels_are_matched_by_name_when_their_numbers_are_permuted(tmp_path: Path) -> None:
    spec = save_texts(tmp_path / "a", [0, 1, 2], ["positive", "negative", "neutral"])
    dataset = load_split(spec, label_names=["negative", "neutral", "positive"])
    assert dataset["label"][:] == [2, 0, 1]
    assert _named(dataset) == ["positive", "negative", "neutral"]


def test_numbers_are_not_guessed_to_mean_names(tmp_path: Path) -> None:
    """0 and 1 of one file may be 1 and 0 of another: a score could be turned upside down."""
    for labels in ([1, 0], ["1", "0"], [True, False]):
        with pytest.raises(DataError, match=r"not one of those of the training set.*Numbers say nothing"):
            load_split(write_texts(tmp_path / "a.jsonl", labels), label_names=["no", "yes"])


def test_numbers_are_names_where_training_labels_are_numbers(tmp_path: Path) -> None:
    train = load_split(write_texts(tmp_path / "a.jsonl", [10, 9, 1]))
    names = train.features["label"].names
    assert names == ["1", "9", "10"]
    dataset = load_split(write_texts(tmp_path / "b.csv.jsonl", ["9", "10"]), label_names=names)
    assert dataset["label"][:] == [1, 2]


def test_a_class_label_that_is_a_number_stays_a_name(tmp_path: Path) -> None:
    dataset = load_split(save_texts(tmp_path / "a", [0, 1], ["1", "0"]), label_names=["0", "1"])
    assert _named(dataset) == ["1", "0"]
    with pytest.raises(DataError, match="not one of those of the training set"):
        load_split(save_texts(tmp_path / "b", [0, 1], ["1", "0"]), label_names=["no", "yes"])


def test_unknown_label_names_set_label_and_known_ones(tmp_path: Path) -> None:
    message = r"not one of those of .*'Positive' \(2 examples\).*Allowed: 'negative', 'positive'.*Did you mean"
    with pytest.raises(DataError, match=message):
        load_split(
            write_texts(tmp_path / "a.jsonl", ["Positive", "negative", "Positive"]),
            label_names=["negative", "positive"],
        )


def test_index_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not one of those of the training set.*'2' \(1 examples\)"):
        load_split(write_texts(tmp_path / "a.jsonl", [0, 2]), label_names=["no", "yes"])
    with pytest.raises(DataError, match=r"'-1' \(1 examples\)"):
        load_split(write_texts(tmp_path / "a.jsonl", [0, -1]), label_names=["no", "yes"])


@pytest.mark.parametrize("labels", [["a", None], ["a", ""], [0.5, 1.5], [[1], [0]]])
def test_labels_that_name_no_class(tmp_path: Path, labels: list[Any]) -> None:
    with pytest.raises(DataError, match="'label' has an example without a label that names a class"):
        load_split(write_texts(tmp_path / "a.jsonl", labels))


def test_hidden_test_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"-1 in example 1.*hidden test labels"):
        load_split(save_texts(tmp_path / "a", [0, -1], ["no", "yes"]))


# Texts


@pytest.mark.parametrize("text", [None, "", " \n", "\0 \0", 3])
def test_examples_without_text(tmp_path: Path, text: Any) -> None:
    texts = ["a", text] if not isinstance(text, int) else [text, text]
    with pytest.raises(DataError, match=re.escape(f"Got: {text!r} in example")):
        load_split(write_texts(tmp_path / "a.jsonl", [0, 1], texts))


def test_pairs_and_other_column_names(tmp_path: Path) -> None:
    spec = write_texts(tmp_path / "a.jsonl", [0, 1], more={"hypothesis": ["h", "i"], "gold": ["x", "y"]})
    dataset = load_split(spec, columns={"text_pair": "hypothesis", "label": "gold"})
    assert dataset.column_names == ["text", "text_pair", "label"]
    assert dataset["text_pair"][:] == ["h", "i"]
    with pytest.raises(DataError, match=r"A column is not there.*Did you mean 'hypothesis'"):
        load_split(spec, columns={"text_pair": "hypotesis"})


def test_bundled_columns_are_known_whatever_the_others_are_called() -> None:
    nyt = SplitSpec("bundled:vader-icwsm2014", split="nyt")
    columns = {"text": "sentence", "label": "gold", "id": "number", "group": "site"}
    assert load_split(nyt, columns=columns).column_names == ["text", "label"]
    assert load_split(replace(nyt, columns={"id": "id"}), columns=columns).column_names == ["text", "label", "id"]
    with pytest.raises(DataError, match=r"has no text_pair\. Got: text_pair=b"):
        load_split(nyt, columns={"text_pair": "b"})


def test_bundled_labels_follow_the_vocabulary() -> None:
    spec = SplitSpec("bundled:vader-icwsm2014", split="nyt")
    swapped = load_split(spec, label_names=["positive", "negative"])
    assert _named(swapped) == _named(load_split(spec))
    assert swapped["label"][:] != load_split(spec)["label"][:]


# Sampling


def test_sampling_is_seeded_ordered_and_nested() -> None:
    def texts(count: int, seed: int) -> list[str]:
        return load_split(SplitSpec("bundled:vader-icwsm2014", split="nyt", max_examples=count), seed=seed)["text"][:]

    everything = load_split(SplitSpec("bundled:vader-icwsm2014", split="nyt"))["text"][:]
    assert texts(50, 0) == texts(50, 0) != texts(50, 1)
    assert set(texts(20, 0)) < set(texts(50, 0))
    positions = [everything.index(text) for text in texts(50, 0)]
    assert positions == sorted(positions)
    assert texts(10**6, 0) == everything


def test_label_names_do_not_depend_on_the_sample(tmp_path: Path) -> None:
    spec = write_texts(tmp_path / "a.jsonl", ["a", "b", "c"])
    sampled = load_split(SplitSpec(spec.source, max_examples=1))
    assert len(sampled) == 1
    assert sampled.features["label"].names == ["a", "b", "c"]


def test_empty_split(tmp_path: Path) -> None:
    empty = Dataset.from_dict({"text": [], "label": []})
    empty.save_to_disk(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="The saved data set has no examples"):
        load_split(SplitSpec(str(tmp_path / "empty")))
    empty.to_parquet(str(tmp_path / "empty.parquet"))
    with pytest.raises(DataError, match="The split is empty"):
        load_split(SplitSpec(str(tmp_path / "empty.parquet")))
