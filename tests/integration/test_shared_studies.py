"""One study, several processes, any of them killed at any moment: what one clean run gives, and nothing made twice."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from hf_early_ood import names
from hf_early_ood.results import read_study
from tests.integration.command_worker import run
from tests.integration.test_killed_commands import PROCESSES, contents, same
from tests.tiny_project import make_project, study_settings, write_yaml

# One checkpoint, so that a killed run goes on from there. Two arms, two seeds.
TRAINING = {
    "training__per_device_train_batch_size": 16,
    "training__max_steps": 5,
    "intervention__interval": 1,
    "evaluation__save_model": False,
}
RUNS = ("gradual/seed1", "standard/seed1", "gradual/seed2", "standard/seed2")  # as they are made


class Shell:
    """One command in a process of its own."""

    def __init__(self, arguments: list[str], folder: Path, kill_at: int | str | None = None) -> None:
        self.touched = PROCESSES.Value("i", 0)
        completions = folder.parent / "completions.txt"
        self.process = PROCESSES.Process(target=run, args=(arguments, folder, kill_at, self.touched, completions))
        self.process.start()

    def end(self) -> bool:
        """Wait for it; whether it came to its end."""
        self.process.join()
        assert self.process.exitcode in (0, -9), self.process.exitcode
        return self.process.exitcode == 0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def arguments(project: Path, tmp_path: Path) -> list[str]:
    settings = study_settings(project, output_dir=str(tmp_path / "out"), **TRAINING)
    return ["study", str(write_yaml(tmp_path / "study.yaml", settings))]


def clean(arguments: list[str], folder: Path) -> tuple[dict[str, object], int]:
    """What a study that nobody disturbs leaves, and how many files it touches."""
    shell = Shell(arguments, folder)
    assert shell.end()
    assert made(folder) == {str(folder / path / names.RESULTS_FILE): 1 for path in RUNS}
    (folder.parent / "completions.txt").unlink()
    expected = contents(folder)
    folder.rename(folder.parent / "clean")
    return expected, shell.touched.value


def made(folder: Path) -> Counter[str]:
    return Counter((folder.parent / "completions.txt").read_text().splitlines())


def test_killed_around_the_results_and_then_made_by_two(arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    expected, touched = clean(arguments, folder)
    assert not Shell(arguments, folder, f"{RUNS[0]}/{names.RESULTS_FILE}").end()  # all is done and nobody knows
    assert not Shell(arguments, folder, f"{RUNS[0]}/{names.CLAIM_FILE}").end()  # written, and the lock not given back
    assert made(folder) == {str(folder / RUNS[0] / names.RESULTS_FILE): 1}
    assert not Shell(arguments, folder, random.Random(0).randrange(touched // 4, touched // 2)).end()
    shells = [Shell(arguments, folder) for _ in range(2)]
    assert [shell.end() for shell in shells] == [True, True]
    assert same(folder, expected)
    assert made(folder) == {str(folder / path / names.RESULTS_FILE): 1 for path in RUNS}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_while_two_are_at_work(arguments: list[str], tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "out"
    expected, touched = clean(arguments, folder)
    rng = random.Random(seed)
    for _ in range(4):
        kills = [rng.randrange(1, touched), rng.choice([None, rng.randrange(1, touched)])]
        for shell in [Shell(arguments, folder, kill_at) for kill_at in kills]:
            shell.end()
    assert Shell(arguments, folder).end()
    assert same(folder, expected)
    assert made(folder) == {str(folder / path / names.RESULTS_FILE): 1 for path in RUNS}


def test_shards_are_the_whole_study(arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    expected, _ = clean(arguments, folder)
    shells = [Shell([*arguments, "--shard", f"{i}/2", "--no-wait"], folder) for i in (1, 2)]
    assert [shell.end() for shell in shells] == [True, True]
    assert made(folder) == {str(folder / path / names.RESULTS_FILE): 1 for path in RUNS}
    # Who came last has written the whole comparison, whichever shard it was.
    record = read_study(folder / names.STUDY_FILE)
    assert {arm: len(runs) for arm, runs in record.arms.items()} == {"gradual": 2, "standard": 2}
    assert {comparison.n_seeds for comparison in record.comparisons} == {2}
    assert Shell(arguments, folder).end()
    assert made(folder).total() == 4
    theirs = contents(folder)
    for path in RUNS:
        results = f"{path}/{names.RESULTS_FILE}"
        assert theirs[results][0]["evaluation"] == expected[results][0]["evaluation"]  # type: ignore[index]
    assert theirs[names.STUDY_FILE] == expected[names.STUDY_FILE]
