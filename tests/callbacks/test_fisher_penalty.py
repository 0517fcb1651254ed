"""The Fisher penalty in EarlyOODTrainer: its scale, when it acts, what it leaves alone, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer

from hf_early_ood import names
from hf_early_ood.callbacks import fisher_penalty as module
from hf_early_ood.callbacks.fisher_penalty import FisherPenaltyCallback
from hf_early_ood.callbacks.generations import GenerationsCallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import ConfigurationError, ResumeError, UnsupportedModelError, UnsupportedSetupError
from hf_early_ood.interventions.fisher_penalty import FisherPenalty
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.trainer import EarlyOODTrainer
from tests import families
from tests.test_trainer import GradientOfFirstUpdate
from tests.training import Recorder, Rows, StopAfter, differences, make_trainer, outcome

OURS: dict[str, Any] = {"trainer_class": EarlyOODTrainer}
# The loss is scaled for accumulation by compute_loss_func, by the model or by the Trainer.
SCALED_BY = [("sequence_classification", True), ("token_classification", True), ("token_classification", False)]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class TokenRows(Rows):
    """A class for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = (self.ids % families.NUM_LABELS).masked_fill(self.mask == 0, -100)


@pytest.fixture
def penalties(monkeypatch: pytest.MonkeyPatch) -> list[FisherPenalty]:
    """Every penalty that is computed."""
    seen: list[FisherPenalty] = []
    original = module.fisher_penalty

    def kept(*arguments: Any, **settings: Any) -> FisherPenalty:
        seen.append(original(*arguments, **settings))
        return seen[-1]

    monkeypatch.setattr(module, "fisher_penalty", kept)
    return seen


def first_gradient(folder: Path, callbacks: list[Any], task: str, **settings: Any) -> dict[str, torch.Tensor]:
    recorder = GradientOfFirstUpdate()
    model = families.build("bert", task=task, **NO_DROPOUT)
    model.accepts_loss_kwargs = settings.pop("accepts_loss_kwargs", True)
    dataset = TokenRows() if task == "token_classification" else Rows()
    arguments = {"max_steps": 1, "max_grad_norm": 0.0, "per_device_train_batch_size": 3, **settings}
    make_trainer(folder, [recorder, *callbacks], model=model, dataset=dataset, **arguments, **OURS).train()
    return recorder.gradient


@pytest.mark.parametrize(("task", "accepts"), SCALED_BY)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_update_gets_alpha_times_the_mean_over_its_pieces(tmp_path, penalties, task, accepts, accumulation):
    settings = {"gradient_accumulation_steps": accumulation, "accepts_loss_kwargs": accepts}
    without = first_gradient(tmp_path, [], task, **settings)
    assert not penalties
    with_it = first_gradient(tmp_path, [FisherPenaltyCallback(0.5)], task, **settings)
    assert len(penalties) == accumulation
    for name, gradient in without.items():
        mean = torch.stack([penalty.gradient[name] for penalty in penalties]).mean(0)
        torch.testing.assert_close(with_it[name], gradient + 0.5 * mean, rtol=1e-4, atol=1e-6)


def test_it_acts_in_the_updates_that_were_asked_for(tmp_path, monkeypatch):
    def acting(**settings: Any) -> list[int]:
        callback = FisherPenaltyCallback(0.1, **settings)
        steps: list[int] = []
        original = module.fisher_penalty
        with monkeypatch.context() as patch:
            patch.setattr(
                module, "fisher_penalty", lambda *a, **s: (steps.append(callback._step), original(*a, **s))[1]
            )
            make_trainer(tmp_path, [callback], max_steps=6, **OURS).train()
        return steps

    assert acting() == [0, 1, 2, 3, 4, 5]
    assert acting(every=4) == [0, 4]
    assert acting(until=2) == [0, 1]
    assert acting(every=2, until=0.5) == [0, 2]


