from __future__ import annotations

import json

import pytest

from hf_early_ood import names
from hf_early_ood.cli import USER_ERROR, main
from hf_early_ood.dynamics import read_dynamics
from hf_early_ood.results import read_run
from tests.probing.saved import make_checkpoints
from tests.tiny_project import make_project, run_settings, save_model, study_settings, write_yaml


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "project")


def test_run_prints_a_table_and_writes_the_folder(project, capsys):
    path = write_yaml(project / "run.yaml", run_settings(project))
    assert main(["run", str(path), "--training.max_steps", "9"]) == 0
    assert "OOD mean" in capsys.readouterr().out
    record = read_run(project / "out" / names.RESULTS_FILE)
    assert record.training.updates == 9
    assert record.command == f"hf-early-ood run {path} --training.max_steps 9"


def test_study_prints_the_verdict(project, capsys):
    path = write_yaml(project / "study.yaml", study_settings(project))
    assert main(["study", str(path), "--study.seeds", "[3]"]) == 0
    printed = capsys.readouterr().out
    assert "gradual" in printed
    assert printed.startswith((project / "out" / names.VERDICT_FILE).read_text())
    assert f"Everything is in {project / 'out'}" in printed


@pytest.mark.parametrize("command", ["run", "study"])
def test_dry_run_writes_nothing(project, capsys, command):
    settings = run_settings(project) if command == "run" else study_settings(project)
    path = write_yaml(project / "x.yaml", settings)
    assert main([command, str(path), "--dry-run"]) == 0
    assert "12 updates" in capsys.readouterr().out
    assert not (project / "out").exists()


def test_validate(project, capsys):
    path = write_yaml(project / "run.yaml", run_settings(project))
    assert main(["validate", str(path)]) == 0
    assert "is valid" in capsys.readouterr().out
    (project / "a.jsonl").unlink()
    assert main(["validate", str(path)]) == USER_ERROR
    assert "a.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.learnig_rate", "1e-3"], "learning_rate"),
        (["--intervention.intervall", "3"], "intervention.interval"),
        (["--intervention.interval", "often"], "intervention.interval"),
        (["--model.name", "bundled:minilm"], "bundled:all-MiniLM-L6-v2"),
    ],
)
def test_errors_of_the_user_end_with_a_message_and_no_traceback(project, capsys, arguments, message):
    path = write_yaml(project / "run.yaml", run_settings(project))
    assert main(["run", str(path), *arguments]) == USER_ERROR
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert "Traceback" not in printed
    assert not (project / "out").exists()


def test_missing_file(capsys):
    assert main(["run", "nowhere.yaml"]) == USER_ERROR
    assert "nowhere.yaml" in capsys.readouterr().err


def test_run_of_a_study_says_which_command(project, capsys):
    path = write_yaml(project / "study.yaml", study_settings(project))
    assert main(["run", str(path)]) == USER_ERROR
    assert "hf-early-ood study" in capsys.readouterr().err


def test_unknown_flag_of_schedule(capsys):
    with pytest.raises(SystemExit):
        main(["schedule", "--model", "x", "--intervall", "3"])
    assert "--intervall" in capsys.readouterr().err


def test_schedule_is_written_edited_and_followed(project, capsys):
    output = project / "schedule.yaml"
    model = str(project / "model")
    assert main(["schedule", "--model", model, "--interval", "2", "--output", str(output)]) == 0
    assert "- [block.2]     # from update 2" in capsys.readouterr().out
    edited = output.read_text().replace("- [block.2]", "- [block.2, block.1]")
    output.write_text("\n".join(line for line in edited.splitlines() if not line.startswith("  - [block.1]")))
    assert main(["schedule", "--model", model, "--file", str(output)]) == 0
    assert main(["schedule", "--model", model, "--interval", "2", "--output", str(output)]) == USER_ERROR
    assert "may have been edited" in capsys.readouterr().err
    settings = run_settings(project)
    settings["intervention"] = {"method": "gradual_unfreezing", "schedule": str(output)}
    assert main(["run", str(write_yaml(project / "run.yaml", settings))]) == 0
    stages = read_run(project / "out" / names.RESULTS_FILE).intervention.stages
    assert [stage.released for stage in stages] == [("head",), ("block.1", "block.2"), ("block.0",), ("embeddings",)]


def test_schedule_checks_the_length(tmp_path, capsys):
    save_model(tmp_path)
    assert main(["schedule", "--model", str(tmp_path), "--interval", "10", "--updates", "10"]) == USER_ERROR
    assert "longer than training" in capsys.readouterr().err
    assert main(["schedule", "--model", str(tmp_path), "--interval", "0.25", "--updates", "40"]) == 0
    printed = capsys.readouterr()
    assert "interval: 10" in printed.out
    assert "never released: embeddings" in printed.err


def test_schedule_of_a_model_that_is_not_there(capsys):
    assert main(["schedule", "--model", "./nowhere"]) == USER_ERROR
    assert "nowhere" in capsys.readouterr().err


