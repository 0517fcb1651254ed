"""What groups are updated with is read from weights before and after an update, in float64, and not from flags."""

from __future__ import annotations

import json
import math
from fractions import Fraction as F

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from transformers.trainer_utils import SchedulerType

from hf_early_ood.callbacks.learning_rates import LearningRatesCallback
from hf_early_ood.callbacks.refreezing import AutoFreezeCallback, LISACallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.dynamics import read_dynamics
from hf_early_ood.errors import ConfigurationError, ResumeError, UnsupportedSetupError
from hf_early_ood.freezing import Freezer
from hf_early_ood.interventions.update_rules import split_by_layer_group
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.trainer import EarlyOODTrainer
from tests import families
from tests.training import Rows, StopAfter, copy_weights, differences, make_trainer, outcome

UPDATES = 10
RATE, DECAY = 1e-2, 0.1
GROUPS = ("embeddings", "block.0", "block.1", "block.2", "head")
AUTO = {
    "interval": "auto",
    "probe_every": 1,
    "probe_size": 8,
    "probe_batch_size": 4,
    "window": 1,
    "tolerance": 1e9,
    "transient": 2,
    "max_step": 5,
}
AUTO_DECISION = 3

# layer_decay=1/2, factors={"head": 2}, release_warmup=2, switch_factor=1/10, switch_at=5 and one group every 2 updates.
EVERYTHING = {
    "layer_decay": 0.5,
    "factors": {"head": 2},
    "release_warmup": 2,
    "switch_factor": 0.1,
    "switch_at": 5,
}
TABLE = {
    "head": [F(2, 10)] * 5 + [F(2)] * 5,
    "block.2": [0, 0, F(1, 60), F(2, 60), F(1, 20), F(1, 2), F(1, 2), F(1, 2), F(1, 2), F(1, 2)],
    "block.1": [0, 0, 0, 0, F(1, 120), F(2, 12), F(1, 4), F(1, 4), F(1, 4), F(1, 4)],
    "block.0": [0, 0, 0, 0, 0, 0, F(1, 24), F(2, 24), F(1, 8), F(1, 8)],
    "embeddings": [0, 0, 0, 0, 0, 0, 0, 0, F(1, 48), F(2, 48)],
}


