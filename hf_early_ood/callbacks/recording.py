"""What callbacks that measure have in common: the probe set, the series, the checkpoint, the log."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_early_ood.callbacks.dynamics_log import DynamicsLog
from hf_early_ood.callbacks.measuring import from_main_process
from hf_early_ood.errors import ConfigurationError, ResumeError
from hf_early_ood.probes.batches import ProbeSet

Emit = Callable[[dict[str, float]], None]

LABEL_COLUMNS = ("label", "labels", "label_ids")
# Settings that do not change what is measured or trained: a checkpoint may have been made with others.
HARMLESS = ("dynamics_file", "self_check", "check_ranks")


class RecordingCallback(TrainerCallback, ExportableState):
    """A callback with JSON-able settings that keeps what it learns in the checkpoint.

    transformers restores callbacks only on request, and then as new objects. What was learned is read from
    ``state.stateful_callbacks`` at ``on_train_begin`` instead, which works with default arguments.

    Args:
        settings: The constructor's JSON-able arguments by name.
        probe_dataset: Examples to measure on; None: the training set.
    """

    def __init__(self, settings: dict[str, Any], probe_dataset: Any) -> None:
        self.settings = settings
        self.probe_dataset = probe_dataset
        self._report: Emit | None = None
        check_counts(settings, "probe_size", "probe_batch_size")
        if settings["probe_size"] < settings["probe_batch_size"]:
            raise ConfigurationError(
                "The probe set is smaller than a batch.",
                got=f"probe_size={settings['probe_size']}, probe_batch_size={settings['probe_batch_size']}",
                fix="Lower probe_batch_size or raise probe_size.",
            )

    def report_through(self, log: Emit) -> None:
        """Log through ``Trainer.log`` (trackers included) instead of ``state.log_history`` only."""
        self._report = log

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Forget the Trainer: the next one may be another."""
        self._report = None

    def learned(self) -> dict[str, Any] | None:
        """What a checkpoint must hold, JSON-able; None before training."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What transformers writes into ``trainer_state.json``."""
        return {"args": dict(self.settings), "attributes": {"_restored": self.learned()}}

    def _saved(self, state: TrainerState) -> dict[str, Any] | None:
        """What the checkpoint brings; None for a new run.

        Raises:
            ResumeError: The checkpoint was made without this callback, or with other settings.
        """
        if state.global_step == 0:
            return None
        name, stateful = type(self).__name__, stateful_callbacks(state)
        saved = stateful.get(name)
        learned = saved["attributes"].get("_restored") if isinstance(saved, dict) else None
        if saved is None or learned is None:
            raise ResumeError(
                f"The checkpoint was made without {name}.",
                got=f"a checkpoint at update {state.global_step}",
                fix="Resume without the callback, or start anew with it.",
            )
        check_same("settings", _comparable(saved["args"]), _comparable(self.settings))
        return learned

    def _announce(self, state: TrainerState) -> None:
        """Make the name known: transformers looks it up when it saves, whoever made the checkpoint."""
        stateful_callbacks(state)[type(self).__name__] = self.state()

    def _examples(self, model: nn.Module, dataloader: Any) -> Any:
        if self.probe_dataset is None:
            return dataloader.dataset  # the Trainer has dropped what the model does not take
        if not isinstance(self.probe_dataset, Dataset):
            return self.probe_dataset
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        return self.probe_dataset.select_columns(taken_columns(inner.forward, self.probe_dataset.column_names))

    def _make_probe_set(self, model: nn.Module, dataloader: Any) -> ProbeSet:
        return from_main_process(
            ProbeSet.from_dataset(
                self._examples(model, dataloader),
                dataloader.collate_fn,
                size=self.settings["probe_size"],
                batch_size=self.settings["probe_batch_size"],
                seed=self.settings["probe_seed"],
            )
        )

    def _open_log(self, args: TrainingArguments, state: TrainerState) -> DynamicsLog:
        name = self.settings["dynamics_file"]
        path = Path(str(args.output_dir)) / name if name and state.is_world_process_zero else None
        return DynamicsLog(path, type(self).__name__)

    def _emitter(self, state: TrainerState) -> Emit:
        if self._report is not None:
            return self._report
        return lambda values: state.log_history.append({**values, "step": state.global_step})


def taken_columns(forward: Callable[..., Any], columns: Iterable[str]) -> list[str]:
    """Those of the columns of a data set that the ``forward`` of a model takes, or that a collator makes labels of.

    Example:
        >>> taken_columns(lambda input_ids, labels: None, ["text", "input_ids", "label"])
        ['input_ids', 'label']
    """
    taken = {*inspect.signature(forward).parameters, *LABEL_COLUMNS}
    return [column for column in columns if column in taken]


def stateful_callbacks(state: TrainerState) -> dict[str, Any]:
    """``state.stateful_callbacks`` as what it is at run time; its annotation says otherwise."""
    stateful: Any = state.stateful_callbacks
    return stateful


def check_counts(settings: Mapping[str, Any], *keys: str) -> None:
    """Refuse what is not a whole number from 1 on.

    Raises:
        ConfigurationError: Naming the first such key.
    """
    for key in keys:
        value = settings[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{key} is not usable.", got=repr(value), allowed="an integer >= 1")


def check_same(what: str, saved: Any, ours: Any) -> None:
    """Refuse to resume with something else than the checkpoint was made with.

    Raises:
        ResumeError: They differ; of two mappings, the keys that differ are named.
    """
    if saved == ours:
        return
    if isinstance(saved, dict) and isinstance(ours, dict):
        differs = [key for key in {**ours, **saved} if saved.get(key) != ours.get(key)]
        saved, ours = {key: saved.get(key) for key in differs}, {key: ours.get(key) for key in differs}
    raise ResumeError(
        f"The checkpoint was made with other {what}.",
        got=f"{ours} now, {saved} in the checkpoint",
        fix="Resume with what the checkpoint was made with, or start anew.",
    )


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in HARMLESS}
