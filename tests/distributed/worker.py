"""Started by torchrun on every rank: trains each scenario and saves what came out, rank by rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import UnsupportedSetupError
from hf_early_ood.trainer import EarlyOODTrainer
from tests import families
from tests.test_trainer import GradientOfFirstUpdate
from tests.training import make_trainer, outcome

GLOBAL_BATCH = 8
AUTO = {
    "interval": "auto",
    "probe_every": 1,
    "probe_size": 8,
    "probe_batch_size": 4,
    "window": 1,
    "tolerance": 1e9,
    "transient": 1,
    "max_step": 3,
}
AUTO_DECISION = 2
CALLBACKS = {
    "fixed": {"interval": 2},
    "auto": AUTO,
    "auto_decision_fixed": {"interval": AUTO_DECISION, "self_check": False},
}
REFUSED = {
    "find_unused": {"ddp_find_unused_parameters": False},
    "static_graph": {"ddp_static_graph": True},
    "checkpointing": {"activation_checkpointing": True},
    "reentrant": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": True},
        "ddp_find_unused_parameters": True,
    },
}


def train(folder: Path, scenario: str, accumulation: int) -> dict:
    """One scenario without dropout, so that one process and two can be compared."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    recorder, callback = GradientOfFirstUpdate(), GradualUnfreezingCallback(**CALLBACKS[scenario])
    trainer = make_trainer(
        folder / scenario,
        [callback, recorder],
        model=families.build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        trainer_class=EarlyOODTrainer,
        per_device_train_batch_size=GLOBAL_BATCH // world // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
    )
    trainer.train()
    return {
        "outcome": outcome(trainer),
        "gradient": recorder.gradient,
        "decision": callback.decision.step if callback.decision else None,
        "stages": [(r["step"], r["stage"]) for r in callback.records if r.get("event") == "stage"],
    }


def refusals(folder: Path) -> dict:
    """The message of every combination that must be refused before the first update."""
    messages = {}
    for name, arguments in REFUSED.items():
        trainer = make_trainer(folder / name, [GradualUnfreezingCallback(interval=2)], **arguments)
        try:
            trainer.train()
            messages[name] = f"trained {trainer.state.global_step} updates"
        except UnsupportedSetupError as error:
            messages[name] = f"update {trainer.state.global_step}: {error}"
    return messages


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
    results: dict = {
        (scenario, accumulation): train(folder / f"accumulation{accumulation}", scenario, accumulation)
        for scenario in CALLBACKS
        for accumulation in (1, 2)
    }
    if "WORLD_SIZE" in os.environ:
        results["refused"] = refusals(folder)
    torch.save(results, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main()
