from __future__ import annotations

import dataclasses
import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest

from hf_early_ood import atomic, dynamics, environment, results
from hf_early_ood.errors import ResumeError
from tests.report import records


@pytest.mark.parametrize("failed", [False, True])
def test_run_comes_back_equal(tmp_path: Path, failed: bool) -> None:
    record = records.run()
    if failed:
        record = dataclasses.replace(
            record, status="failed", error="out of memory", evaluation=None, training=None, intervention=None
        )
    results.write_record(tmp_path / "results.json", record)
    assert results.read_run(tmp_path / "results.json") == record


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_study_comes_back_equal(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    record = records.study(seeds)
    results.write_record(tmp_path / "study.json", record)
    assert results.read_study(tmp_path / "study.json") == record


def test_what_is_no_number_comes_back_as_none(tmp_path: Path) -> None:
    training = results.TrainingRecord(3, 1.0, 2.0, math.nan, loss_curve=((1, math.inf),))
    results.write_record(tmp_path / "r.json", dataclasses.replace(records.run(), training=training))
    loaded = results.read_run(tmp_path / "r.json").training
    assert loaded is not None
    assert loaded.train_loss is None
    assert loaded.loss_curve == ((1, None),)


def test_files_from_before_learning_rates_were_recorded_are_read() -> None:
    data = records.run().to_dict()
    del data["training"]["learning_rate_curve"]
    training = results.RunRecord.from_dict(data).training
    assert training is not None
    assert training.learning_rate_curve is None


def test_file_is_strict_json_with_the_version(tmp_path: Path) -> None:
    results.write_record(tmp_path / "r.json", records.run())
    data = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert data["schema_version"] == 1
    assert data["intervention"]["stages"][1] == {
        "stage": 1,
        "step": 40,
        "released": ["block.5"],
        "trainable_parameters": 2000,
        "frozen": [],
    }


@pytest.mark.parametrize("version", [2, 0, "1", None, True, 1.0])
def test_other_schema_version_is_refused(tmp_path: Path, version: object) -> None:
    atomic.write_json(tmp_path / "r.json", {**records.run().to_dict(), "schema_version": version})
    with pytest.raises(ResumeError, match=r"schema_version that this package cannot read.*Upgrade hf_early_ood"):
        results.read_run(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown key. Got: colour"),
        ({"seed": "1"}, "not usable: seed. Got: '1'"),
        ({"seed": True}, "not usable: seed. Got: True"),
        ({"status": "running"}, "not usable: status. Got: 'running'"),
        ({"model": {"name": "x"}}, "lacks a key. Got: model.num_parameters"),
        ({"model": 3}, "not usable: model"),
        ({"probes": {"fisher_trace": {"count": 1, "seconds": "2"}}}, "not usable: probes.fisher_trace.seconds"),
        ({"training": {**records.run().to_dict()["training"], "loss_curve": [[1]]}}, r"training.loss_curve\[0\]"),
    ],
)
def test_damaged_record_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    atomic.write_json(tmp_path / "r.json", {**records.run().to_dict(), **change})
    with pytest.raises(ResumeError, match=message):
        results.read_run(tmp_path / "r.json")


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="no such results file"):
        results.read_run(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"arm": ')
    with pytest.raises(ResumeError, match="is not JSON"):
        results.read_run(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ResumeError, match="schema_version"):
        results.read_run(tmp_path / "list.json")


def test_a_study_without_its_baseline_is_refused(tmp_path: Path) -> None:
    """As by hand, or by a merge of two files: everything that reads it compares with that arm."""
    study = records.study((1,))
    other = dataclasses.replace(study, arms={"other": study.arms[study.baseline]})
    results.write_record(tmp_path / "study.json", other)
    with pytest.raises(ResumeError, match=r"no runs of its baseline arm.*'standard'.*Allowed: other"):
        results.read_study(tmp_path / "study.json")


def test_required_key_is_named(tmp_path: Path) -> None:
    data = records.run().to_dict()
    del data["arm"]
    atomic.write_json(tmp_path / "r.json", data)
    with pytest.raises(ResumeError, match=r"lacks a key\. Got: arm"):
        results.read_run(tmp_path / "r.json")


def test_arm_run_takes_the_numbers_of_its_run() -> None:
    run = results.ArmRun.from_run(records.run(), "gradual/seed1")
    assert (run.seed, run.path, run.status, run.updates, run.seconds) == (1, "gradual/seed1", "complete", 400, 125.0)
    assert run.probe_seconds == 2.5
    failed = dataclasses.replace(records.run(), status="failed", error="x", training=None, evaluation=None)
    run = results.ArmRun.from_run(failed, "gradual/seed1")
    assert (run.error, run.updates, run.seconds, run.probe_seconds) == ("x", None, None, None)


def test_results_know_nothing_of_torch() -> None:
    code = "import sys, hf_early_ood.results, hf_early_ood.dynamics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_environment_names_versions_and_commit(tmp_path: Path) -> None:
    outside = environment.capture_environment(device="a device", folder=tmp_path)
    assert outside.device == "a device"
    assert outside.packages["transformers"]
    assert outside.cores >= 1
    assert (outside.git_commit, outside.git_dirty) == (None, None)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    clean = environment.capture_environment(device="cpu", folder=tmp_path)
    assert clean.git_commit is not None
    assert len(clean.git_commit) == 40
    assert clean.git_dirty is False
    (tmp_path / "new.txt").write_text("x")
    assert environment.capture_environment(device="cpu", folder=tmp_path).git_dirty is True


def test_environment_of_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package-at-all"))
    assert environment.capture_environment(device="cpu").packages["no_such_package_at_all"] is None


def _measured(step: int, value: float | None = 1.0) -> dict[str, object]:
    return {
        "step": step,
        "measure": "fisher_trace",
        "value": value,
        "normalized": value,
        "per_group": {"head": value},
        "num_examples": 128,
        "standard_error": 0.1,
        "seconds": 0.2,
        "trainable": ["head"],
    }


STAGE = {"step": 0, "event": "stage", "stage": 0, "released": ["head"], "trainable_parameters": 10}
DECISION = {
    "step": 5,
    "event": "decision",
    "reason": "stable",
    "value": 1.0,
    "change": 0.01,
    "num_measurements": 4,
    "num_skipped": 1,
    "settings": {"window": 3},
}


def test_dynamics_are_read(tmp_path: Path) -> None:
    path = tmp_path / "dynamics.jsonl"
    atomic.write_jsonl(path, [STAGE, _measured(0), _measured(5, math.nan), DECISION])
    series = dynamics.read_dynamics(path)
    assert [(item.step, item.value) for item in series.of("fisher_trace")] == [(0, 1.0), (5, None)]
    assert series.measurements[0].trainable == ("head",)
    assert series.stages == (results.StageRecord(0, 0, ("head",), 10),)
    assert series.decision == results.DecisionRecord(5, "stable", 1.0, 0.01, 4, 1, settings={"window": 3})
    assert series.of("sharpness") == ()


def test_stages_that_freeze_groups_again_are_read(tmp_path: Path) -> None:
    path = tmp_path / "dynamics.jsonl"
    again = {**STAGE, "step": 5, "stage": 1, "released": ["block.0"], "frozen": ["head"], "chosen": ["block.0"]}
    decision = {**DECISION, "signal": "log/loss", "at_first_chance": True}
    atomic.write_jsonl(path, [STAGE, again, decision])
    series = dynamics.read_dynamics(path)
    assert series.stages[1] == results.StageRecord(1, 5, ("block.0",), 10, ("head",))
    assert series.decision is not None
    assert series.decision.signal == "log/loss"


def test_updates_that_were_made_twice_count_once(tmp_path: Path) -> None:
    path = tmp_path / "dynamics.jsonl"
    atomic.write_jsonl(path, [STAGE, _measured(0), _measured(5, 2.0), STAGE, _measured(5, 3.0), _measured(10)])
    series = dynamics.read_dynamics(path)
    assert [(item.step, item.value) for item in series.measurements] == [(0, 1.0), (5, 3.0), (10, 1.0)]
    assert len(series.stages) == 1


def test_line_that_was_cut_off_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "dynamics.jsonl"
    path.write_text(atomic.dumps(_measured(0)) + '\n{"step": 5, "mea')
    with caplog.at_level(logging.WARNING):
        assert len(dynamics.read_dynamics(path).measurements) == 1
    assert "ends in the middle of a line" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "",
        '{"step": 5}',
        '{"step": "5", "measure": "m", "value": 1}',
        '{"step": 5, "measure": "m", "value": "x"}',
        '{"step": 5, "event": "stage"}',
        '{"step": 5, "event": "decision", "reason": "whim"}',
    ],
)
def test_line_that_is_not_usable_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "dynamics.jsonl"
    path.write_text(f"{atomic.dumps(_measured(0))}\n{line}\n")
    with pytest.raises(ResumeError, match=r"Line 2 of .* is not usable"):
        dynamics.read_dynamics(path)


def test_no_and_empty_series(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="no such series"):
        dynamics.read_dynamics(tmp_path / "dynamics.jsonl")
    (tmp_path / "dynamics.jsonl").write_text("")
    assert dynamics.read_dynamics(tmp_path / "dynamics.jsonl") == dynamics.Dynamics()
