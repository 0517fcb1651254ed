"""README says what is true: its snippet runs, its tables are those of the recorded results."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSequenceClassification, default_data_collator

import hf_early_ood
from hf_early_ood.cli import build_parser
from hf_early_ood.config.loading import load_run
from hf_early_ood.config.presets import preset_names
from hf_early_ood.config.schema import RunConfig
from tests import families, support_table
from tests.training import Rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_snippet_runs_as_it_stands(tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        AutoModelForSequenceClassification,
        "from_pretrained",
        lambda name, num_labels: families.build("xlm-roberta", num_labels=num_labels),
    )
    # 3 epochs of 12 updates: the moment is looked for every 10 of them.
    scope = {"train": Rows(12 * 32 * 4), "collator": default_data_collator}
    exec(snippet, scope)
    callback = scope["trainer"].callback_handler.callbacks[-1]
    records = next(c for c in scope["trainer"].callback_handler.callbacks if hasattr(c, "records")).records
    assert callback is not None
    assert any(record.get("event") == "decision" for record in records)
    assert any(record.get("stage") == 1 for record in records)


def test_callbacks_that_are_named_can_be_made():
    calls = re.findall(r"`(EarlyDynamicsCallback\([^`]+\))`", README)
    assert len(calls) >= 2
    for call in calls:
        assert eval(call, {"EarlyDynamicsCallback": hf_early_ood.EarlyDynamicsCallback}).records == []


def test_tables_are_those_of_the_recorded_results():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "make_tables.py", "--check"],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, "run: python benchmarks/make_tables.py\n" + done.stderr[-2000:]


def test_the_page_of_setups_is_that_of_the_tests():
    assert support_table.PAGE.read_text(encoding="utf-8") == support_table.page(), "run: python -m tests.support_table"


@pytest.mark.parametrize("image", re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))
def test_pictures_are_there(image):
    assert (ROOT / image).stat().st_size > 10_000


def test_named_files_exist():
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name


def methods():
    """The rows of the table of methods: method, paper, module, how to run it, reproduced, not reproduced."""
    table = README.split("## Methods\n")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize("row", methods(), ids=lambda row: row[0])
def test_methods_are_where_the_table_says(row, tmp_path):
    _, paper, modules, ways, reproduced, _ = row
    assert re.search(r"\(https://arxiv\.org/abs/\d{4}\.\d{4,5}\)|the same, ", paper)
    assert reproduced
    for module in re.findall(r"`([^`]+)`", modules):
        assert (ROOT / "hf_early_ood" / module).is_file(), module
    for way in re.findall(r"`([^`]+)`", ways):
        if way.startswith("hf-early-ood "):
            with pytest.raises(SystemExit, match=r"^0$"):
                build_parser().parse_args([way.split()[1], "--help"])
        elif re.fullmatch(r"\w+", way):
            assert way in preset_names() or hasattr(hf_early_ood, way), way
        else:
            load_run(recipe_with(yaml.safe_load(way), tmp_path))


@pytest.mark.parametrize("line", re.findall(r"^intervention: \{perturbation.*$", README, flags=re.MULTILINE))
def test_perturbations_are_written_so(line, tmp_path):
    assert load_run(recipe_with(yaml.safe_load(line), tmp_path)).intervention.perturbation is not None


def recipe_with(keys, folder):
    """A recipe of this repository with further keys, of the whole or of its section ``intervention``."""
    recipe = yaml.safe_load((ROOT / "recipes/sentiment_across_domains/standard.yaml").read_text(encoding="utf-8"))
    if not {"preset", *(field.name for field in dataclasses.fields(RunConfig))} & {*keys}:
        keys = {"intervention": {"method": "gradual_unfreezing", **keys}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "intervention": None, **keys}), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("bench_*.py")), ids=lambda path: path.stem)
def test_benchmarks_still_run(script, tmp_path):
    """Small; figures are judged in the recorded runs only."""
    before = set((ROOT / "benchmarks" / "results").rglob("*"))
    done = subprocess.run(
        [sys.executable, script, "--quick"],
        capture_output=True, text=True, check=False, timeout=250, cwd=ROOT, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert set((ROOT / "benchmarks" / "results").rglob("*")) == before  # a smoke test is no result
