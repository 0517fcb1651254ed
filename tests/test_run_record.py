"""Runs that measure while they train."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from hf_early_ood import experiment, names
from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.config import RunConfig
from hf_early_ood.dynamics import read_dynamics
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.probing.trajectory import checkpoint_trajectory
from hf_early_ood.results import read_run
from tests.tiny_project import make_project, run_settings

PROBE = {"size": 8, "batch_size": 4}


@pytest.fixture
def project(tmp_path):
    experiment._load.cache_clear()
    return make_project(tmp_path / "project")


def run_config(project, out="out", **changes):
    return RunConfig.from_dict(run_settings(project, output_dir=str(project / out), **changes))


@pytest.mark.parametrize("method", ["standard", "gradual_unfreezing"])
def test_measuring_is_recorded_and_changes_nothing(project, method):
    plain = experiment.run(run_config(project, "plain", intervention__method=method))
    own = {"measures": ["trajectory", "gradient_norm"], "every": 3, "probe": PROBE, "update_direction": True}
    config = run_config(project, intervention__method=method, dynamics=own)
    line = "Measured every 3 updates, from update 0 to update 12: trajectory, gradient_norm."
    assert experiment.check(config).splitlines()[-1] == line
    record = experiment.run(config)
    assert record.evaluation == plain.evaluation
    weights = [load_file(project / out / names.MODEL_FOLDER / "model.safetensors") for out in ("plain", "out")]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())
    series = read_dynamics(project / "out" / names.DYNAMICS_FILE)
    for measure in own["measures"]:
        assert [item.step for item in series.of(measure)] == [0, 3, 6, 9, 12]
    assert record.probes["trajectory + gradient_norm"].count == 10
    assert 0 < record.probes["trajectory + gradient_norm"].share_of_training_time < 1
    # What the interval cost stands beside it, as in the run without the further measures.
    others = {kinds: cost.count for kinds, cost in record.probes.items() if kinds != "trajectory + gradient_norm"}
    assert others == {kinds: cost.count for kinds, cost in plain.probes.items()}
    assert record.intervention == plain.intervention
    assert (project / "out" / names.SIGNAL_FIGURE).is_file() == (method != "standard")
    assert not (project / "out" / names.START_WEIGHTS_FILE).parent.exists()  # with the checkpoints
    assert read_run(project / "out" / names.RESULTS_FILE) == record


def test_a_run_without_it_has_the_fingerprint_it_had(project):
    data = run_config(project).to_dict()
    del data["dynamics"]
    assert RunConfig.from_dict(data).fingerprint() == run_config(project).fingerprint()
    assert run_config(project, dynamics={}).fingerprint() != run_config(project).fingerprint()


def test_the_signal_is_measured_alike_for_the_interval_and_beyond(project):
    """One series: the same numbers twice until the decision, and on after it."""
    settings = {"measures": ["fisher_trace"], "every": 1, "probe": PROBE}
    record = experiment.run(run_config(project, dynamics=settings))
    lines = [json.loads(line) for line in (project / "out" / names.DYNAMICS_FILE).read_text().splitlines()]
    measured = [line for line in lines if line.get("measure") == "fisher_trace"]
    by_step: dict[int, list[float]] = {}
    for line in measured:
        by_step.setdefault(line["step"], []).append(line["value"])
    decided = record.intervention.decision.step
    assert {step: len(values) for step, values in by_step.items()} == {
        step: 2 if step <= decided else 1 for step in range(13)
    }
    assert all(len(set(values)) == 1 for values in by_step.values())
    assert record.probes["fisher_trace"].count == len(measured)
    series = read_dynamics(project / "out" / names.DYNAMICS_FILE).of("fisher_trace")
    assert [item.source == EarlyDynamicsCallback.__name__ for item in series] == [step > decided for step in range(13)]


@pytest.mark.parametrize(
    ("dynamics", "differing"),
    [
        ({"probe": {"size": 16, "batch_size": 4}}, "probe_size"),
        ({"probe": PROBE, "settings": {"fisher_trace": {"labels": "argmax"}}}, "labels"),
    ],
)
def test_one_series_of_two_kinds_is_refused(project, dynamics, differing):
    with pytest.raises(ConfigurationError, match=f"one series of two kinds.* Got: different {differing}"):
        experiment.check(run_config(project, dynamics=dynamics))
    # With a fixed interval it is measured once.
    assert "Measured" in experiment.check(run_config(project, dynamics=dynamics, intervention__interval=3))


def test_a_run_that_was_stopped_goes_on_with_its_series(project, monkeypatch):
    settings = {
        "training__save_strategy": "steps",
        "training__save_steps": 4,
        "dynamics": {"measures": ["trajectory", "fisher_trace"], "every": 2, "probe": PROBE},
    }
    experiment.run(run_config(project, "whole", **settings))
    measure = EarlyDynamicsCallback.on_step_end

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt
        measure(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(EarlyDynamicsCallback, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(run_config(project, **settings))
    record = experiment.run(run_config(project, **settings))
    whole, stopped = (read_dynamics(project / out / names.DYNAMICS_FILE) for out in ("whole", "out"))
    assert len(stopped.of("trajectory")) == 7
    values = [{(item.step, item.measure): item.value for item in one.measurements} for one in (whole, stopped)]
    assert values[0] == values[1]
    assert {cost.share_of_training_time for cost in record.probes.values()} == {None}  # other updates took other time
    # The checkpoints were asked for, so what they are compared with stays with them.
    found = checkpoint_trajectory(project / "out")
    assert found.start.endswith(names.START_WEIGHTS_FILE)
    last = [item.value for item in found.measurements if item.measure == "trajectory"][-1]
    assert last == pytest.approx(stopped.of("trajectory")[-1].value, rel=1e-6)


@pytest.mark.parametrize(
    ("dynamics", "message"),
    [
        ({"until": 0}, r"dynamics\.until: is out of range"),
        ({"until": "decided"}, r"dynamics\.until.* 'decided'\. Allowed: decision, a whole number"),
        ({"budget": 1.5}, r"dynamics\.budget"),
        ({"every": 0}, r"dynamics\.every"),
        ({"probe": {"size": 4, "batch_size": 8}}, r"dynamics\.probe\.size: the probe set is smaller than a batch"),
        ({"mesures": ["trajectory"]}, "dynamics.measures"),
        ({"probe": {"labels": "argmax"}}, r"dynamics\.probe\.labels"),
    ],
)
def test_settings_that_are_not_usable(project, dynamics, message):
    with pytest.raises(ConfigurationError, match=message):
        run_config(project, dynamics=dynamics)


def test_a_decision_that_nobody_makes(project):
    with pytest.raises(ConfigurationError, match=r"dynamics\.until: nothing decides an interval"):
        run_config(project, dynamics={"until": "decision"}, intervention__interval=3)
    assert run_config(project, dynamics={"until": "decision"}).dynamics.until == "decision"


@pytest.mark.parametrize(
    ("dynamics", "message"),
    [
        ({"measures": ["fischer_trace"]}, r"dynamics: Unknown measure\. Got: fischer_trace.*'fisher_trace'"),
        ({"settings": {"fisher_trace": {"label": "argmax"}}}, "Unknown setting of fisher_trace.*label"),
        ({"start_on_disk": True}, "start_on_disk and update_direction are for the trajectory"),
        ({"probe": {"size": 65, "batch_size": 8}}, r"larger than the training set\. Got: dynamics\.probe\.size=65"),
    ],
)
def test_bad_measures_are_found_by_check_before_training(project, dynamics, message):
    with pytest.raises(ConfigurationError, match=message):
        experiment.check(run_config(project, dynamics=dynamics, intervention__method="standard"))
    # The weights alone need no examples.
    large = {"measures": ["trajectory"], "probe": {"size": 65}}
    assert "trajectory." in experiment.check(run_config(project, dynamics=large, intervention__method="standard"))
