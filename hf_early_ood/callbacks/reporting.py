"""Callbacks that keep a series: in the checkpoint, in the dynamics file, and in the Trainer's log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_early_ood.callbacks.dynamics_log import DynamicsLog
from hf_early_ood.callbacks.resumable import ResumableCallback, stateful_callbacks

Emit = Callable[[dict[str, float]], None]


class ReportingCallback(ResumableCallback):
    """A resumable callback that says what happens.

    Args:
        settings: The constructor's JSON-able arguments by name; one is ``dynamics_file`` where `_open_log` is used.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._report: Emit | None = None

    def report_through(self, log: Emit | None) -> None:
        """Log through ``Trainer.log`` (trackers included) instead of ``state.log_history`` only."""
        self._report = log

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Forget the Trainer: the next one may be another."""
        self._report = None

    def _open_log(self, args: TrainingArguments, state: TrainerState) -> DynamicsLog:
        name = self.settings["dynamics_file"]
        path = Path(str(args.output_dir)) / name if name and state.is_world_process_zero else None
        return DynamicsLog(path, type(self).__name__, writers=list(stateful_callbacks(state)), step=state.global_step)

    def _emitter(self, state: TrainerState) -> Emit:
        if self._report is not None:
            return self._report
        return lambda values: state.log_history.append({**values, "step": state.global_step})
