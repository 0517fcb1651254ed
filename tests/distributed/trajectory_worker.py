"""Started on every rank: trains with the trajectory measured, under DDP or FSDP2, and saves the series."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.names import START_WEIGHTS_FILE
from hf_early_ood.trainer import EarlyOODArguments, EarlyOODTrainer
from tests.distributed.fsdp2_worker import let_accelerate_shard_on_cpu
from tests.distributed.worker import model_without_dropout
from tests.training import StopAfter, make_trainer, without_times

WORLD = int(os.environ.get("WORLD_SIZE", "1"))
FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}}
# LoRA or not, start weights on disk or not, sharded or not where there are several processes.
SCENARIOS = {
    "ddp": (False, False, False),
    "ddp lora on disk": (True, True, False),
    "fsdp2": (False, False, True),
}


def trainer_for(folder: Path, name: str, *more: Any) -> tuple[EarlyOODTrainer, EarlyDynamicsCallback]:
    lora, on_disk, sharded = SCENARIOS[name]
    callback = EarlyDynamicsCallback(["trajectory"], every=1, update_direction=True, start_on_disk=on_disk)
    trainer = make_trainer(
        folder / name,
        [callback, GradualUnfreezingCallback(2), *more],
        model=model_without_dropout(lora),
        trainer_class=EarlyOODTrainer,
        arguments_class=EarlyOODArguments,
        intervention="standard",  # the callbacks are given
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4 // WORLD,
        learning_rate=1e-3,
        max_steps=5,
        **(FSDP if sharded and WORLD > 1 else {}),
    )
    return trainer, callback


def train(folder: Path, name: str) -> dict[str, Any]:
    """In two parts, the second of which finds the start weights again."""
    trainer, _ = trainer_for(folder, name, StopAfter(3))
    trainer.train()
    trainer, callback = trainer_for(folder, name)
    trainer.train(resume_from_checkpoint=str(folder / name / "checkpoint-3"))
    keeper = callback._keeper
    return {
        "records": without_times(callback.records),
        "holds": keeper is not None and keeper.start is not None,
        "files": (folder / name / START_WEIGHTS_FILE).is_file(),
    }


def main() -> None:
    torch.set_num_threads(1)
    let_accelerate_shard_on_cpu()
    folder = Path(sys.argv[1])
    torch.save({name: train(folder, name) for name in SCENARIOS}, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
