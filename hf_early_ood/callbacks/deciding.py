"""From signals that are watched while few groups train to the interval: measure, vote, say why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import TrainerState
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.callbacks.measuring import from_main_process, measure_in_training
from hf_early_ood.callbacks.recording import Emit
from hf_early_ood.callbacks.resumable import check_same
from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.measures import MEASURES, check_measures
from hf_early_ood.stabilization import FALLBACK, Decision
from hf_early_ood.voting import SignalVote

logger = logging.get_logger(__name__)

LOGGED = "log/"
"""Prefix of a signal that is a key of the Trainer's log, such as ``log/loss``."""


def check_signals(signals: Sequence[str], settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse signals that are neither measures nor logged values, and settings that their measures refuse.

    Raises:
        ConfigurationError: Naming the closest known signal.
    """
    for signal in signals:
        if not isinstance(signal, str) or not (signal in MEASURES or signal.startswith(LOGGED)):
            raise ConfigurationError(
                "Unknown signal.",
                got=signal,
                allowed=f"{', '.join(MEASURES)}, or {LOGGED}<key> for a value that the Trainer logs",
                fix=did_you_mean(str(signal), MEASURES),
            )
    measured = [signal for signal in signals if signal in MEASURES]
    if measured or settings:
        check_measures(measured, settings)


class IntervalDecider:
    """Watches signals until a vote says that they are stable.

    Args:
        vote: The detectors.
        probe_set: What measures are taken on.
        groups: The layer groups.
        settings: Arguments of the measures, by measure.
        seed: Of the measures.
    """

    def __init__(
        self,
        vote: SignalVote,
        probe_set: ProbeSet,
        groups: LayerGroups,
        settings: Mapping[str, Mapping[str, Any]],
        seed: int,
    ) -> None:
        self.vote = vote
        self.probe_set = probe_set
        self.groups = groups
        self.settings = settings
        self.seed = seed
        self.seconds = 0.0

    @property
    def decision(self) -> Decision | None:
        """The decision, once it has fallen."""
        return self.vote.decision

    def watch(
        self, model: nn.Module, state: TrainerState, trainable: Sequence[str], emit: Emit
    ) -> list[dict[str, Any]]:
        """Take one value of every signal; return the records, with the event of the decision if it falls."""
        records = []
        for signal in self.vote.signals:
            record = self._logged(signal, state) if signal.startswith(LOGGED) else self._measured(signal, model, state)
            record = from_main_process({"step": state.global_step, **record, "trainable": list(trainable)})
            if record["value"] is not None and not signal.startswith(LOGGED):
                emit({f"{names.LOG_PROBE}/{signal}": record["value"]})
            records.append(record)
        values = {r["measure"]: math.nan if r["value"] is None else r["value"] for r in records}
        decision = self.vote.update(state.global_step, values)
        if decision is not None:
            records.append({"event": "decision", **decision.to_dict(), "settings": self.vote.settings})
            emit({names.LOG_DECISION: decision.step})
            self._explain(decision)
        return records

    def _measured(self, signal: str, model: nn.Module, state: TrainerState) -> dict[str, Any]:
        record = measure_in_training(
            signal,
            model,
            self.probe_set,
            self.groups,
            seed=self.seed,
            settings=self.settings.get(signal),
            strict=state.global_step == 0,
        )
        self.seconds += record["seconds"]
        value = record["value"]
        return {**record, "value": value if value is not None and math.isfinite(value) else None}

    def _logged(self, signal: str, state: TrainerState) -> dict[str, Any]:
        """The newest logged value; None where it has not been logged since the last look, or is no number."""
        key, value, last = signal.removeprefix(LOGGED), None, self.vote.last_step
        for entry in reversed(state.log_history):
            # The Trainer logs an update after it was looked at here. An old value again would pass for a stable one.
            if last is None or entry.get("step", -1) < last:
                break
            if key in entry:
                value = entry[key]
                break
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return {"measure": signal, "value": float(value) if fits and value is not None else None}

    def _explain(self, decision: Decision) -> None:
        signals = self.vote.signals
        what = f"the {signals[0]}" if len(signals) == 1 else f"{self.vote.vote} of {', '.join(signals)}"
        interval = f"the interval is {decision.step} updates"
        if decision.reason == FALLBACK:
            logger.warning(f"Update {decision.step}: {what} did not become stable until max_step; {interval}.")
        else:
            logger.info(f"Update {decision.step}: {what} stable; {interval}.")

    def learned(self) -> dict[str, Any]:
        """What a checkpoint must hold; JSON-able."""
        return {"detector": self.vote.state_dict(), "probe_set": self.probe_set.fingerprint}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Take up what a checkpoint holds.

        Raises:
            ResumeError: The checkpoint was made with other probe examples or other settings of the detector.
        """
        check_same("probe set", learned["probe_set"], self.probe_set.fingerprint)
        self.vote.load_state_dict(learned["detector"])