def test_labels_are_drawn_anew_for_every_piece_of_every_update(tmp_path, monkeypatch):
    def seeds(seed: int) -> list[int]:
        drawn: list[int] = []
        original = module.fisher_penalty
        with monkeypatch.context() as patch:
            patch.setattr(module, "fisher_penalty", lambda *a, **s: (drawn.append(s["seed"]), original(*a, **s))[1])
            callback = FisherPenaltyCallback(0.1, seed=seed)
            make_trainer(tmp_path, [callback], max_steps=2, gradient_accumulation_steps=2, **OURS).train()
        return drawn

    first = seeds(0)
    assert len(set(first)) == 4
    assert seeds(0) == first
    assert not set(seeds(1)) & set(first)


def test_training_is_the_same_where_it_weighs_nothing(tmp_path):
    """It uses up no random number, and leaves neither gradients nor flags behind; with dropout and accumulation."""
    settings = {"gradient_accumulation_steps": 2, "max_steps": 4, **OURS}
    plain = make_trainer(tmp_path, [], **settings)
    plain.train()
    penalized = make_trainer(tmp_path, [FisherPenaltyCallback(1e-36)], **settings)
    penalized.train()
    assert not differences(outcome(plain), outcome(penalized))


def test_it_makes_the_penalty_smaller(tmp_path, penalties):
    def last(alpha: float) -> float:
        make_trainer(tmp_path, [FisherPenaltyCallback(alpha)], max_steps=12, **OURS).train()
        values = [penalty.value.item() for penalty in penalties[-4:]]
        return sum(values) / len(values)

    assert last(10.0) < 0.5 * last(1e-36)


def test_resumed_training_is_the_same_bit_for_bit(tmp_path):
    def trainer(folder: str, *more: Any) -> Trainer:
        callback = FisherPenaltyCallback(0.1, every=2, until=0.8)
        settings = {"gradient_accumulation_steps": 2, "max_steps": 6, **OURS}
        return make_trainer(tmp_path / folder, [callback, *more], **settings)

    whole = trainer("whole")
    whole.train()
    trainer("parts", StopAfter(3)).train()
    resumed = trainer("parts")
    resumed.train(resume_from_checkpoint=True)
    assert not differences(outcome(whole), outcome(resumed))
    with pytest.raises(ResumeError, match=r"other settings.*alpha"):
        make_trainer(tmp_path / "parts", [FisherPenaltyCallback(0.2)], **OURS).train(resume_from_checkpoint=True)


