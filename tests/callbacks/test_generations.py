"""SEAL and later-layer forgetting in an EarlyOODTrainer: every update against its formula, and what surrounds it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainerCallback

from hf_early_ood.callbacks import generations
from hf_early_ood.callbacks.generations import GenerationsCallback
from hf_early_ood.callbacks.learning_rates import LearningRatesCallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import ConfigurationError, ResumeError, UnsupportedModelError, UnsupportedSetupError
from hf_early_ood.interventions.forgetting import without_norms
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.trainer import EarlyOODTrainer
from tests import families
from tests.training import Rows, StopAfter, copy_weights, differences, make_trainer, outcome

# 12 updates in 3 generations: 4 and 5 ascend, then 8 and 9.
UPDATES, STARTS, ASCENDING, ENDS = 12, (4, 8), (4, 5, 8, 9), (6, 10)
SETTINGS = {"generations": 3, "ascent": 2, "ascent_rate": 0.5}
RATE, DECAY, MOMENTUM, BETAS = 1e-2, 0.1, 0.9, (0.9, 0.999)
EARLY = ("embeddings", "block.0")


class Updates(TrainerCallback):
    """Weights before and after every update, and the gradient that it was made with."""

    def __init__(self):
        self.before, self.gradient, self.after, self.rng = {}, {}, {}, {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.before[state.global_step] = copy_weights(model)
        self.gradient[state.global_step] = {n: p.grad.clone() for n, p in model.named_parameters()}

    def on_step_end(self, args, state, control, model, **kwargs):
        self.after[state.global_step - 1] = copy_weights(model)
        self.rng[state.global_step - 1] = torch.get_rng_state()


def trainer_with(folder, callbacks, **arguments):
    settings = {"trainer_class": EarlyOODTrainer, "max_steps": UPDATES, "learning_rate": RATE, "weight_decay": DECAY}
    return make_trainer(folder, callbacks, **{**settings, **arguments})


def with_momentum(trainer):
    """An optimizer of the user: SGD with momentum, which the Trainer's arguments have not."""
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    parameters = dict(trainer.model.named_parameters())
    trainer.optimizer = torch.optim.SGD(
        [
            {"params": [p for n, p in parameters.items() if n in decayed], "weight_decay": DECAY},
            {"params": [p for n, p in parameters.items() if n not in decayed], "weight_decay": 0.0},
        ],
        lr=RATE,
        momentum=MOMENTUM,
    )
    return trainer


