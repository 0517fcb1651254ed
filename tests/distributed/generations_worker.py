"""Started by torchrun on every rank: SEAL together with later-layer forgetting."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_early_ood.callbacks.generations import GenerationsCallback
from hf_early_ood.trainer import EarlyOODTrainer
from tests import families
from tests.training import Rows, copy_weights, make_trainer, outcome

GLOBAL_BATCH, FORGOTTEN_AT = 8, 5


class AfterForgetting(TrainerCallback):
    """The weights with which a generation begins."""

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step == FORGOTTEN_AT:
            self.weights = copy_weights(model)


def train(folder: Path, accumulation: int = 1) -> dict[str, Any]:
    """10 updates in two generations; the global batch does not depend on the number of processes."""
    recorder = AfterForgetting()
    trainer = make_trainer(
        folder / "generations",
        [GenerationsCallback(2, 2, ascent_rate=0.1, forget=True), recorder],
        model=families.build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        trainer_class=EarlyOODTrainer,
        dataset=Rows(),
        per_device_train_batch_size=GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", "1")) // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
    )
    trainer.train()
    return {"outcome": outcome(trainer), "anew": recorder.weights}


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    torch.save({accumulation: train(folder, accumulation) for accumulation in (1, 2)}, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main()
