from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_early_ood.data import load_split, load_splits
from hf_early_ood.errors import ConfigurationError, DataError
from tests.data.files import save_texts, write_lines, write_texts

COPA = {"premise": "It rained.", "question": "effect", "choice1": "I got wet.", "choice2": "I sang.", "label": 0}
NAMED = {"text": "premise", "text_pair": "question", "choices": ["choice1", "choice2"]}
MULTIPLE_CHOICE = "multiple_choice"


# Roles


def test_a_set_may_have_columns_of_its_own(tmp_path: Path) -> None:
    train = write_texts(tmp_path / "a.jsonl", ["x", "y"], more={"b": ["1", "2"]})
    test = write_lines(tmp_path / "b.jsonl", {"sentence": "s", "b": "3", "gold": "x"}, columns={"text": "sentence"})
    with pytest.raises(DataError, match=r"id_test .*A column is not there\. Got: label"):
        load_splits(train=train, id_test=test, columns={"text_pair": "b"})
    test = write_lines(
        tmp_path / "b.jsonl", {"sentence": "s", "b": "3", "gold": "x"}, columns={"text": "sentence", "label": "gold"}
    )
    splits = load_splits(train=train, id_test=test, columns={"text_pair": "b"})
    assert splits["id_test"][0] == {"text": "s", "text_pair": "3", "label": 0}


def test_only_named_columns_are_read_where_they_need_not_be_there(tmp_path: Path) -> None:
    spec = write_texts(tmp_path / "a.jsonl", ["x"], more={"text_pair": ["a"], "id": [1], "group": ["g"]})
    assert load_split(spec).column_names == ["text", "label"]
    columns = {"group": "group", "id": "id", "text_pair": "text_pair"}
    dataset = load_split(spec, columns=columns)
    assert dataset.column_names == ["text", "text_pair", "label", "id", "group"]
    assert dataset["id"][:] == ["1"]


def test_unknown_roles_and_tasks(tmp_path: Path) -> None:
    spec = write_texts(tmp_path / "a.jsonl", ["x"])
    with pytest.raises(ConfigurationError, match=r"no such role of a column\. Got: txt\..*Did you mean 'text'"):
        load_split(spec, columns={"txt": "text"})
    with pytest.raises(ConfigurationError, match=r"no such task\. Got: poetry\. Allowed: sequence_classification"):
        load_split(spec, task="poetry")


# Ids and groups


def test_duplicate_ids_are_named(tmp_path: Path) -> None:
    spec = write_texts(tmp_path / "a.jsonl", ["x", "y", "x", "y"], more={"n": ["a", "b", "a", "b"]}, max_examples=1)
    with pytest.raises(DataError, match=r"2 ids occur more than once\. Got: 'a', 'b'\. To fix: Give every example"):
        load_split(spec, columns={"id": "n"})


def test_many_duplicate_ids(tmp_path: Path) -> None:
    spec = write_texts(tmp_path / "a.jsonl", ["x"] * 20, ["t"] * 20, more={"n": [*range(10), *range(10)]})
    with pytest.raises(DataError, match=r"10 ids occur .*Got: '0', '1', '2', '3', '4' and others"):
        load_split(spec, columns={"id": "n"})


@pytest.mark.parametrize("role", ["id", "group"])
@pytest.mark.parametrize("value", [None, 0.5])
def test_missing_ids_and_groups(tmp_path: Path, role: str, value: Any) -> None:
    other = 0.25 if value == 0.5 else "a"
    spec = write_texts(tmp_path / "a.jsonl", ["x", "y"], more={"n": [other, value]})
    with pytest.raises(DataError, match=f"Column 'n' has an example without {role}"):
        load_split(spec, columns={role: "n"})


def test_groups_of_a_class_label_have_its_names(tmp_path: Path) -> None:
    spec = save_texts(tmp_path / "a", [1, 0], ["in", "out"])
    assert load_split(spec, columns={"group": "label"})["group"][:] == ["out", "in"]


