"""Callbacks with JSON-able settings that find what they have learned in the checkpoint, with default arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from hf_early_ood.errors import ConfigurationError, ResumeError

# Settings that do not change what is measured or trained: a checkpoint may have been made with others.
HARMLESS = ("dynamics_file", "self_check", "check_ranks", "start_on_disk")


class ResumableCallback(TrainerCallback, ExportableState):
    """A callback with JSON-able settings that keeps what it learns in the checkpoint.

    transformers restores callbacks only on request, and then as new objects. What was learned is read from
    ``state.stateful_callbacks`` at ``on_train_begin`` instead (:meth:`_saved`, then :meth:`_announce`), which works
    with default arguments.

    Args:
        settings: The constructor's JSON-able arguments by name.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

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
        name = type(self).__name__
        saved = stateful_callbacks(state).get(name)
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
        stateful_callbacks(state)[type(self).__name__] = _Announced(self.state())

    def _comes_after(self, state: TrainerState, name: str) -> bool:
        """Whether a callback of that class has begun this training, and so gets every event before this one does."""
        return isinstance(stateful_callbacks(state).get(name), _Announced)

    def _refuse_second(self, state: TrainerState) -> None:
        """Refuse two callbacks of one class in a Trainer: a checkpoint holds what was learned under its name.

        Raises:
            ConfigurationError: There is another one.
        """
        name = type(self).__name__
        entry = stateful_callbacks(state).get(name)
        # transformers puts several into a list, but not over what a checkpoint says; there the first has been here.
        if isinstance(entry, _Announced) or (isinstance(entry, list) and state.global_step == 0):
            raise ConfigurationError(
                f"There are two callbacks {name} in one Trainer: they would take each other's place in checkpoints.",
                allowed="one",
                fix="Give one of them all that is wanted, and leave the other out.",
            )


class _Announced(dict[str, Any]):
    """What a callback has put into the state of this training, and no checkpoint."""


def stateful_callbacks(state: TrainerState) -> dict[str, Any]:
    """``state.stateful_callbacks`` as what it is at run time; its annotation says otherwise."""
    stateful: Any = state.stateful_callbacks
    return stateful


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
