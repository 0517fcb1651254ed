"""Gradual unfreezing in any Trainer, with a fixed interval or one decided from the Fisher trace in the run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.callbacks.compiling import is_compiled, recompilation_allowed
from hf_early_ood.callbacks.recording import RecordingCallback, check_counts
from hf_early_ood.callbacks.setups import (
    check_launcher,
    check_optimizer,
    warn_about_loss_scale,
    warn_about_resuming,
    without_input_gradients,
)
from hf_early_ood.callbacks.unfreezing_run import UnfreezingRun, as_learned
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.freezing import Freezer, frozen_by, thaw
from hf_early_ood.layers import check_layer_groups, find_layer_groups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.likelihood import LABEL_CHOICES, check_choice
from hf_early_ood.schedules import AUTO, Interval, UnfreezingSchedule
from hf_early_ood.sharding import begin, gathered
from hf_early_ood.stabilization import Decision, StabilizationDetector

logger = logging.get_logger(__name__)

SIGNALS = (names.FISHER_TRACE,)


class GradualUnfreezingCallback(RecordingCallback):
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
            "auto": all updates / number of layer groups, so that every group is released in time, or the first
            update at which the signal can be judged, if that is later.
        probe_size: Number of probe examples, drawn once from the training set (or ``probe_dataset``).
        probe_batch_size: Probe examples per forward pass.
        probe_every: Updates between two measurements.
        probe_seed: Seed of the choice of examples and of the label draws, the same at every measurement.
        probe_labels: "sampled", "expected", "empirical" or "argmax"; see :func:`~hf_early_ood.fisher_trace`.
        probe_dataset: Tokenized examples to measure on instead of the training set. Reading an example must not
            change the data set: one that augments with a generator of its own would be moved on by it.
        self_check: Prove with one forward pass a stage that frozen layers cost no backward pass.
        check_ranks: Stop if the ranks of a distributed training hold different weights, bit for bit. Looked at after
            the first update of every stage, because a difference appears in the first update of a layer that the
            ranks do not train together, and at the end of every epoch, the last one included.
        dynamics_file: File in ``args.output_dir`` for the series; None writes none.

    Raises:
        ConfigurationError: A setting is not usable (at once, or before the first update).
        UnsupportedSetupError: The launcher cannot do it correctly (before the first update), or the ranks drift apart,
            or the optimizer moves frozen layers.
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
        schedule: str | os.PathLike[str] | None = None,
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
        check_ranks: bool = True,
        dynamics_file: str | None = names.DYNAMICS_FILE,
    ) -> None:
        settings = {
            "interval": interval,
            "order": order if isinstance(order, str) else list(order),
            "initial": list(initial) if not isinstance(initial, str) else initial,
            "release": release,
            "schedule": None if schedule is None else os.fspath(schedule),
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
            "check_ranks": check_ranks,
            "dynamics_file": dynamics_file,
        }
        super().__init__(settings, probe_dataset)
        self._check_settings()
        self._run: UnfreezingRun | None = None
        self._is_training = False
        self._input_gradients: Callable[[], None] = lambda: None
        self._recompilations: Callable[[], None] = lambda: None
        self._rewrap: Callable[[], None] | None = None
        self.checks_loss_scale = True  # EarlyOODTrainer has a loss of its own

    def _check_settings(self) -> None:
        """Raise for whatever can be seen without a model."""
        s = self.settings
        if s["signal"] not in SIGNALS:
            raise ConfigurationError("Unknown signal.", got=s["signal"], allowed=", ".join(SIGNALS))
        check_counts(s, "probe_every")
        check_choice("labels", s["probe_labels"], LABEL_CHOICES)
        self._make_detector(10**6, 0, 2)
        if s["schedule"] is None:
            # Everything but the group names, which need the model.
            everything = {"head", *s["initial"], *([] if isinstance(s["order"], str) else s["order"])}
            UnfreezingSchedule(
                everything, interval=s["interval"], order=s["order"], initial=s["initial"], release=s["release"]
            )
        elif not Path(s["schedule"]).expanduser().is_file():
            UnfreezingSchedule.load(s["schedule"], ())  # raises

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
    def probe_seconds(self) -> float:
        """Seconds that measurements have taken in this process."""
        return self._run.probe_seconds if self._run else 0.0

    @property
    def stage(self) -> int:
        """The stage that trains now; 0 before training."""
        return self._run.stage if self._run else 0

    def preview(self, model: nn.Module, total_updates: int, warmup: int = 0) -> str:
        """The stage table of a model, without training it.

        Raises:
            EarlyOODError: Whatever :meth:`on_train_begin` would find wrong with model, schedule and length.
        """
        groups = find_layer_groups(model).trainable()
        schedule = self._make_schedule(groups.names, total_updates)
        if not schedule.is_resolved:
            self._check_decision(self._make_detector(total_updates, warmup, len(groups)), total_updates)
        warning = schedule.check_length(total_updates)
        notes = [f"Note: {note}" for note in (*groups.notes, *([warning] if warning else []))]
        return "\n".join([groups.table(), f"{total_updates} updates", schedule.to_yaml().rstrip(), *notes])

    # What follows a Trainer's events, in their order.

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Freeze: the optimizer and the wrappers exist and hold every layer by now."""
        model, dataloader = kwargs["model"], kwargs["train_dataloader"]
        self.release_leftovers(model, state)
        check_launcher(args, model, rewraps=self._rewrap is not None)
        begin(model)
        groups = find_layer_groups(model).trainable()
        freezer = Freezer({group.name: group.parameters for group in groups}, model, owner=state)
        check_optimizer(kwargs["optimizer"], {name: p for g in freezer.managed.values() for name, p in g.items()})
        if self.checks_loss_scale:
            warn_about_loss_scale(args, model)
            warn_about_resuming(args, model)
        for note in groups.notes:
            logger.warning(note)
        # Checkpointing lets inputs require gradients, and with them everything above, frozen or not.
        self._input_gradients = without_input_gradients(model, args)
        if self.settings["self_check"]:
            self._check_groups(model, dataloader)

        total = state.max_steps
        schedule = self._make_schedule(groups.names, total)
        detector = self._make_detector(total, args.get_warmup_steps(total), len(groups))
        probe_set = None
        if not schedule.is_resolved:
            self._check_decision(detector, total)
            probe_set = self._make_probe_set(model, dataloader)
        saved = self._saved(state)
        log, rewrap = self._open_log(args, state), self._rewrap or (lambda: None)
        run = UnfreezingRun(groups, freezer, schedule, detector, probe_set, log, rewrap)
        if saved is not None:
            run.restore(saved)
        self._run, self._is_training = run, True
        if is_compiled(kwargs["model"], args):
            self._recompilations = recompilation_allowed(len(schedule.stages))
        run.begin(total, state.global_step, self._emitter(state))
        if saved is None:
            self._measure(model, state)
        self._announce(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Change the stage: no gradient exists at this point, so nothing stale can be applied."""
        if self._run:
            self._run.advance(state.global_step, self._emitter(state))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Measure, before a checkpoint of this step is written, so that it holds the measurement."""
        if self._run:
            self._run.check_frozen(state.global_step)
            if self.settings["check_ranks"]:
                self._run.check_ranks(state.global_step)
        # Also at max_step, so that a forced decision falls there and not up to probe_every updates later.
        latest = self._run.detector.max_step if self._run else None
        if state.global_step % self.settings["probe_every"] == 0 or state.global_step == latest:
            self._measure(kwargs["model"], state)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Look at the ranks again; training ends with the end of an epoch, also one that is cut short."""
        if self._run and self.settings["check_ranks"]:
            self._run.check_ranks(state.global_step, again=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Give the user's flags back."""
        if self._run and self._run.is_watching:
            logger.warning(
                f"Training ended after {state.global_step} updates, before the signal was stable or max_step was "
                "reached: nothing was released."
            )
        self._end()
        super().on_train_end(args, state, control, **kwargs)

    def rewrap_through(self, rewrap: Callable[[], None] | None) -> None:
        """Call ``rewrap`` after every change of what trains, on every rank."""
        self._rewrap = rewrap

    def release_leftovers(self, model: nn.Module, state: TrainerState | None = None) -> None:
        """Give the user's flags back after an attempt that had no end, also one of another Trainer.

        Raises:
            ConfigurationError: The model is being frozen by another callback of this very training.
        """
        self._end()
        freezer = frozen_by(model)
        if freezer is not None and state is not None and freezer.owner is state:
            raise ConfigurationError(
                "Two GradualUnfreezingCallbacks in one training.", fix="Pass one of them to the Trainer."
            )
        thaw(model)

    def _end(self) -> None:
        if self._run and self._is_training:
            self._run.freezer.restore()
            self._input_gradients()
            self._recompilations()
        self._is_training = False

    def as_saved(self, model: nn.Module, state: TrainerState) -> AbstractContextManager[None]:
        """Require a gradient, inside a block, of what did when the checkpoint was written that is being resumed.

        Raises:
            ResumeError: The checkpoint belongs to other settings.
        """
        saved = self._saved(state)
        return nullcontext() if saved is None else as_learned(model, saved)

    def learned(self) -> dict[str, Any] | None:
        """What a checkpoint must hold; None before training."""
        return self._run.learned() if self._run else None

    # How the parts are made.

    def _make_schedule(self, groups: tuple[str, ...], total_updates: int) -> UnfreezingSchedule:
        s = self.settings
        if s["schedule"] is not None:
            schedule = UnfreezingSchedule.load(s["schedule"], groups)
        else:
            schedule = UnfreezingSchedule(
                groups, interval=s["interval"], order=s["order"], initial=s["initial"], release=s["release"]
            )
        return schedule.resolve(total_updates=total_updates)

    def _make_detector(self, total_updates: int, warmup: int, num_groups: int) -> StabilizationDetector:
        s = self.settings
        transient, max_step = s["transient"], s["max_step"]
        if transient == AUTO:
            transient = warmup
        if max_step == AUTO:
            # Not before the signal can be judged at all.
            max_step = max(total_updates // num_groups, self._first_chance(transient))
        elif isinstance(max_step, float) and 0.0 < max_step <= 1.0:
            max_step = max(1, math.floor(max_step * total_updates))
        return StabilizationDetector(s["window"], s["tolerance"], transient, max_step)

    def _first_chance(self, transient: int) -> int:
        """The first update at which the detector can find the signal stable: window + 1 measurements are in."""
        every = self.settings["probe_every"]
        return every * (math.ceil(transient / every) + self.settings["window"])

    def _check_decision(self, detector: StabilizationDetector, total_updates: int) -> None:
        """Refuse settings with which the signal could not decide, or with which the decision would be of no use."""
        latest, first = detector.max_step or 0, self._first_chance(detector.transient)
        every, window = self.settings["probe_every"], self.settings["window"]
        if latest >= total_updates:
            raise ConfigurationError(
                "The decision could fall after the end of training: nothing would ever be released.",
                got=f"max_step={latest}, training makes {total_updates} updates",
                allowed=f"1 to {total_updates - 1}",
                fix='Set max_step="auto", lower probe_every or window, or train longer.',
            )
        if latest < first:
            raise ConfigurationError(
                "The signal could not be judged before max_step: every decision would be the fallback.",
                got=f"max_step={latest}, but with probe_every={every}, window={window} and "
                f"transient={detector.transient} the first possible decision is at update {first}",
                fix="Lower probe_every or window, raise max_step, or set a fixed interval.",
            )

    def _check_groups(self, model: nn.Module, dataloader: Any) -> None:
        examples = self._examples(model, dataloader)
        if not hasattr(examples, "__getitem__") or not hasattr(examples, "__len__"):
            logger.warning("The layer groups are not self-checked: the examples cannot be indexed.")
            return
        size = min(2, len(examples))
        batch = ProbeSet.from_dataset(examples, dataloader.collate_fn, size=size, batch_size=size).batches[0]
        with gathered(model):
            device = next(model.parameters()).device
            inputs = {key: value.to(device) for key, value in batch.items()}
            check_layer_groups(model, inputs, find_layer_groups(model).trainable())

    # What happens in a run.

    def _measure(self, model: nn.Module, state: TrainerState) -> None:
        if self._run and self._run.is_watching:
            labels, seed = self.settings["probe_labels"], self.settings["probe_seed"]
            self._run.measure(model, state.global_step, state.max_steps, labels, seed, self._emitter(state))
