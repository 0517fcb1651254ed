"""What decides the automatic interval: several measures, values that the Trainer logs, and a vote."""

from __future__ import annotations

import json
import logging
import math

import pytest

from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.dynamics import read_dynamics
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.report.figures import signal_figure
from hf_early_ood.results import DecisionRecord, InterventionRecord
from hf_early_ood.voting import SignalVote
from tests.training import check_resumed_at_every_update, differences, make_trainer, outcome

PROBE = {"probe_size": 8, "probe_batch_size": 4}
AUTO = {"interval": "auto", "probe_every": 1, "window": 1, "tolerance": 1e9, "transient": 0, "max_step": 6, **PROBE}
SHARPNESS = {"average_sharpness": {"num_draws": 2}}
# Signals and settings, and the update of the decision: any change is small enough, so that the second value decides.
# What the Trainer logs after update 1 is seen after update 2.
SIGNALS = {
    "average_sharpness": ("average_sharpness", SHARPNESS, 1),
    "worst_case_sharpness": ("worst_case_sharpness", {"worst_case_sharpness": {"steps": 2}}, 1),
    "gradient_norm": ("gradient_norm", {}, 1),
    "log/loss": ("log/loss", {}, 3),
    "log/grad_norm": ("log/grad_norm", {}, 3),
    "all of two": (["fisher_trace", "log/loss"], {}, 3),
    "two measures": (["fisher_trace", "average_sharpness"], SHARPNESS, 1),
}


def callback_for(signal, settings=None, **more):
    return GradualUnfreezingCallback(**{**AUTO, "signal": signal, "signal_settings": settings or {}, **more})


def series_of(records):
    """Step -> measure -> value, as recorded."""
    series = {}
    for record in records:
        if "measure" in record:
            series.setdefault(record["step"], {})[record["measure"]] = record["value"]
    return series


def replayed(records, settings):
    vote = SignalVote(settings["signals"], **{key: value for key, value in settings.items() if key != "signals"})
    for step, values in sorted(series_of(records).items()):
        decision = vote.update(step, {name: math.nan if value is None else value for name, value in values.items()})
    return decision


