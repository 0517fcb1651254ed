"""``trainer.push_to_hub()`` keeps every evaluation set, and the card that is there."""

from __future__ import annotations

import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

pytestmark = pytest.mark.slow


def push(folder, environment, *words):
    command = [sys.executable, "-m", "tests.hub.push_worker", str(folder), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_pushing_keeps_the_card(hub, environment, tmp_path):
    folder = tmp_path / "out"
    push(folder, environment, "train")
    first = hub.model("jane/pushed").files["README.md"].decode()
    entries = ModelCard(first).data.to_dict()["model-index"][0]["results"]
    assert [entry["dataset"]["name"] for entry in entries] == ["ID test", "OOD a", "OOD b"]
    push(folder, environment)  # a Trainer that has not evaluated
    assert hub.model("jane/pushed").files["README.md"].decode() == first
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# My words\n")
    push(folder, environment, "train")
    assert hub.model("jane/pushed").files["README.md"].decode().endswith("# My words\n")
