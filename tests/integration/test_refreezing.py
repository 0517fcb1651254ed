"""LISA, AutoFreeze and a late start, in a plain Trainer: by values, and against twins that are written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from hf_early_ood.callbacks import staged
from hf_early_ood.callbacks.refreezing import AutoFreezeCallback, LISACallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.dynamics import read_dynamics
from hf_early_ood.errors import ConfigurationError, ResumeError
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.schedules import LayerSampling
from hf_early_ood.trainer import EarlyOODArguments, EarlyOODTrainer
from hf_early_ood.training import StageTimer
from tests import families
from tests.training import Recorder, StopAfter, check_resumed_at_every_update, differences, make_trainer

GROUPS = ("embeddings", "block.0", "block.1", "block.2", "head")
LISA = {"interval": 2, "num_groups": 1}
LATE = {"interval": 2, "start": 3, "initial": ["head", "block.2"], "self_check": False}


def group_of_parameters(model):
    groups = find_layer_groups(model)
    return {name: groups.group_of(name) for name, _ in model.named_parameters()}


def moved_groups(recorder, group, step):
    before, after = recorder.weights[step - 1], recorder.weights[step]
    return {group[name] for name in before if not torch.equal(before[name], after[name])}


class OptimizerStates(TrainerCallback):
    """What the optimizer holds of every parameter after every update, and the gradient that it was given."""

    def __init__(self):
        self.states, self.gradients = {}, {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients[state.global_step + 1] = {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    def on_step_end(self, args, state, control, model, optimizer, **kwargs):
        self.states[state.global_step] = {
            name: {key: torch.as_tensor(value).clone() for key, value in optimizer.state[parameter].items()}
            for name, parameter in model.named_parameters()
            if parameter in optimizer.state
        }


# LISA


@pytest.mark.parametrize("optimizer_state", ["keep", "reset"])
def test_lisa_trains_what_is_drawn_and_nothing_else(tmp_path, optimizer_state):
    recorder = Recorder()
    callback = LISACallback(**LISA, seed=1, optimizer_state=optimizer_state)
    trainer = make_trainer(tmp_path, [callback, recorder])
    group = group_of_parameters(trainer.model)
    trainer.train()
    schedule = LayerSampling(GROUPS, **LISA, seed=1)
    drawn = {schedule.trainable(step) for step in range(10)}
    assert len(drawn) > 1
    for step in range(1, 11):
        assert moved_groups(recorder, group, step) == set(schedule.trainable(step - 1)), step
        assert {"embeddings", "head"} < set(schedule.trainable(step - 1))
    events = [record for record in callback.records if record["event"] == "stage"]
    assert [event["step"] for event in events] == [0, 2, 4, 6, 8]
    now = set()
    for event in events:
        now = (now | set(event["released"])) - set(event.get("frozen", ()))
        assert now == set(schedule.trainable(event["step"]))
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    stages = read_dynamics(tmp_path / "dynamics.jsonl").stages
    assert [list(stage.frozen) for stage in stages] == [event.get("frozen", []) for event in events]


def test_kept_moments_wait_and_count_their_own_steps(tmp_path):
    states, callback = OptimizerStates(), LISACallback(**LISA, seed=1)
    trainer = make_trainer(tmp_path, [callback, states])
    group = group_of_parameters(trainer.model)
    trainer.train()
    schedule = LayerSampling(GROUPS, **LISA, seed=1)
    updates = dict.fromkeys(group, 0)
    for step in range(1, 11):
        trained = schedule.trainable(step - 1)
        for name in group:
            updates[name] += group[name] in trained
            own = states.states[step].get(name)
            assert (own["step"] if own else 0) == updates[name]
            if own and group[name] not in trained:
                assert not differences(own, states.states[step - 1][name])
    assert len({updates[name] for name in group}) > 2


def test_reset_moments_are_dropped_and_begin_anew(tmp_path):
    states, callback = OptimizerStates(), LISACallback(**LISA, seed=1, optimizer_state="reset")
    trainer = make_trainer(tmp_path, [callback, states])
    group = group_of_parameters(trainer.model)
    trainer.train()
    schedule = LayerSampling(GROUPS, **LISA, seed=1)
    updates, begun = dict.fromkeys(group, 0), 0
    for step in range(1, 11):
        trained = schedule.trainable(step - 1)
        # Nothing is held of what is frozen: its memory is free.
        assert set(states.states[step]) == {name for name in group if group[name] in trained}
        for name, own in states.states[step].items():
            is_new = step > 1 and group[name] not in schedule.trainable(step - 2)
            updates[name] = 1 if is_new else updates[name] + 1
            assert own["step"] == updates[name]
            if updates[name] == 1:
                begun += step > 1
                gradient = states.gradients[step][name]
                torch.testing.assert_close(own["exp_avg"], 0.1 * gradient, rtol=1e-5, atol=0)
                torch.testing.assert_close(own["exp_avg_sq"], 0.001 * gradient**2, rtol=1e-4, atol=0)
    assert begun


@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize("optimizer_state", ["keep", "reset"])
def test_lisa_is_resumed_bit_for_bit(tmp_path, optimizer_state):
    check_resumed_at_every_update(tmp_path, lambda: LISACallback(**LISA, seed=1, optimizer_state=optimizer_state))


def test_lisa_with_lora_has_no_embeddings_to_train(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], init_lora_weights=False)
    model = peft.get_peft_model(families.build("bert"), config)
    recorder, callback = Recorder(), LISACallback(**LISA)
    group = {name: find_layer_groups(model).group_of(name) for name, p in model.named_parameters() if p.requires_grad}
    make_trainer(tmp_path, [callback, recorder], model=model).train()
    assert callback.schedule.always == ("head",)
    for step in range(1, 11):
        before, after = recorder.weights[step - 1], recorder.weights[step]
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved <= set(group)
        assert {group[name] for name in moved} == set(callback.schedule.trainable(step - 1))


def test_other_groups_can_always_train(tmp_path):
    recorder, callback = Recorder(), LISACallback(interval=0.3, num_groups=2, always=["block.-1", "head"])
    trainer = make_trainer(tmp_path, [callback, recorder])
    group = group_of_parameters(trainer.model)
    trainer.train()
    assert (callback.schedule.interval, callback.stage) == (3, 3)
    for step in range(1, 11):
        moved = moved_groups(recorder, group, step)
        assert moved == set(callback.schedule.trainable(step - 1))
        assert {"block.2", "head"} < moved
        assert len(moved) == 4


def test_a_compiled_model_has_room_for_every_draw(tmp_path, monkeypatch):
    stages, undone = [], []

    def allowed(num_stages):
        stages.append(num_stages)
        return lambda: undone.append(True)

    monkeypatch.setattr(staged, "is_compiled", lambda model, args: True)
    monkeypatch.setattr(staged, "recompilation_allowed", allowed)
    make_trainer(tmp_path, [LISACallback(interval=3)]).train()
    assert stages == [4]
    assert undone


def test_early_ood_trainer_and_its_timer_know_the_stage(tmp_path):
    timer, callback = StageTimer(), LISACallback(**LISA)
    trainer = make_trainer(
        tmp_path,
        [timer, callback],
        trainer_class=EarlyOODTrainer,
        arguments_class=EarlyOODArguments,
        intervention="standard",
    )
    assert trainer.unfreezing is callback
    assert (callback.stage, callback.decision, callback.schedule, callback.probe_seconds) == (0, None, None, 0.0)
    timer.stage_of = lambda: trainer.unfreezing.stage
    trainer.train()
    assert callback.stage == 4
    assert set(timer.seconds) == set(range(5))
    assert callback.decision is None
    assert [e["early_ood/stage"] for e in trainer.state.log_history if "early_ood/stage" in e] == [0, 1, 2, 3, 4]
    assert "lisa" in callback.preview(trainer.model, 10).lower()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "interval is not usable"),
        ({"num_groups": 0}, "num_groups is not usable"),
        ({"always": "head"}, r"always is a list of group names.*Write \['head'\]"),
        ({"optimizer_state": "rest"}, "Unknown optimizer_state.*Did you mean 'reset'"),
    ],
)
def test_unusable_settings_of_lisa_are_refused_at_once(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        LISACallback(**settings)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (LISACallback(interval=10), "interval is longer than training"),
        (LISACallback(num_groups=4), "fewer layer groups than are to be drawn.*Allowed: 1 to 3"),
        (LISACallback(always=["hed"]), "Unknown layer group. Got: hed.*Did you mean 'head'"),
        (AutoFreezeCallback(interval=10), "interval is longer than training"),
    ],
)
def test_what_needs_the_model_is_refused_before_the_first_update(tmp_path, callback, message):
    trainer = make_trainer(tmp_path, [callback])
    with pytest.raises(ConfigurationError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_other_settings_are_not_resumed_with(tmp_path):
    make_trainer(tmp_path, [LISACallback(**LISA), StopAfter(3)]).train()
    with pytest.raises(ResumeError, match=r"other settings.*\{'seed': 1\} now, \{'seed': 0\}"):
        make_trainer(tmp_path, [LISACallback(**LISA, seed=1)]).train(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match="made without AutoFreezeCallback"):
        make_trainer(tmp_path, [AutoFreezeCallback(interval=2)]).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "callbacks",
    [
        lambda: [LISACallback(**LISA), GradualUnfreezingCallback(interval=2)],
        lambda: [GradualUnfreezingCallback(interval=2), AutoFreezeCallback(interval=2)],
        lambda: [LISACallback(**LISA), LISACallback(**LISA, seed=1)],
    ],
)
def test_two_callbacks_that_freeze_are_refused(tmp_path, callbacks):
    trainer = make_trainer(tmp_path, callbacks())
    with pytest.raises(ConfigurationError, match="Two callbacks that freeze layers in one training"):
        trainer.train()
    assert trainer.state.global_step == 0


# AutoFreeze


class HandWritten(TrainerCallback):
    """The rule of the source from gradients that are copied before each step; what is frozen it only predicts."""

    def __init__(self, interval, percentile=50.0, ignored=()):
        self.interval, self.percentile, self.ignored = interval, percentile, ignored

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.sums, self.before, self.frozen = {}, None, []
        self.norms, self.changes, self.prefixes = {}, {}, {}
        self.group = group_of_parameters(model)

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and state.global_step + 1 not in self.ignored:
                self.sums[name] = self.sums.get(name, 0.0) + parameter.grad.double()

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        if step % self.interval or step == args.max_steps:
            return
        active = [name for name in GROUPS[:-1] if name not in self.frozen]
        norms = {
            g: sum(float(value.abs().sum()) for name, value in self.sums.items() if self.group[name] == g)
            for g in active
        }
        self.norms[step], self.changes[step], self.prefixes[step] = norms, {}, []
        if self.before is not None:
            eta = {name: abs(self.before[name] - norms[name]) / self.before[name] for name in active}
            self.changes[step] = eta
            threshold = np.percentile(list(eta.values()), self.percentile)
            first = next(i for i, name in enumerate(active) if eta[name] >= threshold)
            self.prefixes[step] = active[:first]
            self.frozen += active[:first]
        self.before, self.sums = norms, {}


def check_auto_freeze(callback, twin, recorder):
    looks = {r["step"]: r for r in callback.records if r.get("measure") == "selection/settled_gradients"}
    events = [record for record in callback.records if record.get("event") == "stage"]
    assert list(looks) == list(twin.norms) == [event["step"] for event in events[1:]]
    still = list(GROUPS)
    for event in events[1:]:
        step = event["step"]
        assert looks[step]["details"]["norms"] == pytest.approx(twin.norms[step], rel=1e-5)
        assert looks[step]["per_group"] == pytest.approx(twin.changes[step], rel=1e-3, abs=1e-6)
        assert event["chosen"] == event.get("frozen", []) == twin.prefixes[step] == still[: len(event["chosen"])]
        assert event["released"] == []
        still = still[len(event["chosen"]) :]
        if step in recorder.weights and step + 1 in recorder.weights:
            assert moved_groups(recorder, twin.group, step + 1) == set(still)
    assert events[1]["chosen"] == []  # nothing to compare with
    assert still[-1] == "head"
    return still


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_auto_freeze_follows_the_source(tmp_path, accumulation, optimizer):
    callback, twin, recorder = AutoFreezeCallback(interval=2), HandWritten(2), Recorder()
    trainer = make_trainer(
        tmp_path, [callback, twin, recorder], max_steps=14, gradient_accumulation_steps=accumulation, optim=optimizer
    )
    for _ in range(2):  # what the first training leaves behind must not count in the second
        trainer.train()
        still = check_auto_freeze(callback, twin, recorder)
        assert len(still) < 5
        recorder.weights.clear()
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_the_top_group_always_trains(tmp_path):
    callback, twin, recorder = AutoFreezeCallback(interval=1, percentile=100), HandWritten(1, 100.0), Recorder()
    make_trainer(tmp_path, [callback, twin, recorder], max_steps=20).train()
    still = check_auto_freeze(callback, twin, recorder)
    assert len(still) == 2  # the largest change is not below itself


def test_gradients_after_clipping_count(tmp_path):
    norms = []
    for limit in (1e-3, 0.0):
        callback = AutoFreezeCallback(interval=2)
        make_trainer(tmp_path, [callback], max_steps=5, max_grad_norm=limit).train()
        norms.append(callback.learned()["norms"])
    assert all(norms[0][name] < 0.1 * norms[1][name] for name in GROUPS[:-1])


@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd", "adafactor"])
def test_auto_freeze_is_resumed_bit_for_bit(tmp_path, optimizer):
    callback = check_resumed_at_every_update(tmp_path, lambda: AutoFreezeCallback(interval=2), optim=optimizer)
    assert any(record.get("frozen") for record in callback.records)


def test_nothing_is_held_of_what_is_frozen_for_good(tmp_path):
    states, callback = OptimizerStates(), AutoFreezeCallback(interval=2, percentile=100)
    # Before the callback, so that it sees the sums before they are taken.
    trainer = make_trainer(tmp_path, [states, callback], max_steps=12)
    group = group_of_parameters(trainer.model)
    trainer.train()
    for step in range(1, 13):
        trained = callback.schedule.trainable(step - 1)
        own = states.states[step]
        assert set(own) == {name for name in group if group[name] in trained}
        summed = {group[name] for name in own if "gradient_sum" in own[name]}
        assert summed == set(trained[:-1])
    assert len(callback.schedule.trainable(11)) < 5


class SkippedStep(TrainerCallback):
    """Say of some updates that the gradient scaler has skipped them."""

    def __init__(self, *steps):
        self.steps = steps

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        optimizer._is_overflow = state.global_step + 1 in self.steps


def test_skipped_updates_do_not_count(tmp_path):
    callback, twin, recorder = AutoFreezeCallback(interval=2), HandWritten(2, ignored=(1, 4)), Recorder()
    make_trainer(tmp_path, [SkippedStep(1, 4), callback, twin, recorder], max_steps=12).train()
    check_auto_freeze(callback, twin, recorder)


@pytest.mark.parametrize(("percentile", "got"), [(0, "0"), (101, "101"), (True, "True"), ("50", "'50'")])
def test_unusable_percentiles_are_refused(percentile, got):
    with pytest.raises(ConfigurationError, match=f"percentile is not usable. Got: {got}"):
        AutoFreezeCallback(percentile=percentile)


# Late start


def test_late_start_trains_everything_then_freezes(tmp_path):
    recorder, states, callback = Recorder(), OptimizerStates(), GradualUnfreezingCallback(**LATE)
    trainer = make_trainer(tmp_path, [callback, recorder, states], max_steps=12)
    group = group_of_parameters(trainer.model)
    trainer.train()
    top = {"head", "block.2"}
    # 3 updates of standard training, 2 of the initial groups, then one group more every 2.
    expected = [set(GROUPS)] * 3 + [top] * 2 + [top | {"block.1"}] * 2 + [set(GROUPS) - {"embeddings"}] * 2
    for step, trained in enumerate([*expected, *[set(GROUPS)] * 3], 1):
        assert moved_groups(recorder, group, step) == trained, step
    stages = read_dynamics(tmp_path / "dynamics.jsonl").stages
    assert [(s.step, set(s.released), s.frozen) for s in stages] == [
        (0, set(GROUPS), ()),
        (3, set(), ("embeddings", "block.0", "block.1")),
        (5, {"block.1"}, ()),
        (7, {"block.0"}, ()),
        (9, {"embeddings"}, ()),
    ]
    # What the optimizer knows of a frozen group waits for its release.
    name = "bert.embeddings.word_embeddings.weight"
    assert not differences(states.states[3][name], states.states[9][name])
    assert (states.states[9][name]["step"], states.states[12][name]["step"]) == (3, 6)


def test_late_start_begins_like_standard_training(tmp_path):
    plain, late = Recorder(), Recorder()
    make_trainer(tmp_path / "plain", [plain]).train()
    make_trainer(tmp_path / "late", [GradualUnfreezingCallback(**LATE), late]).train()
    for step in range(4):
        assert not differences(plain.weights[step], late.weights[step])
    assert differences(plain.weights[4], late.weights[4])


def test_late_start_is_resumed_bit_for_bit(tmp_path):
    check_resumed_at_every_update(tmp_path, lambda: GradualUnfreezingCallback(**LATE), max_steps=11)
