"""Gradual unfreezing in any Trainer, with a fixed interval or one decided from the Fisher trace in the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.callbacks.dynamics_log import DynamicsLog
from hf_early_ood.callbacks.setups import check_launcher, check_optimizer, warn_about_loss_scale
from hf_early_ood.callbacks.unfreezing_run import UnfreezingRun, check_same
from hf_early_ood.errors import ConfigurationError, ResumeError
from hf_early_ood.freezing import Freezer
from hf_early_ood.layers import LayerGroups, check_layer_groups, find_layer_groups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.schedules import AUTO, Interval, UnfreezingSchedule
from hf_early_ood.stabilization import Decision, StabilizationDetector

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
        self._run: UnfreezingRun | None = None
        self._is_training = False
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
        self._make_detector(10**6, 0, 2)
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

    # What was decided and recorded, during training and after it.

    @property
    def schedule(self) -> UnfreezingSchedule | None:
        """The schedule, once training has begun."""
        return self._run.schedule if self._run else None

    @property
    def decision(self) -> Decision | None:
        """The automatic decision, once it has fallen."""
        return self._run.detector.decision if self._run else None

    @property
    def records(self) -> list[dict[str, Any]]:
        """Measurements and events so far, as in the dynamics file."""
        return self._run.log.records if self._run else []

    @property
    def stage(self) -> int:
        """The stage that trains now; 0 before training."""
        return self._run.stage if self._run else 0

    def preview(self, model: nn.Module, total_updates: int) -> str:
        """The stage table of a model, without training it.

        Raises:
            EarlyOODError: Whatever :meth:`on_train_begin` would find wrong with model, schedule and length.
        """
        groups = find_layer_groups(model).trainable()
        schedule = self._make_schedule(groups.names, total_updates)
        if not schedule.is_resolved:
            _check_decision_falls_in_training(
                self._make_detector(total_updates, 0, len(groups)).max_step, total_updates
            )
        warning = schedule.check_length(total_updates)
        notes = [f"Note: {note}" for note in (*groups.notes, *([warning] if warning else []))]
        return "\n".join([groups.table(), f"{total_updates} updates", schedule.to_yaml().rstrip(), *notes])

    # What follows a Trainer's events, in their order.

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Freeze: the optimizer and the wrappers exist and hold every layer by now."""
        self.release_leftovers()
        check_launcher(args)
        model, dataloader = kwargs["model"], kwargs["train_dataloader"]
        groups = find_layer_groups(model).trainable()
        freezer = Freezer({group.name: group.parameters for group in groups})
        check_optimizer(kwargs["optimizer"], {name: p for g in freezer.managed.values() for name, p in g.items()})
        warn_about_loss_scale(args, model)
        for note in groups.notes:
            logger.warning(note)
        if self.settings["self_check"]:
            self._check_groups(model, groups, dataloader)

        total = state.max_steps
        schedule = self._make_schedule(groups.names, total)
        detector = self._make_detector(total, args.get_warmup_steps(total), len(groups))
        probe_set = None
        if not schedule.is_resolved:
            _check_decision_falls_in_training(detector.max_step, total)
            probe_set = self._make_probe_set(dataloader)
        saved = self._saved(state)
        run = UnfreezingRun(groups, freezer, schedule, detector, probe_set, self._open_log(args, state))
        if saved is not None:
            run.restore(saved)
        self._run, self._is_training = run, True
        run.begin(total, state.global_step, self._emitter(state))
        if saved is None:
            self._measure(model, state)
        # transformers looks the name up when it saves, also if the checkpoint was made without this callback.
        stateful: Any = state.stateful_callbacks
        stateful[type(self).__name__] = self.state()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Change the stage: no gradient exists at this point, so nothing stale can be applied."""
        if self._run:
            self._run.advance(state.global_step, self._emitter(state))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Measure, before a checkpoint of this step is written, so that it holds the measurement."""
        # Also at max_step, so that a forced decision falls there and not up to probe_every updates later.
        latest = self._run.detector.max_step if self._run else None
        if state.global_step % self.settings["probe_every"] == 0 or state.global_step == latest:
            self._measure(kwargs["model"], state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Give the user's flags back."""
        if self._run and self._run.is_watching:
            logger.warning(
                f"Training ended after {state.global_step} updates, before the signal was stable or max_step was "
                "reached: nothing was released."
            )
        self.release_leftovers()

    def release_leftovers(self) -> None:
        """Give the user's flags back, at the end of training or after an attempt that had no end."""
        if self._run and self._is_training:
            self._run.freezer.restore()
        self._is_training = False

    # What the checkpoint holds.

    def state(self) -> dict[str, Any]:
        """What transformers writes into ``trainer_state.json``."""
        return {
            "args": dict(self.settings),
            "attributes": {"learned": self._run.learned() if self._run else None},
        }

    def _saved(self, state: TrainerState) -> dict[str, Any] | None:
        """What the checkpoint brings; None for a new run."""
        if state.global_step == 0:
            return None
        stateful: Any = state.stateful_callbacks
        saved = stateful.get(type(self).__name__)
        learned = saved["attributes"].get("learned") if isinstance(saved, dict) else None
        if learned is None:
            raise ResumeError(
                "The checkpoint was made without GradualUnfreezingCallback: its updates trained every layer.",
                got=f"a checkpoint at update {state.global_step}",
                fix="Resume without the callback, or start anew with it.",
            )
        check_same("settings", _comparable(saved["args"]), _comparable(self.settings))
        return learned

    # How the parts are made.

    def _make_schedule(self, groups: tuple[str, ...], total_updates: int) -> UnfreezingSchedule:
        s = self.settings
        if s["schedule"] is not None:
            schedule = UnfreezingSchedule.from_yaml(Path(s["schedule"]).read_text(encoding="utf-8"))
            if schedule.groups != groups:
                raise ConfigurationError(
                    "The schedule file was made for another model.",
                    got=list(schedule.groups),
                    allowed=list(groups),
                    fix="Write a new one with: hf-early-ood schedule --model NAME --output FILE",
                )
        else:
            schedule = UnfreezingSchedule(
                groups, interval=s["interval"], order=s["order"], initial=s["initial"], release=s["release"]
            )
        return schedule.resolve(total_updates=total_updates)

    def _make_detector(self, total_updates: int, warmup: int, num_stages: int) -> StabilizationDetector:
        s = self.settings
        transient, max_step = s["transient"], s["max_step"]
        if transient == AUTO:
            transient = warmup
        if max_step == AUTO:
            max_step = max(1, total_updates // num_stages)
        elif isinstance(max_step, float) and 0.0 < max_step <= 1.0:
            max_step = max(1, math.floor(max_step * total_updates))
        return StabilizationDetector(s["window"], s["tolerance"], transient, max_step)

    def _examples(self, dataloader: Any) -> Any:
        return dataloader.dataset if self._probe_dataset is None else self._probe_dataset

    def _make_probe_set(self, dataloader: Any) -> ProbeSet:
        return ProbeSet.from_dataset(
            self._examples(dataloader),
            dataloader.collate_fn,
            size=self.settings["probe_size"],
            batch_size=self.settings["probe_batch_size"],
            seed=self.settings["probe_seed"],
        )

    def _check_groups(self, model: nn.Module, groups: LayerGroups, dataloader: Any) -> None:
        examples = self._examples(dataloader)
        if not hasattr(examples, "__getitem__") or not hasattr(examples, "__len__"):
            logger.warning("The layer groups are not self-checked: the examples cannot be indexed.")
            return
        size = min(2, len(examples))
        batch = ProbeSet.from_dataset(examples, dataloader.collate_fn, size=size, batch_size=size).batches[0]
        device = next(model.parameters()).device
        check_layer_groups(model, {key: value.to(device) for key, value in batch.items()}, groups)

    def _open_log(self, args: TrainingArguments, state: TrainerState) -> DynamicsLog:
        name = self.settings["dynamics_file"]
        return DynamicsLog(Path(str(args.output_dir)) / name if name and state.is_world_process_zero else None)

    # What happens in a run.

    def _measure(self, model: nn.Module, state: TrainerState) -> None:
        if self._run and self._run.is_watching:
            labels, seed = self.settings["probe_labels"], self.settings["probe_seed"]
            self._run.measure(model, state.global_step, state.max_steps, labels, seed, self._emitter(state))

    def report_through(self, log: Callable[[dict[str, float]], None]) -> None:
        """Log through ``Trainer.log`` (trackers included) instead of ``state.log_history`` only."""
        self._report = log

    def _emitter(self, state: TrainerState) -> Callable[[dict[str, float]], None]:
        if self._report is not None:
            return self._report
        return lambda values: state.log_history.append({**values, "step": state.global_step})


def _check_decision_falls_in_training(max_step: int | None, total_updates: int) -> None:
    if max_step is None or max_step >= total_updates:
        raise ConfigurationError(
            "The decision could fall after the end of training: nothing would ever be released.",
            got=f"max_step={max_step}, training makes {total_updates} updates",
            allowed=f"1 to {total_updates - 1}",
            fix='Set max_step="auto", lower it, or train longer.',
        )


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that change the training; where the series is written does not."""
    return {key: value for key, value in settings.items() if key not in ("dynamics_file", "self_check")}
