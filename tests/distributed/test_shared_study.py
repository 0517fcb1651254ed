"""Two processes of one training take the runs of a study together, also where another job is making one of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hf_early_ood import names
from hf_early_ood.claiming import holding
from hf_early_ood.results import read_study
from tests.distributed.test_two_processes import ENVIRONMENT, LAUNCHER, ROOT
from tests.tiny_project import make_project, study_settings, write_yaml


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.mark.slow
def test_a_run_of_another_job_is_left_to_it_and_taken_when_it_is_given_up(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    settings = study_settings(project, training__max_steps=3, intervention__interval=1, evaluation__save_model=False)
    path = write_yaml(project / "study.yaml", settings)
    command = [*LAUNCHER, "-m", "hf_early_ood", "study", str(path), "--study.seeds", "[1]"]
    with holding(project / "out" / "standard" / "seed1"):
        done = run([*command, "--no-wait"])
    assert done.stderr.count("Run 2 of 2 (standard, seed 1) is left to another process") == 1
    assert done.stdout.count("Not run yet: standard seed 1") == 1
    run(command)
    record = read_study(project / "out" / names.STUDY_FILE)
    assert [run.status for runs in record.arms.values() for run in runs] == ["complete", "complete"]
    assert record.comparisons
