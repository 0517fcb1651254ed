from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hf_early_ood import atomic


def test_text_is_written_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    atomic.write_text(path, "grüße\n")
    assert path.read_bytes() == "grüße\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic.write_bytes(path, b"long old content")
    atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("before", [None, "old"])
def test_interrupted_write_changes_nothing(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "a.txt"
    if before is not None:
        path.write_text(before)

    def interrupted() -> None:
        with atomic.replacing(path) as unfinished, open(unfinished, "w") as file:
            file.write("half")
            raise KeyboardInterrupt("power button")

    with pytest.raises(KeyboardInterrupt, match="power button"):
        interrupted()
    assert (path.read_text() if path.exists() else None) == before
    assert [item.name for item in tmp_path.iterdir()] == ([] if before is None else ["a.txt"])


def test_failing_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_value_without_json_form_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="A set has no form in JSON"):
        atomic.write_json(path, {"a": {1, 2}})
    assert json.loads(path.read_text()) == {"a": 1}


def test_block_that_writes_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tmp"), atomic.replacing(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_suffix_is_kept_for_writers_that_add_one(tmp_path: Path) -> None:
    with atomic.replacing(tmp_path / "p.npz") as unfinished:
        np.savez(unfinished, a=np.arange(3))
    assert np.load(tmp_path / "p.npz")["a"].tolist() == [0, 1, 2]


def test_files_are_readable_by_others_as_usual(tmp_path: Path) -> None:
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.write_text("x")
    atomic.write_text(ours, "x")
    assert ours.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")])
def test_what_is_no_number_becomes_null(value: float) -> None:
    assert atomic.dumps({"a": [value]}) == '{"a": [null]}'


def test_plain_values_of_many_types() -> None:
    @dataclass
    class Point:
        x: float
        y: tuple[int, ...]

    value = {
        "record": Point(math.nan, (1, 2)),
        "path": Path("a/b"),
        "numbers": [np.float32(0.5), np.int64(3), np.bool_(True), True, None],
        "array": np.array([[1.0, np.nan]]),
    }
    assert json.loads(atomic.dumps(value)) == {
        "record": {"x": None, "y": [1, 2]},
        "path": "a/b",
        "numbers": [0.5, 3, True, True, None],
        "array": [[1.0, None]],
    }


def test_keys_must_be_text() -> None:
    with pytest.raises(TypeError, match=r"key of a JSON object must be text\. Got: 3"):
        atomic.dumps({3: "a"})


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "series.jsonl"
    atomic.append_jsonl(path, {"step": 0})
    atomic.append_jsonl(path, {"step": 5, "value": math.nan})
    assert path.read_text() == '{"step": 0}\n{"step": 5, "value": null}\n'


@pytest.mark.parametrize(("before", "kept"), [('{"step": 0}\n{"st', '{"step": 0}\n'), ('{"st', ""), ("", "")])
def test_half_a_line_is_cut_off_before_the_next(tmp_path: Path, before: str, kept: str) -> None:
    path = tmp_path / "series.jsonl"
    path.write_text(before)
    atomic.append_jsonl(path, {"step": 5})
    assert path.read_text() == kept + '{"step": 5}\n'


def test_lines_are_rewritten_whole(tmp_path: Path) -> None:
    path = tmp_path / "series.jsonl"
    atomic.write_jsonl(path, [{"a": 1}, {"b": math.inf}])
    assert path.read_text() == '{"a": 1}\n{"b": null}\n'
    atomic.write_jsonl(path, [])
    assert path.read_text() == ""
