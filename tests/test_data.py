from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset

from hf_early_ood.data import Splits, SplitSpec, load_split, load_splits
from hf_early_ood.errors import DataError

SENTENCES = [
    "the first text of this set",
    "a second one about something else",
    "yet another sentence follows here",
    "and nobody reads what comes last",
]


def _file(path: Path, labels: list[Any], texts: list[Any] | None = None, **more: list[Any]) -> SplitSpec:
    texts = SENTENCES[: len(labels)] if texts is None else texts
    columns = {"text": texts, "label": labels, **more}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return SplitSpec(str(path))


def _saved(path: Path, labels: list[int], names: list[str]) -> SplitSpec:
    dataset = Dataset.from_dict({"text": SENTENCES[: len(labels)], "label": labels})
    dataset.cast_column("label", ClassLabel(names=names)).save_to_disk(str(path))
    return SplitSpec(str(path))


def _named(dataset: Dataset) -> list[str]:
    return [dataset.features["label"].names[label] for label in dataset["label"][:]]


# Labels


def test_string_labels_are_numbered_in_order_of_their_names(tmp_path: Path) -> None:
    dataset = load_split(_file(tmp_path / "a.jsonl", ["pos", "neg", "pos"]))
    assert dataset.features["label"].names == ["neg", "pos"]
    assert dataset["label"][:] == [1, 0, 1]


def test_labels_are_matched_by_name_when_their_numbers_are_permuted(tmp_path: Path) -> None:
    spec = _saved(tmp_path / "a", [0, 1, 2], ["positive", "negative", "neutral"])
    dataset = load_split(spec, label_names=["negative", "neutral", "positive"])
    assert dataset["label"][:] == [2, 0, 1]
    assert _named(dataset) == ["positive", "negative", "neutral"]


def test_numbers_are_not_guessed_to_mean_names(tmp_path: Path) -> None:
    """0 and 1 of one file may be 1 and 0 of another: a score could be turned upside down."""
    for labels in ([1, 0], ["1", "0"], [True, False]):
        with pytest.raises(DataError, match=r"not one of those of the training set.*Numbers say nothing"):
            load_split(_file(tmp_path / "a.jsonl", labels), label_names=["no", "yes"])


def test_numbers_are_names_where_training_labels_are_numbers(tmp_path: Path) -> None:
    train = load_split(_file(tmp_path / "a.jsonl", [10, 9, 1]))
    names = train.features["label"].names
    assert names == ["1", "9", "10"]
    dataset = load_split(_file(tmp_path / "b.csv.jsonl", ["9", "10"]), label_names=names)
    assert dataset["label"][:] == [1, 2]


def test_a_class_label_that_is_a_number_stays_a_name(tmp_path: Path) -> None:
    dataset = load_split(_saved(tmp_path / "a", [0, 1], ["1", "0"]), label_names=["0", "1"])
    assert _named(dataset) == ["1", "0"]
    with pytest.raises(DataError, match="not one of those of the training set"):
        load_split(_saved(tmp_path / "b", [0, 1], ["1", "0"]), label_names=["no", "yes"])


def test_unknown_label_names_set_label_and_known_ones(tmp_path: Path) -> None:
    message = r"not one of those of .*'Positive' \(2 examples\).*Allowed: 'negative', 'positive'.*Did you mean"
    with pytest.raises(DataError, match=message):
        load_split(
            _file(tmp_path / "a.jsonl", ["Positive", "negative", "Positive"]), label_names=["negative", "positive"]
        )


def test_index_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not one of those of the training set.*'2' \(1 examples\)"):
        load_split(_file(tmp_path / "a.jsonl", [0, 2]), label_names=["no", "yes"])
    with pytest.raises(DataError, match=r"'-1' \(1 examples\)"):
        load_split(_file(tmp_path / "a.jsonl", [0, -1]), label_names=["no", "yes"])


@pytest.mark.parametrize("labels", [["a", None], ["a", ""], [0.5, 1.5], [[1], [0]]])
def test_labels_that_name_no_class(tmp_path: Path, labels: list[Any]) -> None:
    with pytest.raises(DataError, match="'label' has an example without a label that names a class"):
        load_split(_file(tmp_path / "a.jsonl", labels))


