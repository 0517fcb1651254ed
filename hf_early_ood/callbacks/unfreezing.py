"""Gradual unfreezing in any Trainer, with a fixed interval or one decided from signals in the run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.callbacks.deciding import IntervalDecider, check_signals
from hf_early_ood.callbacks.measuring import from_main_process
from hf_early_ood.callbacks.recording import check_counts
from hf_early_ood.callbacks.resumable import check_same
from hf_early_ood.callbacks.selecting import scores_of, select_largest
from hf_early_ood.callbacks.staged import StagedCallback
from hf_early_ood.checks import check_choice
from hf_early_ood.config.checks import SCHEDULE_KEYS
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.likelihood import LABEL_CHOICES
from hf_early_ood.probes.measures import MEASURES, all_settings
from hf_early_ood.schedules import AUTO, Interval, Schedule, UnfreezingSchedule
from hf_early_ood.schedules.base import in_updates
from hf_early_ood.stabilization import Decision
from hf_early_ood.voting import SignalVote

logger = logging.get_logger(__name__)


class GradualUnfreezingCallback(StagedCallback):
    r"""Train the head first and release the other layer groups step by step, in any ``Trainer``.

    Liu & Gurevych 2024 (arXiv 2403.15210); in general form Liu et al. 2024 (FUN, arXiv 2301.05487). The orders, and
    what they are known as, are in the table of :class:`~hf_early_ood.UnfreezingSchedule`. With ``interval="auto"`` a
    signal, such as the Fisher trace of the parameters that train,

    .. math:: \mathrm{tr} F = E_x E_{y \sim p(\cdot|x)} \lVert \nabla \log p(y|x) \rVert^2,

    is measured on a fixed probe set every ``probe_every`` updates while the initial groups train. As soon as it is
    stable (:class:`~hf_early_ood.StabilizationDetector`), after t updates say, k = t and the release begins. The
    paper finds k in a separate run; up to update k that run and this one are the same, so none is needed.

    The callback freezes at ``on_train_begin`` (the optimizer and the DDP wrapper exist, and hold every layer),
    changes stages at ``on_step_begin`` only, and gives the user's flags back at ``on_train_end``. What it learned
    is in the checkpoint: a resumed run is bit-identical to one that was not stopped, with default arguments.

    Known to help: cross-lingual question answering (XLM-R with LoRA, k from the Fisher trace: +2.0 F1 on XQuAD and +2.2
    on MLQA over standard fine-tuning, +0.7 accuracy on XNLI; v1, tables 4 and 7). Known not to: mDeBERTa on XNLI
    (-0.6, FUN). Bottom-up is a negative control: XLM-R on XQuAD 73.0 -> 65.4 F1 against top-down (FUN). Cost: a stage
    costs a forward pass and the backward pass of what trains, so that an update is cheaper than in standard fine-tuning
    until everything is released; a measurement or selection costs about what one update of its examples does.

    Args:
        interval: k in updates (int >= 1), as a fraction of all updates (float in (0, 1)), or "auto".
        order: "top_down", "bottom_up", "random", "fisher_trace" (FUN), "fisher_trace_batch_mean" (FUN's code),
            "relative_gradient_norm", or a list of group names. What selects is measured on the probe set, on all groups
            that are still frozen, when a release is due.
        initial: Groups that train from the start.
        release: "interval": one group every k updates. "all_at_once": everything at the first release. A number of
            updates (int) or fraction of training (float): all groups within so many updates after the first release.
        first: Intervals before the first release.
        start: Updates, or fraction of training, of standard training before anything is frozen (late start).
        embeddings: "in_order", "last", "with_block_0" or "never".
        order_seed: Draws the random order.
        schedule: Path of a schedule file (``hf-early-ood schedule --output``); replaces the eight above.
        signal: What decides: a measure ("fisher_trace", "average_sharpness", "worst_case_sharpness", "gradient_norm",
            ...), "log/<key>" for a value that the Trainer logs, such as "log/loss", or a list of them. (The Trainer
            logs the mean loss since it logged before: resumed is that exactly where it logged at the checkpoint.)
        vote: Of several signals: "all", "majority" or "any" must be stable.
        signal_settings: Further arguments of the measures, by measure, for signals and selections.
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
        release: str | int | float = "interval",
        first: int = 1,
        start: int | float = 0,
        embeddings: str = "in_order",
        order_seed: int = 0,
        schedule: str | os.PathLike[str] | None = None,
        signal: str | Sequence[str] = names.FISHER_TRACE,
        vote: str = "all",
        signal_settings: Mapping[str, Mapping[str, Any]] | None = None,
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
            "first": first,
            "start": start,
            "embeddings": embeddings,
            "order_seed": order_seed,
            "schedule": None if schedule is None else os.fspath(schedule),
            "signal": signal if isinstance(signal, str) else list(signal),
            "vote": vote,
            "signal_settings": {name: dict(values) for name, values in (signal_settings or {}).items()},
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
        self._decider: IntervalDecider | None = None
        self._probe_set: ProbeSet | None = None
        self._selection_seconds = 0.0
        self._selection: dict[str, Any] | None = None  # the record of the last one

    @property
    def _signals(self) -> list[str]:
        signal = self.settings["signal"]
        return [signal] if isinstance(signal, str) else signal

    def _measure_settings(self, measure: str) -> dict[str, Any]:
        """Arguments of a measure; ``probe_labels`` are those of the Fisher trace."""
        labels = {"labels": self.settings["probe_labels"]} if measure == names.FISHER_TRACE else {}
        return {**labels, **self.settings["signal_settings"].get(measure, {})}

    def _check_settings(self) -> None:
        """Raise for whatever can be seen without a model."""
        s = self.settings
        check_counts(s, "probe_every")
        check_choice("labels", s["probe_labels"], LABEL_CHOICES)
        self._make_vote(10**6, 0, 2)
        check_signals(self._signals, s["signal_settings"], self._written().select)

    # What was decided, during training and after it.

    @property
    def decision(self) -> Decision | None:
        """The automatic decision, once it has fallen."""
        return self._decider.decision if self._decider else None

    @property
    def probe_seconds(self) -> float:
        """Seconds that measurements have taken in this process."""
        return self._selection_seconds + (self._decider.seconds if self._decider else 0.0)

    @property
    def series(self) -> dict[str, dict[str, Any]]:
        """What is measured to decide the interval: measure -> its settings. Empty where the interval is fixed."""
        kinds = [name for name in self._signals if name in MEASURES] if self._written().interval == AUTO else []
        return {name: all_settings(name, self._measure_settings(name)) for name in kinds}

    # How the parts are made.

    def _schedule_of(self, groups: tuple[str, ...]) -> UnfreezingSchedule:
        s = self.settings
        keys = {key: s[key] for key in SCHEDULE_KEYS if key != "order_seed"}
        return UnfreezingSchedule(groups, seed=s["order_seed"], **keys)

    def _written(self) -> UnfreezingSchedule:
        """The schedule without a model: all but which layer groups there are."""
        s = self.settings
        if s["schedule"] is None:
            return self._schedule_of(
                tuple({"head", *s["initial"], *([] if isinstance(s["order"], str) else s["order"])})
            )
        file = Path(s["schedule"]).expanduser()
        if not file.is_file():
            UnfreezingSchedule.load(file, ())  # raises
        return UnfreezingSchedule.from_yaml(file.read_text(encoding="utf-8"))

    def make_schedule(self, groups: tuple[str, ...], total_updates: int | None) -> UnfreezingSchedule:
        """The schedule of the settings, or of the file that they name, for a model with these groups."""
        path = self.settings["schedule"]
        schedule = self._schedule_of(groups) if path is None else UnfreezingSchedule.load(path, groups)
        return schedule.resolve(total_updates=total_updates)

    def measures(self, model: nn.Module, total_updates: int | None) -> bool:
        """Whether a training of this length takes measurements on the probe set."""
        schedule = self.make_schedule(find_layer_groups(model).trainable().names, total_updates)
        return not schedule.is_resolved or schedule.select is not None

    def _make_vote(self, total_updates: int, warmup: int, num_groups: int) -> SignalVote:
        s = self.settings
        transient, max_step = s["transient"], s["max_step"]
        if transient == AUTO:
            transient = warmup
        if max_step == AUTO:
            # Not before the signal can be judged at all.
            intervals = num_groups + (s["first"] if s["schedule"] is None else 1) - 1
            max_step = max(total_updates // intervals, self._first_chance(transient))
        elif max_step == 1.0 and isinstance(max_step, float):
            max_step = total_updates
        return SignalVote(
            self._signals,
            s["vote"],
            window=s["window"],
            tolerance=s["tolerance"],
            transient=transient,
            max_step=in_updates(max_step, total_updates),
        )

    def _first_chance(self, transient: int) -> int:
        """The first update at which the detector can find the signal stable: window + 1 measurements are in."""
        every = self.settings["probe_every"]
        return every * (math.ceil(transient / every) + self.settings["window"])

    def _check_plan(self, schedule: Schedule, groups: LayerGroups, total_updates: int, warmup: int) -> None:
        """Refuse settings with which the signal could not decide, or with which the decision would be of no use."""
        if schedule.is_resolved:
            return
        vote = self._make_vote(total_updates, warmup, len(groups))
        latest, first = vote.max_step or 0, self._first_chance(vote.transient)
        every, window = self.settings["probe_every"], self.settings["window"]
        intervals = schedule.first if isinstance(schedule, UnfreezingSchedule) else 1
        if intervals * latest >= total_updates:
            raise ConfigurationError(
                "The decision could fall after the end of training: nothing would ever be released.",
                got=f"max_step={latest}, training makes {total_updates} updates"
                + (f", the first release is after {intervals} intervals" if intervals > 1 else ""),
                allowed=f"1 to {(total_updates - 1) // intervals}",
                fix='Set max_step="auto", lower probe_every or window, or train longer.',
            )
        if latest < first:
            raise ConfigurationError(
                "The signal could not be judged before max_step: every decision would be the fallback.",
                got=f"max_step={latest}, but with probe_every={every}, window={window} and "
                f"transient={vote.transient} the first possible decision is at update {first}",
                fix="Lower probe_every or window, raise max_step, or set a fixed interval.",
            )

    def _prepare(
        self,
        model: nn.Module,
        groups: LayerGroups,
        schedule: Schedule,
        *,
        args: TrainingArguments,
        state: TrainerState,
        dataloader: Any,
        saved: Mapping[str, Any] | None,
    ) -> None:
        self._decider, self._probe_set, self._selection, self._selection_seconds = None, None, None, 0.0
        if schedule.is_resolved and schedule.select is None:
            return  # nothing has to be measured
        self._probe_set = self._make_probe_set(model, dataloader)
        if saved is not None:
            check_same("probe set", saved["probe_set"], self._probe_set.fingerprint)
        if schedule.is_resolved:
            return
        vote = self._make_vote(state.max_steps, args.get_warmup_steps(state.max_steps), len(groups))
        settings = {name: self._measure_settings(name) for name in self._signals}
        self._decider = IntervalDecider(vote, self._probe_set, groups, settings, self.settings["probe_seed"])
        if saved is not None:
            self._decider.restore(saved)

    def _resumed(self, state: TrainerState) -> None:
        if self._run and self.decision is not None:
            self._run.schedule = self._run.schedule.resolve(decided=self.decision.step)

    def learned(self) -> dict[str, Any] | None:
        """What a checkpoint must hold; None before training."""
        learned = super().learned()
        if learned is None or self._probe_set is None:
            return learned
        decided = self._decider.learned() if self._decider else {}
        return {**learned, "probe_set": self._probe_set.fingerprint, **decided}

    # What happens in a run.

    def _begun(self, model: nn.Module, state: TrainerState) -> None:
        self._measure(model, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Measure, before a checkpoint of this step is written, so that it holds the measurement."""
        super().on_step_end(args, state, control, **kwargs)
        # Also at max_step, so that a forced decision falls there and not up to probe_every updates later.
        latest = self._decider.vote.max_step if self._decider else None
        if state.global_step % self.settings["probe_every"] == 0 or state.global_step == latest:
            self._measure(kwargs["model"], state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Give the user's flags back."""
        if self._is_training and self._decider is not None and self._decider.decision is None:
            logger.warning(
                f"Training ended after {state.global_step} updates, before the signal was stable or max_step was "
                "reached: nothing was released."
            )
        super().on_train_end(args, state, control, **kwargs)

    def _measure(self, model: nn.Module, state: TrainerState) -> None:
        run, decider = self._run, self._decider
        if run is None or decider is None or decider.decision is not None:
            return
        for record in decider.watch(model, state, run.schedule.trainable_in(run.stage), self._live(state)):
            run.log.append(record)
        if decider.decision is not None:
            run.decide(decider.decision.step, state.max_steps)

    def _select(self, schedule: Schedule, model: nn.Module, state: TrainerState) -> Sequence[str]:
        """The frozen groups with the largest score, measured on the probe set."""
        run, probe_set = self._run, self._probe_set
        if run is None or probe_set is None or schedule.select is None:
            raise RuntimeError("a selection outside of training")
        # Releases of one update share the scores: nothing has moved between them.
        if self._selection is None or self._selection["step"] != state.global_step:
            record = scores_of(
                schedule.select,
                model,
                run.freezer,
                probe_set,
                run.groups,
                seed=self.settings["probe_seed"],
                settings=self._measure_settings(schedule.select),
            )
            self._selection_seconds += record["seconds"]
            # A name of its own: the signal may be the same measure, of what trains only.
            record = {"step": state.global_step, **record, "measure": f"{names.SELECTION}/{schedule.select}"}
            self._selection = from_main_process(record)
            run.log.append(self._selection)
            self._live(state).measurement(self._selection)
        return select_largest(schedule.candidates(), self._selection["per_group"], schedule.select)
