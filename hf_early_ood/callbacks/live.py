"""What can be seen while a model trains: numbers through ``Trainer.log``, words and settings as each tracker has them.

Nothing here may end a training or change it: what a tracker does not take is told in a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from transformers import Trainer, TrainerState
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import logging

from hf_early_ood import names

logger = logging.get_logger(__name__)

TRACKERS = tuple(INTEGRATION_TO_CALLBACK.values())
"""The callbacks that ``TrainingArguments.report_to`` stands for."""

INFO, WARNING = "info", "warn"
"""Levels of alerts, as trackio spells them."""


class LiveLog:
    """The log of a training: ``state.log_history`` and, if its Trainer is known, all that this one reports to.

    Args:
        state: That of the training. What is logged belongs to its ``global_step``.
        trainer: Its Trainer; None: there is only the history.
    """

    def __init__(self, state: TrainerState, trainer: Trainer | None = None) -> None:
        self._state = state
        self._trainer = trainer

    def numbers(self, values: Mapping[str, float]) -> None:
        """Log between the regular logs: ``Trainer.log`` alone would cancel the one that is due at this update."""
        trainer, history = self._trainer, self._state.log_history
        before = len(history)
        if trainer is not None:
            due = trainer.control.should_log
            with surviving("what was logged"):
                trainer.log(dict(values))
            trainer.control.should_log = due
        # A run that is resumed looks into the history: it is the same on all ranks, whatever becomes of trackers.
        if len(history) == before:
            history.append({**values, "step": self._state.global_step})

    def measurement(self, record: Mapping[str, Any]) -> None:
        """Log the total and the parts by layer group of a measurement, and the totals of further quantities.

        What has no value, or none that is finite, is left out.

        Where two callbacks take the same measure after the same update, the first one is seen: one name has one curve.

        Args:
            record: As in the dynamics file.
        """
        key, step = f"{names.LOG}/{record['measure']}", self._state.global_step
        values = {key: record["value"]}
        values |= {f"{key}/{group}": part for group, part in record.get("per_group", {}).items()}
        further = record.get("details", {}).get("quantities", {})
        values |= {f"{key}/{quantity}": item["value"] for quantity, item in further.items()}
        newest = takewhile(lambda entry: entry.get("step") == step, reversed(self._state.log_history))
        there = {name for entry in newest for name in entry}
        known = {name: value for name, value in values.items() if value is not None and name not in there}
        if known:
            self.numbers(known)

    def words(self, tag: str, text: str) -> None:
        """Say what happened, as text in TensorBoard; of one tag and update it shows the last one.

        Args:
            tag: Name of the series that it explains.
            text: A sentence, with the update.
        """
        for tracker in self._trackers():
            if isinstance(tracker, TensorBoardCallback):
                with surviving(tag):
                    _add_text(tracker, tag, text, self._state.global_step)

    def alert(self, title: str, text: str, level: str) -> None:
        """Raise an alert in trackio and W&B.

        Args:
            title: Less than 64 characters (W&B).
            text: As for `words`.
            level: `INFO` or `WARNING`.
        """
        for tracker in self._trackers():
            with surviving(f"'{title}'"):
                if isinstance(tracker, TrackioCallback):
                    import trackio

                    trackio.alert(title, text, level=trackio.AlertLevel(level))
                elif isinstance(tracker, WandbCallback):
                    import wandb

                    wandb.alert(title=title, text=text, level=level.upper())

    def _trackers(self) -> list[Any]:
        """Those of the Trainer, on the rank that speaks for all."""
        if self._trainer is None or not self._state.is_world_process_zero:
            return []
        return trackers_of(self._trainer)


def trackers_of(trainer: Trainer) -> list[Any]:
    """The trackers that a Trainer reports to."""
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, TRACKERS)]


def show_curves(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Show to trackers what is nothing but a curve: neither the terminal nor ``state.log_history`` is for it."""
    for tracker in trackers_of(trainer):
        with surviving("what was logged"):
            tracker.on_log(trainer.args, trainer.state, trainer.control, model=trainer.model, logs=dict(values))


def tell_settings(trainer: Trainer, settings: Mapping[str, Any]) -> None:
    """Put settings into the configuration of W&B and trackio, under "early_ood"; in TensorBoard they are a text.

    Args:
        trainer: One whose trackers have begun.
        settings: JSON-able.
    """
    if not trainer.state.is_world_process_zero:
        return
    for tracker in trackers_of(trainer):
        with surviving("the settings"):
            if isinstance(tracker, TensorBoardCallback):
                text = f"```json\n{json.dumps(settings, indent=2)}\n```"
                _add_text(tracker, names.LOG_SETTINGS, text, trainer.state.global_step)
            elif isinstance(tracker, TrackioCallback):
                import trackio

                trackio.config.update({names.LOG: dict(settings)})
            elif isinstance(tracker, WandbCallback):
                import wandb

                wandb.config.update({names.LOG: dict(settings)}, allow_val_change=True)


@contextmanager
def surviving(what: str) -> Iterator[None]:
    """Go on after whatever a tracker raises inside the block; a user's callback that looks at logs is one of them."""
    try:
        yield
    except Exception as error:
        logger.warning_once(
            f"A tracker, or another callback that looks at logs, did not take {what} ({type(error).__name__}: {error})."
            " Training goes on; the series is in the dynamics file as well."
        )
        logger.debug("What it raised:", exc_info=True)


def _add_text(tracker: TensorBoardCallback, tag: str, text: str, step: int) -> None:
    if tracker.tb_writer is not None:
        tracker.tb_writer.add_text(tag, text, step)
        tracker.tb_writer.flush()