def test_probe_prints_a_table_and_writes_the_folder(tmp_path, capsys):
    project = make_checkpoints(tmp_path)
    command = ["probe", str(project / "out"), "--data", str(project / "train.jsonl"), "--size", "8"]
    command += ["--batch-size", "4", "--measures", "fisher_trace", "average_sharpness"]
    command += ["--settings", "average_sharpness.num_draws=2", "average_sharpness.rho=1e-3"]
    command += ["--output", str(project / "probe")]
    assert main([*command, "--dry-run"]) == 0
    assert "checkpoint-10 (update 10): can be measured" in capsys.readouterr().out
    assert main([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [item["missing"] for item in plan["models"]] == [["fisher_trace", "average_sharpness"]] * 3
    assert not (project / "probe").exists()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if "checkpoint-" in line] == [
        "checkpoint-2", "checkpoint-4", "checkpoint-10",
    ] * 2  # fmt: skip
    assert f"Everything is in {project / 'probe'}: dynamics.jsonl, probe.json, fisher_trace.png" in printed
    assert {path.name for path in (project / "probe").iterdir()} == {
        "dynamics.jsonl", "probe.json", "fisher_trace.png", "average_sharpness.png",
    }  # fmt: skip
    assert len(read_dynamics(project / "probe" / names.DYNAMICS_FILE).of("average_sharpness")) == 3
    record = json.loads((project / "probe" / names.PROBE_FILE).read_text())
    assert record["request"]["settings"] == {"average_sharpness": {"num_draws": 2, "rho": 0.001}}
    assert record["command"].startswith("hf-early-ood probe ")
    assert main([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["measurements"]) == 6


def test_probe_of_one_model_shows_its_layers(tmp_path, capsys):
    project = make_checkpoints(tmp_path, steps=(2,))
    command = ["probe", str(project / "out" / "checkpoint-2"), "--data", str(project / "train.jsonl")]
    assert main([*command, "--size", "8", "--batch-size", "4", "--output", str(project / "probe")]) == 0
    printed = capsys.readouterr().out
    assert "checkpoint-2, 8 examples" in printed
    assert "block.1" in printed
    assert (project / "probe" / "fisher_trace.png").is_file()


def test_probe_with_a_broken_checkpoint_ends_with_1(tmp_path, capsys):
    project = make_checkpoints(tmp_path, steps=(2, 4))
    (project / "out" / "checkpoint-4" / "model.safetensors").write_bytes(b"cut off")
    command = ["probe", str(project / "out"), "--data", str(project / "train.jsonl"), "--size", "8"]
    assert main([*command, "--batch-size", "4"]) == 1
    printed = capsys.readouterr().out
    assert "checkpoint-2  " in printed
    assert "checkpoint-4 could not be measured: The model cannot be loaded" in printed
    assert "A file in the folder is missing or broken" in printed
    assert main([*command, "--dry-run"]) == 1
    assert "checkpoint-4 (update 4): cannot be measured: The model cannot be loaded" in capsys.readouterr().out
    assert main([*command, "--dry-run", "--json"]) == 1
    errors = [item["model"]["error"] for item in json.loads(capsys.readouterr().out)["models"]]
    assert errors[0] is None
    assert errors[1].startswith("The model cannot be loaded")


@pytest.mark.parametrize("dry", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("average_sharpness.rho=-1", "average_sharpness: rho is not usable. Got: -1."),
        ("average_sharpness.rho=.nan", "average_sharpness: rho is not usable. Got: nan."),
        ("average_sharpness.num_draws=0", "average_sharpness: num_draws is not usable"),
        ("fisher_trace.estimator=fast", "fisher_trace: Unknown estimator"),
    ],
)
def test_settings_of_probe_are_checked_before_anything_is_read(tmp_path, capsys, dry, setting, message):
    """Neither the model nor the data is there."""
    command = ["probe", str(tmp_path / "gone"), "--data", str(tmp_path / "gone.jsonl"), *dry]
    assert main([*command, "--measures", "fisher_trace", "average_sharpness", "--settings", setting]) == USER_ERROR
    assert message in capsys.readouterr().err


def test_probe_of_few_examples_needs_no_batch_size(tmp_path, capsys):
    project = make_checkpoints(tmp_path, steps=(2,))
    command = ["probe", str(project / "out"), "--data", str(project / "train.jsonl"), "--size", "16", "--dry-run"]
    assert main(command) == 0
    assert "16 examples" in (printed := capsys.readouterr().out)
    assert "16 at a time" in printed


def test_probe_into_a_file(tmp_path, capsys):
    project = make_checkpoints(tmp_path, steps=(2,))
    command = ["probe", str(project / "out"), "--data", str(project / "train.jsonl"), "--size", "8"]
    assert main([*command, "--output", str(project / "train.jsonl")]) == USER_ERROR
    assert "The output folder cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measures", "fisher"], "Did you mean 'fisher_trace'"),
        (["--settings", "rho=1"], "MEASURE.KEY=VALUE"),
        (["--settings", "fisher_trace.labels=[1"], "not YAML"),
        (["--settings", "fisher_trace.labels=a", "fisher_trace.labels=b"], "given twice"),
        (["--settings", "fisher_trace.labels=sampld"], "Did you mean 'sampled'"),
        (["--text", "txt"], "Did you mean 'text'"),
        (["--label", "stars"], "A column is not there. Got: stars"),
        (["--size", "1000"], "Lower the size of the probe set to 64 or less"),
    ],
)
def test_errors_of_probe(tmp_path, capsys, arguments, message):
    project = make_checkpoints(tmp_path, steps=(2,))
    command = ["probe", str(project / "out"), "--data", str(project / "train.jsonl"), "--size", "8"]
    assert main([*command, "--batch-size", "4", *arguments]) == USER_ERROR
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") or "\nerror: " in printed
    assert message in printed
