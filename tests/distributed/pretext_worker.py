"""Started by torchrun on every rank: trains with a pretext and saves what came out, rank by rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from hf_early_ood.callbacks.pretext import PretextCallback
from tests.callbacks.test_pretext import KINDS, ours
from tests.distributed.worker import model_without_dropout
from tests.training import StopAfter, make_trainer, outcome

PIECES = 4  # of an update, over accumulation and processes
# The pretext, and after how many updates the training is stopped and resumed.
SCENARIOS: dict[str, tuple[str, int | None]] = {
    **{kind: (kind, None) for kind in KINDS},
    "masked_lm resumed": ("masked_lm", 2),
    "masked_lm resumed at the switch": ("masked_lm", 3),
}


def train(folder: Path, name: str) -> dict[str, Any]:
    kind, stop = SCENARIOS[name]

    def trained(*more: Any, resume: bool = False) -> dict[str, Any]:
        callback = PretextCallback(kind, updates=3, mask_probability=0.3 if kind == "masked_lm" else 0.15)
        trainer = make_trainer(
            folder / name,
            [callback, *more],
            model=model_without_dropout(False),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=PIECES // int(os.environ.get("WORLD_SIZE", "1")),
            learning_rate=1e-3,
            max_steps=6,
            **ours(),
        )
        trainer.train(resume_from_checkpoint=resume or None)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return {"outcome": outcome(trainer), "losses": losses, "records": callback.records}

    if stop is None:
        return trained()
    trained(StopAfter(stop))
    return trained(resume=True)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    torch.save({name: train(folder, name) for name in SCENARIOS}, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
