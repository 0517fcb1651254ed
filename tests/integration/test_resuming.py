"""Promise 4 where transformers itself would go on silently with something else than what was trained."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.checkpoints import checkpoints
from hf_early_ood.errors import ResumeError
from hf_early_ood.trainer import EarlyOODTrainer
from tests.training import Rows, StopAfter, copy_weights, differences, make_trainer, outcome

SAVED: dict[str, Any] = {"trainer_class": EarlyOODTrainer, "save_strategy": "steps", "save_steps": 1}


def unfreezing() -> GradualUnfreezingCallback:
    return GradualUnfreezingCallback(interval=2)


class NoMemoryOnce(TrainerCallback):
    """What happens when a layer is released for which there is no room."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.left_behind: dict[int, Path] = {}  # checkpoints of the attempt that failed

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.step, self.left_behind = -1, checkpoints(args.output_dir)
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")


class FirstWeights(TrainerCallback):
    """The weights with which every attempt begins, and the checkpoints that it finds."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.checkpoints: list[list[int]] = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.weights.append(copy_weights(model))
        self.checkpoints.append(sorted(checkpoints(args.output_dir)))


@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize("resumed_at", [None, 3])
@pytest.mark.parametrize("given", [False, True], ids=["optimizer of the Trainer", "given optimizer"])
def test_a_batch_size_that_fails_late_leaves_nothing_behind(
    tmp_path: Path, resumed_at: int | None, given: bool
) -> None:
    def trainer_with(*callbacks: TrainerCallback) -> Trainer:
        trainer = make_trainer(tmp_path, [unfreezing(), *callbacks], auto_find_batch_size=True, **SAVED)
        if given:
            trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-2)
        return trainer

    if resumed_at is not None:
        trainer_with(StopAfter(resumed_at)).train()
    no_memory, first = NoMemoryOnce(5), FirstWeights()
    trainer = trainer_with(no_memory, first)
    trainer.train(resume_from_checkpoint=resumed_at is not None)
    begun = [] if resumed_at is None else [1, 2, 3]
    assert sorted(no_memory.left_behind) == [1, 2, 3, 4, 5]
    assert first.checkpoints == [begun, begun]
    assert not differences(*first.weights)
    # An update of the head counts once: nothing is left of the optimizer that has failed.
    steps = {int(state["step"]) for state in trainer.optimizer.state_dict()["state"].values()}
    assert max(steps) == trainer.state.global_step == 10


def test_weights_alone_are_not_resumed_from(tmp_path: Path) -> None:
    """The learning rate would begin anew, and the optimizer too."""
    make_trainer(tmp_path, [unfreezing(), StopAfter(3)], save_only_model=True, **SAVED).train()
    trainer = make_trainer(tmp_path, [unfreezing()], **SAVED)
    with pytest.raises(
        ResumeError, match=r"holds weights, but neither.*without scheduler\.pt.*Leave save_only_model out"
    ):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("stop", [7, 10])
def test_the_best_model_is_found_where_the_folder_was_moved(tmp_path: Path, stop: int) -> None:
    """Also by a training that was complete, and saves nothing any more."""
    best = {
        **SAVED,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_dataset": Rows(8),
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "learning_rate": 0.3,
    }
    whole = make_trainer(tmp_path / "whole", [unfreezing()], **best)
    whole.train()
    assert whole.state.best_global_step < 7
    make_trainer(tmp_path / "begun", [unfreezing(), StopAfter(stop)], **best).train()
    shutil.move(tmp_path / "begun", tmp_path / "moved")
    trainer = make_trainer(tmp_path / "moved", [unfreezing()], **best)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "moved" / f"checkpoint-{whole.state.best_global_step}")
    ours, theirs = outcome(trainer), outcome(whole)
    assert not [name for name in differences(ours, theirs) if name.startswith("weight/")]


def test_a_plain_trainer_says_what_it_cannot_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("hf_early_ood").setLevel(logging.WARNING)
    for trainer_class in (Trainer, EarlyOODTrainer):
        caplog.clear()
        make_trainer(tmp_path, [unfreezing()], trainer_class=trainer_class, auto_find_batch_size=True).train()
        assert ("use hf_early_ood.EarlyOODTrainer, which begins again" in caplog.text) == (trainer_class is Trainer)
