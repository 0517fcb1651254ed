"""Any set of measures while any Trainer trains, cheap enough to leave on, and without a trace on the training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.callbacks.dynamics_log import DynamicsLog
from hf_early_ood.callbacks.measuring import check_deterministic, from_main_process, measure_in_training
from hf_early_ood.callbacks.recording import RecordingCallback, check_counts, trainable_groups
from hf_early_ood.callbacks.resumable import check_same
from hf_early_ood.callbacks.setups import check_shards, check_step
from hf_early_ood.callbacks.start_keeping import StartKeeper
from hf_early_ood.checks import check_flags
from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.measures import check_measures, reads_examples

logger = logging.get_logger(__name__)

DECISION = "decision"


class EarlyDynamicsCallback(RecordingCallback):
    """Measure the early period of fine-tuning: Fisher trace, sharpness, curvature, every few updates.

    The measurements are made on a fixed probe set, in eval mode, on the parameters that train at that moment. Training
    is bit-for-bit the same with and without them. Every one is a line of ``dynamics.jsonl`` in the output folder as
    soon as it is made, and is logged under ``early_ood/<measure>`` and, by layer group, ``early_ood/<measure>/<group>``
    (to every tracker in `EarlyOODTrainer` and after `watch`, else to ``state.log_history``).

    "trajectory" is measured from the weights before the first update. When training begins, the main process writes
    them to ``_trajectory/start.safetensors`` in the output folder, where a training that is resumed finds them again.
    What is counted, and how, `hf_early_ood.probes.trajectory.trajectory` says. Alone, it needs no probe examples.

    Args:
        measures: Names of `hf_early_ood.probes.measures.MEASURES`.
        every: Updates between two measurements.
        until: Last update that is measured; "decision": up to the automatic decision of a
            `GradualUnfreezingCallback` in the same training; None: to the end.
        budget: Largest share of the time of training, a fraction in (0, 1), that measurements may take so far; the
            next one waits until there is room. None: no limit.
        settings: Further arguments by measure, e.g. ``{"average_sharpness": {"rho": 0.05}}``.
        probe_dataset: Tokenized examples to measure on instead of the training set.
        probe_size: Number of probe examples, drawn once.
        probe_batch_size: Probe examples per forward pass.
        probe_seed: Seed of the choice of examples and of the measures' random numbers, the same at every measurement.
        dynamics_file: File in ``args.output_dir`` for the series; None writes none.
        start_on_disk: For "trajectory": map the weights at the start into memory from where they were written, instead
            of holding a copy on the CPU.
        update_direction: For "trajectory": measure the last update, too, for which the weights are copied just before
            it is made, and freed after the measurement.

    Raises:
        ConfigurationError: A setting is not usable, the Trainer has two of these callbacks, or a
            `PerturbationCallback` comes before it.
        DataError: Nothing is predicted for any probe example.
        ProbeError: The model gives another loss for the same probe examples when asked twice.
        ResumeError: The checkpoint belongs to other settings or other probe examples.

    Example:
        >>> callback = EarlyDynamicsCallback(["fisher_trace", "average_sharpness"], every=20, until=200, budget=0.05)
        >>> # Trainer(..., callbacks=[callback]).train()
        >>> callback.records
        []
    """

    def __init__(
        self,
        measures: Sequence[str] = (names.FISHER_TRACE,),
        *,
        every: int = 10,
        until: int | str | None = None,
        budget: float | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        probe_dataset: Any = None,
        probe_size: int = 128,
        probe_batch_size: int = 32,
        probe_seed: int = 0,
        dynamics_file: str | None = names.DYNAMICS_FILE,
        start_on_disk: bool = False,
        update_direction: bool = False,
    ) -> None:
        measures = [measures] if isinstance(measures, str) else list(measures)
        check_measures(measures, settings or {}, from_start=True)
        check_flags(start_on_disk=start_on_disk, update_direction=update_direction)
        own: dict[str, Any] = {
            "measures": measures,
            "every": every,
            "until": until,
            "budget": budget,
            "settings": {name: dict(values) for name, values in (settings or {}).items()},
            "probe_size": probe_size,
            "probe_batch_size": probe_batch_size,
            "probe_seed": probe_seed,
            "dynamics_file": dynamics_file,
            "start_on_disk": start_on_disk,
            "update_direction": update_direction,
        }
        super().__init__(own, probe_dataset)
        check_counts(own, "every")
        if isinstance(until, str) and until != DECISION:
            raise ConfigurationError(
                "until is not usable.",
                got=repr(until),
                allowed=f"an update, {DECISION!r}, or None for the end of training",
                fix=did_you_mean(until, [DECISION]),
            )
        if until is not None and until != DECISION:
            check_counts(own, "until")
        if budget is not None and not (isinstance(budget, int | float) and 0 < budget < 1):
            raise ConfigurationError("budget is not usable.", got=repr(budget), allowed="a fraction between 0 and 1")
        if names.TRAJECTORY not in measures and (start_on_disk or update_direction):
            raise ConfigurationError(
                "start_on_disk and update_direction are for the trajectory, which is not measured.",
                got=", ".join(measures),
                fix=f"Add {names.TRAJECTORY!r} to the measures, or leave them out.",
            )
        self._log: DynamicsLog | None = None
        self._probe_set: ProbeSet | None = None
        self._groups: LayerGroups | None = None
        self._keeper: StartKeeper | None = None
        self._clock = _Clock()

    @property
    def records(self) -> list[dict[str, Any]]:
        """Measurements so far, as in the dynamics file."""
        return self._log.records if self._log else []

    @property
    def probe_seconds(self) -> float:
        """Seconds that measurements have taken, those before a training was resumed included."""
        return self._clock.probes

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Refuse a second one as soon as there is a Trainer."""
        self._refuse_second(state)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Choose the probe examples, make sure that they can be measured, take up the checkpoint's series."""
        self._refuse_second(state)
        if self._comes_after(state, "PerturbationCallback"):
            raise ConfigurationError(
                "Weights would be perturbed before they are measured: as if training had begun, or ended, so.",
                got="PerturbationCallback before EarlyDynamicsCallback",
                fix="Put PerturbationCallback after it among the callbacks, or use EarlyOODTrainer, which does so.",
            )
        model = kwargs["model"]
        check_shards(model)
        saved = self._saved(state)
        self._groups = trainable_groups(model)
        reading = any(map(reads_examples, self.settings["measures"]))
        self._probe_set = (
            self._make_probe_set(model, kwargs["train_dataloader"])
            if reading
            else ProbeSet.nothing(self.settings["probe_seed"])
        )
        self._keeper = self._make_keeper(args, state, kwargs["optimizer"])
        self._clock = _Clock()
        if saved is not None:
            check_same("probe set", saved["probe_set"], self._probe_set.fingerprint)
            self._clock.training, self._clock.probes = saved["training_seconds"], saved["probe_seconds"]
            if self._keeper is not None:
                self._keeper.restore(saved["start"])
        if reading:
            check_deterministic(model, self._probe_set, self.settings["measures"], self.settings["settings"])
        self._log = self._open_log(args, state)
        self._log.replace(saved["records"] if saved is not None else [])
        self._announce(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Measure the start, when whoever freezes layers has done so."""
        if state.global_step == 0:
            if self._keeper is not None:
                self._keeper.take(kwargs["model"])
            self._measure_if_due(kwargs["model"], state)
        self._clock.start()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ):
        """Keep the weights that the update will change, where it will be measured."""
        if (
            self._keeper is not None
            and self.settings["update_direction"]
            and self._is_due(state, state.global_step + 1)
        ):
            self._clock.stop()
            self._keeper.keep_before(kwargs["model"])
            self._clock.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Measure, before a checkpoint of this step is written, so that it holds the measurement."""
        self._clock.stop()
        self._measure_if_due(kwargs["model"], state)
        if self._keeper is not None:
            self._keeper.drop_before()

    def learned(self) -> dict[str, Any] | None:
        """What a checkpoint must hold; None before training."""
        if self._log is None or self._probe_set is None:
            return None
        start = {} if self._keeper is None else {"start": self._keeper.learned()}
        return {
            **start,
            "records": list(self._log.records),
            "probe_set": self._probe_set.fingerprint,
            "training_seconds": self._clock.training,
            "probe_seconds": self._clock.probes,
        }

    def _measure_if_due(self, model: nn.Module, state: TrainerState) -> None:
        step, keeper = state.global_step, self._keeper
        if self._log is None or self._probe_set is None or self._groups is None or not self._is_due(state, step):
            return
        if self._exceeds_budget():
            logger.info(f"Update {step}: no measurement, to stay within budget={self.settings['budget']}.")
            return
        for name in self.settings["measures"]:
            record = {
                "step": step,
                **measure_in_training(
                    name,
                    model,
                    self._probe_set,
                    self._groups,
                    seed=self.settings["probe_seed"],
                    settings=self.settings["settings"].get(name),
                    strict=step == 0,
                    start=None if keeper is None else keeper.start,
                    before=None if keeper is None else keeper.before,
                ),
            }
            if name == names.TRAJECTORY and keeper is not None:
                record["seconds"] += keeper.seconds
            self._clock.measured(record["seconds"])
            # So far, of all time spent in updates and measurements.
            record["share"] = self._clock.share
            record["trainable"] = [group.name for group in self._groups if _trains(group.parameters)]
            record = from_main_process(record)
            self._log.append(record)
            self._live(state).measurement(record)

    def _is_due(self, state: TrainerState, step: int) -> bool:
        """Whether there is a measurement after an update, if the budget allows it."""
        until = self.settings["until"]
        if step % self.settings["every"]:
            return False
        if until == DECISION:
            return not any(names.LOG_DECISION in entry for entry in state.log_history)
        return until is None or step <= until

    def _make_keeper(self, args: TrainingArguments, state: TrainerState, optimizer: Any) -> StartKeeper | None:
        if names.TRAJECTORY not in self.settings["measures"] or self._groups is None:
            return None
        check_step(optimizer)
        return StartKeeper(
            self._groups,
            str(args.output_dir),
            is_main=state.is_world_process_zero,
            on_disk=self.settings["start_on_disk"],
        )

    def _exceeds_budget(self) -> bool:
        """Whether another round like the last one would take more than the budget; the same on every rank."""
        budget = self.settings["budget"]
        exceeds = budget is not None and self._clock.share_after_another(len(self.settings["measures"])) > budget
        return from_main_process({"exceeds": exceeds})["exceeds"]


class _Clock:
    """Seconds in updates and in measurements."""

    def __init__(self) -> None:
        self.training = 0.0
        self.probes = 0.0
        self._last: list[float] = []
        self._begin: float | None = None

    def start(self) -> None:
        self._begin = time.perf_counter()

    def stop(self) -> None:
        if self._begin is not None:
            self.training += time.perf_counter() - self._begin
            self._begin = None

    def measured(self, seconds: float) -> None:
        self.probes += seconds
        self._last.append(seconds)

    @property
    def share(self) -> float:
        total = self.training + self.probes
        return self.probes / total if total else 0.0

    def share_after_another(self, num_measures: int) -> float:
        """The first round is free: its cost is not known."""
        if len(self._last) < num_measures:
            return 0.0
        probes = self.probes + sum(self._last[-num_measures:])
        return probes / (self.training + probes)


def _trains(parameters: Mapping[str, nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters.values())