def test_it_is_logged_with_the_loss_that_contains_it(tmp_path, penalties):
    settings = {"max_steps": 4, "logging_steps": 2, "model": families.build("bert", **NO_DROPOUT), **OURS}
    trainer = make_trainer(tmp_path, [FisherPenaltyCallback(1e-36)], eval_dataset=Rows(8), **settings)
    trainer.train()
    log = trainer.state.log_history
    entries = [(entry["step"], entry[names.LOG_FISHER_PENALTY]) for entry in log if names.LOG_FISHER_PENALTY in entry]
    values = [penalty.value.item() for penalty in penalties]
    assert entries == [(2, pytest.approx(sum(values[:2]) / 2)), (4, pytest.approx(sum(values[2:]) / 2))]
    assert [entry["step"] for entry in log if "loss" in entry] == [2, 4]
    trainer.evaluate()
    assert len(penalties) == 4  # none in evaluation

    def first_loss(alpha: float) -> float:
        model = families.build("bert", **NO_DROPOUT)
        one = make_trainer(tmp_path, [FisherPenaltyCallback(alpha)], model=model, max_steps=1, **OURS)
        return one.train().training_loss

    assert first_loss(2.0) == pytest.approx(first_loss(1e-36) + 2.0 * penalties[0].value.item(), rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_it_acts_on_what_gradual_unfreezing_has_released(tmp_path, penalties, lora):
    model: nn.Module = families.build("bert")
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False))
    recorder = Recorder()
    callbacks = [FisherPenaltyCallback(1.0), GradualUnfreezingCallback(interval=2), recorder]
    trainer = make_trainer(tmp_path, callbacks, model=model, max_steps=8, **OURS)
    trainer.train()
    groups = find_layer_groups(model).trainable()
    order = ["head", "block.2", "block.1", "block.0", "embeddings"]
    for step, penalty in enumerate(penalties):
        released = set(order[: step // 2 + 1]) & set(groups.names)
        assert {groups.group_of(name) for name in penalty.gradient} == released
        before, after = recorder.weights[step], recorder.weights[step + 1]
        moved = {groups.group_of(name) for name in before if not torch.equal(before[name], after[name])}
        assert moved == released
    assert len(penalties) == 8


@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize(
    "arguments",
    [
        {"bf16": True},
        {"activation_checkpointing": True},
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    ],
    ids=["bf16", "activation_checkpointing", "torch_compile"],
)
def test_settings_of_the_trainer_do_not_change_it(tmp_path, penalties, arguments):
    def values(**settings: Any) -> list[float]:
        penalties.clear()
        model = families.build("bert", **NO_DROPOUT)
        make_trainer(tmp_path, [FisherPenaltyCallback(0.1)], model=model, max_steps=3, **settings, **OURS).train()
        return [penalty.value.item() for penalty in penalties]

    assert values(**arguments) == pytest.approx(values(), rel=0.05 if "bf16" in arguments else 1e-4)
    if "torch_compile" in arguments:
        torch._dynamo.reset()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"alpha": 0.0}, "alpha is not usable"),
    ({"alpha": -1}, "alpha is not usable"),
    ({"alpha": math.nan}, "alpha is not usable"),
    ({"alpha": "0.1"}, "alpha is not usable"),
    ({"every": 0}, "every is not usable"),
    ({"every": 1.5}, "every is not usable"),
    ({"until": 0}, "until is not usable"),
    ({"until": 1.0}, "until is not usable"),
    ({"until": True}, "until is not usable"),
    ({"seed": -1}, "seed is not usable"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        FisherPenaltyCallback(**{"alpha": 0.1, **settings})


def test_what_cannot_be_right_is_refused_before_the_first_update(tmp_path, monkeypatch):
    def refused(error: type[Exception], message: str, **settings: Any) -> None:
        callback = FisherPenaltyCallback(0.1)
        trainer = make_trainer(tmp_path, [callback], **settings)
        with pytest.raises(error, match=message):
            trainer.train()
        assert trainer.state.global_step == 0

    refused(UnsupportedSetupError, r"needs more than a Trainer's events.*EarlyOODTrainer")
    refused(UnsupportedSetupError, "underflow in float16.*mixed precision fp16", fp16=True, **OURS)
    reentrant = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    refused(RuntimeError, "use_reentrant=False", **reentrant, **OURS)
    with monkeypatch.context() as patch:
        patch.setattr(module, "sharded_modules", lambda model: [model])
        refused(UnsupportedSetupError, "every process needs all of its parameters", **OURS)

    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = families.build("bert")

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    refused(UnsupportedModelError, "log-likelihood of this model is not known", model=Unknown(), **OURS)


def test_two_of_them_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="two callbacks FisherPenaltyCallback"):
        make_trainer(tmp_path, [FisherPenaltyCallback(0.1), FisherPenaltyCallback(0.2)], **OURS).train()


def test_penalty_on_layers_that_ascend_is_refused(tmp_path: Path) -> None:
    callbacks = [FisherPenaltyCallback(0.1), GenerationsCallback(2)]
    with pytest.raises(ConfigurationError, match="raised, not lowered"):
        make_trainer(tmp_path, callbacks, **OURS).train()
    make_trainer(tmp_path, [FisherPenaltyCallback(0.1), GenerationsCallback(2, None, forget=True)], **OURS).train()
