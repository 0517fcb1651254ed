from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from hf_early_ood.cli import USER_ERROR, main
from tests.probing.saved import save_classifier
from tests.tiny_project import make_project, sentences, write_rows


@pytest.fixture
def project(tmp_path):
    folder = make_project(tmp_path / "project")
    for number, name in enumerate(("target", "same", "other")):
        write_rows(folder / f"{name}.jsonl", sentences(40, 10 + number))
    return folder


def command(project, *more: str, model: str | None = "model") -> list[str]:
    words = ["similarity", "--target", str(project / "target.jsonl"), "--few", "4", "--draws", "2"]
    words += ["--max-length", "24"]
    if model is not None:
        words += ["--model", str(project / model)]
        words += ["--source", str(project / "same.jsonl"), "--source", str(project / "other.jsonl")]
    return [*words, *more]


def test_ranks_domains_and_writes_the_folder(project, capsys):
    assert main(command(project, "--output", str(project / "out"))) == 0
    printed = capsys.readouterr().out
    assert "Sources for" in printed
    assert {"same.jsonl", "other.jsonl"} <= {line.split()[0] for line in printed.splitlines() if line}
    assert {path.name for path in (project / "out").iterdir()} == {"similarity.json", "similarity.png"}
    written = json.loads((project / "out" / "similarity.json").read_text())
    assert written["command"].startswith("hf-early-ood similarity ")
    assert main(command(project, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["sources"] == written["sources"]


@pytest.mark.slow
def test_the_command_of_readme(tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- command: similarity -->\n```bash\n(.*?)```", readme, flags=re.DOTALL)
    program, *words = shlex.split(block.replace("\\\n", " ").splitlines()[0])
    assert program == "hf-early-ood"
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert "Sources for bundled:vader-icwsm2014#nyt" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out_similarity").iterdir()} == {"similarity.json", "similarity.png"}


def test_ranks_checkpoints(project, capsys):
    save_classifier(project / "model", project / "a")
    save_classifier(project / "model", project / "b", seed=1)
    words = command(project, "--source", str(project / "a"), "--source", str(project / "b"), model=None)
    assert main([*words, "--dry-run"]) == 0
    assert "BertForSequenceClassification" in capsys.readouterr().out
    assert main([*words, "--rank-by", "ntk"]) == 0
    assert "by ntk" in capsys.readouterr().out


def test_dry_run_writes_nothing(project, capsys):
    assert main(command(project, "--dry-run", "--output", str(project / "out"))) == 0
    printed = capsys.readouterr().out
    assert "40 examples of bad, good; 2 draws of 4" in printed
    assert not (project / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rank-by", "lineal"], "Did you mean 'linear'"),
        (["--few", "40"], "The target has too few examples"),
        (["--few", "30"], "any source ends at the target"),
        (["--device", "tpu"], "The device is not usable"),
        (["--text", "txt"], "Did you mean 'text'"),
        (["--model", "./nowhere", "--dry-run"], "nowhere"),
    ],
)
def test_errors_of_the_user(project, capsys, more, message):
    assert main(command(project, *more)) == USER_ERROR
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


def test_sources_of_the_other_kind(project, capsys):
    assert main(command(project, "--source", str(project / "same.jsonl"), model=None)) == USER_ERROR
    assert "A source is data, and no model" in capsys.readouterr().err
    assert main(command(project, "--source", "bundled:vader-icwsm2014#movie", model=None)) == USER_ERROR
    assert "Name a pretrained model with --model" in capsys.readouterr().err
    assert main(command(project, "--source", str(project / "model"))) == USER_ERROR
    assert "Leave out --model" in capsys.readouterr().err
