"""Paths of the machine and tokens do not get out; nothing else is changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_early_ood.hub.redaction import Redactor
from hf_early_ood.results import ModelRecord
from tests.hub.records import CONFIG, run_record


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/jane/x.yaml", "x.yaml"),
        ("run ~/x.yaml", "run x.yaml"),
        ("run ~jane/x.yaml", "run x.yaml"),
        ("--config=/home/jane/x.yaml", "--config=x.yaml"),
        ("'/home/jane/a b.csv'", "'a b.csv'"),
        (r"C:\Users\jane\x.csv", "x.csv"),
        ("file:///home/jane/x.csv", "x.csv"),
        ("/home/jane/", "local"),
        ("--out=/Users/jane", "--out=local"),
        ("study '/home/jane doe/my study.yaml'", "study 'my study.yaml'"),
        ("study '--data.train.source=/srv/jane doe/x y.csv' -v", "study '--data.train.source=x y.csv' -v"),
        ("Got: /home/jane doe/x.csv. To fix: a/b", "Got: x.csv. To fix: a/b"),
        (r"run 'C:\Users\Jane Doe\x.csv'", "run 'x.csv'"),
        (r"\\server\jane\x.csv", "x.csv"),
        ("Got:/home/jane/x.csv", "Got:x.csv"),
        ("run ../../jane/x.yaml", "run x.yaml"),
        ("open '/home/jane/a' and '/b c'", "open 'a' and 'b c'"),
        ('["/home/jane/a.csv", "/mnt/b.csv"]', '["a.csv", "b.csv"]'),
        ("--training.hub_token hf_abcdefghijklmnop", "--training.hub_token hf_..."),
    ],
)
def test_paths_become_their_last_part(text, shown):
    redactor = Redactor(run_record({**CONFIG, "output_dir": "/home/jane/a b.csv"}))
    assert redactor.text(text) == shown
    assert redactor.notes()


@pytest.mark.parametrize(
    "text",
    [
        "ood/movie", "and/or", "https://huggingface.co/a/b", "hf://datasets/a/b.csv", "tweets/train", "1 / 2", "a/b/c",
        "bundled:vader-icwsm2014", "linux-x86_64", "2025-01-01T10:00:00+00:00", "facebook/xnli", "recipes/x.yaml",
        "hf_early_ood 0.1.0", "50 %", "~", "~5 s", "/",
    ],
)  # fmt: skip
def test_what_is_no_path_stays(text):
    redactor = Redactor()
    assert redactor.text(text) == redactor.name(text) == text
    assert not redactor.notes()


def test_relative_names_that_were_files_are_shortened():
    config = {**CONFIG, "model": {"name": "models/mine"}, "data": {"train": {"source": "clients/acme/x.jsonl"}}}
    redactor = Redactor(replace(run_record(config), model=ModelRecord("models/mine", 1, is_local=True)))
    assert (
        redactor.text("run --model.name models/mine --data clients/acme/x.jsonl")
        == "run --model.name mine --data x.jsonl"
    )
    assert redactor.text("my/models/mine models/mine2") == "my/models/mine models/mine2"


def test_nested_values():
    value = {"a": ["/home/jane/x", 1, None], "b": {"c": "text", "d": ("/mnt/y z",)}}
    assert Redactor().value(value) == {"a": ["x", 1, None], "b": {"c": "text", "d": ["y z"]}}
