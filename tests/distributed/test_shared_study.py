"""Two processes of one training take the runs of a study together, also where another job is making one of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hf_early_ood import names
from hf_early_ood.claiming import holding
from hf_early_ood.results import read_study
from tests.tiny_project import make_project, study_settings, write_yaml


@pytest.mark.slow
def test_a_run_of_another_job_is_left_to_it_and_taken_when_it_is_given_up(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    settings = study_settings(project, training__max_steps=3, intervention__interval=1, evaluation__save_model=False)
    path = write_yaml(project / "study.yaml", settings)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "hf_early_ood", "study", str(path), "--study.seeds", "[1]"]
    with holding(project / "out" / "standard" / "seed1"):
        done = subprocess.run([*command, "--no-wait"], capture_output=True, text=True, check=True)
    assert done.stderr.count("Run 2 of 2 (standard, seed 1) is left to another process") == 1
    assert done.stdout.count("Not run yet: standard seed 1") == 1
    subprocess.run(command, capture_output=True, text=True, check=True)
    record = read_study(project / "out" / names.STUDY_FILE)
    assert [run.status for runs in record.arms.values() for run in runs] == ["complete", "complete"]
    assert record.comparisons
