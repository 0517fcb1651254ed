"""Promise 8: ``hf-early-ood run`` and ``study``, killed at any file that they touch, end as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from hf_early_ood import names
from tests.integration.command_worker import run
from tests.tiny_project import make_project, run_settings, study_settings, write_yaml

TIMES = {
    *("started", "finished", "timing", "seconds", "seconds_per_stage", "probe_seconds"),
    *("share_of_training_time", "extra_time"),
}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.integration.command_worker", "hf_early_ood.study"])
# Checkpoints after updates 4, 8 and 12, as a run makes them by default.
TRAINING = {"training__per_device_train_batch_size": 16}


def command(arguments: list[str], folder: Path, kill_at: int | None = None) -> tuple[bool, int]:
    """Run a command to its end, or to where it is killed; whether it came to its end, and how many files it touched."""
    touched = PROCESSES.Value("i", 0)
    process = PROCESSES.Process(target=run, args=(arguments, folder, kill_at, touched))
    process.start()
    process.join()
    assert process.exitcode in (0, -9), process.exitcode
    return process.exitcode == 0, touched.value


def contents(folder: Path) -> dict[str, Any]:
    """What every file in a folder says, but for times and pictures."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = {key: (array.dtype, array.tobytes()) for key, array in load_file(path).items()}
        elif path.suffix == ".parquet":
            found[name] = path.read_bytes()
        elif path.suffix in (".json", ".jsonl"):
            values = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = [without_times(json.loads(value)) for value in values]
        else:
            found[name] = path.read_text() if path.suffix in (".yaml", ".md") else None
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def same(folder: Path, expected: dict[str, Any]) -> bool:
    """Whether a folder holds what it should, file by file, and nothing else."""
    ours = contents(folder)
    assert ours.keys() == expected.keys()
    assert [name for name in ours if ours[name] != expected[name]] == []
    return True


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


def test_a_run_killed_at_any_file_ends_the_same(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"  # always the same: the record names it
    settings = run_settings(project, output_dir=str(folder), **TRAINING)
    arguments = ["run", str(write_yaml(tmp_path / "run.yaml", settings))]
    ended, touched = command(arguments, folder)
    assert ended
    expected = contents(folder)
    assert {names.RESULTS_FILE, names.PREDICTIONS_FILE, f"{names.MODEL_FOLDER}/model.safetensors"} <= expected.keys()
    assert not [name for name in expected if "checkpoint" in name or ".tmp" in name]
    folder.rename(tmp_path / "whole")

    # The last files: picture, predictions, model, record, and the checkpoint that is no longer needed.
    latest = range(touched - 19, touched + 1, 6)
    for number, kill_at in enumerate([*random.Random(0).sample(range(1, touched), 3), *latest]):
        # Every attempt goes on where the one before was killed, until one comes to its end.
        if command(arguments, folder, kill_at)[0]:
            assert same(folder, expected)
            folder.rename(tmp_path / f"ended{number}")
    assert command(arguments, folder)[0]
    assert same(folder, expected)


def test_a_killed_study_makes_only_what_is_missing(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    settings = study_settings(project, output_dir=str(folder), **TRAINING)
    settings["study"]["seeds"] = [1]
    arguments = ["study", str(write_yaml(tmp_path / "study.yaml", settings))]
    ended, touched = command(arguments, folder)
    assert ended
    expected = contents(folder)
    folder.rename(tmp_path / "whole")

    made: dict[Path, bytes] = {}
    for kill_at in random.Random(0).sample(range(touched // 2, touched), 3):
        if command(arguments, folder, kill_at)[0]:
            break
        # What was finished once is read and not made again: its record keeps its times.
        assert all(path.read_bytes() == record for path, record in made.items())
        records = folder.glob(f"*/*/{names.RESULTS_FILE}")
        made = {path: path.read_bytes() for path in records}
    assert made
    assert command(arguments, folder)[0]
    assert all(path.read_bytes() == record for path, record in made.items())
    assert same(folder, expected)
