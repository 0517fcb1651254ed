"""Every recipe: its header, its settings, and a small run of it, with a stand-in for the Hub."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hf_early_ood import experiment, names
from hf_early_ood.cli import main
from hf_early_ood.config import RunConfig, StudyConfig, load_config
from hf_early_ood.results import EvaluationRecord, read_run, read_study
from hf_early_ood.tasks import TASKS
from tests import hub_data
from tests.tiny_project import save_model

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
# Those for accelerate are not ours: test_recipes.py.
FILES = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name != "accelerate")
FOUR_WAYS = {"standard", "gradual_unfreezing_auto", "standard_lora", "gradual_unfreezing_auto_lora", "study"}
FOLDERS = {
    "commonsense_across_languages": FOUR_WAYS,
    "entities_across_languages": FOUR_WAYS,
    "inference_across_languages": FOUR_WAYS,
    "intents_across_languages": {*FOUR_WAYS, "study_lora", "random_intervals"},
    "paraphrases_across_languages": FOUR_WAYS,
    "questions_across_languages": FOUR_WAYS,
    "reviews_across_domains": FOUR_WAYS,
    "sentiment_across_domains": {
        *FOUR_WAYS,
        "early_phase",
        "gradual_unfreezing_fixed",
        "interventions",
        "prediction_depth",
        "pretext",
        "random_intervals",
        "replaceable_layers",
    },
}
# One of each task; the rest takes a minute or two.
ALWAYS = {
    "commonsense_across_languages/standard",
    "entities_across_languages/gradual_unfreezing_auto_lora",
    "inference_across_languages/gradual_unfreezing_auto",
    "questions_across_languages/gradual_unfreezing_auto",
}
COSTS = re.compile(
    r"[Aa](bout|n estimated) \d+ minutes on two CPU cores"
    r"|One GPU with bfloat16 .*: an estimated (few|\d+) minutes of training"
    r"|Time and hardware: as (?P<other>\S+\.yaml)"
    r"|Twelve runs: three times the sum of what the other files say, on one GPU"
)


def key(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


each = pytest.mark.parametrize("file", FILES, ids=key)
run_each = pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=() if key(file) in ALWAYS else pytest.mark.slow) for file in FILES],
    ids=key,
)


@cache
def settings(file: Path) -> RunConfig | StudyConfig:
    return load_config(file)


def shared_run(file: Path) -> RunConfig:
    """The run, or the first of the study."""
    config = settings(file)
    return config if isinstance(config, RunConfig) else next(config.runs())


def test_all_are_there():
    assert len(FILES) == 49
    assert {folder: {file.stem for file in FILES if file.parent.name == folder} for folder in FOLDERS} == FOLDERS


@each
def test_header_has_the_commands_and_what_it_takes(file):
    header = file.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    header = [line for line in header if line.startswith("#")]
    path, command = file.relative_to(ROOT), "study" if isinstance(settings(file), StudyConfig) else "run"
    assert f"#   accelerate launch recipes/run.py --config {path}" in header
    assert f"#   hf-early-ood {command} {path}" in header
    costs = COSTS.search(" ".join(line.removeprefix("# ") for line in header))
    assert costs, "time and hardware"
    assert costs["other"] is None or (file.parent / costs["other"]).is_file()


@each
def test_settings_are_valid(file):
    config = settings(file)
    runs = [config] if isinstance(config, RunConfig) else list(config.runs())
    assert {run.task for run in runs} <= set(TASKS)
    assert all(run.data.ood for run in runs)


def test_folders_of_results_are_distinct():
    folders = [settings(file).output_dir for file in FILES]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_study_has_the_runs_of_the_files(folder):
    """What an arm does is what the file of its name does."""
    study = settings(RECIPES / folder / "study.yaml")
    assert isinstance(study, StudyConfig)
    single = {file.stem: settings(file) for file in FILES if file.parent.name == folder and file.stem in FOUR_WAYS}
    of_arm = {
        "gradual_unfreezing": "gradual_unfreezing_auto",
        "gradual_unfreezing_lora": "gradual_unfreezing_auto_lora",
    }
    for arm, run in study.one_each().items():
        alone = single[of_arm.get(arm, arm)].to_dict()
        compared = ("task", "model", "data", "training", "intervention")
        assert {part: run.to_dict()[part] for part in compared} == {part: alone[part] for part in compared}, arm


def small(file: Path, tmp_path: Path) -> list[str]:
    """A tiny random model, few updates, one seed, small probe sets; data and methods as they are."""
    config = settings(file)
    changes: dict[str, Any] = {
        "output_dir": tmp_path / "out",
        "model.name": tmp_path / "model",
        "data.max_length": 32,
        "training.max_steps": 4,
        "training.use_cpu": True,
        "evaluation.bootstrap_samples": 100,
        "evaluation.save_model": False,
    }
    if shared_run(file).data.train.source.startswith("bundled:"):
        changes |= {
            "data.train.max_examples": 128,
            "data.id_test.max_examples": 40,
            "data.id_validation.max_examples": 40,
        }
        changes |= {f"data.ood.{name}.max_examples": 40 for name in shared_run(file).data.ood}
    arms: dict[str, RunConfig] = {"": config} if isinstance(config, RunConfig) else config.one_each()
    fixed = [run.intervention.interval for run in arms.values() if isinstance(run.intervention.interval, int | float)]
    timed = any(run.intervention.generations or run.intervention.perturbation for run in arms.values())
    if fixed or timed:
        changes |= {"training.max_steps": 30, "training.per_device_train_batch_size": 4}
    if isinstance(config, StudyConfig):
        changes["study.seeds"] = [1]
    for arm, run in arms.items():
        section = f"study.arms.{arm}.intervention" if arm else "intervention"
        if run.intervention.method == "gradual_unfreezing" and run.intervention.interval == "auto":
            changes |= {f"{section}.probe.size": 8, f"{section}.probe.batch_size": 4, f"{section}.probe.every": 1}
            changes[f"{section}.detector.window"] = 1
        elif run.intervention.perturbation:
            changes[f"{section}.perturbation.groups"] = ["head"]  # the tiny model has fewer blocks
        elif not arm and fixed:
            changes[f"{section}.interval"] = 5
    if shared_run(file).dynamics:
        changes |= {"dynamics.probe.size": 8, "dynamics.probe.batch_size": 4, "dynamics.every": 2}
    return [word for name, value in changes.items() for word in (f"--{name}", str(value))]


@pytest.mark.timeout(900)
@run_each
def test_small_run(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_early_ood.sources.load_dataset", hub_data.load_dataset)
    save_model(tmp_path / "model")
    config, out = settings(file), tmp_path / "out"
    command = "run" if isinstance(config, RunConfig) else "study"
    assert main([command, str(file), *small(file, tmp_path)]) == 0
    assert "OOD" in capsys.readouterr().out
    sets = [names.ood(name) for name in shared_run(file).data.ood]
    expected = {names.ID_VALIDATION, names.ID_TEST, *sets}
    if isinstance(config, RunConfig):
        record = read_run(out / names.RESULTS_FILE)
        assert record.status == "complete"
        assert set(record.data) == {names.TRAIN, *expected}
        assert (record.intervention.method, len(record.intervention.stages) > 0) == (
            config.intervention.method, config.intervention.method != "standard",
        )  # fmt: skip
        check_scores(record.evaluation, expected, config.task)
        check_what_is_special(file, record)
        return
    study = read_study(out / names.STUDY_FILE)
    assert set(study.arms) == set(config.arms)
    for runs in study.arms.values():
        (run,) = runs
        assert run.status == "complete", run.error
        check_scores(run.evaluation, expected, shared_run(file).task)
    compared = {(comparison.arm, comparison.split) for comparison in study.comparisons}
    assert compared >= {(arm, split) for arm in config.arms if arm != config.baseline for split in sets}


def check_scores(evaluation: EvaluationRecord | None, expected: set[str], task: str) -> None:
    assert evaluation is not None
    assert set(evaluation.splits) == expected
    for split, scored in evaluation.splits.items():
        assert scored.n > 0
        assert scored.metrics[TASKS[task].metric].value is not None, split


def check_what_is_special(file: Path, record: Any) -> None:
    """What only one of the data sets needs."""
    if "inference" in file.parent.name:
        assert record.data["ood/xnli_sw"].language == "sw"
    if "reviews" in file.parent.name:
        findings = record.data["ood/magazines"].findings
        assert findings["left out because they have no text"] == 6  # of eight, two have three stars


@pytest.mark.parametrize(("name", "command"), [("standard", "run"), ("study", "study")])
def test_the_script_knows_runs_and_studies(name, command, tmp_path, monkeypatch):
    """Also where the section ``study`` is in a file that is extended."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: {RECIPES / 'sentiment_across_domains' / name}.yaml\n")
    spec = importlib.util.spec_from_file_location("run_script", RECIPES / "run.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    called: list[list[str]] = []
    monkeypatch.setattr(script, "main", lambda words: called.append(words) or 0)
    monkeypatch.setattr("sys.argv", ["run.py", "--config", str(mine), "--seed", "3"])
    assert script.launch() == 0
    assert called == [[command, str(mine), "--seed", "3"]]


@pytest.fixture(autouse=True)
def _nothing_kept():
    """Data sets of one test are those of the next only within a folder."""
    yield
    experiment._load.cache_clear()
