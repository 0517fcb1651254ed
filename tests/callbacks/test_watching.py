"""The live view: what trackers are told, under which names and at which update, and that training does not notice."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from hf_early_ood import (
    EarlyDynamicsCallback,
    EarlyOODTrainer,
    FisherPenaltyCallback,
    GenerationsCallback,
    GradualUnfreezingCallback,
    LearningRatesCallback,
    PerturbationCallback,
    watch,
)
from hf_early_ood.callbacks.live import LiveLog, surviving, tell_settings
from hf_early_ood.probes.measures import MEASURES
from tests.trackers import TIMES, FakeWandb, curves, texts
from tests.training import StopAfter, differences, make_trainer, outcome

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
GROUPS = ["embeddings", "block.0", "block.1", "block.2", "head"]
PROBE = {"probe_size": 8, "probe_batch_size": 4}
AUTO = {"probe_every": 1, "window": 1, "tolerance": 1e9, "transient": 1, "max_step": 5, **PROBE}  # decides at 2
OURS = {"trainer_class": EarlyOODTrainer}


def unfreezing(**changes):
    return GradualUnfreezingCallback("auto", **{**AUTO, **changes})


def everything():
    return [
        EarlyDynamicsCallback(["fisher_trace", "gradient_norm"], every=4, **PROBE),
        unfreezing(),
        LearningRatesCallback(layer_decay=0.5),
        FisherPenaltyCallback(0.01),
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    trainer = make_trainer(folder, everything(), **OURS, report_to="tensorboard", max_steps=12)
    trainer.train()
    return trainer, folder


def documented() -> list[re.Pattern[str]]:
    """The names of the table in README; what is in <> stands for the name of a layer group or a measure."""
    names = re.findall(r"^\| `(early_ood/[^`]+)` \|", README, flags=re.MULTILINE)
    stand_for = {"<group>": GROUPS, "<measure>": MEASURES}
    return [
        re.compile(re.sub(r"<\w+>", lambda match: f"({'|'.join(map(re.escape, stand_for[match[0]]))})", name))
        for name in names
    ]


def test_tensorboard_has_the_documented_series_and_no_others(trained, tmp_path):
    others = {
        "generations": GenerationsCallback(2),
        "selecting": unfreezing(order="fisher_trace"),
        "perturbing": PerturbationCallback(2, "shuffle"),
    }
    for name, callback in others.items():
        make_trainer(tmp_path / name, [callback], **OURS, report_to="tensorboard").train()
    folders = (trained[1], *(tmp_path / name for name in others))
    seen = {name for folder in folders for name in curves(folder) if name.startswith("early_ood/")}
    patterns = documented()
    assert len(patterns) > 8
    assert not [name for name in seen if not any(pattern.fullmatch(name) for pattern in patterns)]
    assert not [pattern for pattern in patterns if not any(pattern.fullmatch(name) for name in seen)]


def test_points_are_at_their_update(trained):
    trainer, folder = trained
    series, history = curves(folder), trainer.state.log_history
    assert series["early_ood/stage"] == [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4)]
    assert series["early_ood/decision"] == [(2, 2)]
    assert series["early_ood/trains/block.1"] == [(0, 0), (4, 1)]
    assert [step for step, _ in series["early_ood/fisher_trace"]] == [0, 1, 2, 4, 8, 12]
    assert [step for step, _ in series["early_ood/fisher_trace/block.2"]] == [4, 8, 12]
    assert [step for step, _ in series["early_ood/gradient_norm"]] == [0, 4, 8, 12]
    for name in ("trainable_parameters", "fisher_trace/head", "learning_rate_factor/block.0", "fisher_penalty"):
        logged = [(entry["step"], entry[f"early_ood/{name}"]) for entry in history if f"early_ood/{name}" in entry]
        assert series[f"early_ood/{name}"] == [(step, pytest.approx(value)) for step, value in logged]
    assert dict(series["early_ood/trainable_parameters"])[8] == sum(p.numel() for p in trainer.model.parameters())


def test_learning_rates_are_those_of_the_update(trained):
    """The scheduled one times the factor of the group, and nothing while it is frozen."""
    series = curves(trained[1])
    begins = dict(zip(GROUPS, [8, 6, 4, 2, 0], strict=True))
    for depth, (group, begin) in enumerate(reversed(begins.items())):
        expected = [(step, 0.5**depth * rate if step > begin else 0) for step, rate in series["learning_rate"]]
        assert series[f"early_ood/learning_rate/{group}"] == [(s, pytest.approx(rate)) for s, rate in expected]
    assert not [entry for entry in trained[0].state.log_history if "early_ood/learning_rate/head" in entry]


def test_words_and_settings_are_texts_in_tensorboard(trained):
    assert texts(trained[1], "early_ood/decision") == [
        (2, "Update 2: the fisher_trace stable; the interval is 2 updates.")
    ]
    said = texts(trained[1], "early_ood/stage")
    assert [step for step, _ in said] == [0, 2, 4, 6, 8]
    assert said[1][1].startswith("Update 2: stage 1 adds block.2; ")
    ((step, text),) = texts(trained[1], "early_ood/settings")
    settings = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
    assert step == 0
    assert list(settings["layer_groups"]) == GROUPS
    assert settings["callbacks"]["GradualUnfreezingCallback"]["window"] == 1
    assert list(settings["callbacks"]) == [type(callback).__name__ for callback in everything()]


def test_a_plain_trainer_is_watched_on_request(tmp_path):
    def train(folder, watched):
        trainer = make_trainer(folder, [unfreezing()], report_to="tensorboard")
        if watched:
            watch(trainer)
            watch(trainer)  # once is enough
        trainer.train()
        return {name: points for name, points in curves(folder).items() if name.startswith("early_ood/")}, trainer

    nothing, plain = train(tmp_path / "plain", watched=False)
    series, watched = train(tmp_path / "watched", watched=True)
    assert nothing == {}
    assert series["early_ood/stage"] == [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4)]
    assert [step for step, _ in series["early_ood/learning_rate/head"]] == list(range(1, 11))
    # The loss of every update is still logged, and the history is the same.
    assert comparable(plain.state.log_history) == comparable(watched.state.log_history)


def comparable(history):
    left_out = (*TIMES, "epoch")
    return [{key: value for key, value in entry.items() if key not in left_out} for entry in history]


def test_a_tracker_that_comes_last_has_begun_when_the_first_stage_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(tmp_path / "out", [unfreezing(), TensorBoardCallback()])
    watch(trainer)
    trainer.train()
    assert curves(tmp_path / "out")["early_ood/stage"][0] == (0, 0)
    assert not (tmp_path / "runs").exists()


def test_watching_leaves_no_trace(trained, tmp_path):
    plain = make_trainer(tmp_path, everything(), **OURS, max_steps=12)
    plain.train()
    assert not differences(outcome(plain), outcome(trained[0]))
    assert comparable(plain.state.log_history) == comparable(trained[0].state.log_history)


# Before the decision, at it, and before and after the next release.
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_resumed_run_neither_repeats_nor_loses_a_point(trained, tmp_path, monkeypatch, stop):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    arguments = {**OURS, "report_to": "tensorboard", "max_steps": 12}
    make_trainer(tmp_path, [*everything(), StopAfter(stop)], **arguments).train()
    resumed = make_trainer(tmp_path, everything(), **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert not differences(outcome(trained[0]), outcome(resumed))

    def ours(folder):
        return {name: sorted(points) for name, points in curves(folder).items() if name.startswith("early_ood/")}

    assert ours(tmp_path) == ours(trained[1])
    for tag in ("early_ood/stage", "early_ood/decision"):
        assert texts(tmp_path, tag) == texts(trained[1], tag)


class Broken(TensorBoardCallback):
    """A tracker that takes nothing of ours: no number, no word, no settings."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.tb_writer.add_text = self.refuse

    def on_log(self, args, state, control, logs=None, **kwargs):
        if any(key.startswith("early_ood/") for key in logs):
            self.refuse()

    def refuse(self, *anything):
        raise ConnectionError("network gone")


