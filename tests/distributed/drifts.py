"""Trainings in which the ranks drift apart: silently without the package, stopped with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import UnsupportedSetupError
from tests import families
from tests.training import copy_weights, make_trainer

PLANTED_IN = "bert.encoder.layer.1.output.dense.weight"
RELEASED = "bert.encoder.layer.2."  # frozen before the wrapper is made, trained from on_train_begin on


class Release(TrainerCallback):
    """What many have written: a layer that was frozen before training is released in it."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        for parameter in model.parameters():
            parameter.requires_grad_(True)


class Plant(TrainerCallback):
    """Change one number on rank 1."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.step and args.process_index == 1:
            model.get_parameter(PLANTED_IN).data.view(-1)[7] += 1e-3


def frozen_before_the_wrap(folder: Path, callbacks: list[TrainerCallback], released: str = "") -> Trainer:
    """A plain Trainer on a model with a frozen layer, whose optimizer holds it all the same."""
    model = families.build("bert")
    trainer = make_trainer(folder, callbacks, model=model, max_steps=4)
    trainer.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(released))
    return trainer


def outcome_of(trainer: Trainer) -> dict[str, Any]:
    message = ""
    try:
        trainer.train()
    except UnsupportedSetupError as error:
        message = str(error)
    return {"weights": copy_weights(trainer.model), "step": trainer.state.global_step, "error": message}


def all_of_them(folder: Path) -> dict[str, dict[str, Any]]:
    gradual = GradualUnfreezingCallback
    return {
        # No trace of this package: nobody notices.
        "plain": outcome_of(frozen_before_the_wrap(folder, [Release()], RELEASED)),
        "guarded": outcome_of(frozen_before_the_wrap(folder, [Release(), gradual(interval=1)], RELEASED)),
        "not guarded": outcome_of(
            frozen_before_the_wrap(folder, [Release(), gradual(interval=1, check_ranks=False)], RELEASED)
        ),
        # interval=1: block.1 trains from update 2 on. Planted after update 2, it is seen after the next change.
        "planted": outcome_of(make_trainer(folder, [gradual(interval=1), Plant(2)])),
        # In the last stage there is no other change to come; an epoch has 6 updates.
        "planted late": outcome_of(make_trainer(folder, [gradual(interval=1), Plant(7)])),
        "sound": outcome_of(make_trainer(folder, [gradual(interval=1)])),
    }