class ByHand:
    """The update of one parameter as the definition of its optimizer has it."""

    def __init__(self, kind):
        self.kind = kind
        self.state = {}

    def __call__(self, weight, gradient, rate, decay):
        weight, gradient, state = weight.double(), gradient.double(), self.state
        if self.kind == "adamw_torch":
            state["t"] = state.get("t", 0) + 1
            state["m"] = BETAS[0] * state.get("m", 0) + (1 - BETAS[0]) * gradient
            state["v"] = BETAS[1] * state.get("v", 0) + (1 - BETAS[1]) * gradient**2
            m, v = state["m"] / (1 - BETAS[0] ** state["t"]), state["v"] / (1 - BETAS[1] ** state["t"])
            return weight * (1 - rate * decay) - rate * m / (v.sqrt() + 1e-8)
        gradient = gradient + decay * weight
        if self.kind == "momentum":
            state["buffer"] = gradient = MOMENTUM * state["buffer"] + gradient if "buffer" in state else gradient
        return weight - rate * gradient


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adamw_torch"])
@pytest.mark.parametrize("optimizer_state", ["reset", "keep"])
@pytest.mark.parametrize(("forget", "accumulation"), [(False, 1), (True, 2)])
def test_every_update_is_the_one_that_is_defined(tmp_path, kind, optimizer_state, forget, accumulation):
    updates = Updates()
    callback = GenerationsCallback(**SETTINGS, forget=forget, optimizer_state=optimizer_state)
    trainer = trainer_with(
        tmp_path,
        [callback, updates],
        optim="adamw_torch" if kind == "adamw_torch" else "sgd",
        gradient_accumulation_steps=accumulation,
    )
    if kind == "momentum":
        with_momentum(trainer)
    groups, decayed = find_layer_groups(trainer.model), set(trainer.get_decay_parameter_names(trainer.model))
    later = {n: p for g in groups if g.name not in EARLY for n, p in g.parameters.items()}
    anew = set(without_norms(trainer.model, later)) if forget else set()
    trainer.train()
    by_hand = {}
    for step in range(UPDATES):
        scheduled = RATE * (1 - step % 4 / 4)  # linear over 4 updates
        for name, weight in updates.before[step].items():
            up = step in ASCENDING and groups.group_of(name) in EARLY
            if (optimizer_state == "reset" and step in (*STARTS, *ENDS)) or (step in STARTS and name in anew):
                by_hand.pop(name, None)
            rate, decay = (0.5 * scheduled, 0.0) if up else (scheduled, DECAY * (name in decayed))
            gradient = updates.gradient[step][name] * (-1 if up else 1)
            expected = by_hand.setdefault(name, ByHand(kind))(weight, gradient, rate, decay)
            if kind == "adamw_torch" and float(updates.gradient[step][name].abs().max()) < 1e-6:
                continue  # an attention key bias has no gradient but for rounding, which Adam would blow up
            torch.testing.assert_close(
                updates.after[step][name].double(), expected, rtol=1e-5, atol=1e-6, msg=f"{step} {name}"
            )
    moved = {step for step in range(1, UPDATES) if differences(updates.after[step - 1], updates.before[step])}
    assert moved == (set(STARTS) if forget else set())


def test_forgetting_changes_those_tensors_and_nothing_else(tmp_path):
    class Around(TrainerCallback):
        """What there is at the end of an update and at the first moment of the next one that can be seen."""

        def __init__(self):
            self.at = {}

        def look(self, model, optimizer, moment):
            tensors = {f"weight/{n}": p for n, p in model.named_parameters()}
            tensors |= {f"buffer/{n}": b for n, b in model.named_buffers()}
            names = {p: n for n, p in model.named_parameters()}
            for parameter, entry in optimizer.state.items():
                tensors |= {f"optimizer/{names[parameter]}/{k}": torch.as_tensor(v) for k, v in entry.items()}
            tensors["rng"] = torch.get_rng_state()
            self.at[moment] = {name: tensor.detach().clone() for name, tensor in tensors.items()}

        def on_step_end(self, args, state, control, model, optimizer, **kwargs):
            self.look(model, optimizer, ("end", state.global_step))

        def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
            self.look(model, optimizer, ("begin", state.global_step))

    around = Around()
    callback = GenerationsCallback(3, None, forget=True, optimizer_state="keep", boundary="block.2")
    trainer = trainer_with(tmp_path, [callback, around])  # in this order
    groups = find_layer_groups(trainer.model)
    chosen = without_norms(trainer.model, {n: p for g in groups[-2:] for n, p in g.parameters.items()})
    trainer.train()
    for step in range(1, UPDATES):
        end, begin = around.at["end", step], around.at["begin", step]
        dropped = {name for name in end if name not in begin}
        changed = {name for name in begin if not torch.equal(begin[name], end[name])}
        if step in STARTS:
            assert {name.split("/")[1] for name in dropped} == set(chosen)
            assert all(name.startswith("optimizer/") for name in dropped)
            assert changed == {f"weight/{name}" for name in chosen}
            weight = begin["weight/bert.encoder.layer.2.output.dense.weight"]
            assert float(weight.std()) == pytest.approx(0.02, rel=0.15)
            assert bool((begin["weight/classifier.bias"] == 0).all())
        else:
            assert not dropped
            assert not changed
    first, second = (around.at["begin", step]["weight/classifier.weight"] for step in STARTS)
    assert not torch.equal(first, second)  # another seed in each generation