@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_decides_and_can_be_replayed(tmp_path, name):
    signal, settings, step = SIGNALS[name]
    callback = callback_for(signal, settings)
    trainer = make_trainer(tmp_path, [callback])
    trainer.train()
    assert (callback.decision.step, callback.decision.reason) == (step, "stable")
    assert callback.stage == min(4, 9 // step)
    lines = [json.loads(line) for line in (tmp_path / "dynamics.jsonl").read_text().splitlines()]
    (event,) = [line for line in lines if line.get("event") == "decision"]
    assert replayed(lines, event["settings"]) == callback.decision
    series = read_dynamics(tmp_path / "dynamics.jsonl")
    assert series.decision == DecisionRecord.from_dict({**callback.decision.to_dict(), "settings": event["settings"]})
    record = InterventionRecord("gradual_unfreezing", series.stages, series.decision)
    assert InterventionRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    for watched in event["settings"]["signals"]:
        measured = series.of(watched)
        assert [item.step for item in measured] == list(range(step + 1))
        assert {item.trainable for item in measured} == {("head",)}
        signal_figure(measured, series.decision, series.stages, tmp_path / "signal.png")
        if not watched.startswith("log/"):
            logged = [e["step"] for e in trainer.state.log_history if f"early_ood/{watched}" in e]
            assert logged == list(range(step + 1))


def test_a_logged_signal_is_what_the_trainer_logs_and_leaves_no_trace(tmp_path):
    callback = callback_for("log/loss", max_step=8, tolerance=0.0)
    trainer = make_trainer(tmp_path / "auto", [callback], max_steps=12)
    trainer.train()
    assert (callback.decision.step, callback.decision.reason) == (8, "fallback")
    losses = {e["step"]: e["loss"] for e in trainer.state.log_history if "loss" in e}
    seen = {step: values["log/loss"] for step, values in series_of(callback.records).items()}
    # Nothing is logged before updates 0 and 1, and before each other update the loss of the one before.
    assert seen == {0: None, 1: None, **{step: losses[step - 1] for step in range(2, 9)}}
    fixed = make_trainer(tmp_path / "fixed", [GradualUnfreezingCallback(interval=8)], max_steps=12)
    fixed.train()
    assert not differences(outcome(trainer), outcome(fixed))


def test_an_old_value_is_not_counted_twice(tmp_path):
    callback = callback_for("log/loss", max_step=9, tolerance=0.0)
    make_trainer(tmp_path, [callback], logging_steps=3).train()
    seen = [step for step, values in series_of(callback.records).items() if values["log/loss"] is not None]
    assert seen == [4, 7]  # logged after updates 3 and 6
    assert (callback.decision.num_measurements, callback.decision.num_skipped) == (10, 8)


def test_what_another_callback_logs_is_not_counted_twice_either(tmp_path):
    """It comes before the look at the same update, unlike what the Trainer logs."""
    other = EarlyDynamicsCallback(["fisher_trace"], every=2, **PROBE)
    callback = callback_for("log/early_ood/fisher_trace", max_step=7, tolerance=0.0)
    make_trainer(tmp_path, [other, callback]).train()
    watched = {step: values["log/early_ood/fisher_trace"] for step, values in series_of(callback.records).items()}
    seen = [step for step, value in watched.items() if value is not None]
    assert seen == [1, 2, 4, 6]  # the first one is measured after this callback has looked


def test_a_key_that_is_never_logged_is_told(tmp_path, caplog):
    callback = callback_for(["log/los", "fisher_trace"])
    with caplog.at_level(logging.WARNING, logger="hf_early_ood"):
        make_trainer(tmp_path, [callback]).train()
    assert (callback.decision.step, callback.decision.reason, callback.decision.signal) == (6, "fallback", "log/los")
    assert "did not become stable until max_step; the interval is 6 updates. Nothing was ever seen of log/los." in (
        caplog.text
    )
    assert "logging_steps" in caplog.text


@pytest.mark.parametrize(
    ("vote", "step", "signal"), [("any", 1, "fisher_trace"), ("majority", 3, "log/loss"), ("all", 6, "log/nothing")]
)
def test_votes(tmp_path, vote, step, signal):
    callback = callback_for(["fisher_trace", "log/loss", "log/nothing"], vote=vote)
    make_trainer(tmp_path, [callback]).train()
    assert (callback.decision.step, callback.decision.signal) == (step, signal)


# The loss that is logged is a mean of the updates since it was logged before, of which a checkpoint holds nothing.
@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize(("signal", "every"), [("log/loss", 1), (["fisher_trace", "log/grad_norm"], 3)])
def test_resumed_while_watching(tmp_path, signal, every):
    def make():
        return callback_for(signal, window=2, tolerance=0.0)

    callback = check_resumed_at_every_update(tmp_path, make, logging_steps=every)
    assert (callback.decision.step, callback.decision.reason) == (6, "fallback")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"signal": "loss"}, "Unknown signal.*or log/<key> for a value that the Trainer logs"),
        ({"signal": ["fisher_trace", "fisher_trace"]}, "each once"),
        ({"signal": []}, "signals is a list of names"),
        ({"signal": "log/"}, "Unknown signal"),
        ({"vote": "most"}, "Unknown vote"),
        ({"signal": "average_sharpness", "signal_settings": {"average_sharpness": {"rho": -1}}}, "rho is not usable"),
        ({"signal": "average_sharpness", "signal_settings": {"fisher_trace": {}}}, "measure that is not taken"),
    ],
)
def test_unusable_settings_are_refused_at_once(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        GradualUnfreezingCallback(**settings)


def test_a_decision_that_could_come_too_late_for_the_first_release_is_refused(tmp_path):
    callback = GradualUnfreezingCallback("auto", first=2, max_step=6, probe_every=1, probe_size=8, probe_batch_size=4)
    with pytest.raises(ConfigurationError, match=r"nothing would ever be released.*after 2 intervals.*1 to 5"):
        make_trainer(tmp_path, [callback], max_steps=12).train()
