"""Started by torchrun on every rank: trains with the Fisher penalty and saves what came out, rank by rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from hf_early_ood import names
from hf_early_ood.callbacks.fisher_penalty import FisherPenaltyCallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.trainer import EarlyOODArguments, EarlyOODTrainer
from tests.distributed.worker import model_without_dropout
from tests.test_trainer import GradientOfFirstUpdate
from tests.training import make_trainer, outcome

PIECES = 4  # of an update, over accumulation and processes
FIND_ALL = {"ddp_find_unused_parameters": False}
# Gradual unfreezing or not, LoRA or not, and further arguments.
SCENARIOS: dict[str, tuple[bool, bool, dict[str, Any]]] = {
    "all": (False, False, FIND_ALL),
    "unfreezing": (True, False, {}),
    "unfreezing rewrap": (True, False, {**FIND_ALL, "ddp_rewrap": True}),
    "unfreezing lora": (True, True, {}),
    "checkpointing": (False, False, {"activation_checkpointing": True}),
}


def train(folder: Path, name: str) -> dict[str, Any]:
    unfreezes, lora, arguments = SCENARIOS[name]
    recorder = GradientOfFirstUpdate()
    callbacks = [FisherPenaltyCallback(1.0, every=2), recorder]
    trainer = make_trainer(
        folder / name,
        [*callbacks, GradualUnfreezingCallback(2)] if unfreezes else callbacks,
        model=model_without_dropout(lora),
        trainer_class=EarlyOODTrainer,
        arguments_class=EarlyOODArguments,
        intervention="standard",  # the callback is given
        per_device_train_batch_size=2,
        gradient_accumulation_steps=PIECES // int(os.environ.get("WORLD_SIZE", "1")),
        learning_rate=1e-3,
        max_steps=6,
        **arguments,
    )
    trainer.train()
    logged = [
        entry[names.LOG_FISHER_PENALTY] for entry in trainer.state.log_history if names.LOG_FISHER_PENALTY in entry
    ]
    return {"outcome": outcome(trainer), "gradient": recorder.gradient, "logged": logged}


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    torch.save({name: train(folder, name) for name in SCENARIOS}, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
