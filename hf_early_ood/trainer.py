"""``Trainer`` and ``TrainingArguments`` with everything in this package reachable from arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from hf_early_ood import names
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.evaluation.metrics import METRICS, classification_metrics, predicted_classes
from hf_early_ood.schedules import AUTO, parse_number
from hf_early_ood.tasks.sequence_classification import SequenceClassificationLoss, is_sequence_classification

GRADUAL = "gradual"
NO_UNFREEZING = "none"


@dataclass
class EarlyOODArguments(TrainingArguments):
    """``TrainingArguments`` plus the settings of :class:`~hf_early_ood.GradualUnfreezingCallback`.

    Each field is described in its ``help``; the defaults are those of the callback. ``unfreezing="none"`` is
    standard fine-tuning, the baseline.

    Raises:
        ConfigurationError: A setting is not usable.

    Example:
        >>> args = EarlyOODArguments(output_dir="out", unfreezing_interval="20", report_to="none")
        >>> args.callback_settings()["interval"]
        20
    """

    unfreezing: str = field(
        default=GRADUAL, metadata={"help": "gradual: release layer groups step by step; none: standard fine-tuning."}
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unfreezing not in (GRADUAL, NO_UNFREEZING):
            raise ConfigurationError(
                "Unknown way of unfreezing.",
                got=self.unfreezing,
                allowed=f"{GRADUAL}, {NO_UNFREEZING}",
                fix=did_you_mean(self.unfreezing, (GRADUAL, NO_UNFREEZING)),
            )
        if self.unfreezing == GRADUAL:
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
    * ``evaluate`` on a dict of sets adds ``eval_ood_macro_*``, ``eval_ood_worst_*`` and ``eval_gap_*`` over the sets
      named ``ood/<name>``, in one entry of the log. OOD sets never select a checkpoint by themselves.
    * ``auto_find_batch_size`` and a second ``train()`` start from the user's flags.

    Args:
        probe_dataset: Tokenized examples for the measurements; the training set by default.
        **kwargs: As for ``transformers.Trainer``. ``compute_metrics`` defaults to accuracy, balanced accuracy and
            macro-F1 for sequence classification.

    Raises:
        ConfigurationError: ``args`` ask for unfreezing and ``callbacks`` bring a callback of their own.
    """

    def __init__(self, *positional: Any, probe_dataset: Dataset | None = None, **kwargs: Any) -> None:
        super().__init__(*positional, **kwargs)
        model: Any = self.model
        if is_sequence_classification(model):
            if self.compute_loss_func is None:
                self.compute_loss_func = SequenceClassificationLoss(
                    model.config, label_smoothing=self.args.label_smoothing_factor
                )
            if self.compute_metrics is None and model.config.num_labels > 1:
                self.compute_metrics = _prediction_metrics
        if isinstance(self.args, EarlyOODArguments) and self.args.unfreezing == GRADUAL:
            if self.unfreezing is not None:
                raise ConfigurationError(
                    "Both the arguments and the callbacks ask for gradual unfreezing.",
                    fix='Set unfreezing="none" or leave the callback out.',
                )
            self.add_callback(GradualUnfreezingCallback(**self.args.callback_settings(), probe_dataset=probe_dataset))
        if self.unfreezing is not None:
            self.unfreezing.report_through(self.log)

    @property
    def unfreezing(self) -> GradualUnfreezingCallback | None:
        """The unfreezing callback of this trainer."""
        # Looked up each time: restoring callbacks from a checkpoint replaces the objects.
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, GradualUnfreezingCallback):
                return callback
        return None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Build the optimizer, over every layer also when an earlier attempt was interrupted with some frozen."""
        if self.unfreezing is not None:
            self.unfreezing.release_leftovers()
        return super().create_optimizer(*args, **kwargs)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate one set, or a dict of sets together with the summary over those named ``ood/<name>``."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(sets, Mapping):
            summary = _summarize(metrics, list(sets), metric_key_prefix)
            if summary:
                self.log(dict(summary))
                metrics.update(summary)
        return metrics


def _prediction_metrics(prediction: EvalPrediction) -> dict[str, float]:
    logits: Any = prediction.predictions
    labels: Any = prediction.label_ids
    if isinstance(logits, tuple):  # a model that returns hidden states as well
        logits = logits[0]
    return classification_metrics(labels, predicted_classes(logits))


def _summarize(metrics: Mapping[str, float], sets: list[str], prefix: str) -> dict[str, float]:
    """Macro mean and worst of the OOD sets, and the gap to the ID test set (or validation set)."""
    reference = names.ID_TEST if names.ID_TEST in sets else names.ID_VALIDATION
    summary: dict[str, float] = {}
    for metric in METRICS:
        values = {name: metrics[key] for name in sets if (key := f"{prefix}_{name}_{metric}") in metrics}
        ood = [value for name, value in values.items() if names.is_ood(name)]
        if not ood:
            continue
        mean = sum(ood) / len(ood)
        summary[f"{prefix}_ood_macro_{metric}"] = mean
        summary[f"{prefix}_ood_worst_{metric}"] = min(ood)
        if reference in values:
            summary[f"{prefix}_gap_{metric}"] = values[reference] - mean
    return summary