# Choices


def test_choices_in_columns(tmp_path: Path) -> None:
    dataset = load_split(write_lines(tmp_path / "a.jsonl", COPA), task=MULTIPLE_CHOICE, columns=NAMED)
    assert dataset[0] == {"text": "It rained.", "text_pair": "effect", "choices": ["I got wet.", "I sang."], "label": 0}
    assert dataset.features["label"].names == ["0", "1"]


def test_choices_in_a_list(tmp_path: Path) -> None:
    rows = [{"text": "a", "choices": ["x", "y", "z"], "label": label} for label in (2, 0)]
    dataset = load_split(write_lines(tmp_path / "a.jsonl", *rows), task=MULTIPLE_CHOICE)
    assert dataset.column_names == ["text", "choices", "label"]
    assert dataset["label"][:] == [2, 0]
    assert dataset.features["label"].names == ["0", "1", "2"]


def test_the_index_counts_and_not_the_name_of_a_class_label(tmp_path: Path) -> None:
    spec = save_texts(tmp_path / "a", [1, 0], ["choice1", "choice2"])
    dataset = load_split(spec, task=MULTIPLE_CHOICE, columns={"choices": ["text", "text"]})
    assert dataset["label"][:] == [1, 0]


def test_letters_are_renamed(tmp_path: Path) -> None:
    rows = [{"text": "a", "choices": ["x", "y"], "label": label} for label in ("B", "A")]
    spec = write_lines(tmp_path / "a.jsonl", *rows, labels={"A": "0", "B": "1"})
    assert load_split(spec, task=MULTIPLE_CHOICE)["label"][:] == [1, 0]


def test_sets_may_have_other_numbers_of_choices(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "a.jsonl", {"text": "a", "choices": ["x", "y", "z"], "label": 0})
    test = write_lines(tmp_path / "b.jsonl", {"text": "b", "choices": ["u", "v"], "label": 1})
    splits = load_splits(train=train, id_test=test, task=MULTIPLE_CHOICE)
    assert splits.label_names == ("0", "1", "2")
    assert splits.info["id_test"].label_names == ("0", "1")
    assert splits.report.splits["id_test"].label_counts == {"0": 0, "1": 1}


def test_examples_with_a_blank_choice_can_be_left_out(tmp_path: Path) -> None:
    rows = [{"a": a, "b": "y", "text": "t", "label": 1} for a in ("x", " ", "z")]
    spec = write_lines(tmp_path / "a.jsonl", *rows)
    columns = {"choices": ["a", "b"]}
    dataset = load_split(spec, task=MULTIPLE_CHOICE, columns=columns, leave_out_blank=True)
    assert dataset["choices"][:] == [["x", "y"], ["z", "y"]]


@pytest.mark.parametrize(
    ("choices", "label", "message"),
    [
        (["x", "y", "z"], 0, r"not equally many choices\. Got: 2 choices \(1 examples\), 3 choices \(1 examples\)"),
        (["x"], 0, r"not equally many choices\. Got: 1 choices \(1 examples\), 2 choices"),
        (["x", " "], 0, "choices has an example with a blank choice"),
        (["x", None], 0, "'choices' is not a list of text"),
        (["x", "y"], 2, r"not one of those of the choices\. Got: '2' \(1 examples\)\. Allowed: '0', '1'"),
        (["x", "y"], -1, r"not one of those of the choices\. Got: '-1'"),
        (["x", "y"], None, "an example without a label"),
    ],
)
def test_broken_choices(tmp_path: Path, choices: list[Any], label: Any, message: str) -> None:
    rows = [{"text": "a", "choices": ["x", "y"], "label": 0}, {"text": "b", "choices": choices, "label": label}]
    with pytest.raises(DataError, match=message):
        load_split(write_lines(tmp_path / "a.jsonl", *rows), task=MULTIPLE_CHOICE)