class Updates(TrainerCallback):
    """Weights before and after every update, and the gradient that it was made with."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        parameters = {name: p for name, p in model.named_parameters() if p.grad is not None}
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.gradients = {name: p.grad.clone() for name, p in parameters.items()}
        self.with_state = {name for name, p in parameters.items() if p in optimizer.state}

    def on_step_end(self, args, state, control, model, **kwargs):
        after = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.seen.append((self.before, self.gradients, after, self.with_state))


class Freezing(TrainerCallback):
    """Trains one set of groups after the other, two updates each, and freezes the others again."""

    def __init__(self, *stages):
        self.stages = stages

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.freezer = Freezer({group.name: group.parameters for group in find_layer_groups(model)}, model)

    def on_step_begin(self, args, state, control, **kwargs):
        self.freezer.train_only(self.stages[state.global_step // 2 % len(self.stages)])

    def on_train_end(self, args, state, control, **kwargs):
        self.freezer.restore()


def wide_model(**overrides):
    return families.build("bert", seed=5, **overrides).double()


def trainer_of(folder, callbacks, **arguments):
    settings = {"model": wide_model(), "trainer_class": EarlyOODTrainer, "learning_rate": RATE, **arguments}
    return make_trainer(folder, callbacks, **settings)


def expected_updates(updates, factor_of, scheduled, optimizer, decays, forgotten=lambda name, step: False):
    """What SGD or AdamW of the textbook makes of the gradients seen, one update at a time."""
    state = {}
    for step, (before, gradients, _, _) in enumerate(updates):
        after = dict(before)
        for name, gradient in gradients.items():
            rate = scheduled(step) * float(factor_of(name, step))
            weight_decay = DECAY if decays(name) else 0.0
            if forgotten(name, step):
                state.pop(name, None)
            if optimizer == "sgd":
                after[name] = before[name] - rate * (gradient + weight_decay * before[name])
                continue
            count, first, second = state.get(name, (0, 0.0, 0.0))
            count, first, second = count + 1, 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            state[name] = count, first, second
            moved = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
            after[name] = before[name] * (1 - rate * weight_decay) - rate * moved
        yield after


def is_decayed(name):
    return not name.endswith("bias") and "LayerNorm" not in name


def check_weights(trainer, updates, table, scheduled, optimizer, **further):
    groups = find_layer_groups(trainer.model)

    def factor_of(name, step):
        return table[groups.group_of(name)][step]

    assert len(updates.seen) == UPDATES
    for step, expected in enumerate(
        expected_updates(updates.seen, factor_of, scheduled, optimizer, is_decayed, **further)
    ):
        before, gradients, after, _ = updates.seen[step]
        # What has a gradient is what the table says.
        assert {groups.group_of(name) for name in gradients} == {name for name in table if table[name][step]}
        for name, values in expected.items():
            torch.testing.assert_close(after[name], values, rtol=1e-12, atol=1e-13, msg=f"update {step}, {name}")
        assert any(not torch.equal(before[name], after[name]) for name in gradients)


def linear(step):
    return RATE * (1 - step / UPDATES)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch", "adamw_torch_fused"])
def test_weights_follow_the_table(tmp_path, optimizer, accumulation):
    updates = Updates()
    callbacks = [LearningRatesCallback(**EVERYTHING), updates, GradualUnfreezingCallback(interval=2)]
    trainer = trainer_of(tmp_path, callbacks, optim=optimizer, gradient_accumulation_steps=accumulation)
    trainer.train()
    check_weights(trainer, updates, TABLE, linear, optimizer)


def test_the_check_can_fail(tmp_path):
    updates = Updates()
    callbacks = [LearningRatesCallback(**EVERYTHING), updates, GradualUnfreezingCallback(interval=2)]
    trainer = trainer_of(tmp_path, callbacks, optim="adamw_torch")
    trainer.train()
    late = {**TABLE, "block.0": [*TABLE["block.0"][:7], F(1, 8), F(1, 8), F(1, 8)]}
    with pytest.raises(AssertionError, match=r"update 7, bert\.encoder\.layer\.0"):
        check_weights(trainer, updates, late, linear, "adamw_torch")


def test_standard_fine_tuning_has_no_release(tmp_path):
    """And factors by pattern; a high first period."""
    updates = Updates()
    settings = {"factors": {r"block\.[01]": 0.5}, "release_warmup": 4, "switch_factor": 3.0, "switch_at": 0.29}
    trainer = trainer_of(
        tmp_path, [LearningRatesCallback(**settings), updates], lr_scheduler_type="constant", optim="sgd"
    )
    trainer.train()
    whole, half = [F(3)] * 2 + [F(1)] * 8, [F(3, 2)] * 2 + [F(1, 2)] * 8
    table = {"embeddings": whole, "block.0": half, "block.1": half, "block.2": whole, "head": whole}
    check_weights(trainer, updates, table, lambda step: RATE, "sgd")


def test_the_automatic_decision_switches(tmp_path):
    unfreezing, rates = GradualUnfreezingCallback(**AUTO), LearningRatesCallback(switch_factor=0.1, switch_at="auto")
    updates = Updates()
    trainer = trainer_of(tmp_path, [rates, unfreezing, updates], optim="sgd")
    trainer.train()
    assert unfreezing.decision.step == AUTO_DECISION
    table = {
        "head": [F(1, 10)] * 3 + [F(1)] * 7,
        "block.2": [0] * 3 + [F(1)] * 7,
        "block.1": [0] * 6 + [F(1)] * 4,
        "block.0": [0] * 9 + [F(1)],
        "embeddings": [0] * 10,
    }
    check_weights(trainer, updates, table, linear, "sgd")


def test_the_automatic_decision_switches_in_standard_fine_tuning(tmp_path):
    unfreezing = GradualUnfreezingCallback(**AUTO, initial=GROUPS)
    rates, updates = LearningRatesCallback(switch_factor=0.1, switch_at="auto"), Updates()
    trainer = trainer_of(tmp_path, [rates, unfreezing, updates], optim="sgd")
    trainer.train()
    check_weights(trainer, updates, dict.fromkeys(GROUPS, [F(1, 10)] * 3 + [F(1)] * 7), linear, "sgd")


@pytest.mark.parametrize("release_state", ["keep", "reset"])
def test_state_of_a_group_that_trains_again(tmp_path, release_state):
    updates = Updates()
    stages = Freezing(("head", "block.2"), ("head", "block.0"))
    trainer = trainer_of(
        tmp_path,
        [stages, LearningRatesCallback(release_state=release_state, release_warmup=1), updates],
        optim="adamw_torch",
    )
    trainer.train()
    table = {
        "embeddings": [0] * 10,
        "block.0": [0, 0, F(1, 2), F(1), 0, 0, F(1, 2), F(1), 0, 0],
        "block.1": [0] * 10,
        "block.2": [F(1), F(1), 0, 0, F(1, 2), F(1), 0, 0, F(1, 2), F(1)],
        "head": [F(1)] * 10,
    }
    group_of = find_layer_groups(trainer.model).group_of
    again = {("block.2", 4), ("block.0", 6), ("block.2", 8)} if release_state == "reset" else set()
    check_weights(
        trainer, updates, table, linear, "adamw_torch", forgotten=lambda name, step: (group_of(name), step) in again
    )
    trained_before = {"block.2": [4, 8], "block.0": [6]}
    for name, steps in trained_before.items():
        for step in steps:
            with_state = {group_of(parameter) for parameter in updates.seen[step][3]}
            assert (name in with_state) == (release_state == "keep")


def test_momentum_of_sgd_can_be_reset(tmp_path):
    for release_state in ("keep", "reset"):
        updates = Updates()
        callbacks = [
            Freezing(("head", "block.2"), ("head",)),
            LearningRatesCallback(release_state=release_state),
            updates,
        ]
        trainer = trainer_of(tmp_path, callbacks, optim="sgd", optim_args="momentum=0.9", max_steps=5, weight_decay=0.0)
        trainer.train()
        name = "bert.encoder.layer.2.output.dense.weight"
        first, second, last = (updates.seen[step][1][name] for step in (0, 1, 4))
        momentum = 0.9 * (0.9 * first + second) if release_state == "keep" else 0.0
        before, _, after, _ = updates.seen[4]
        expected = before[name] - RATE * (1 - 4 / 5) * (momentum + last)
        torch.testing.assert_close(after[name], expected, rtol=1e-12, atol=1e-13)


def test_reset_is_what_lisa_does_when_it_freezes(tmp_path):
    results = {}
    for lisa in ("keep", "reset"):
        for rates in ("keep", "reset"):
            callbacks = [
                LISACallback(interval=1, num_groups=1, optimizer_state=lisa),
                LearningRatesCallback(release_state=rates, release_warmup=1),
            ]
            trainer = trainer_of(tmp_path, callbacks)
            trainer.train()
            results[lisa, rates] = copy_weights(trainer.model)
    assert not differences(results["reset", "keep"], results["keep", "reset"])
    assert not differences(results["reset", "reset"], results["keep", "reset"])
    assert differences(results["keep", "keep"], results["keep", "reset"])


def test_a_first_release_has_no_state(tmp_path):
    updates = Updates()
    trainer = trainer_of(tmp_path, [GradualUnfreezingCallback(interval=2), LearningRatesCallback(), updates])
    trainer.train()
    group_of = find_layer_groups(trainer.model).group_of
    for step, name in zip((2, 4, 6, 8), ("block.2", "block.1", "block.0", "embeddings"), strict=True):
        for when, expected in ((step, False), (step + 1, True)):
            _, gradients, _, with_state = updates.seen[when]
            members = {parameter for parameter in gradients if group_of(parameter) == name}
            assert members
            assert (with_state >= members) if expected else not (with_state & members)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch", "adamw_torch_fused", "adafactor"])
def test_without_settings_training_is_the_same_bit_for_bit(tmp_path, optimizer):
    results = []
    for callbacks in ([], [LearningRatesCallback()]):
        trainer = trainer_of(tmp_path, [GradualUnfreezingCallback(interval=2), *callbacks], optim=optimizer)
        trainer.train()
        results.append({k: v for k, v in outcome(trainer).items() if not k.startswith("optimizer/")})
    assert not differences(*results)


SCHEDULERS = {
    "polynomial": {"power": 2.0},
    "cosine_with_restarts": {"num_cycles": 2},
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
    "warmup_stable_decay": {"num_decay_steps": 4},
    # Whatever the loss, never better: what differs is the scheduler, and not the model that it looks at.
    "reduce_lr_on_plateau": {"patience": 0, "threshold": 1e9},
    "greedy": {"patience": 0, "threshold": 1e9, "min_lr": 1e-5},
}


@pytest.mark.sweep(keep=4)
@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
def test_the_scheduler_is_left_alone(tmp_path, kind):
    logged, states = [], []
    everything = {**EVERYTHING, "factors": {"head": 2, "embeddings": 0.1}}
    evaluating = {"eval_dataset": Rows(8), "eval_strategy": "steps", "eval_steps": 1}
    looks_at_loss = kind in ("reduce_lr_on_plateau", "greedy")
    for callbacks in ([], [LearningRatesCallback()], [LearningRatesCallback(**everything)]):
        trainer = trainer_of(
            tmp_path,
            [GradualUnfreezingCallback(interval=1, self_check=False), *callbacks],
            max_steps=6,
            lr_scheduler_type=kind,
            lr_scheduler_kwargs=SCHEDULERS.get(kind, {}),
            warmup_steps=2,
            **(evaluating if looks_at_loss else {}),
        )
        trainer.train()
        logged.append([entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry])
        states.append({k: v for k, v in trainer.lr_scheduler.state_dict().items() if not callable(v)})
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {trainer.optimizer.param_groups[0]["lr"]}
    assert len(logged[0]) == 6
    assert logged[0] == logged[1] == logged[2]
    assert len(set(logged[0])) > 1 or kind == "constant"
    if not looks_at_loss:  # whose states hold losses
        assert states[1] == states[2]
        assert set(states[0]["_last_lr"]) == set(states[2]["_last_lr"])


FROZEN_AGAIN = (("head", "block.2"), ("head", "block.1"))


def freezing(kind):
    return {
        "unfreezing": lambda: GradualUnfreezingCallback(interval=2),
        "auto": lambda: GradualUnfreezingCallback(**AUTO),
        "again": lambda: Freezing(*FROZEN_AGAIN),
    }[kind]()


def without_source(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["source"] == "LearningRatesCallback"]


@pytest.mark.sweep(keep=5)
@pytest.mark.parametrize(
    ("kind", "accumulation", "stop"),
    [
        *(("unfreezing", 1, stop) for stop in range(1, UPDATES)),
        *(("unfreezing", 2, stop) for stop in (3, 5)),
        *(("auto", 1, stop) for stop in (AUTO_DECISION - 1, AUTO_DECISION, AUTO_DECISION + 1)),
        *(("again", 1, stop) for stop in (3, 4, 5)),
    ],
)
def test_resume_is_bit_identical(tmp_path_factory, kind, accumulation, stop):
    folder = tmp_path_factory.getbasetemp() / f"whole {kind} {accumulation}"
    settings = {**EVERYTHING, "release_state": "reset", "switch_at": "auto" if kind == "auto" else 5}
    arguments = {"gradient_accumulation_steps": accumulation, "model": None}

    def train(folder, *further, resume=False):
        rates = LearningRatesCallback(**settings)
        trainer = trainer_of(folder, [rates, freezing(kind), *further], **arguments)
        trainer.train(resume_from_checkpoint=resume)
        return rates.records, outcome(trainer)

    if not (folder / "records.pt").exists():
        folder.mkdir()
        torch.save(train(folder), folder / "records.pt")
    records, whole = torch.load(folder / "records.pt", weights_only=False)
    cut = tmp_path_factory.mktemp("cut")
    train(cut, StopAfter(stop))
    resumed_records, resumed = train(cut, resume=True)
    assert not differences(whole, resumed)
    assert resumed_records == records
    assert without_source(cut / "dynamics.jsonl") == without_source(folder / "dynamics.jsonl")


def test_resume_where_transformers_restores_callbacks(tmp_path):
    settings = {**EVERYTHING, "factors": {"head": 2, r"block\.1": 3.0}}
    restore = {"restore_callback_states_from_checkpoint": True}

    def train(folder, *further, resume=False, **arguments):
        callbacks = [LearningRatesCallback(**settings), GradualUnfreezingCallback(interval=2), *further]
        trainer = trainer_of(folder, callbacks, **arguments)
        trainer.train(resume_from_checkpoint=resume)
        return outcome(trainer)

    whole = train(tmp_path / "whole")
    train(tmp_path / "cut", StopAfter(5), **restore)
    assert not differences(whole, train(tmp_path / "cut", resume=True, **restore))


def test_resume_with_something_else_is_refused(tmp_path):
    def train(callback, resume=True, **arguments):
        trainer = trainer_of(tmp_path, callback, **arguments)
        trainer.train(resume_from_checkpoint=resume)

    train([LearningRatesCallback(release_warmup=0.3), StopAfter(2)], resume=False)
    with pytest.raises(ResumeError, match=r"other settings\. Got: \{'layer_decay': 0\.5\} now"):
        train([LearningRatesCallback(release_warmup=0.3, layer_decay=0.5)])
    with pytest.raises(ResumeError, match=r"numbers of updates\. Got: \{'release_warmup': 6\} now, .*: 3\} in the ch"):
        train([LearningRatesCallback(release_warmup=0.3)], max_steps=20)
    train([LearningRatesCallback(release_warmup=0.3, dynamics_file=None)])


def test_resume_from_a_checkpoint_without_the_callback_is_refused(tmp_path):
    trainer_of(tmp_path, [StopAfter(2)]).train()
    trainer = trainer_of(tmp_path, [LearningRatesCallback()])
    with pytest.raises(ResumeError, match=r"made without LearningRatesCallback"):
        trainer.train(resume_from_checkpoint=True)


def test_what_changes_is_logged_and_recorded(tmp_path):
    rates = LearningRatesCallback(**EVERYTHING)
    trainer = trainer_of(tmp_path, [rates, GradualUnfreezingCallback(interval=2)])
    trainer.train()
    expected = {
        0: {"head": 0.2},
        2: {"block.2": 1 / 60},
        4: {"block.2": 1 / 20, "block.1": 1 / 120},
        5: {"head": 2.0, "block.2": 1 / 2, "block.1": 2 / 12},
        6: {"block.1": 1 / 4, "block.0": 1 / 24},
        8: {"block.0": 1 / 8, "embeddings": 1 / 48},
    }
    assert {record["step"]: pytest.approx(record["factors"]) for record in rates.records} == expected
    prefix = "early_ood/learning_rate_factor/"
    logged = {
        entry["step"]: {key.removeprefix(prefix): value for key, value in entry.items() if key.startswith(prefix)}
        for entry in trainer.state.log_history
        if any(key.startswith(prefix) for key in entry)
    }
    assert logged == {record["step"]: record["factors"] for record in rates.records}
    assert without_source(tmp_path / "dynamics.jsonl") == [
        {**record, "source": "LearningRatesCallback"} for record in rates.records
    ]
    # The regular log of the loss is still there, and the file can be read.
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == list(range(1, 11))
    assert [stage.step for stage in read_dynamics(tmp_path / "dynamics.jsonl").stages] == [0, 2, 4, 6, 8]


def test_the_order_of_callbacks_does_not_matter(tmp_path):
    results = []
    for given in (2, 1, 0):  # the others are added after the trainer's own
        callbacks = [LearningRatesCallback(**EVERYTHING), GradualUnfreezingCallback(interval=2)]
        trainer = trainer_of(tmp_path, callbacks[:given])
        for callback in reversed(callbacks[given:]):
            trainer.add_callback(callback)
        trainer.train()
        results.append(outcome(trainer))
    assert not differences(results[0], results[1])
    assert not differences(results[0], results[2])


def test_trains_twice(tmp_path):
    rates = LearningRatesCallback(**EVERYTHING)
    trainer = trainer_of(tmp_path, [rates, GradualUnfreezingCallback(interval=2)])
    trainer.train()
    first = rates.records
    trainer.train()
    assert rates.records == first
    assert rates.records is not first


def test_lora(tmp_path):
    model = get_peft_model(wide_model(), LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False)).double()
    updates = Updates()
    callbacks = [LearningRatesCallback(**EVERYTHING), updates, GradualUnfreezingCallback(interval=2)]
    trainer = trainer_of(tmp_path, callbacks, model=model, optim="adamw_torch")
    trainer.train()
    check_weights(
        trainer, updates, {name: row for name, row in TABLE.items() if name != "embeddings"}, linear, "adamw_torch"
    )


def test_bfloat16_autocast(tmp_path):
    updates = Updates()
    callbacks = [LearningRatesCallback(**EVERYTHING), updates, GradualUnfreezingCallback(interval=2)]
    trainer = trainer_of(tmp_path, callbacks, model=families.build("bert", seed=5), bf16=True, optim="sgd")
    trainer.train()
    group_of = find_layer_groups(trainer.model).group_of
    table = {name: group_of(name) for name, _ in trainer.model.named_parameters()}
    expected = expected_updates(updates.seen, lambda name, step: TABLE[table[name]][step], linear, "sgd", is_decayed)
    for (_, _, after, _), weights in zip(updates.seen, expected, strict=True):
        for name, values in weights.items():
            torch.testing.assert_close(after[name], values, rtol=1e-6, atol=1e-8)


def test_a_group_frozen_by_the_user_does_not_count(tmp_path):
    model = wide_model()
    for parameter in model.bert.encoder.layer[1].parameters():
        parameter.requires_grad_(False)
    rates = LearningRatesCallback(layer_decay=0.5)
    trainer_of(tmp_path, [rates], model=model).train()
    assert rates.records[0]["factors"] == {"embeddings": 0.125, "block.0": 0.25, "block.2": 0.5, "head": 1.0}


def test_an_optimizer_of_the_user(tmp_path):
    def trainer(optimizers, model):
        made = trainer_of(tmp_path, [LearningRatesCallback(layer_decay=0.5)], model=model)
        made.optimizer, made.lr_scheduler = optimizers
        return made

    model = wide_model()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)  # also what is frozen
    trainer((optimizer, None), model).train()
    model = wide_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(ConfigurationError, match=r"scheduler was made before .*Got: 1 parameter groups, which must b"):
        trainer((optimizer, scheduler), model).train()
    model = wide_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    split_by_layer_group(optimizer, find_layer_groups(model))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer((optimizer, scheduler), model).train()


def test_a_plain_trainer_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, [LearningRatesCallback(layer_decay=0.5)])
    with pytest.raises(UnsupportedSetupError, match=r"LearningRatesCallback needs more than a Trainer's events"):
        trainer.train()


def test_two_of_them_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"There are two callbacks LearningRatesCallback in one Trainer"):
        trainer_of(tmp_path, [LearningRatesCallback(), LearningRatesCallback()])


@pytest.mark.parametrize(
    ("settings", "callbacks", "message"),
    [
        ({"factors": {"haed": 2}}, [], r"does not have\. Got: 'haed'.*Did you mean 'head'"),
        ({"factors": {r"layer\.\d": 2}}, [], r"does not have\. Got: 'layer"),
        ({"release_warmup": 10}, [], r"release_warmup is as long as training\. Got: release_warmup=10"),
        ({"switch_factor": 0.1, "switch_at": 10}, [], r"switch_at is as long as training\. Got: switch_at=10"),
        ({"switch_factor": 0.1, "switch_at": "auto"}, [], r"none will\. Got: no such callback\. To fix: Add Gradual"),
        (
            {"switch_factor": 0.1, "switch_at": "auto"},
            [GradualUnfreezingCallback(interval=2)],
            r"none will\. Got: one that has nothing to decide",
        ),
    ],
)
def test_what_does_not_fit_the_training_is_refused_before_the_first_update(tmp_path, settings, callbacks, message):
    trainer = trainer_of(tmp_path, [LearningRatesCallback(**settings), *callbacks])
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(ConfigurationError, match=message):
        trainer.train()
    assert all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    assert all(p.requires_grad for p in trainer.model.parameters())


@pytest.mark.parametrize("name", ["layer_decay", "switch_factor"])
@pytest.mark.parametrize("value", [0, 0.0, -0.5, math.nan, math.inf, True, "0.5", [0.5]])
def test_factors_that_are_no_factors(name, value):
    further = {"switch_at": 3} if name == "switch_factor" else {}
    with pytest.raises(ConfigurationError, match=rf"{name} is not usable\. Got: .*Allowed: a finite number above 0"):
        LearningRatesCallback(**{name: value}, **further)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_decay": 1.5}, r"layer_decay is not usable\. Got: 1\.5\. Allowed: a number above 0, at most 1"),
        ({"factors": {"head": 0}}, r"factors\['head'\] is not usable"),
        ({"factors": {"head": None}}, r"factors\['head'\] is not usable"),
        ({"release_warmup": -1}, r"release_warmup is not usable\. Got: -1"),
        ({"release_warmup": 1.0}, r"release_warmup is not usable\. Got: 1\.0"),
        ({"release_warmup": math.nan}, r"release_warmup is not usable\. Got: nan"),
        ({"release_warmup": "auto"}, r"release_warmup is not usable\. Got: 'auto'"),
        ({"release_state": "rest"}, r"Unknown release_state\. Got: rest\. Allowed: keep, reset.*Did you mean 'reset'"),
        ({"switch_factor": 0.1}, r"needs both.*Got: switch_factor=0\.1, switch_at=None"),
        ({"switch_at": 3}, r"needs both.*Got: switch_factor=None, switch_at=3"),
        ({"switch_factor": 0.1, "switch_at": 0}, r"switch_at is not usable\. Got: 0"),
        ({"switch_factor": 0.1, "switch_at": 1.5}, r"switch_at is not usable\. Got: 1\.5"),
        ({"switch_factor": 0.1, "switch_at": "decision"}, r"switch_at is not usable\. Got: 'decision'.*or \"auto\""),
    ],
)
def test_settings_that_are_not_usable(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        LearningRatesCallback(**settings)


class NoMemoryAtSecondUpdate(TrainerCallback):
    def __init__(self) -> None:
        self.updates = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.updates += 1
        if self.updates == 2:
            raise RuntimeError("CUDA out of memory.")


def test_a_given_optimizer_is_split_again_after_an_attempt_without_memory(tmp_path):
    callbacks = [LearningRatesCallback(layer_decay=0.5), NoMemoryAtSecondUpdate()]
    trainer = make_trainer(tmp_path, callbacks, trainer_class=EarlyOODTrainer, auto_find_batch_size=True)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1, momentum=0.9)
    trainer.train()
    assert [group["layer_group"] for group in trainer.optimizer.param_groups] == list(
        find_layer_groups(trainer.model).names
    )


@pytest.mark.parametrize("callback", [LearningRatesCallback(layer_decay=0.5), AutoFreezeCallback(interval=2)])
def test_an_optimizer_that_updates_in_the_backward_pass_is_refused(tmp_path, callback):
    trainer = make_trainer(tmp_path, [callback], trainer_class=EarlyOODTrainer)
    trainer.optimizer = type("Lomo", (torch.optim.SGD,), {})(trainer.model.parameters(), lr=0.1)
    with pytest.raises(UnsupportedSetupError, match=r"updates in step\(\).*Got: Lomo"):
        trainer.train()


def test_a_plain_trainer_refuses_it_also_after_a_training_that_failed(tmp_path):
    callback, failing = LearningRatesCallback(layer_decay=0.5), NoMemoryAtSecondUpdate()
    with pytest.raises(RuntimeError, match="out of memory"):
        make_trainer(tmp_path, [callback, failing], trainer_class=EarlyOODTrainer).train()
    with pytest.raises(UnsupportedSetupError, match="a plain transformers"):
        make_trainer(tmp_path, [callback]).train()
