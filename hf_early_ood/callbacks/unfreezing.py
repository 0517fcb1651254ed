"""Gradual unfreezing in any Trainer, with a fixed interval or one decided from the Fisher trace in the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from .. import names
from ..errors import ConfigurationError, NonFiniteError, ResumeError
from ..freezing import Freezer
from ..layers import LayerGroups, check_layer_groups, find_layer_groups
from ..probes.batches import ProbeSet
from ..probes.fisher import fisher_trace
from ..schedules import AUTO, Interval, UnfreezingSchedule
from ..stabilization import FALLBACK, Decision, StabilizationDetector
from .dynamics_log import DynamicsLog
from .setups import check_launcher, check_optimizer, warn_about_loss_scale

logger = logging.get_logger(__name__)

SIGNALS = (names.FISHER_TRACE,)


class GradualUnfreezingCallback(TrainerCallback, ExportableState):
    r"""Train the head first and release the other layer groups, one every k updates, in any ``Trainer``.

    Liu & Gurevych 2024 (arXiv 2403.15210). With ``interval="auto"`` the Fisher trace of the parameters that train,

    .. math:: \mathrm{tr} F = E_x E_{y \sim p(\cdot|x)} \lVert \nabla \log p(y|x) \rVert^2,

    is measured on a fixed probe set every ``probe_every`` updates while the initial groups train. As soon as it is
    stable (:class:`~hf_early_ood.StabilizationDetector`), after t updates say, k = t and the release begins. The
    paper finds k in a separate run; up to update k that run and this one are the same, so none is needed.

    The callback freezes at ``on_train_begin`` (the optimizer and the DDP wrapper exist, and hold every layer),
    changes stages at ``on_step_begin`` only, and gives the user's flags back at ``on_train_end``. What it learned
    is in the checkpoint: a resumed run is bit-identical to one that was not stopped, with default arguments.

    Args:
        interval: k in updates (int >= 1), as a fraction of all updates (float in (0, 1)), or "auto".
        order: "top_down", "bottom_up", or a list of group names.
        initial: Groups that train from the start.
        release: "interval": one group every k updates. "all_at_once": everything after k updates.
        schedule: Path of a schedule file (``hf-early-ood schedule --output``); replaces the four above.
        signal: What decides; "fisher_trace".
        window: tau of the detector, in measurements.
        tolerance: epsilon of the detector, relative change between measurements.
        transient: Updates the detector leaves out; "auto": the learning rate's warm-up.
        max_step: Update at which the decision falls at the latest (int, or float as a fraction of training);
            "auto": the latest at which every group still gets k updates, all updates / number of stages.
        probe_size: Number of probe examples, drawn once from the training set (or ``probe_dataset``).
        probe_batch_size: Probe examples per forward pass.
        probe_every: Updates between two measurements.
        probe_seed: Seed of the choice of examples and of the label draws, the same at every measurement.
        probe_labels: "sampled", "expected", "empirical" or "argmax"; see :func:`~hf_early_ood.fisher_trace`.
        probe_dataset: Tokenized examples to measure on instead of the training set.
        self_check: Prove with one forward pass a stage that frozen layers cost no backward pass.
        dynamics_file: File in ``args.output_dir`` for the series; None writes none.

    Raises:
        ConfigurationError: A setting is not usable (at once, or before the first update).
        UnsupportedSetupError: The launcher cannot do it correctly (before the first update).
        ResumeError: The checkpoint belongs to other settings.

    Example:
        >>> callback = GradualUnfreezingCallback(interval="auto", probe_size=64)
        >>> # Trainer(model=model, args=args, train_dataset=train, callbacks=[callback]).train()
        >>> callback.schedule is None  # known once training has begun
        True
    """

    def __init__(
        self,
        interval: Interval = AUTO,
        order: str | Sequence[str] = "top_down",
        *,
        initial: Sequence[str] = ("head",),
        release: str = "interval",
        schedule: str | None = None,
        signal: str = names.FISHER_TRACE,
        window: int = 3,
        tolerance: float = 0.02,
        transient: int | str = "auto",
        max_step: int | float | str = "auto",
        probe_size: int = 128,
        probe_batch_size: int = 32,
        probe_every: int = 10,
        probe_seed: int = 0,
        probe_labels: str = "sampled",
        probe_dataset: Any = None,
        self_check: bool = True,
        dynamics_file: str | None = names.DYNAMICS_FILE,
    ) -> None:
        self.settings: dict[str, Any] = {
            "interval": interval,
            "order": order if isinstance(order, str) else list(order),
            "initial": list(initial) if not isinstance(initial, str) else initial,
            "release": release,
            "schedule": schedule,
            "signal": signal,
            "window": window,
            "tolerance": tolerance,
            "transient": transient,
            "max_step": max_step,
            "probe_size": probe_size,
            "probe_batch_size": probe_batch_size,
            "probe_every": probe_every,
            "probe_seed": probe_seed,
            "probe_labels": probe_labels,
            "self_check": self_check,
            "dynamics_file": dynamics_file,
        }
        self._probe_dataset = probe_dataset
        self._check_settings()
        self.schedule: UnfreezingSchedule | None = None
        self.detector: StabilizationDetector | None = None
        self._log: DynamicsLog | None = None
        self._freezer: Freezer | None = None
        self._groups: LayerGroups | None = None
        self._probe_set: ProbeSet | None = None
        self._stage = 0
        self._report: Callable[[dict[str, float]], None] | None = None

    def _check_settings(self) -> None:
        """Raise for whatever can be seen without a model."""
        s = self.settings
        if s["signal"] not in SIGNALS:
            raise ConfigurationError("Unknown signal.", got=s["signal"], allowed=", ".join(SIGNALS))
        for key in ("probe_size", "probe_batch_size", "probe_every"):
            if not isinstance(s[key], int) or isinstance(s[key], bool) or s[key] < 1:
                raise ConfigurationError(f"{key} is not usable.", got=repr(s[key]), allowed="an integer >= 1")
        if s["probe_size"] < s["probe_batch_size"]:
            raise ConfigurationError(
                "The probe set is smaller than a batch.",
                got=f"probe_size={s['probe_size']}, probe_batch_size={s['probe_batch_size']}",
                fix="Lower probe_batch_size or raise probe_size.",
            )
        self._make_detector(total_updates=10**6, warmup=0, num_stages=2)
        if s["schedule"] is None:
            # Everything but the group names, which need the model.
            everything = {"head", *s["initial"], *([] if isinstance(s["order"], str) else s["order"])}
            UnfreezingSchedule(
                everything, interval=s["interval"], order=s["order"], initial=s["initial"], release=s["release"]
            )
        elif not Path(s["schedule"]).is_file():
            raise ConfigurationError(
                "The schedule file does not exist.",
                got=s["schedule"],
                fix="Write one with: hf-early-ood schedule --model NAME --output FILE",
            )

    # What follows a Trainer's events, in their order.

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Freeze: the optimizer and the wrappers exist and hold every layer by now."""
        model, dataloader = kwargs["model"], kwargs["train_dataloader"]
        if self._freezer is not None:
            self._freezer.restore()  # an earlier attempt ended without on_train_end
        check_launcher(args)
        self._groups = find_layer_groups(model).trainable()
        self._freezer = Freezer({group.name: group.parameters for group in self._groups})
        managed = {name: p for group in self._freezer.managed.values() for name, p in group.items()}
        check_optimizer(kwargs["optimizer"], managed)
        warn_about_loss_scale(args, model)
        for note in self._groups.notes:
            logger.warning(note)

        self.schedule = self._make_schedule(state.max_steps)
        self.detector = self._make_detector(
            total_updates=state.max_steps,
            warmup=args.get_warmup_steps(state.max_steps),
            num_stages=len(self._groups),
        )
        self._probe_set = None
        if self.schedule.interval == AUTO:
            self._check_decision_falls_in_training(state.max_steps)
            self._probe_set = self._make_probe_set(dataloader)
        records = self._restore(state)
        self._log = DynamicsLog(self._dynamics_path(args, state), records)
        if self.settings["self_check"]:
            self._check_groups(model, dataloader)

        self._stage = self.schedule.stage(state.global_step)
        self._freezer.train_only(self.schedule.trainable_in(self._stage))
        if not records:
            self._record_stage(state)
            if self._watching:
                self._measure(model, state)
        # transformers looks the name up when it saves, also if the checkpoint was made without this callback.
        state.stateful_callbacks[type(self).__name__] = self.state()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Change the stage: no gradient exists at this point, so nothing stale can be applied."""
        assert self.schedule is not None and self._freezer is not None  # set in on_train_begin
        stage = self.schedule.stage(state.global_step)
        if stage != self._stage:
            self._stage = stage
            self._freezer.train_only(self.schedule.trainable_in(stage))
            self._record_stage(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Measure, before a checkpoint of this step is written, so that it holds the measurement."""
        if self._watching and state.global_step % self.settings["probe_every"] == 0:
            self._measure(kwargs["model"], state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Give the user's flags back."""
        assert self._freezer is not None
        if self._watching:
            logger.warning(
                f"The signal was not stable after {state.global_step} updates, so nothing was released. "
                "Train longer, or set max_step or a fixed interval."
            )
        self._freezer.restore()
        self._freezer = None

    # What the checkpoint holds.

    def state(self) -> dict[str, Any]:
        """What transformers writes into ``trainer_state.json``."""
        return {
            "args": dict(self.settings),
            "attributes": {
                "learned": {
                    "records": list(self._log.records) if self._log else [],
                    "detector": self.detector.state_dict() if self.detector else None,
                    "probe_set": self._probe_set.fingerprint if self._probe_set else None,
                    "groups": list(self._groups.names) if self._groups else [],
                }
            },
        }

    def _restore(self, state: TrainerState) -> list[dict[str, Any]]:
        """Take the checkpoint's series and decision; return the records. Empty for a new run."""
        assert self.schedule is not None and self.detector is not None and self._groups is not None
        if state.global_step == 0:
            return []
        saved = state.stateful_callbacks.get(type(self).__name__)
        learned = saved["attributes"].get("learned") if isinstance(saved, dict) else None
        if not learned or not learned["records"]:
            raise ResumeError(
                "The checkpoint was made without GradualUnfreezingCallback: its updates trained every layer.",
                got=f"a checkpoint at update {state.global_step}",
                fix="Resume without the callback, or start anew with it.",
            )
        self._check_same("settings", _comparable(saved["args"]), _comparable(self.settings))
        self._check_same("groups", learned["groups"], list(self._groups.names))
        if self._probe_set is not None:
            self._check_same("probe set", learned["probe_set"], self._probe_set.fingerprint)
        self.detector.load_state_dict(learned["detector"])
        if self.detector.decision is not None:
            self.schedule = self.schedule.resolve(decided=self.detector.decision.step)
        return list(learned["records"])

    @staticmethod
    def _check_same(what: str, saved: Any, ours: Any) -> None:
        if saved == ours:
            return
        if isinstance(saved, dict) and isinstance(ours, dict):
            differs = [key for key in ours if saved.get(key) != ours[key]]
            saved, ours = {key: saved.get(key) for key in differs}, {key: ours[key] for key in differs}
        raise ResumeError(
            f"The checkpoint was made with another {what} of GradualUnfreezingCallback.",
            got=f"{ours} now, {saved} in the checkpoint",
            fix="Resume with what the checkpoint was made with, or start anew.",
        )

    # How the parts are made.

    def _make_schedule(self, total_updates: int) -> UnfreezingSchedule:
        assert self._groups is not None
        s = self.settings
        if s["schedule"] is not None:
            schedule = UnfreezingSchedule.from_yaml(Path(s["schedule"]).read_text(encoding="utf-8"))
            if schedule.groups != self._groups.names:
                raise ConfigurationError(
                    "The schedule file was made for another model.",
                    got=list(schedule.groups),
                    allowed=list(self._groups.names),
                    fix="Write a new one with: hf-early-ood schedule --model NAME --output FILE",
                )
        else:
            schedule = UnfreezingSchedule(
                self._groups.names,
                interval=s["interval"],
                order=s["order"],
                initial=s["initial"],
                release=s["release"],
            )
        schedule = schedule.resolve(total_updates=total_updates)
        warning = schedule.check_length(total_updates)
        if warning:
            logger.warning(warning)
        return schedule

    def _make_detector(self, *, total_updates: int, warmup: int, num_stages: int) -> StabilizationDetector:
        s = self.settings
        transient, max_step = s["transient"], s["max_step"]
        if transient == "auto":
            transient = warmup
        if max_step == "auto":
            max_step = max(1, total_updates // max(1, num_stages))
        elif isinstance(max_step, float) and 0.0 < max_step <= 1.0:
            max_step = max(1, math.floor(max_step * total_updates))
        return StabilizationDetector(s["window"], s["tolerance"], transient, max_step)

    def _check_decision_falls_in_training(self, total_updates: int) -> None:
        assert self.detector is not None
        latest = self.detector.max_step
        if latest is None or latest >= total_updates:
            raise ConfigurationError(
                "The decision could fall after the end of training: nothing would ever be released.",
                got=f"max_step={latest}, training makes {total_updates} updates",
                allowed=f"1 to {total_updates - 1}",
                fix='Set max_step="auto", lower it, or train longer.',
            )

    def _make_probe_set(self, dataloader: Any) -> ProbeSet:
        s = self.settings
        dataset = dataloader.dataset if self._probe_dataset is None else self._probe_dataset
        return ProbeSet.from_dataset(
            dataset,
            dataloader.collate_fn,
            size=s["probe_size"],
            batch_size=s["probe_batch_size"],
            seed=s["probe_seed"],
        )

    def _check_groups(self, model: nn.Module, dataloader: Any) -> None:
        dataset = dataloader.dataset if self._probe_dataset is None else self._probe_dataset
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            logger.warning("Layer groups are not self-checked: the training set cannot be indexed.")
            return
        size = min(2, len(dataset))
        batch = ProbeSet.from_dataset(dataset, dataloader.collate_fn, size=size, batch_size=size).batches[0]
        check_layer_groups(model, batch, self._groups)

    def _dynamics_path(self, args: TrainingArguments, state: TrainerState) -> Path | None:
        name = self.settings["dynamics_file"]
        return Path(args.output_dir) / name if name and state.is_world_process_zero else None

    # What happens in a run.

    @property
    def decision(self) -> Decision | None:
        """The automatic decision, once it has fallen."""
        return self.detector.decision if self.detector is not None else None

    @property
    def records(self) -> list[dict[str, Any]]:
        """Measurements and events so far, as in the dynamics file."""
        return self._log.records if self._log is not None else []

    @property
    def _watching(self) -> bool:
        return self._probe_set is not None and self.decision is None

    def report_through(self, log: Callable[[dict[str, float]], None]) -> None:
        """Log through ``Trainer.log`` (trackers included) instead of ``state.log_history`` only."""
        self._report = log

    def _emit(self, state: TrainerState, values: dict[str, float]) -> None:
        if self._report is not None:
            self._report(values)
        else:
            state.log_history.append({**values, "step": state.global_step})

    def _record_stage(self, state: TrainerState) -> None:
        assert self.schedule is not None and self._freezer is not None and self._log is not None
        released = list(self.schedule.stages[self._stage])
        count = self._freezer.num_trainable
        self._log.append(
            {
                "step": state.global_step,
                "event": "stage",
                "stage": self._stage,
                "released": released,
                "trainable_parameters": count,
            }
        )
        logger.info(f"Update {state.global_step}: stage {self._stage}, trains {', '.join(released)} ({count:,}).")
        self._emit(state, {names.LOG_STAGE: self._stage, names.LOG_TRAINABLE: count})

    def _measure(self, model: nn.Module, state: TrainerState) -> None:
        """One measurement, and the decision if it makes the signal stable."""
        assert self._probe_set is not None and self.detector is not None and self.schedule is not None
        assert self._log is not None
        started = time.perf_counter()
        record: dict[str, Any] = {"step": state.global_step, "measure": self.settings["signal"]}
        try:
            trace = fisher_trace(
                model,
                self._probe_set.to(next(model.parameters()).device),
                labels=self.settings["probe_labels"],
                seed=self.settings["probe_seed"],
                groups=self._groups,
            )
            record |= {
                "value": trace.total,
                "normalized": trace.normalized,
                "per_group": trace.per_group,
                "num_examples": trace.num_examples,
                "standard_error": trace.standard_error,
            }
        except NonFiniteError as error:
            logger.warning(f"Update {state.global_step}: no {self.settings['signal']}: {error}")
            record |= {"value": None, "normalized": None, "per_group": {}, "num_examples": self.settings["probe_size"]}
            record["standard_error"] = None
        record["trainable"] = list(self.schedule.trainable_in(self._stage))
        record["seconds"] = time.perf_counter() - started
        record = _from_main_process(record)
        self._log.append(record)
        value = math.nan if record["value"] is None else record["value"]
        if math.isfinite(value):
            self._emit(state, {names.LOG_FISHER_TRACE: value, f"{names.LOG_FISHER_TRACE}_normalized": record["normalized"]})
        decision = self.detector.update(state.global_step, value)
        if decision is not None:
            self._decide(decision, state)

    def _decide(self, decision: Decision, state: TrainerState) -> None:
        assert self.schedule is not None and self._log is not None
        self.schedule = self.schedule.resolve(decided=decision.step)
        self._log.append({"event": "decision", **decision.to_dict(), "settings": self.detector.settings})
        why = "did not become stable" if decision.reason == FALLBACK else "is stable"
        logger.info(f"Update {decision.step}: the {self.settings['signal']} {why}; interval = {decision.step} updates.")
        self._emit(state, {names.LOG_DECISION: decision.step})
        warning = self.schedule.check_length(state.max_steps)
        if warning:
            logger.warning(warning)


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that change the training; where the series is written does not."""
    return {key: value for key, value in settings.items() if key not in ("dynamics_file", "self_check")}


def _from_main_process(record: dict[str, Any]) -> dict[str, Any]:
    """Rank 0's record on every rank: all must take the same decision."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return broadcast_object_list([record], from_process=0)[0]
    return record