def test_norms_are_forgotten_on_request(tmp_path):
    updates = Updates()
    callback = GenerationsCallback(3, None, forget=True, forget_norms=True, boundary="block.2")
    trainer_with(tmp_path, [callback, updates]).train()
    name = "bert.encoder.layer.2.output.LayerNorm.weight"
    assert not bool((updates.after[3][name] == 1).all())
    assert bool((updates.before[4][name] == 1).all())


@pytest.mark.parametrize("settings", [{"forget": True}, {}])
def test_random_numbers_of_training_are_left_alone(tmp_path, settings):
    plain, ours = Updates(), Updates()
    trainer_with(tmp_path / "plain", [plain]).train()
    trainer_with(tmp_path / "ours", [GenerationsCallback(3, None, **settings), ours]).train()
    assert all(torch.equal(plain.rng[step], ours.rng[step]) for step in range(UPDATES))


def test_the_forgetting_seed_is_a_setting(tmp_path):
    def weights(seed):
        updates = Updates()
        trainer_with(tmp_path, [GenerationsCallback(3, None, forget=True, forget_seed=seed), updates]).train()
        return {step: updates.before[step]["classifier.weight"] for step in STARTS}

    first, again, second = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[step], again[step]) for step in STARTS)
    assert torch.equal(first[8], second[4])  # generation 2 with seed 0, and 1 with seed 1
    assert not torch.equal(first[4], second[4])


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_the_learning_rate_restarts_with_its_warmup(tmp_path):
    """13 updates in generations of 4, 4 and 5, half of each warm-up."""
    trainer = trainer_with(
        tmp_path, [GenerationsCallback(3, None)], max_steps=13, lr_scheduler_type="cosine", warmup_steps=0.5
    )
    trainer.train()
    expected = []
    for length in (4, 4, 5):
        warm = math.ceil(length / 2)
        for t in range(length):
            down = 0.5 * (1 + math.cos(math.pi * (t - warm) / (length - warm)))
            expected.append(RATE * (t / warm if t < warm else down))
    assert logged(trainer, "learning_rate") == pytest.approx(expected)


def test_without_restarts_the_schedule_is_that_of_the_arguments(tmp_path):
    trainer = trainer_with(tmp_path, [GenerationsCallback(**SETTINGS, lr_restart=False)])
    trainer.train()
    assert logged(trainer, "learning_rate") == pytest.approx([RATE * (1 - step / 12) for step in range(12)])


def test_what_happens_is_logged(tmp_path):
    trainer = trainer_with(tmp_path, [GenerationsCallback(**SETTINGS, forget=True)])
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "early_ood/generation" in entry]
    seen = [(e["step"], e["early_ood/generation"], e["early_ood/ascending"]) for e in entries]
    assert seen == [(0, 0, 0), (4, 1, 1), (6, 1, 0), (8, 2, 1), (10, 2, 0)]
    assert len(logged(trainer, "loss")) == UPDATES


RESUMED = {
    "seal": SETTINGS,
    "seal kept": {**SETTINGS, "optimizer_state": "keep", "lr_restart": False},
    "forgetting": {"generations": 3, "ascent": None, "forget": True},
    "both": {**SETTINGS, "forget": True, "optimizer_state": "keep"},
}


