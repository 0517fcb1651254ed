"""Pretexts in EarlyOODTrainer: each update as by hand, resuming, what stays frozen, and what is refused."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from hf_early_ood import names
from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.fisher_penalty import FisherPenaltyCallback
from hf_early_ood.callbacks.generations import GenerationsCallback
from hf_early_ood.callbacks.learning_rates import LearningRatesCallback
from hf_early_ood.callbacks.perturbing import PerturbationCallback
from hf_early_ood.callbacks.pretext import PretextCallback
from hf_early_ood.callbacks.refreezing import LISACallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import ConfigurationError, ResumeError, UnsupportedModelError, UnsupportedSetupError
from hf_early_ood.freezing import frozen_by
from hf_early_ood.interventions import pretext
from hf_early_ood.interventions.language_head import LanguageHead
from hf_early_ood.interventions.pretext import Vocabulary
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.trainer import EarlyOODTrainer
from tests import families
from tests.callbacks.test_fisher_penalty import TokenRows
from tests.test_trainer import GradientOfFirstUpdate
from tests.training import (
    Recorder,
    Rows,
    StopAfter,
    check_resumed_at_every_update,
    copy_weights,
    differences,
    make_trainer,
    outcome,
)

KINDS = ["random_labels", "shuffled_tokens", "masked_lm"]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
RATE, DECAY = 1e-2, 0.1  # of make_trainer


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Of the ids that the tiny models have, with a mask token among the words that no text has."""
    words = Tokenizer(models.WordLevel({f"t{number}": number for number in range(families.VOCAB_SIZE)}, "t3"))
    special = {"bos_token": "t0", "pad_token": "t1", "eos_token": "t2", "unk_token": "t3", "mask_token": "t4"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def ours(**more: Any) -> dict[str, Any]:
    return {"trainer_class": partial(EarlyOODTrainer, processing_class=tokenizer()), **more}


class QuestionRows(Rows):
    """Windows with an answer somewhere."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = index % 3
        positions = {"start_positions": torch.tensor(start), "end_positions": torch.tensor(min(start + 1, 2))}
        return {"input_ids": self.ids[index], "attention_mask": self.mask[index], **positions}


class ChoiceRows(Rows):
    """Three choices each."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = [(index + number) % len(self) for number in range(3)]
        return {"input_ids": self.ids[rows], "attention_mask": self.mask[rows], "labels": self.labels[index]}


ROWS = {
    "sequence_classification": Rows,
    "token_classification": TokenRows,
    "question_answering": QuestionRows,
    "multiple_choice": ChoiceRows,
}


class Keeping(EarlyOODTrainer):
    """Keeps the batches of the task of every update."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(processing_class=tokenizer(), **settings)
        self.kept: list[list[dict[str, Tensor]]] = []

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        self.kept.append([])
        return super().get_batch_samples(
            (self.kept[-1].append(one) or one for one in epoch_iterator), num_batches, device
        )


# The twin


def examples_of(batches: list[dict[str, Tensor]]) -> list[tuple[list[int], int]]:
    """(ids without padding, label) of every example of an update."""
    rows = [
        (batch["input_ids"][i], batch["attention_mask"][i], batch["labels"][i])
        for batch in batches
        for i in range(len(batch["labels"]))
    ]
    return [(ids[mask.bool()].tolist(), int(label)) for ids, mask, label in rows]


def adamw(named: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    matrices, vectors = ([p for p in named.values() if (p.ndim > 1) == wide] for wide in (True, False))
    return torch.optim.AdamW([{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}])


def step(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], rate: float) -> None:
    nn.utils.clip_grad_norm_(list(named.values()), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    for parameter in named.values():
        parameter.grad = None


def twin(kind: str, kept: list[list[dict[str, Tensor]]], pretext_updates: int, seed: int) -> list[dict[str, Tensor]]:
    """The weights after every update, by a plain loop over single examples; the optimizer begins anew at the switch."""
    model, words = families.build("bert", **NO_DROPOUT), Vocabulary.of(tokenizer())
    counts = torch.bincount(Rows().labels, minlength=families.NUM_LABELS)
    language = BertForMaskedLM(model.config)
    language.bert.load_state_dict({k: v for k, v in model.bert.state_dict().items() if "pooler" not in k})
    for name, value in LanguageHead(model, seed=seed).state().items():
        language.get_parameter(name).data.copy_(value)
    body = dict(language.bert.named_parameters())
    head = {k: p for k, p in language.named_parameters() if not any(p is other for other in body.values())}
    trained = body if kind == "masked_lm" else dict(model.named_parameters())
    optimizer, of_head = adamw(trained), adamw(head)
    found = []
    for update, batches in enumerate(kept):
        if update == pretext_updates:
            optimizer, trained = adamw(dict(model.named_parameters())), dict(model.named_parameters())
        rate, losses, count = RATE * (1 - update / len(kept)), [], 0
        for ids, label in examples_of(batches):
            single: dict[str, Any] = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([label])}
            if update >= pretext_updates:
                pass
            elif kind == "random_labels":
                single = pretext.with_random_labels(single, counts, seed=seed)
            elif kind == "shuffled_tokens":
                single = pretext.with_shuffled_tokens(single, words, seed=seed)
            else:
                settings = {"probability": 0.3, "seed": seed, "step": update}
                single = pretext.with_masked_tokens(single, words, **settings)
                logits = language(input_ids=single["input_ids"]).logits[0]
                losses.append(functional.cross_entropy(logits, single["labels"][0], reduction="sum"))
                count += int((single["labels"] != -100).sum())
                continue
            losses.append(functional.cross_entropy(model(input_ids=single["input_ids"]).logits, single["labels"]))
            count += 1
        (sum(losses) / count).backward()
        step(optimizer, trained, rate)
        if kind == "masked_lm" and update < pretext_updates:
            step(of_head, head, rate)
            model.bert.load_state_dict(language.bert.state_dict(), strict=False)
        found.append(copy_weights(model))
    return found


MASKING = {"masked_lm": {"mask_probability": 0.3}}


@pytest.mark.parametrize("cut", [(8, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_update_is_that_of_a_plain_loop(tmp_path, kind, cut):
    size, accumulation = cut
    recorder, callback = Recorder(), PretextCallback(kind, updates=3, seed=7, **MASKING.get(kind, {}))
    trainer = make_trainer(
        tmp_path, [callback, recorder], model=families.build("bert", **NO_DROPOUT), trainer_class=Keeping,
        max_steps=5, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    trainer.train()
    for update, expected in enumerate(twin(kind, trainer.kept, 3, seed=7), 1):
        for name, value in recorder.weights[update].items():
            # Adam divides by the square root of tiny squares.
            where = f"update {update}, {name}: {{}}".format
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5, msg=where)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_batch_however_it_is_cut(tmp_path, kind):
    def gradient(size: int, accumulation: int) -> dict[str, Tensor]:
        recorder = GradientOfFirstUpdate()
        make_trainer(
            tmp_path, [PretextCallback(kind, updates=1), recorder], model=families.build("bert", **NO_DROPOUT),
            max_steps=2, max_grad_norm=0.0, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
            **ours(),
        ).train()  # fmt: skip
        return recorder.gradient

    whole, parts = gradient(8, 1), gradient(4, 2)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-7)


# What stays as it is


@pytest.mark.parametrize("kind", KINDS)
def test_random_numbers_and_batches_are_those_of_standard_training(tmp_path, kind):
    """With dropout: the task's updates are another function of the weights, and of nothing else."""

    def trained(callbacks: list[Any]) -> tuple[Any, list[Any]]:
        trainer = make_trainer(tmp_path, callbacks, trainer_class=Keeping)
        states: list[Tensor] = []
        trainer.add_callback(
            type("Watch", (Recorder,), {"on_step_end": lambda *_, **__: states.append(torch.get_rng_state())})
        )
        trainer.train()
        return trainer.kept, states

    (batches, states), (standard, expected) = trained([PretextCallback(kind, updates=4)]), trained([])
    assert [[one["input_ids"].tolist() for one in part] for part in batches] == [
        [one["input_ids"].tolist() for one in part] for part in standard
    ]
    assert all(map(torch.equal, states, expected))


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_the_head_of_the_task_is_frozen_while_tokens_are_masked(tmp_path, optim):
    recorder = Recorder()
    settings = {"optim": optim, "optim_args": "momentum=0.9" if optim == "sgd" else None}
    trainer = make_trainer(tmp_path, [PretextCallback("masked_lm", updates=4), recorder], **settings, **ours())
    trainer.train()
    model, groups = trainer.model, find_layer_groups(trainer.model)
    for update in range(10):
        before, after = recorder.weights[update], recorder.weights[update + 1]
        moved = {groups.group_of(name) for name in before if not torch.equal(before[name], after[name])}
        assert moved == set(groups.names) - ({"head"} if update < 4 else set()), update
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert frozen_by(model) is None


def test_the_language_head_learns_and_is_in_no_saved_model(tmp_path):
    callback, states = PretextCallback("masked_lm", updates=3), []
    trainer = make_trainer(tmp_path, [callback], max_steps=5, save_strategy="steps", save_steps=1, **ours())
    original = callback.save_to
    callback.save_to = lambda folder: (states.append(callback._head and callback._head.state()), original(folder))
    trainer.train()
    assert [state is not None for state in states] == [True, True, True, False, False]
    assert all(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    plain = make_trainer(tmp_path / "plain", [], max_steps=1, save_strategy="steps", save_steps=1, **ours())
    plain.train()
    expected = {path.name for path in (tmp_path / "plain" / "checkpoint-1").iterdir()}
    for number in range(1, 6):
        found = {path.name for path in (tmp_path / f"checkpoint-{number}").iterdir()}
        assert found == expected | ({names.PRETEXT_FILE} if number <= 3 else set())
    assert set(trainer.model.state_dict()) == set(plain.model.state_dict())


@pytest.mark.parametrize(("optimizer_state", "steps"), [("reset", 6), ("keep", 10)])
def test_the_state_of_the_optimizer_is_kept_or_not(tmp_path, optimizer_state, steps):
    callback = PretextCallback("random_labels", updates=4, optimizer_state=optimizer_state)
    trainer = make_trainer(tmp_path, [callback], **ours())
    trainer.train()
    assert {int(state["step"]) for state in trainer.optimizer.state_dict()["state"].values()} == {steps}


# Resuming


@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_at_every_update_it_is_the_same_bit_for_bit(tmp_path, kind):
    check_resumed_at_every_update(
        tmp_path, lambda: PretextCallback(kind, updates=0.5), max_steps=6, gradient_accumulation_steps=2, **ours()
    )


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    first = make_trainer(tmp_path, [PretextCallback("masked_lm", updates=4), StopAfter(2)], **ours())
    first.train()
    assert all(parameter.requires_grad for parameter in first.model.parameters())

    def resumed(*callbacks: Any, **settings: Any) -> None:
        make_trainer(tmp_path, list(callbacks), **settings, **ours()).train(resume_from_checkpoint=True)

    with pytest.raises(ResumeError, match=r"other settings.*seed"):
        resumed(PretextCallback("masked_lm", updates=4, seed=1))
    fraction = PretextCallback("random_labels", updates=0.5)
    make_trainer(tmp_path / "b", [fraction, StopAfter(2)], **ours()).train()
    with pytest.raises(ResumeError, match="other numbers of updates"):
        make_trainer(tmp_path / "b", [PretextCallback("random_labels", updates=0.5)], max_steps=20, **ours()).train(
            resume_from_checkpoint=True
        )
    (tmp_path / "checkpoint-2" / names.PRETEXT_FILE).unlink()
    with pytest.raises(ResumeError, match="lacks the language head"):
        resumed(PretextCallback("masked_lm", updates=4))


def test_after_an_error_the_next_training_trains_everything(tmp_path):
    class Fails(Recorder):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("full disk")

    model, callback = families.build("bert"), PretextCallback("masked_lm", updates=4)
    with pytest.raises(RuntimeError, match="full disk"):
        make_trainer(tmp_path, [callback, Fails()], model=model, **ours()).train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)  # the user's
    make_trainer(tmp_path, [callback], model=model, **ours()).train()
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    assert model.classifier.weight.requires_grad


# Tasks, settings and other interventions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ROWS)
def test_every_task_that_a_pretext_is_defined_for(tmp_path, task, kind):
    recorder, model = Recorder(), families.build("bert", task=task)
    callbacks = [PretextCallback(kind, updates=2), recorder]
    trainer = make_trainer(tmp_path, callbacks, model=model, dataset=ROWS[task](), max_steps=3, **ours())
    if (task, kind) == ("question_answering", "shuffled_tokens"):
        with pytest.raises(UnsupportedModelError, match=r"shuffled_tokens is not defined.*question_answering"):
            trainer.train()
        return
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(0 < loss < 10 for loss in losses)
    assert (losses[0] > 3.5) == (kind == "masked_lm")  # log of 100 words, of 3 labels, of 8 places
    assert not all(map(torch.equal, recorder.weights[0].values(), recorder.weights[1].values()))


def test_it_is_logged_and_evaluation_is_that_of_the_task(tmp_path):
    callback = PretextCallback("masked_lm", updates=2)
    trainer = make_trainer(
        tmp_path, [callback], eval_dataset=Rows(8), max_steps=4, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="accuracy", **ours(),
    )  # fmt: skip
    trainer.train()
    log = trainer.state.log_history
    assert [(e["step"], e[names.LOG_PRETEXT]) for e in log if names.LOG_PRETEXT in e] == [(0, 1), (2, 0)]
    evaluated = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(evaluated) == 4
    assert all(loss < 2 for loss in evaluated)
    begin, end = callback.records
    assert begin == {
        "step": 0, "event": "pretext", "kind": "masked_lm", "active": True, "updates": 2, "language_head": "new",
    }  # fmt: skip
    assert end == {"step": 2, "event": "pretext", "kind": "masked_lm", "active": False}


def test_label_smoothing_is_that_of_the_task(tmp_path):
    def first(kind: str, smoothing: float) -> float:
        model = families.build("bert", **NO_DROPOUT)
        settings = {"label_smoothing_factor": smoothing, "max_steps": 2, "model": model, **ours()}
        trainer = make_trainer(tmp_path, [PretextCallback(kind, updates=1)], **settings)
        trainer.train()
        return trainer.state.log_history[1]["loss"]

    assert first("random_labels", 0.5) != first("random_labels", 0.0)
    assert first("masked_lm", 0.5) == first("masked_lm", 0.0)


@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize(
    "arguments",
    [{"bf16": True}, {"activation_checkpointing": True}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}],
    ids=["bf16", "activation_checkpointing", "torch_compile"],
)
def test_settings_of_the_trainer_do_not_change_masked_language_modeling(tmp_path, arguments):
    def losses(**settings: Any) -> list[float]:
        model = families.build("bert", **NO_DROPOUT)
        settings = {"learning_rate": 1e-3, **settings, **ours()}
        trainer = make_trainer(
            tmp_path, [PretextCallback("masked_lm", updates=2)], model=model, max_steps=4, **settings
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert losses(**arguments) == pytest.approx(losses(), rel=0.02 if "bf16" in arguments else 1e-4)
    if "torch_compile" in arguments:
        torch._dynamo.reset()


@pytest.mark.sweep(keep=4)
@pytest.mark.parametrize("kind", ["random_labels", "shuffled_tokens"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: GradualUnfreezingCallback(2),
        lambda: LISACallback(2),
        lambda: FisherPenaltyCallback(0.1, every=2),
        lambda: GenerationsCallback(2),
        lambda: LearningRatesCallback(layer_decay=0.5),
    ],
)
def test_what_changes_only_batches_goes_with_every_intervention(tmp_path, kind, make):
    def trained(*more: Any) -> dict[str, Tensor]:
        trainer = make_trainer(tmp_path, [*more, make()], max_steps=8, **ours())
        trainer.train()
        return outcome(trainer)

    changed, plain = trained(PretextCallback(kind, updates=3)), trained()
    assert differences(changed, plain)
    assert torch.equal(changed["rng"], plain["rng"])


def test_masked_language_modeling_with_learning_rates_and_lora(tmp_path):
    """The rate of the language head is the largest in force; with LoRA, the body's own weights stay."""
    model = get_peft_model(families.build("bert"), LoraConfig(task_type="SEQ_CLS", r=2))
    before, rates = copy_weights(model), []
    callback = PretextCallback("masked_lm", updates=2)
    original = callback.on_optimizer_step

    def stepped(*arguments: Any, **settings: Any) -> None:
        original(*arguments, **settings)
        rates.extend(group["lr"] for group in (callback._optimizer.param_groups if callback._optimizer else ()))

    callback.on_optimizer_step = stepped
    rule = LearningRatesCallback(switch_factor=0.5, switch_at=1)
    make_trainer(tmp_path, [callback, rule], model=model, max_steps=4, **ours()).train()
    assert rates == pytest.approx([RATE * 0.5] * 2 + [RATE * 0.75] * 2)
    after = copy_weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("lora" in name or "modules_to_save" in name for name in moved)


def test_measuring_meanwhile_changes_nothing_and_is_of_what_trains(tmp_path):
    def trained(*more: Any) -> dict[str, Tensor]:
        trainer = make_trainer(tmp_path, [PretextCallback("masked_lm", updates=2), *more], max_steps=4, **ours())
        trainer.train()
        return outcome(trainer)

    measuring = EarlyDynamicsCallback(["fisher_trace", "gradient_norm"], every=1, probe_size=8, probe_batch_size=4)
    assert not differences(trained(measuring), trained())
    groups = {record["step"]: set(record["per_group"]) for record in measuring.records if "per_group" in record}
    assert [step for step in groups if "head" in groups[step]] == [3, 4]


# What is refused


BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "rotation"}, "Unknown kind"),
    ({"updates": 0}, "updates is not usable"),
    ({"updates": 1.0}, "updates is not usable"),
    ({"updates": True}, "updates is not usable"),
    ({"seed": -1}, "seed is not usable"),
    ({"kind": "random_labels", "mask_probability": 0.3}, "no effect without masked language modeling"),
    ({"mask_probability": 0}, "mask_probability is not usable"),
    ({"mask_probability": 1}, "mask_probability is not usable"),
    ({"optimizer_state": "drop"}, "Unknown optimizer_state"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        PretextCallback(**{"kind": "masked_lm", **settings})


def test_what_cannot_be_right_is_refused_before_the_first_update(tmp_path: Path) -> None:
    def refused(error: type[Exception], message: str, kind: str, *more: Any, **settings: Any) -> None:
        updates = settings.pop("updates", 4)
        trainer = make_trainer(tmp_path, [PretextCallback(kind, updates=updates), *more], **settings)
        with pytest.raises(error, match=message):
            trainer.train()
        assert trainer.state.global_step == 0

    bare = {"trainer_class": EarlyOODTrainer}
    refused(UnsupportedSetupError, "needs more than a Trainer's events", "random_labels")
    refused(ConfigurationError, "a Trainer without a tokenizer", "shuffled_tokens", **bare)
    refused(ConfigurationError, "a Trainer without a tokenizer", "masked_lm", **bare)
    refused(ConfigurationError, "as long as training", "random_labels", updates=10, **ours())
    refused(UnsupportedSetupError, "mixed precision fp16", "masked_lm", fp16=True, **ours())
    refused(UnsupportedModelError, "no masked language modeling", "masked_lm", model=families.build("gpt2"), **ours())
    several = families.build("bert", problem_type="multi_label_classification")
    refused(UnsupportedModelError, "labels that are no single class", "random_labels", model=several, **ours())
    refused(
        UnsupportedModelError, "not defined", "random_labels", model=families.build("bert", task="masked_lm"), **ours()
    )
    shuffle = PerturbationCallback(at=6, kind="shuffle")
    staged = (GradualUnfreezingCallback(2), LISACallback(2))
    for other in (*staged, FisherPenaltyCallback(0.1), GenerationsCallback(2), shuffle):
        refused(ConfigurationError, f"masked_lm.*{type(other).__name__}", "masked_lm", other, **ours())
    with pytest.raises(ConfigurationError, match="two callbacks PretextCallback"):
        make_trainer(tmp_path, [PretextCallback("masked_lm"), PretextCallback("random_labels")], **ours()).train()
