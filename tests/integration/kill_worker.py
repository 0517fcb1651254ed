"""One training that may be killed at any moment and is started again: run in a process of its own."""

from __future__ import annotations

import logging
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.learning_rates import LearningRatesCallback
from hf_early_ood.callbacks.refreezing import AutoFreezeCallback, LISACallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.checkpoints import completed_updates, last_whole_checkpoint
from hf_early_ood.trainer import EarlyOODTrainer
from tests.training import Rows, make_trainer, outcome

AUTO = {
    "interval": "auto",
    "probe_every": 1,
    "probe_size": 8,
    "probe_batch_size": 4,
    "window": 1,
    "transient": 2,
    "max_step": 5,
}
UPDATES = 12
# Callbacks and arguments by name; every way of deciding and of releasing.
SCENARIOS: dict[str, dict[str, Any]] = {
    "fixed": {"unfreezing": {"interval": 2}},
    "bottom_up_at_once": {
        "unfreezing": {"interval": 5, "order": "bottom_up", "release": "all_at_once"},
        "arguments": {"gradient_accumulation_steps": 2},
    },
    "auto_stable": {"unfreezing": {**AUTO, "tolerance": 1e9}},
    "auto_fallback": {"unfreezing": {**AUTO, "tolerance": 1e-9}, "arguments": {"save_steps": 3}},
    "selected": {"unfreezing": {"interval": 2, "order": "fisher_trace", "probe_size": 8, "probe_batch_size": 4}},
    "lisa": {"staged": LISACallback, "unfreezing": {"interval": 2, "num_groups": 1, "optimizer_state": "reset"}},
    "autofreeze": {"staged": AutoFreezeCallback, "unfreezing": {"interval": 2}},
    "rates": {
        "unfreezing": {**AUTO, "tolerance": 1e9},
        "rates": {"layer_decay": 0.5, "release_warmup": 2, "switch_factor": 0.1, "switch_at": "auto"},
    },
    "with_dynamics": {
        "unfreezing": {**AUTO, "tolerance": 1e9},
        "dynamics": {
            "measures": ["fisher_trace", "average_sharpness"],
            "every": 2,
            "settings": {"average_sharpness": {"num_draws": 2}},
        },
    },
    "best_model": {
        "unfreezing": {"interval": 3},
        "arguments": {
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "loss",
        },
    },
}


def train(scenario: str, folder: Path, result: Path, begun: Event) -> None:
    """Train from the newest whole checkpoint, or from the start, to the end; then write what came out."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    parts = SCENARIOS[scenario]
    callbacks: list[Any] = [parts.get("staged", GradualUnfreezingCallback)(**parts["unfreezing"])]
    if "rates" in parts:
        callbacks.append(LearningRatesCallback(**parts["rates"]))
    if "dynamics" in parts:
        callbacks.append(EarlyDynamicsCallback(probe_size=8, probe_batch_size=4, **parts["dynamics"]))
    arguments = {"max_steps": UPDATES, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    trainer = make_trainer(
        folder,
        callbacks,
        trainer_class=EarlyOODTrainer,
        eval_dataset=Rows(8),
        **{**arguments, **parts.get("arguments", {})},
    )
    begun.set()
    start = time.monotonic()
    checkpoint = last_whole_checkpoint(folder)
    trainer.train(resume_from_checkpoint=checkpoint is not None)
    unfinished = result.with_suffix(".unfinished")
    seconds, come_out = time.monotonic() - start, outcome(trainer)
    if checkpoint is not None and completed_updates(checkpoint) == UPDATES:
        del come_out["rng"]  # nothing was left to train, so that no random numbers were taken up
    torch.save({"outcome": come_out, "updates": trainer.state.global_step, "seconds": seconds}, unfinished)
    unfinished.replace(result)