def history(trainer):
    return [
        {key: value for key, value in entry.items() if "runtime" not in key and "per_second" not in key}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a training comes to that is not stopped."""
    known = {}

    def of(name, accumulation):
        if (name, accumulation) not in known:
            trainer = trainer_with(
                tmp_path_factory.mktemp("whole"),
                [GenerationsCallback(**RESUMED[name])],
                gradient_accumulation_steps=accumulation,
                warmup_steps=1,
            )
            trainer.train()
            known[name, accumulation] = outcome(trainer), history(trainer)
        return known[name, accumulation]

    return of


# Before, at and in the middle of an ascent, at its end and after it.
STOPS = {
    ("seal", 1): range(1, 12),
    ("seal kept", 1): (4, 5, 6),
    ("forgetting", 1): (3, 4, 8),
    ("both", 2): range(3, 10),
}


@pytest.mark.sweep(keep=6)
@pytest.mark.parametrize(("name", "accumulation", "stop"), [(*key, stop) for key in STOPS for stop in STOPS[key]])
def test_resume_is_bit_identical(tmp_path, whole, name, accumulation, stop):
    settings = {"gradient_accumulation_steps": accumulation, "warmup_steps": 1}
    first = trainer_with(tmp_path, [GenerationsCallback(**RESUMED[name]), StopAfter(stop)], **settings)
    first.train()
    second = trainer_with(tmp_path, [GenerationsCallback(**RESUMED[name])], **settings)
    second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    expected, told = whole(name, accumulation)
    assert not differences(outcome(second), expected)
    assert history(second) == told


def test_resume_where_transformers_restores_callbacks(tmp_path, whole):
    settings = {"restore_callback_states_from_checkpoint": True, "warmup_steps": 1}
    trainer_with(tmp_path, [GenerationsCallback(**RESUMED["both"]), StopAfter(5)], **settings).train()
    # Made anew with the arguments of the checkpoint, whatever is given here.
    second = trainer_with(tmp_path, [GenerationsCallback(**RESUMED["both"])], **settings)
    second.train(resume_from_checkpoint=True)
    assert not differences(outcome(second), whole("both", 1)[0])


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"ascent": 3}, {}, r"other settings.*'ascent': 3"),
        ({"boundary": "head"}, {}, r"other settings.*'boundary': 'head'"),
        ({}, {"max_steps": 14}, r"other generations.*'updates': 14"),
    ],
)
def test_resume_with_something_else_is_refused(tmp_path, settings, arguments, message):
    trainer_with(tmp_path, [GenerationsCallback(**SETTINGS), StopAfter(5)]).train()
    other = trainer_with(tmp_path, [GenerationsCallback(**{**SETTINGS, **settings})], **arguments)
    with pytest.raises(ResumeError, match=message):
        other.train(resume_from_checkpoint=True)
    assert other.state.global_step == 5


def test_trains_twice(tmp_path):
    trainer = trainer_with(tmp_path, [GenerationsCallback(**SETTINGS)])
    for _ in range(2):
        trainer.train()
        assert logged(trainer, "learning_rate") == pytest.approx([RATE * (1 - step % 4 / 4) for step in range(12)])
        assert len(logged(trainer, "early_ood/generation")) == 5


def test_factors_of_learning_rates_multiply(tmp_path):
    updates = Updates()
    callbacks = [GenerationsCallback(**SETTINGS), LearningRatesCallback(factors={"block.0": 0.2, "head": 3.0}), updates]
    trainer = trainer_with(tmp_path, callbacks, optim="sgd", weight_decay=0.0)
    groups = find_layer_groups(trainer.model)
    trainer.train()
    factors = {"embeddings": -0.5, "block.0": -0.5 * 0.2, "block.1": 1.0, "block.2": 1.0, "head": 3.0}
    for name, weight in updates.before[4].items():
        expected = weight - RATE * factors[groups.group_of(name)] * updates.gradient[4][name]
        torch.testing.assert_close(updates.after[4][name], expected, rtol=1e-5, atol=1e-7)


def test_lora(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(families.build("bert"), LoraConfig(task_type="SEQ_CLS", r=2))
    model.accepts_loss_kwargs = False
    updates = Updates()
    updates.on_pre_optimizer_step = lambda args, state, control, model, **kwargs: updates.before.__setitem__(
        state.global_step, copy_weights(model)
    )
    trainer = trainer_with(tmp_path, [GenerationsCallback(**SETTINGS, forget=True), updates], model=model)
    start = copy_weights(model)
    trainer.train()
    moved = set(differences(start, copy_weights(model)))
    assert moved
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    anew = set(differences(updates.after[3], updates.before[4]))
    groups = find_layer_groups(model)
    assert {groups.group_of(name) for name in anew} == {"block.1", "block.2", "head"}
    assert all(bool((updates.before[4][n] == 0).all()) for n in anew if "lora_B" in n)
    assert all(bool(updates.before[4][n].any()) for n in anew if "lora_A" in n)


# What is refused.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generations": 1}, "generations is not usable. Got: 1"),
        ({"ascent": 0}, "ascent is not usable. Got: 0"),
        ({"ascent": 1.0}, r"ascent is not usable. Got: 1\.0"),
        ({"ascent_rate": -0.01}, r"ascent_rate is not usable. Got: -0\.01"),
        ({"ascent_rate": 0}, "ascent_rate is not usable. Got: 0"),
        ({"ascent_rate": math.inf}, "ascent_rate is not usable. Got: inf"),
        ({"forget": "yes"}, "forget is not usable. Got: 'yes'"),
        ({"lr_restart": 1}, "lr_restart is not usable. Got: 1"),
        ({"forget_norms": None}, "forget_norms is not usable. Got: None"),
        ({"forget_seed": -1}, "forget_seed is not usable. Got: -1"),
        ({"boundary": 3}, "boundary is not usable. Got: 3"),
        ({"optimizer_state": "resett"}, "Unknown optimizer_state.*Did you mean 'reset'"),
    ],
)
def test_settings_that_are_not_usable(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        GenerationsCallback(**settings)


class Never(nn.Module):
    """Holds a weight that no initializer knows."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, logits):
        return logits + self.shift


def with_unknown_head():
    model = families.build("bert")
    model.classifier = nn.Sequential(model.classifier, Never())
    return model


EVALUATED = {"eval_strategy": "epoch", "metric_for_best_model": "loss", "eval_dataset": Rows}
REFUSED = [
    (lambda: [GenerationsCallback(13)], {}, ConfigurationError, "more generations than updates"),
    (lambda: [GenerationsCallback(3, 4)], {}, ConfigurationError, "ascent is as long as a generation"),
    (lambda: [GenerationsCallback(boundary="blok.2")], {}, ConfigurationError, r"Did you mean 'block\.2'"),
    (lambda: [GenerationsCallback(boundary="embeddings")], {}, ConfigurationError, "no layer group below the boundary"),
    (
        lambda: [GenerationsCallback(), GradualUnfreezingCallback(interval=2)],
        {},
        ConfigurationError,
        "Layers that are frozen can neither ascend",
    ),
    (
        lambda: [GradualUnfreezingCallback(interval=2), GenerationsCallback()],
        {},
        ConfigurationError,
        "Layers that are frozen can neither ascend",
    ),
    (
        lambda: [GenerationsCallback(forget=True)],
        {"model": with_unknown_head},
        UnsupportedModelError,
        r"such as classifier\.1\.shift",
    ),
    (
        lambda: [GenerationsCallback()],
        {"lr_scheduler_type": "greedy", **EVALUATED},
        UnsupportedSetupError,
        "cannot be restarted.*GreedyLR",
    ),
    (
        lambda: [GenerationsCallback()],
        {"lr_scheduler_type": "reduce_lr_on_plateau", **EVALUATED},
        UnsupportedSetupError,
        "cannot be restarted.*ReduceLROnPlateau",
    ),
]


@pytest.mark.parametrize(("callbacks", "arguments", "error", "message"), REFUSED)
def test_what_cannot_be_right_is_refused_before_the_first_update(tmp_path, callbacks, arguments, error, message):
    made = {key: value() if callable(value) else value for key, value in arguments.items()}
    trainer = trainer_with(tmp_path, callbacks(), **made)
    before = copy_weights(trainer.model)
    with pytest.raises(error, match=message):
        trainer.train()
    assert not differences(copy_weights(trainer.model), before)


def test_a_scheduler_of_the_user_is_refused(tmp_path):
    trainer = with_momentum(trainer_with(tmp_path, [GenerationsCallback()]))
    trainer.create_optimizer()  # splits
    trainer.lr_scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 5)
    with pytest.raises(UnsupportedSetupError, match=r"given to the Trainer cannot be restarted.*StepLR"):
        trainer.train()


