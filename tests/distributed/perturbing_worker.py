"""Started by torchrun on every rank: weights that are perturbed in the middle and at the end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from hf_early_ood.callbacks.perturbing import PerturbationCallback
from hf_early_ood.trainer import EarlyOODTrainer
from tests import families
from tests.training import Rows, make_trainer, outcome

GLOBAL_BATCH = 8
CASES: dict[str, dict[str, Any]] = {
    "reset": {"at": 3, "kind": "reset_to_start", "groups": ["block.1", "head"]},
    "noise": {"at": 1.0, "kind": "noise", "unit": "movement", "groups": ["block.1"]},
    "random": {"at": 2, "kind": "reset_to_random", "groups": ["block.0"]},
}


def train(folder: Path, name: str) -> dict[str, Any]:
    """5 updates; the global batch does not depend on the number of processes, nor must the folder be that of rank 0."""
    callback = PerturbationCallback(**CASES[name])
    trainer = make_trainer(
        folder / name / os.environ.get("RANK", "0"),
        [callback],
        model=families.build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        trainer_class=EarlyOODTrainer,
        dataset=Rows(),
        max_steps=5,
        per_device_train_batch_size=GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", "1")),
        learning_rate=1e-3,
    )
    trainer.train()
    return {"outcome": outcome(trainer), "records": callback.records}


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    torch.save({name: train(folder, name) for name in CASES}, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main()
