"""``Trainer`` and ``TrainingArguments`` with everything in this package reachable from arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset as HFDataset
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from hf_early_ood import names
from hf_early_ood.atomic import write_json
from hf_early_ood.callbacks.intervening import InterveningCallback, UpdateRulesCallback
from hf_early_ood.callbacks.recording import RecordingCallback
from hf_early_ood.callbacks.rewrapping import ddp_of, rewrap
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.checkpoints import last_whole_checkpoint
from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.evaluation.metrics import classification_metrics, predicted_classes
from hf_early_ood.evaluation.suites import SuiteEvaluation, evaluate_splits
from hf_early_ood.interventions.update_rules import split_by_layer_group
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.schedules import AUTO, parse_number
from hf_early_ood.sharding import reshard, sharded_modules
from hf_early_ood.tasks.sequence_classification import (
    SequenceClassificationLoss,
    is_sequence_classification,
    is_single_label,
)

INTERVENTIONS = (names.STANDARD, names.GRADUAL_UNFREEZING)


@dataclass
class EarlyOODArguments(TrainingArguments):
    """``TrainingArguments`` plus the settings of :class:`~hf_early_ood.GradualUnfreezingCallback`.

    Each field is described in its ``help``; the defaults are those of the callback. ``intervention="standard"`` is
    standard fine-tuning, the baseline.

    Raises:
        ConfigurationError: A setting is not usable.

    Example:
        >>> args = EarlyOODArguments(output_dir="out", unfreezing_interval="20", report_to="none")
        >>> args.callback_settings()["interval"]
        20
    """

    intervention: str = field(
        default=names.GRADUAL_UNFREEZING,
        metadata={"help": "gradual_unfreezing: release layer groups step by step; standard: train all from the start."},
    )
    unfreezing_interval: str = field(
        default=AUTO,
        metadata={"help": "Updates per stage: a number, a fraction of training below 1, or auto (Fisher trace)."},
    )
    unfreezing_order: str = field(default="top_down", metadata={"help": "top_down or bottom_up."})
    unfreezing_initial: list[str] = field(
        default_factory=lambda: ["head"], metadata={"help": "Layer groups that train from the start."}
    )
    unfreezing_release: str = field(
        default="interval", metadata={"help": "interval: one group per interval; all_at_once: all after the first."}
    )
    unfreezing_schedule: str | None = field(
        default=None, metadata={"help": "A schedule file (hf-early-ood schedule); replaces the four above."}
    )
    stabilization_window: int = field(default=3, metadata={"help": "Measurements in the moving average (tau)."})
    stabilization_tolerance: float = field(
        default=0.02, metadata={"help": "Relative change that counts as stable (epsilon)."}
    )
    stabilization_transient: str = field(
        default=AUTO, metadata={"help": "Updates the detector leaves out; auto: the learning rate's warm-up."}
    )
    stabilization_max_step: str = field(
        default=AUTO, metadata={"help": "Update of the latest decision; a number, a fraction of training, or auto."}
    )
    probe_size: int = field(default=128, metadata={"help": "Examples in the fixed probe set."})
    probe_batch_size: int = field(default=32, metadata={"help": "Probe examples at a time."})
    probe_every: int = field(default=10, metadata={"help": "Updates between two measurements."})
    probe_seed: int = field(default=0, metadata={"help": "Draws the probe set and the labels."})
    probe_labels: str = field(default="sampled", metadata={"help": "sampled, expected, empirical or argmax."})

    ddp_rewrap: bool = field(
        default=False,
        metadata={"help": "Build DistributedDataParallel anew at every stage: frozen layers are not communicated."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.intervention not in INTERVENTIONS:
            raise ConfigurationError(
                "Unknown intervention.",
                got=self.intervention,
                allowed=", ".join(INTERVENTIONS),
                fix=did_you_mean(self.intervention, INTERVENTIONS),
            )
        if self.intervention == names.GRADUAL_UNFREEZING:
            GradualUnfreezingCallback(**self.callback_settings())  # raises for what is not usable

    def callback_settings(self) -> dict[str, Any]:
        """Arguments of the callback that these arguments describe."""
        return {
            "interval": parse_number(self.unfreezing_interval),
            "order": self.unfreezing_order,
            "initial": self.unfreezing_initial,
            "release": self.unfreezing_release,
            "schedule": self.unfreezing_schedule,
            "window": self.stabilization_window,
            "tolerance": self.stabilization_tolerance,
            "transient": parse_number(self.stabilization_transient),
            "max_step": parse_number(self.stabilization_max_step),
            "probe_size": self.probe_size,
            "probe_batch_size": self.probe_batch_size,
            "probe_every": self.probe_every,
            "probe_seed": self.probe_seed,
            "probe_labels": self.probe_labels,
        }


class EarlyOODTrainer(Trainer):
    """``Trainer`` that unfreezes gradually, scales its loss rightly and evaluates ID and OOD sets together.

    What it adds to ``transformers.Trainer``:

    * The unfreezing callback from :class:`EarlyOODArguments`, logging through ``Trainer.log`` to every tracker.
    * For sequence classification, the loss is the sum over examples divided by the number of examples of the whole
      update, over accumulation steps and processes: the same global batch gives the same gradient however it is
      cut. (``Trainer`` of transformers 5.23 multiplies it by the number of pieces.)
    * ``evaluate`` on a dict of sets, for single-label classification: accuracy, balanced accuracy and macro-F1 of each,
      mean, worst and gap over the sets named ``ood/<name>`` in one entry of the log, and ``evaluation.json`` in the
      output folder with n and bootstrap intervals. OOD sets never select a checkpoint by themselves.
    * ``resume_from_checkpoint=True`` takes the newest checkpoint that was written to its end, and a complete training
      is not trained further.
    * ``auto_find_batch_size`` and a second ``train()`` start from the user's flags.
    * With ``ddp_rewrap``, DistributedDataParallel knows the layers of the stage only: frozen ones are not communicated,
      and need neither ``ddp_find_unused_parameters`` nor its search. Hooks on the wrapper itself are lost.

    Args:
        probe_dataset: Tokenized examples for the measurements; the training set by default.
        **kwargs: As for ``transformers.Trainer``. ``compute_metrics`` defaults to the three metrics above.

    Raises:
        ConfigurationError: ``args`` ask for unfreezing and ``callbacks`` bring a callback of their own.
    """

    def __init__(self, *positional: Any, probe_dataset: Dataset | None = None, **kwargs: Any) -> None:
        super().__init__(*positional, **kwargs)
        self._probe_dataset = probe_dataset
        self._seen: list[tuple[Any, Any]] = []  # logits and labels of the sets of one evaluation
        model: Any = self.model
        self._classifies = is_sequence_classification(model) and is_single_label(model.config)
        if is_sequence_classification(model) and self.compute_loss_func is None:
            self.compute_loss_func = SequenceClassificationLoss(
                model.config, label_smoothing=self.args.label_smoothing_factor
            )
        if self._classifies:
            self.compute_metrics = self._with_predictions_kept(self.compute_metrics or _prediction_metrics)
        if isinstance(self.args, EarlyOODArguments) and self.args.intervention == names.GRADUAL_UNFREEZING:
            if self.unfreezing is not None:
                raise ConfigurationError(
                    "Both the arguments and the callbacks ask for gradual unfreezing.",
                    fix='Set intervention="standard" or leave the callback out.',
                )
            self.add_callback(GradualUnfreezingCallback(**self.args.callback_settings(), probe_dataset=probe_dataset))
        self.add_callback(UpdateRulesCallback())
        self._equip_callbacks()

    @property
    def _intervening(self) -> list[InterveningCallback]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, InterveningCallback)]

    @property
    def unfreezing(self) -> GradualUnfreezingCallback | None:
        """The unfreezing callback of this trainer."""
        # Looked up each time: restoring callbacks from a checkpoint replaces the objects.
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, GradualUnfreezingCallback):
                return callback
        return None

    def _equip_callbacks(self) -> None:
        """Give the callbacks what their JSON-able settings cannot hold."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, RecordingCallback):
                callback.report_through(self._log_aside)
                if self._probe_dataset is not None:
                    callback.probe_dataset = self._probe_dataset
            elif isinstance(callback, UpdateRulesCallback):
                callback.callbacks = self._intervening
        for intervening in self._intervening:
            intervening.is_asked = True
        if self.unfreezing is not None:
            self.unfreezing.checks_loss_scale = False  # compute_loss_func is right
            self.unfreezing.rewrap_through(self._rewrap if self._rewraps else None)

    @property
    def _rewraps(self) -> bool:
        return isinstance(self.args, EarlyOODArguments) and self.args.ddp_rewrap

    def _rewrap(self) -> None:
        rewrap(self.model_wrapped, self.accelerator.ddp_handler)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Build the optimizer, over every layer also when an earlier attempt was interrupted with some frozen."""
        self._equip_callbacks()  # a checkpoint may have brought new objects
        if self.model is not None:
            reshard(self.model)  # copies that an evaluation has left are not what is trained
        if self.unfreezing is not None and self.model is not None:
            self.unfreezing.release_leftovers(self.model)
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.model is not None and any(callback.splits_optimizer for callback in self._intervening):
            split_by_layer_group(optimizer, find_layer_groups(self.model).trainable())
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Build the scheduler that the arguments ask for, as the interventions change it."""
        is_new = self.lr_scheduler is None
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        if is_new:
            for callback in self._intervening:
                scheduler = callback.adapt_scheduler(scheduler, num_training_steps)
            self.lr_scheduler = scheduler
        return scheduler

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; the user's flags come back also if it is interrupted.

        Args:
            resume_from_checkpoint: A checkpoint; True: the newest in the output folder that was written to its end.
            *args: As for ``Trainer.train``.
            **kwargs: As for ``Trainer.train``.
        """
        if resume_from_checkpoint is True:
            checkpoint = last_whole_checkpoint(str(self.args.output_dir))
            resume_from_checkpoint = True if checkpoint is None else str(checkpoint)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            if self.unfreezing is not None and self.model is not None:
                self.unfreezing.release_leftovers(self.model)
                self.unfreezing.rewrap_through(None)  # the next Trainer may be another
                if self._rewraps and ddp_of(self.model_wrapped) is not None:
                    self.model_wrapped = self.model  # the wrapper knows the last stage only

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """Train an epoch, unless a checkpoint of a complete training was resumed: it would get one more update."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load what a checkpoint holds: under FSDP2, PyTorch misses a state of layers that it sees as trainable."""
        model: Any = self.model
        if self.unfreezing is None or checkpoint is None or not sharded_modules(model):
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            with self.unfreezing.as_saved(model, self.state):
                super()._load_optimizer_and_scheduler(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random numbers of all ranks before ``trainer_state.json``, which marks a checkpoint as whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _log_aside(self, values: dict[str, float]) -> None:
        """Log between the regular logs: ``Trainer.log`` alone would cancel the one that is due at this update."""
        due = self.control.should_log
        self.log(values)
        self.control.should_log = due

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate one set, or a dict of sets together with the summary over those named ``ood/<name>``."""
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(sets, Mapping) or not self._classifies:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        self._seen.clear()
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if len(self._seen) != len(sets):  # prediction_loss_only
            return metrics
        answers = {
            name: HFDataset.from_dict({names.LABELS: labels})
            for name, (_, labels) in zip(sets, self._seen, strict=True)
        }
        logits = iter([logits for logits, _ in self._seen])
        evaluation = evaluate_splits(lambda _: next(logits), answers)
        self._seen.clear()
        summary = _summary(evaluation, metric_key_prefix)
        if summary:
            self.log(dict(summary))
            metrics.update(summary)
        if self.is_world_process_zero() and self.args.output_dir:
            write_json(Path(self.args.output_dir) / names.EVALUATION_FILE, evaluation.to_record().to_dict())
        return metrics

    def _with_predictions_kept(
        self, compute: Callable[[EvalPrediction], dict[str, float]]
    ) -> Callable[[EvalPrediction], dict[str, float]]:
        """``compute``, which also keeps what it was given for the summary over all sets."""

        def computed(prediction: EvalPrediction, **rest: Any) -> dict[str, float]:
            self._seen.append((_logits(prediction), prediction.label_ids))
            return compute(prediction, **rest)

        return computed


def _logits(prediction: EvalPrediction) -> Any:
    logits: Any = prediction.predictions
    return logits[0] if isinstance(logits, tuple) else logits  # a model that returns hidden states as well


def _prediction_metrics(prediction: EvalPrediction) -> dict[str, float]:
    labels: Any = prediction.label_ids
    return classification_metrics(labels, predicted_classes(_logits(prediction)))


def _summary(evaluation: SuiteEvaluation, prefix: str) -> dict[str, float]:
    """Mean and worst of the OOD sets and the gap to ``id_test``, as the keys of a log."""
    values: dict[str, float] = {}
    for metric, summary in evaluation.summaries.items():
        for name, estimate in (
            (names.OOD_MACRO_MEAN, summary.ood_mean),
            (names.OOD_WORST, summary.ood_worst),
            (names.GAP_TO_ID, summary.gap),
        ):
            if estimate is not None:
                values[f"{prefix}_{name}_{metric}"] = estimate.value
    return values
