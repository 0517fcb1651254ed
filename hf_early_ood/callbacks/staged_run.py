"""One training with gradual unfreezing, from ``on_train_begin`` to ``on_train_end``, without Trainer events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.callbacks.agreement import bit_checksums, check_ranks_agree
from hf_early_ood.callbacks.dynamics_log import DynamicsLog
from hf_early_ood.callbacks.measuring import from_main_process, measure_in_training
from hf_early_ood.callbacks.recording import Emit
from hf_early_ood.callbacks.resumable import check_same
from hf_early_ood.errors import UnsupportedSetupError
from hf_early_ood.freezing import Freezer, requires_grad_set
from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.schedules import UnfreezingSchedule
from hf_early_ood.stabilization import FALLBACK, Decision, StabilizationDetector

logger = logging.get_logger(__name__)


@dataclass
class UnfreezingRun:
    """The parts of one training: what may train, when, why, and what was recorded.

    ``probe_set`` is None where the interval was given and nothing has to be watched; ``rewrap`` is called after every
    change of what trains.
    """

    groups: LayerGroups
    freezer: Freezer
    schedule: UnfreezingSchedule
    detector: StabilizationDetector
    probe_set: ProbeSet | None
    log: DynamicsLog
    rewrap: Callable[[], None] = lambda: None
    stage: int = 0
    probe_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.planned = self.schedule  # as it was before any decision
        self._ranks_checked = False  # since the last change
        self._frozen_bits: Tensor | None = None  # until the first update after it

    @property
    def is_watching(self) -> bool:
        """Whether the decision is still to come."""
        return self.probe_set is not None and self.detector.decision is None

    def begin(self, total_updates: int, step: int, emit: Emit) -> None:
        """Freeze for the first update, or for the update after the checkpoint.

        A change that is due at ``step`` is left to :meth:`advance`, which comes before the update, resumed or not.
        """
        self._warn_about_length(total_updates)
        if step == 0:
            self.log.replace([])
            self._train_stage(0)
            self._record_stage(step, emit)
        else:
            self._train_stage(max(event["stage"] for event in self.log.events("stage")))

    def advance(self, step: int, emit: Emit) -> None:
        """Change the stage if the schedule says so after ``step`` completed updates."""
        stage = self.schedule.stage(step)
        if stage != self.stage:
            self._train_stage(stage)
            self._record_stage(step, emit)
        elif not self.freezer.in_force:
            logger.warning_once(
                "Something else has changed which parameters require a gradient (PEFT does with set_adapter and"
                " disable_adapter): they are set to those of the stage again."
            )
            self.freezer.train_only(self.schedule.trainable_in(stage))

    def _train_stage(self, stage: int) -> None:
        self.stage = stage
        self.freezer.train_only(self.schedule.trainable_in(stage))
        self.rewrap()
        self._ranks_checked = False
        frozen = self.freezer.frozen
        self._frozen_bits = bit_checksums(frozen.values()) if frozen else None

    def check_frozen(self, step: int) -> None:
        """Stop if frozen layers have moved; looked at after the first update of every stage.

        Raises:
            UnsupportedSetupError: They have.
        """
        before, self._frozen_bits = self._frozen_bits, None
        if before is None:
            return
        frozen = self.freezer.frozen
        now = bit_checksums(frozen.values())
        moved = [name for name, same in zip(frozen, before.eq(now).tolist(), strict=True) if not same]
        if moved:
            raise UnsupportedSetupError(
                f"In update {step} frozen parameters have moved, though they have no gradient.",
                got=f"{len(moved)} of {len(frozen)}, such as {moved[0]}",
                allowed="optimizers that leave a parameter alone whose gradient is None, as those of torch.optim do",
                fix="One that takes it for zero moves frozen layers by weight decay and momentum: use another"
                " optimizer. If another callback or a module writes to these weights, take it away.",
            )

    def check_ranks(self, step: int, again: bool = False) -> None:
        """Stop if the ranks hold different weights; once after a change of the stage, unless ``again``.

        Raises:
            UnsupportedSetupError: They do.
        """
        if again or not self._ranks_checked:
            check_ranks_agree(self.freezer.managed, step)
            self._ranks_checked = True

    def measure(self, model: nn.Module, step: int, total_updates: int, labels: str, seed: int, emit: Emit) -> None:
        """Take one measurement; it may be the one that decides."""
        if self.probe_set is None:
            return
        trace = measure_in_training(
            names.FISHER_TRACE,
            model,
            self.probe_set,
            self.groups,
            seed=seed,
            settings={"labels": labels},
            strict=step == 0,
        )
        self.probe_seconds += trace["seconds"]
        trainable = list(self.schedule.trainable_in(self.stage))
        record = from_main_process({"step": step, **trace, "trainable": trainable})
        self.log.append(record)
        value = math.nan if record["value"] is None else record["value"]
        if math.isfinite(value):
            emit({f"{names.LOG_PROBE}/{names.FISHER_TRACE}": value})
        decision = self.detector.update(step, value)
        if decision is not None:
            self._decide(decision, total_updates, emit)

    def _decide(self, decision: Decision, total_updates: int, emit: Emit) -> None:
        self.schedule = self.schedule.resolve(decided=decision.step)
        self.log.append({"event": "decision", **decision.to_dict(), "settings": self.detector.settings})
        emit({names.LOG_DECISION: decision.step})
        interval = f"the interval is {decision.step} updates"
        if decision.reason == FALLBACK:
            logger.warning(
                f"Update {decision.step}: the Fisher trace did not become stable until max_step; {interval}."
            )
        else:
            logger.info(f"Update {decision.step}: the Fisher trace is stable; {interval}.")
        self._warn_about_length(total_updates)

    def _record_stage(self, step: int, emit: Emit) -> None:
        released, count = list(self.schedule.stages[self.stage]), self.freezer.num_trainable
        event = {"event": "stage", "stage": self.stage, "released": released, "trainable_parameters": count}
        self.log.append({"step": step, **event})
        emit({names.LOG_STAGE: self.stage, names.LOG_TRAINABLE: count})
        logger.info(f"Update {step}: stage {self.stage} adds {', '.join(released)}; {count:,} parameters train.")

    def _warn_about_length(self, total_updates: int) -> None:
        warning = self.schedule.check_length(total_updates)
        if warning:
            logger.warning(warning)

    def learned(self) -> dict[str, Any]:
        """What a checkpoint must hold; JSON-able."""
        return {
            "records": list(self.log.records),
            "detector": self.detector.state_dict(),
            "probe_set": self.probe_set.fingerprint if self.probe_set else None,
            "schedule": self.planned.to_dict(),
        }

    def restore(self, learned: dict[str, Any]) -> None:
        """Take up what a checkpoint holds.

        Raises:
            ResumeError: The checkpoint was made with other layer groups or stages, another interval (also through
                another length of training), other probe examples or other settings of the detector.
        """
        check_same("schedule", learned["schedule"], self.planned.to_dict())
        if self.probe_set is not None:
            check_same("probe set", learned["probe_set"], self.probe_set.fingerprint)
            self.detector.load_state_dict(learned["detector"])
        if self.detector.decision is not None:
            self.schedule = self.schedule.resolve(decided=self.detector.decision.step)
        self.log.replace(learned["records"])


@contextmanager
def as_learned(model: nn.Module, learned: dict[str, Any]) -> Iterator[None]:
    """Let require a gradient inside the block what did when a checkpoint was written that holds ``learned``."""
    released = {name for record in learned["records"] for name in record.get("released", ())}
    parameters = {group.name: group.parameters for group in find_layer_groups(model).trainable()}
    trained = {name for group in released & set(parameters) for name in parameters[group]}
    with requires_grad_set({name: p for owned in parameters.values() for name, p in owned.items()}, trained):
        yield