def test_training_goes_on_as_ever_when_a_tracker_fails(trained, tmp_path, caplog):
    trainer = make_trainer(tmp_path, [*everything(), Broken()], **OURS, max_steps=12)
    with caplog.at_level(logging.WARNING, logger="hf_early_ood"):
        trainer.train()
    assert not differences(outcome(trainer), outcome(trained[0]))
    assert comparable(trainer.state.log_history) == comparable(trained[0].state.log_history)
    told = [record.message for record in caplog.records if "network gone" in record.message]
    assert len(told) == len(set(told))  # each once, not at every update
    assert {message.partition("did not take ")[2].partition(" (")[0] for message in told} >= {"what was logged"}
    assert "ConnectionError: network gone" in told[0]


class ReadsTheLoss(TrainerCallback):
    """What many users write: it takes every log for one of the loss."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "train_loss" not in logs:
            logs["loss"]


def test_a_callback_that_expects_the_loss_does_not_end_the_training(tmp_path):
    trainer = make_trainer(tmp_path, [unfreezing(), ReadsTheLoss()], **OURS)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == list(range(1, 11))


class OwnLog(EarlyOODTrainer):
    """A Trainer whose log fails before anything is kept."""

    def log(self, logs, *rest):
        if any(key.startswith("early_ood/") for key in logs):
            raise OSError("disk full")
        super().log(logs, *rest)


def test_the_history_is_kept_whatever_fails(tmp_path):
    trainer = make_trainer(tmp_path, [unfreezing()], trainer_class=OwnLog)
    trainer.train()
    assert [e["step"] for e in trainer.state.log_history if "early_ood/stage" in e] == [0, 2, 4, 6, 8]


def test_an_interruption_is_no_failure_of_a_tracker():
    with pytest.raises(KeyboardInterrupt, match="now"), surviving("anything"):
        raise KeyboardInterrupt("now")


def test_nothing_is_logged_to_a_trainer_that_is_gone(tmp_path):
    """An error leaves the callback with its Trainer, and the callback may come into another one."""

    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("out of memory")

    callback = unfreezing()
    first = make_trainer(tmp_path / "first", [callback, Fails()])
    watch(first)
    with pytest.raises(RuntimeError, match="out of memory"):
        first.train()
    before = len(first.state.log_history)
    second = make_trainer(tmp_path / "second", [callback])
    second.train()
    assert len(first.state.log_history) == before
    assert [e["step"] for e in second.state.log_history if "early_ood/stage" in e] == [0, 2, 4, 6, 8]


def test_two_callbacks_with_one_measure_make_one_curve(tmp_path):
    trainer = make_trainer(tmp_path, [unfreezing(max_step=3), EarlyDynamicsCallback(every=1, **PROBE)], max_steps=4)
    trainer.train()
    logged = [entry["step"] for entry in trainer.state.log_history if "early_ood/fisher_trace" in entry]
    assert logged == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "title", "level"),
    [
        ({}, "Interval of 2 updates (stable)", "INFO"),
        ({"tolerance": 0.0, "transient": 0, "max_step": 3}, "Interval of 3 updates (fallback)", "WARN"),
    ],
)
def test_wandb_is_told_the_decision_as_an_alert(tmp_path, monkeypatch, changes, title, level):
    """A stand-in for W&B that records what it is called with: there is no account here."""
    wandb = FakeWandb().install(monkeypatch)
    trainer = make_trainer(tmp_path, [unfreezing(**changes)], **OURS, report_to="wandb")
    trainer.train()
    (alert,) = wandb.of("alert")
    assert (alert["title"], alert["level"]) == (title, level)
    assert alert["text"].startswith(f"Update {trainer.unfreezing.decision.step}: the fisher_trace ")
    assert len(title) < 64
    assert list(wandb.config["early_ood"]["layer_groups"]) == GROUPS
    stages = [(log["train/global_step"], log["train/early_ood/stage"]) for log in wandb.of("log") if
              "train/early_ood/stage" in log]  # fmt: skip
    assert [stage for _, stage in stages] == list(range(len(stages)))
    assert [step for step, _ in stages[:2]] == [0, trainer.unfreezing.decision.step]


def test_other_ranks_say_nothing(tmp_path, monkeypatch):
    wandb = FakeWandb().install(monkeypatch)
    trainer = make_trainer(tmp_path, [], report_to=["wandb", "tensorboard"])
    trainer.state.is_world_process_zero = False
    LiveLog(trainer.state, trainer).words("tag", "text")
    LiveLog(trainer.state, trainer).alert("Title", "text", "info")
    tell_settings(trainer, {"any": 1})
    assert not wandb.calls
    assert not wandb.config


_TRACKIO = """
import json, sys, trackio
from pathlib import Path
from trackio.sqlite_storage import SQLiteStorage
from tests.callbacks.test_watching import everything
from tests.training import make_trainer
from hf_early_ood import EarlyOODTrainer

trainer = make_trainer(
    Path(sys.argv[1]), everything(), trainer_class=EarlyOODTrainer, report_to="trackio", max_steps=12,
    project="testing", run_name="one", trackio_static_space_id=False,
)
trainer.train()
(run,) = trackio.Api().runs("testing")
logs = SQLiteStorage.get_logs("testing", run.name, run_id=run.id)
stages = [(log["train/global_step"], log["train/early_ood/stage"]) for log in logs if "train/early_ood/stage" in log]
rates = [log["train/global_step"] for log in logs if "train/early_ood/learning_rate/head" in log]
print(json.dumps({"name": run.name, "alerts": run.alerts(), "stages": stages, "rates": rates, "config": run.config}))
"""


def test_trackio_has_series_alert_and_settings(trained, tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed")
    done = subprocess.run(
        [sys.executable, "-c", _TRACKIO, str(tmp_path / "out")],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["stages"] == [[0, 0], [2, 1], [4, 2], [6, 3], [8, 4]]
    assert found["rates"] == list(range(1, 13))
    (alert,) = found["alerts"]
    assert (alert["title"], alert["level"]) == ("Interval of 2 updates (stable)", "info")
    assert list(found["config"]["early_ood"]["layer_groups"]) == GROUPS