def test_hidden_test_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"-1 in example 1.*hidden test labels"):
        load_split(_saved(tmp_path / "a", [0, -1], ["no", "yes"]))


# Texts


@pytest.mark.parametrize("text", [None, "", " \n", 3])
def test_examples_without_text(tmp_path: Path, text: Any) -> None:
    texts = ["a", text] if not isinstance(text, int) else [text, text]
    with pytest.raises(DataError, match=re.escape(f"Got: {text!r} in example")):
        load_split(_file(tmp_path / "a.jsonl", [0, 1], texts))


def test_pairs_and_other_column_names(tmp_path: Path) -> None:
    spec = _file(tmp_path / "a.jsonl", [0, 1], hypothesis=["h", "i"], gold=["x", "y"])
    dataset = load_split(spec, text="text", text_pair="hypothesis", label="gold")
    assert dataset.column_names == ["text", "text_pair", "label"]
    assert dataset["text_pair"][:] == ["h", "i"]
    with pytest.raises(DataError, match=r"A column is not there.*Did you mean 'hypothesis'"):
        load_split(spec, text_pair="hypotesis")


def test_bundled_columns_are_known_whatever_the_others_are_called() -> None:
    dataset = load_split(SplitSpec("bundled:vader-icwsm2014", split="nyt"), text="sentence", label="gold")
    assert dataset.column_names == ["text", "label"]
    with pytest.raises(DataError, match="has no text pairs"):
        load_split(SplitSpec("bundled:vader-icwsm2014", split="nyt"), text_pair="b")


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
    spec = _file(tmp_path / "a.jsonl", ["a", "b", "c"])
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


# All splits


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, Any]:
    return {
        "train": _file(tmp_path / "train.jsonl", ["b", "a", "b", "a"]),
        "id_validation": _file(tmp_path / "val.jsonl", ["a"], ["quite a different text"]),
        "id_test": _file(tmp_path / "test.jsonl", ["a", "b"], ["The FIRST text, of this set!", "nothing like it"]),
        "ood": {"movie": _file(tmp_path / "ood.jsonl", ["b"], ["far away from home"])},
    }


def test_splits(specs: dict[str, Any]) -> None:
    splits = load_splits(**specs)
    assert isinstance(splits, Splits)
    assert list(splits) == ["train", "id_validation", "id_test", "ood/movie"]
    assert list(splits.evaluation) == ["id_validation", "id_test", "ood/movie"]
    assert splits.label_names == ("a", "b")
    assert splits["ood/movie"]["label"][:] == [1]
    report = splits.report.splits
    assert [report[split].num_examples for split in splits] == [4, 1, 2, 1]
    assert report["train"].label_counts == {"a": 2, "b": 2}
    assert report["ood/movie"].label_counts == {"a": 0, "b": 1}
    assert json.loads(json.dumps(splits.report.to_dict()))["splits"]["train"]["source"] == {
        "source": specs["train"].source,
        "split": None,
        "name": None,
        "revision": None,
        "max_examples": None,
    }


def test_near_duplicates_are_counted_and_kept_or_dropped(specs: dict[str, Any]) -> None:
    kept, dropped = load_splits(**specs), load_splits(**specs, drop_near_duplicates=True)
    assert kept.report.splits["id_test"].near_duplicates == dropped.report.splits["id_test"].near_duplicates == 1
    assert kept.report.splits["ood/movie"].near_duplicates == 0
    assert (kept.report.train_near_duplicates, kept.report.train_dropped, len(kept["train"])) == (1, 0, 4)
    assert (dropped.report.train_near_duplicates, dropped.report.train_dropped, len(dropped["train"])) == (1, 1, 3)
    assert "the first text of this set" not in dropped["train"]["text"][:]
    assert len(dropped["id_test"]) == 2
    assert dropped.report.splits["train"].num_examples == 3


