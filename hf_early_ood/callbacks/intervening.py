"""Callbacks that change how the released layers are trained, and so need more of a Trainer than its events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_early_ood.callbacks.reporting import ReportingCallback
from hf_early_ood.callbacks.staged import StagedCallback
from hf_early_ood.errors import UnsupportedSetupError
from hf_early_ood.interventions.update_rules import UpdateRule, in_force


class InterveningCallback(ReportingCallback):
    """A callback that :class:`~hf_early_ood.EarlyOODTrainer` asks, beyond the events that every Trainer sends.

    What it answers must be the same on every rank, and depend only on its settings, the number of completed updates and
    what it keeps in the checkpoint: a resumed training asks again.

    Args:
        settings: The constructor's JSON-able arguments by name.
    """

    splits_optimizer = False
    """Whether the optimizer's parameter groups must hold one layer group each."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.is_asked = False  # set by EarlyOODTrainer
        self.unfreezing: StagedCallback | None = None  # that of the same Trainer

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Refuse a second one as soon as there is a Trainer."""
        self._refuse_second(state)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Refuse a Trainer that would not ask, and a second one."""
        self._refuse_second(state)
        if not self.is_asked:
            raise UnsupportedSetupError(
                f"{type(self).__name__} needs more than a Trainer's events.",
                got="a plain transformers.Trainer",
                fix="Use hf_early_ood.EarlyOODTrainer, which takes the same arguments.",
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Forget the Trainer: the next one may be another."""
        super().on_train_end(args, state, control, **kwargs)
        self.is_asked, self.unfreezing = False, None

    def adapt_scheduler(self, scheduler: LRScheduler, total_updates: int, args: TrainingArguments) -> LRScheduler:
        """The learning-rate scheduler to train with, given the one that the arguments ask for.

        Not called where the Trainer was given a scheduler of its own.
        """
        return scheduler

    def update_rules(self, step: int, model: nn.Module) -> Mapping[str, UpdateRule]:
        """Rules, by layer group, for the update that follows ``step`` completed ones; needs ``splits_optimizer``."""
        return {}

    def check_checkpoint(self, state: TrainerState) -> None:
        """Refuse a checkpoint that was made without this callback, or with other settings.

        The parameter groups of its optimizer are others, too, of which PyTorch would not say whose they are.

        Raises:
            ResumeError: It was.
        """
        self._saved(state)

    def extra_loss(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor | None:
        """What is added to the loss of a batch, as a mean over its examples; None: nothing in this update."""
        return None

    def adapt_batch(self, batch: Mapping[str, Any], step: int) -> Mapping[str, Any]:
        """What is trained on in place of a batch of the update that follows ``step`` completed ones.

        What its loss is a mean over is counted afterwards.
        """
        return batch

    def loss_func(self, step: int) -> Callable[..., Tensor] | None:
        """The loss of the update that follows ``step`` completed ones, as ``compute_loss_func``; None: the task's."""
        return None

    def save_to(self, checkpoint: Path) -> None:
        """Write what of a checkpoint is no JSON; only the process that writes checkpoints is asked."""

    def load_from(self, checkpoint: str | None) -> None:
        """Learn which checkpoint is being resumed, before on_train_begin."""


def adapted(callbacks: Iterable[InterveningCallback], step: int, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch as all callbacks change it, one after the other; see `InterveningCallback.adapt_batch`."""
    for callback in callbacks:
        batch = callback.adapt_batch(batch, step)
    return batch


def extra_loss(callbacks: Iterable[InterveningCallback], model: Any, inputs: Mapping[str, Any]) -> Any:
    """What all callbacks add to the loss of a batch; None: nothing."""
    extras = [callback.extra_loss(model, inputs) for callback in callbacks]
    given = [extra for extra in extras if extra is not None]
    return sum(given) if given else None


@contextmanager
def loss_replaced(trainer: Trainer, callbacks: Iterable[InterveningCallback]) -> Iterator[None]:
    """Let a Trainer take the loss of the first callback that has one, inside the block."""
    usual = trainer.compute_loss_func
    own = [callback.loss_func(trainer.state.global_step) for callback in callbacks]
    try:
        trainer.compute_loss_func = next((loss for loss in own if loss is not None), usual)
        yield
    finally:
        trainer.compute_loss_func = usual


class UpdateRulesCallback(TrainerCallback):
    """Puts the update rules of all intervening callbacks in force around every ``optimizer.step()``.

    Between on_pre_optimizer_step and on_optimizer_step a Trainer makes the step and nothing else: gradients are clipped
    before, the scheduler moves after. It is the last of the callbacks: what others do before the step is done by then.
    """

    def __init__(self) -> None:
        self.callbacks: list[InterveningCallback] = []
        self._active = ExitStack()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ):
        """Change learning rates, weight decay and signs for one step."""
        optimizer: torch.optim.Optimizer = kwargs["optimizer"]
        rules: dict[str, list[UpdateRule]] = {}
        for callback in self.callbacks:
            for group, rule in callback.update_rules(state.global_step, kwargs["model"]).items():
                rules.setdefault(group, []).append(rule)
        if rules:
            merged = {group: reduce(and_, several) for group, several in rules.items()}
            self._active.enter_context(in_force(optimizer, merged))

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Put them back."""
        self.put_back()

    def put_back(self) -> None:
        """End what is in force, if anything is."""
        self._active.close()
