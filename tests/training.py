"""A tiny training run that tests look into: model, data, Trainer, and a record of every update."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from tests import families

NUM_EXAMPLES = 48


class Rows(Dataset):
    """Fixed random token ids of different lengths, padded to one, with a learnable label."""

    def __init__(self, size: int = NUM_EXAMPLES, length: int = 8, num_labels: int = families.NUM_LABELS) -> None:
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(families.FIRST_WORD, families.VOCAB_SIZE, (size, length), generator=generator)
        lengths = torch.randint(3, length + 1, (size,), generator=generator)
        self.mask = (torch.arange(length)[None, :] < lengths[:, None]).long()
        self.ids = torch.where(self.mask.bool(), self.ids, families.PAD)
        self.labels = self.ids[:, 1] % num_labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "attention_mask": self.mask[index], "labels": self.labels[index]}


class Recorder(TrainerCallback):
    """Copies of all weights after every update, and what the optimizer holds."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.in_optimizer = 0

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
        self.weights[state.global_step] = copy_weights(model)
        self.in_optimizer = sum(len(group["params"]) for group in optimizer.param_groups)

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights[state.global_step] = copy_weights(model)


class StopAfter(TrainerCallback):
    """Interrupt training after an update, with a checkpoint, as a time limit would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = True
            control.should_training_stop = True


def copy_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def make_trainer(
    output_dir: Path,
    callbacks: list[TrainerCallback],
    *,
    model: torch.nn.Module | None = None,
    trainer_class: type[Trainer] = Trainer,
    arguments_class: type[TrainingArguments] = TrainingArguments,
    dataset: Dataset | None = None,
    eval_dataset: Dataset | None = None,
    compute_metrics: Any = None,
    **arguments: Any,
) -> Trainer:
    """A Trainer on a tiny BERT with dropout, weight decay and clipping; 10 updates of 4 examples by default."""
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": 10,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "seed": 3,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **arguments,
    }
    if model is None:
        set_seed(5)
        model = families.build("bert")
    return trainer_class(
        model=model,
        args=arguments_class(**settings),
        train_dataset=dataset if dataset is not None else Rows(),
        eval_dataset=eval_dataset,
        callbacks=callbacks,
        compute_metrics=compute_metrics,
    )


def outcome(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that two equal runs must agree on, bit for bit: weights, optimizer state and random numbers."""
    state = {f"weight/{name}": value for name, value in copy_weights(trainer.model).items()}
    for number, entry in trainer.optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            state[f"optimizer/{number}/{key}"] = torch.as_tensor(value).clone()
    state["rng"] = torch.get_rng_state()
    return state


def differences(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names in which two outcomes are not bit-identical."""
    return [
        name
        for name in sorted(first.keys() | second.keys())
        if name not in first or name not in second or not torch.equal(first[name], second[name])
    ]


def without_times(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of a series as two equal runs have them, in memory or in the file."""
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "share", "source")} for record in records
    ]


def check_resumed_at_every_update(
    folder: Path, make_callback: Callable[[], Any], make_model: Callable[[], Any] = lambda: None, **arguments: Any
) -> Any:
    """Resumed from the checkpoint of any update, a training ends as it would have: also the callback's series.

    Returns:
        The callback of the training that was not interrupted.
    """
    reference, saving = make_callback(), {"save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(folder / "whole", [reference], model=make_model(), **{**saving, **arguments})
    whole.train()
    expected = without_times(reference.records)
    for step in range(1, whole.state.max_steps):
        resumed, place = make_callback(), folder / f"from {step}"
        trainer = make_trainer(place, [resumed], model=make_model(), **arguments)
        trainer.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{step}"))
        assert not differences(outcome(whole), outcome(trainer)), step
        assert without_times(resumed.records) == expected, step
        lines = (place / "dynamics.jsonl").read_text().splitlines()
        assert without_times(map(json.loads, lines)) == expected, step
    return reference