def test_pairs_that_share_one_text_are_not_near_duplicates(tmp_path: Path) -> None:
    train = _file(tmp_path / "a.jsonl", [0, 1], ["a b c d", "x y z"], other=["e f g", "q r s"])
    test = _file(tmp_path / "b.jsonl", [0, 1], ["a b c d", "x y z"], other=["k l m", "q r s"])
    splits = load_splits(train=train, id_test=test, text_pair="other")
    assert splits.report.splits["id_test"].near_duplicates == 1


def test_train_that_is_the_test_set(specs: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="Every training example is a near-duplicate"):
        load_splits(train=specs["train"], id_test=specs["train"], drop_near_duplicates=True)


def test_fingerprints_see_texts_labels_and_order(tmp_path: Path) -> None:
    def fingerprint(texts: list[str], labels: list[str]) -> str:
        train = _file(tmp_path / "a.jsonl", labels, texts)
        return load_splits(train=train, id_test=train).report.splits["train"].fingerprint

    base = fingerprint(["a", "b"], ["x", "y"])
    assert base == fingerprint(["a", "b"], ["x", "y"])
    assert len({base, fingerprint(["a", "c"], ["x", "y"]), fingerprint(["a", "b"], ["y", "x"])}) == 3
    assert base != fingerprint(["b", "a"], ["y", "x"])


def test_fingerprint_does_not_depend_on_the_numbers_of_labels(tmp_path: Path) -> None:
    first = _saved(tmp_path / "a", [0, 1], ["x", "y"])
    second = _saved(tmp_path / "b", [1, 0], ["y", "x"])
    splits = [load_splits(train=spec, id_test=spec) for spec in (first, second)]
    assert splits[0].report.splits["train"].fingerprint == splits[1].report.splits["train"].fingerprint


def test_all_problems_are_reported_together(specs: dict[str, Any], tmp_path: Path) -> None:
    specs["id_test"] = SplitSpec(str(tmp_path / "missing.csv"))
    specs["ood"] = {"x": _file(tmp_path / "x.jsonl", ["c"]), "y": SplitSpec("bundled:vader-icwsm2014", split="y")}
    with pytest.raises(DataError, match="The data is not usable") as caught:
        load_splits(**specs)
    lines = str(caught.value).splitlines()
    assert [line.split(" ")[0] for line in lines[1:]] == ["id_test", "ood/x", "ood/y"]
    assert "The file is not there" in lines[1]
    assert "'c' (1 examples)" in lines[2]
    assert "The split is not there" in lines[3]


def test_broken_train_does_not_hide_other_problems(specs: dict[str, Any], tmp_path: Path) -> None:
    specs["train"] = SplitSpec(str(tmp_path / "missing.csv"))
    specs["ood"] = {"x": SplitSpec(str(tmp_path / "gone.csv"))}
    with pytest.raises(DataError, match=r"(?s)^The data is not usable.\ntrain .*\nood/x [^\n]*$"):
        load_splits(**specs)


def test_single_label(tmp_path: Path) -> None:
    spec = _file(tmp_path / "a.jsonl", ["a", "a"])
    with pytest.raises(DataError, match="fewer than two labels"):
        load_splits(train=spec, id_test=spec)


def test_known_label_without_training_examples_is_refused(tmp_path: Path) -> None:
    train = _saved(tmp_path / "a", [0, 1], ["x", "y", "z"])
    test = _saved(tmp_path / "b", [0, 2], ["x", "y", "z"])
    with pytest.raises(DataError, match=r"id_test has labels that training never saw\. Got: z\. Allowed: x, y"):
        load_splits(train=train, id_test=test)


def test_bundled_splits_have_no_leaks() -> None:
    def spec(split: str) -> SplitSpec:
        return SplitSpec("bundled:vader-icwsm2014", split=split)

    splits = load_splits(
        train=spec("tweets/train"),
        id_validation=spec("tweets/id_validation"),
        id_test=spec("tweets/id_test"),
        ood={name: spec(name) for name in ("movie", "amazon", "nyt")},
    )
    assert splits.label_names == ("negative", "positive")
    assert {name: report.near_duplicates for name, report in splits.report.splits.items()} == dict.fromkeys(splits, 0)
    assert [len(dataset) for dataset in splits.values()] == [1704, 242, 546, 9171, 2439, 1535]
