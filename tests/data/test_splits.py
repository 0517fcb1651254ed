from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hf_early_ood.data import Splits, SplitSpec, load_splits
from hf_early_ood.errors import DataError
from tests.data.files import save_texts, write_texts


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, Any]:
    return {
        "train": write_texts(tmp_path / "train.jsonl", ["b", "a", "b", "a"]),
        "id_validation": write_texts(tmp_path / "val.jsonl", ["a"], ["quite a different text"]),
        "id_test": write_texts(
            tmp_path / "test.jsonl", ["a", "b"], ["The FIRST text, of this set!", "nothing like it"]
        ),
        "ood": {"movie": write_texts(tmp_path / "ood.jsonl", ["b"], ["far away from home"])},
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
        "columns": None,
        "labels": None,
        "coarse_labels": None,
        "language": None,
    }


@pytest.mark.parametrize("blank", ["", " \n", "\0", None])
def test_blank_texts_are_an_error_or_left_out_and_counted(specs: dict[str, Any], tmp_path: Path, blank: Any) -> None:
    specs["ood"]["blank"] = write_texts(tmp_path / "blank.jsonl", ["b", "b", "a"], ["one", blank, "two"])
    with pytest.raises(DataError, match=r"ood/blank.*without text.*set leave_out_blank"):
        load_splits(**specs)
    splits = load_splits(**specs, leave_out_blank=True)
    assert splits["ood/blank"]["text"][:] == ["one", "two"]
    assert splits["ood/blank"]["label"][:] == [1, 0]
    report = splits.report.splits["ood/blank"]
    assert report.findings == {"left out because they have no text": 1}
    assert report.noticed() == "1 left out because they have no text"


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
    train = write_texts(tmp_path / "a.jsonl", [0, 1], ["a b c d", "x y z"], more={"other": ["e f g", "q r s"]})
    test = write_texts(tmp_path / "b.jsonl", [0, 1], ["a b c d", "x y z"], more={"other": ["k l m", "q r s"]})
    splits = load_splits(train=train, id_test=test, columns={"text_pair": "other"})
    assert splits.report.splits["id_test"].near_duplicates == 1


def test_train_that_is_the_test_set(specs: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="Every training example is a near-duplicate"):
        load_splits(train=specs["train"], id_test=specs["train"], drop_near_duplicates=True)


def test_fingerprints_see_texts_labels_and_order(tmp_path: Path) -> None:
    def fingerprint(texts: list[str], labels: list[str]) -> str:
        train = write_texts(tmp_path / "a.jsonl", labels, texts)
        return load_splits(train=train, id_test=train).report.splits["train"].fingerprint

    base = fingerprint(["a", "b"], ["x", "y"])
    assert base == fingerprint(["a", "b"], ["x", "y"])
    assert len({base, fingerprint(["a", "c"], ["x", "y"]), fingerprint(["a", "b"], ["y", "x"])}) == 3
    assert base != fingerprint(["b", "a"], ["y", "x"])


def test_fingerprint_does_not_depend_on_the_numbers_of_labels(tmp_path: Path) -> None:
    first = save_texts(tmp_path / "a", [0, 1], ["x", "y"])
    second = save_texts(tmp_path / "b", [1, 0], ["y", "x"])
    splits = [load_splits(train=spec, id_test=spec) for spec in (first, second)]
    assert splits[0].report.splits["train"].fingerprint == splits[1].report.splits["train"].fingerprint


def test_all_problems_are_reported_together(specs: dict[str, Any], tmp_path: Path) -> None:
    specs["id_test"] = SplitSpec(str(tmp_path / "missing.csv"))
    specs["ood"] = {"x": write_texts(tmp_path / "x.jsonl", ["c"]), "y": SplitSpec("bundled:vader-icwsm2014", split="y")}
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
    spec = write_texts(tmp_path / "a.jsonl", ["a", "a"])
    with pytest.raises(DataError, match="fewer than two labels"):
        load_splits(train=spec, id_test=spec)


def test_known_label_without_training_examples_is_refused(tmp_path: Path) -> None:
    train = save_texts(tmp_path / "a", [0, 1], ["x", "y", "z"])
    test = save_texts(tmp_path / "b", [0, 2], ["x", "y", "z"])
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


def test_exact_duplicates_of_an_evaluation_set_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("hf_early_ood.data.splits.logger.warning", said.append)
    train = write_texts(tmp_path / "a.jsonl", ["x", "y"])
    test = write_texts(tmp_path / "b.jsonl", ["x", "y", "x", "x"], ["one", "one", "One", "one"])
    splits = load_splits(train=train, id_test=test)
    assert (splits.report.splits["id_test"].duplicates, splits.report.splits["train"].duplicates) == (2, 0)
    assert said == ["id_test: 2 examples repeat an earlier one exactly; they are kept."]


def test_sets_that_share_examples_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("hf_early_ood.data.splits.logger.warning", said.append)
    labels = ["fruit", "color"]
    train = write_texts(tmp_path / "a.jsonl", labels, ["apple", "pink"])
    test = write_texts(tmp_path / "b.jsonl", labels, ["pear", "blue"])
    partly = write_texts(tmp_path / "c.jsonl", labels, ["plum", "blue"])
    load_splits(train=train, id_test=test, ood={"same": test, "partly": partly, "other": train})
    assert [words for words in said if "also in" in words] == [
        "ood/same: 2 of 2 examples are also in id_test.",
        "ood/partly: 1 of 2 examples are also in id_test.",
        "ood/partly: 1 of 2 examples are also in ood/same.",
    ]


def test_truncated_examples_have_a_place_in_the_report(specs: dict[str, Any]) -> None:
    report = load_splits(**specs).report
    assert report.splits["train"].truncated is None
    counted = report.with_truncated({"train": 3, "id_test": 0})
    assert [counted.splits[split].truncated for split in ("train", "id_test", "ood/movie")] == [3, 0, None]
    assert counted.splits["train"].fingerprint == report.splits["train"].fingerprint


def test_very_long_texts_load_in_time(tmp_path: Path) -> None:
    words = " ".join(f"word{i % 9000}" for i in range(12_000))
    assert len(words) > 100_000
    chinese = "".join(chr(0x4E00 + i % 5000) for i in range(100_000))
    train = write_texts(tmp_path / "a.jsonl", ["x", "y", "x"], [f"{words} end", chinese, "\0 short \0"])
    test = write_texts(tmp_path / "b.jsonl", ["x", "y"], [words, chinese + "\u4e01"])
    start = time.perf_counter()
    splits = load_splits(train=train, id_test=test)
    assert time.perf_counter() - start < 20
    assert splits.report.splits["id_test"].near_duplicates == 2
    assert splits["train"]["text"][:][1:] == [chinese, "\0 short \0"]


def test_all_columns_are_in_the_fingerprint(tmp_path: Path) -> None:
    def fingerprint(pair: str, group: str, number: int) -> str:
        train = write_texts(
            tmp_path / "a.jsonl", ["x", "y"], more={"p": [pair, "b"], "g": [group, "h"], "n": [number, 2]}
        )
        columns = {"text_pair": "p", "group": "g", "id": "n"}
        return load_splits(train=train, id_test=train, columns=columns).report.splits["train"].fingerprint

    assert (
        len({fingerprint("a", "g", 1), fingerprint("b", "g", 1), fingerprint("a", "f", 1), fingerprint("a", "g", 3)})
        == 4
    )