def test_a_scheduler_of_the_user_without_restarts(tmp_path):
    trainer = with_momentum(trainer_with(tmp_path, [GenerationsCallback(**SETTINGS, lr_restart=False)]))
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 5)
    trainer.train()
    assert logged(trainer, "learning_rate") == pytest.approx([RATE] * 5 + [RATE / 10] * 5 + [RATE / 100] * 2)


@pytest.mark.parametrize("kind", ["Lomo", "SGDScheduleFree", "LayerWiseDummyOptimizer"])
def test_optimizers_whose_step_is_somewhere_else_are_refused(tmp_path, kind):
    trainer = trainer_with(tmp_path, [GenerationsCallback()])
    trainer.optimizer = type(kind, (torch.optim.SGD,), {})(trainer.model.parameters(), lr=RATE)
    with pytest.raises(UnsupportedSetupError, match=rf"updates in step\(\).*Got: {kind}"):
        trainer.train()


@pytest.mark.parametrize("how", ["FSDP2", "DeepSpeed"])
def test_sharded_training_is_refused(tmp_path, monkeypatch, how):
    trainer = trainer_with(tmp_path, [GenerationsCallback()])
    if how == "FSDP2":
        monkeypatch.setattr(generations, "sharded_modules", lambda model: [model])
    else:
        state = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
        monkeypatch.setattr(generations, "AcceleratorState", lambda: state)
    with pytest.raises(UnsupportedSetupError, match=f"need whole weights.*Got: {how}"):
        generations._check_setup(trainer.model, torch.optim.SGD(trainer.model.parameters(), lr=RATE))


def test_an_optimizer_that_lacks_layers_is_refused(tmp_path):
    trainer = trainer_with(tmp_path, [GenerationsCallback()])
    trainer.optimizer = torch.optim.SGD(trainer.model.classifier.parameters(), lr=RATE)
    with pytest.raises(UnsupportedSetupError, match="does not hold every trainable parameter"):
        trainer.train()


def test_a_plain_trainer_is_refused(tmp_path):
    with pytest.raises(UnsupportedSetupError, match=r"Use hf_early_ood\.EarlyOODTrainer"):
        make_trainer(tmp_path, [GenerationsCallback()]).train()


def test_two_of_them_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="two callbacks GenerationsCallback"):
        trainer_with(tmp_path, [GenerationsCallback(), GenerationsCallback(4)]).train()


def test_an_update_that_fails_leaves_nothing_changed(tmp_path):
    """A second training goes on with the same optimizer."""

    class FailsOnce(torch.optim.SGD):
        failed = False

        def step(self, closure=None):
            if not self.failed and self.param_groups[0]["lr"] == 0.5 * RATE:  # the first that ascends
                type(self).failed = True
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return super().step(closure)

    updates = Updates()
    trainer = trainer_with(tmp_path, [GenerationsCallback(**SETTINGS), updates], lr_scheduler_type="constant")
    trainer.optimizer = FailsOnce(trainer.model.parameters(), lr=RATE, weight_decay=DECAY)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert trainer.state.global_step == ASCENDING[0]
    trainer.train()
    assert trainer.state.global_step == UPDATES
    assert {(g["lr"], g["weight_decay"]) for g in trainer.optimizer.param_groups} == {(RATE, DECAY)}
    name = "bert.embeddings.word_embeddings.weight"
    weight, gradient = updates.before[0][name], updates.gradient[0][name]
    torch.testing.assert_close(updates.after[0][name], weight - RATE * (gradient + DECAY * weight))
