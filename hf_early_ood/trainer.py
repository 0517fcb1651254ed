"""``Trainer`` and ``TrainingArguments`` with everything in this package reachable from arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from hf_early_ood import names
from hf_early_ood.atomic import write_json
from hf_early_ood.callbacks.intervening import (
    InterveningCallback,
    UpdateRulesCallback,
    adapted,
    extra_loss,
    loss_replaced,
)
from hf_early_ood.callbacks.live import LiveLog
from hf_early_ood.callbacks.making import check_together, make_callbacks
from hf_early_ood.callbacks.perturbing import PerturbationCallback
from hf_early_ood.callbacks.recording import RecordingCallback
from hf_early_ood.callbacks.reporting import ReportingCallback
from hf_early_ood.callbacks.rewrapping import ddp_of, rewrap
from hf_early_ood.callbacks.staged import StagedCallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.callbacks.watching import watch
from hf_early_ood.checkpoints import Beginning, check_resumable, checkpoints, last_whole_checkpoint
from hf_early_ood.config import load_intervention
from hf_early_ood.config.presets import preset_names
from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.evaluation.logits import metrics_of, reader_for
from hf_early_ood.evaluation.suites import evaluate_predictions
from hf_early_ood.freezing import thaw
from hf_early_ood.hub.from_trainer import Evaluations, write_trainer_card
from hf_early_ood.hyperparameters import hyperparameters
from hf_early_ood.interventions.update_rules import split_by_layer_group
from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.schedules import AUTO, ORDERS, parse_number
from hf_early_ood.sharding import reshard, sharded_modules
from hf_early_ood.tasks.answer_loss import QuestionAnsweringLoss, with_labels
from hf_early_ood.tasks.loading import task_of_model
from hf_early_ood.tasks.losses import loss_for

INTERVENTIONS = (names.STANDARD, names.GRADUAL_UNFREEZING)


@dataclass
class EarlyOODArguments(TrainingArguments):
    """``TrainingArguments`` that reach every intervention, and hold the settings of gradual unfreezing themselves.

    ``intervention="gradual_unfreezing"`` takes the fields below, each described in its ``help``, with the defaults of
    :class:`~hf_early_ood.GradualUnfreezingCallback`; "standard" is standard fine-tuning, the baseline. Every other
    intervention and combination (LISA, AutoFreeze, learning rates, generations, Fisher penalty, perturbations) is
    reached by the name of a preset (``hf-early-ood presets``), or by a YAML file with the section ``intervention`` of a
    recipe. Only WiSE-FT is not: it comes after training.

    Raises:
        ConfigurationError: A setting is not usable.

    Example:
        >>> args = EarlyOODArguments(output_dir="out", unfreezing_interval="20", report_to="none")
        >>> args.callback_settings()["interval"]
        20
    """

    intervention: str = field(
        default=names.GRADUAL_UNFREEZING,
        metadata={
            "help": "gradual_unfreezing: release layer groups step by step; standard: train all from the start; or the"
            " name of a preset, or a YAML file with the section intervention of a recipe, whose other sections are not"
            " read: then the fields below are not used."
        },
    )
    unfreezing_interval: str = field(
        default=AUTO,
        metadata={"help": "Updates per stage: a number, a fraction of training below 1, or auto (Fisher trace)."},
    )
    unfreezing_order: str = field(default="top_down", metadata={"help": f"{', '.join(ORDERS[:-1])} or {ORDERS[-1]}."})
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
        self.make_callbacks()  # raises for what is not usable

    def make_callbacks(self) -> list[TrainerCallback]:
        """The callbacks that these arguments describe.

        Raises:
            ConfigurationError: A setting is not usable.
        """
        if self.intervention == names.STANDARD:
            return []
        if self.intervention == names.GRADUAL_UNFREEZING:
            return [GradualUnfreezingCallback(**self.callback_settings())]
        known = (*INTERVENTIONS, *preset_names())
        if self.intervention not in known and not self.intervention.endswith((".yaml", ".yml")):
            raise ConfigurationError(
                "Unknown intervention.",
                got=self.intervention,
                allowed=f"{', '.join(known)}, or a YAML file",
                fix=did_you_mean(self.intervention, known),
            )
        given = [
            item.name
            for item in fields(self)
            if item.name.startswith(("unfreezing_", "stabilization_", "probe_"))
            and getattr(self, item.name)
            != (item.default if item.default_factory is MISSING else item.default_factory())
        ]
        if given:
            raise ConfigurationError(
                f"The intervention {self.intervention} has settings of its own.",
                got=", ".join(given),
                fix="Write them into a YAML file and name it as intervention.",
            )
        settings = load_intervention(self.intervention)
        if settings.weight_interpolation is not None:
            raise ConfigurationError(
                "Interpolating weights comes after training, with the evaluation: a Trainer cannot do it.",
                got=f"weight_interpolation in {self.intervention}",
                fix="Use hf-early-ood run, or hf_early_ood.interventions.interpolation_curve after Trainer.train().",
            )
        return make_callbacks(settings)

    def callback_settings(self) -> dict[str, Any]:
        """Arguments of the callback that these arguments describe."""
        return {
            "interval": parse_number(self.unfreezing_interval),
            "order": self.unfreezing_order,
            "initial": self.unfreezing_initial,
            "release": parse_number(self.unfreezing_release),
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

    * The callbacks that :class:`EarlyOODArguments` ask for, and a live view of them in every tracker (`watch`).
    * What learning rates, generations, the Fisher penalty and pretexts need beyond events: an optimizer split by layer
      group, update rules (learning rate, sign) around its step, a further term of the loss or another one, other
      batches, a scheduler that restarts. Without such a callback nothing of it happens.
    * For sequence classification and question answering, the loss is the sum over examples divided by the number of
      examples of the whole update, over accumulation steps and processes: the same global batch gives the same
      gradient however it is cut. (``Trainer`` of transformers 5.23 does not know the number.)
    * ``evaluate`` on a dict of sets: accuracy, balanced accuracy and macro-F1 of each for single-label classification
      and multiple choice, F1, precision and recall of entities where tokens have tags such as B-PER; mean, worst and
      gap over the sets named ``ood/<name>`` in one entry of the log, and ``evaluation.json`` in the output folder with
      n and bootstrap intervals. OOD sets never select a checkpoint by themselves.
    * ``resume_from_checkpoint=True`` takes the newest checkpoint that was written to its end, and a complete training
      is not trained further.
    * ``auto_find_batch_size`` and a second ``train()`` start from the user's flags, and every attempt of the former
      from the same weights: a layer that is released late can run out of memory late.
    * With ``ddp_rewrap``, DistributedDataParallel knows the layers of the stage only: frozen ones are not communicated,
      and need neither ``ddp_find_unused_parameters`` nor its search. Hooks on the wrapper itself are lost.

    Args:
        probe_dataset: Tokenized examples for the measurements; the training set by default.
        **kwargs: As for ``transformers.Trainer``. ``compute_metrics`` defaults to the metrics above.

    Raises:
        ConfigurationError: ``args`` and ``callbacks`` both freeze layers; a scheduler was made before the optimizer was
            split; or, from ``train``, the Fisher penalty comes together with layers that ascend.
    """

    def __init__(self, *positional: Any, probe_dataset: Dataset | None = None, **kwargs: Any) -> None:
        super().__init__(*positional, **kwargs)
        self._probe_dataset = probe_dataset
        self._beginning: Beginning | None = None  # of the first attempt of auto_find_batch_size
        self._seen: list[tuple[Any, Any]] = []  # logits and labels of the sets of one evaluation
        self._evaluations = Evaluations()
        model: Any = self.model
        # What is not logits any more, only compute_metrics of the user understands.
        self._read = reader_for(model) if self.preprocess_logits_for_metrics is None else None
        if self.compute_loss_func is None:
            self.compute_loss_func = loss_for(model, label_smoothing=self.args.label_smoothing_factor)
        if self._read is not None:
            self.compute_metrics = self._with_predictions_kept(self.compute_metrics or self._metrics)
        for callback in self.args.make_callbacks() if isinstance(self.args, EarlyOODArguments) else ():
            if isinstance(callback, StagedCallback) and self.unfreezing is not None:
                raise ConfigurationError(
                    "Both the arguments and the callbacks freeze layers.",
                    fix='Set intervention="standard" or leave the callback out.',
                )
            self.add_callback(callback)
        self.add_callback(UpdateRulesCallback())
        watch(self)
        self._equip_callbacks()

    @property
    def _intervening(self) -> list[InterveningCallback]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, InterveningCallback)]

    @property
    def unfreezing(self) -> StagedCallback | None:
        """The callback of this trainer that freezes and releases layers."""
        # Looked up each time: restoring callbacks from a checkpoint replaces the objects.
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, StagedCallback):
                return callback
        return None

    def _equip_callbacks(self) -> None:
        """Give the callbacks what their JSON-able settings cannot hold."""
        # Weights are measured before they are perturbed; what others do before an update is done before rules apply.
        late = (UpdateRulesCallback, PerturbationCallback)
        self.callback_handler.callbacks.sort(key=lambda callback: [isinstance(callback, kind) for kind in late])
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, RecordingCallback) and self._probe_dataset is not None:
                callback.probe_dataset = self._probe_dataset
            elif isinstance(callback, UpdateRulesCallback):
                callback.callbacks = self._intervening
                callback.put_back()  # an attempt that failed in an update has left it changed
        for intervening in self._intervening:
            intervening.is_asked, intervening.unfreezing = True, self.unfreezing
        if self.unfreezing is not None:
            self.unfreezing.checks_loss_scale = False  # compute_loss_func is right
            self.unfreezing.rewrap_through(self._rewrap if self._rewraps else None)

    def _let_callbacks_go(self) -> None:
        """Take back what `_equip_callbacks` gave, also after an error: the next Trainer may be another."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ReportingCallback):
                callback.report_through(None)
            if isinstance(callback, InterveningCallback):
                callback.is_asked, callback.unfreezing = False, None
            elif isinstance(callback, UpdateRulesCallback):
                callback.put_back()

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
            (self.unfreezing.release_leftovers if self.unfreezing else thaw)(self.model)
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.model is not None and any(callback.splits_optimizer for callback in self._intervening):
            self._split(optimizer, find_layer_groups(self.model))
        return optimizer

    def _split(self, optimizer: Any, groups: LayerGroups) -> None:
        before = len(optimizer.param_groups)
        split_by_layer_group(optimizer, groups)
        if self.lr_scheduler is not None and len(optimizer.param_groups) != before:  # the Trainer's own comes later
            raise ConfigurationError(
                "The learning-rate scheduler was made before the optimizer was split by layer groups.",
                got=f"{before} parameter groups, which must become {len(optimizer.param_groups)}",
                fix="Give the Trainer the optimizer only, optimizers=(optimizer, None), or call"
                " hf_early_ood.interventions.update_rules.split_by_layer_group(optimizer, find_layer_groups(model))"
                " before the scheduler is made.",
            )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Build the scheduler that the arguments ask for, as the interventions change it."""
        is_new = self.lr_scheduler is None
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        if is_new:
            for callback in self._intervening:
                scheduler = callback.adapt_scheduler(scheduler, num_training_steps, self.args)
            self.lr_scheduler = scheduler
        return scheduler

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the model and, in training, what the interventions add to it.

        What is added to a piece of the batch (a micro-batch of accumulation, on one process) is a mean over its
        examples. In an update it counts as the mean over all pieces, whatever their sizes.
        """
        # Before the loss, which takes the labels out of the inputs, and in an own pass beside the wrapper's.
        extra = extra_loss(self._intervening, self.model, inputs) if model.training else None
        with loss_replaced(self, self._intervening if model.training else ()):
            outcome = super().compute_loss(model, self._with_labels(inputs), return_outputs, num_items_in_batch)
        if extra is None:
            return outcome
        # training_step divides by the number of pieces, unless the loss is one of the whole update by now.
        is_of_update = getattr(self, "loss_is_scaled_for_ga", None)
        if is_of_update is None:
            counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            is_of_update = counted or self.compute_loss_func is not None
        if is_of_update:
            extra = extra / self.current_gradient_accumulation_steps
        return (outcome[0] + extra, outcome[1]) if return_outputs else outcome + extra

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The batches of an update, as the interventions change them, and what their loss is a mean over."""
        batches = map(partial(adapted, self._intervening, self.state.global_step), epoch_iterator)
        return super().get_batch_samples(batches, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list, device: Any) -> Any:
        """Count what the loss is a mean over: the Trainer knows it by the name of labels only."""
        return super()._get_num_items_in_batch([self._with_labels(batch) for batch in batch_samples], device)

    def _with_labels(self, batch: Any) -> Any:
        return with_labels(batch) if isinstance(self.compute_loss_func, QuestionAnsweringLoss) else batch

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; the user's flags come back also if it is interrupted.

        Args:
            resume_from_checkpoint: A checkpoint; True: the newest in the output folder that was written to its end.
            *args: As for ``Trainer.train``.
            **kwargs: As for ``Trainer.train``.
        """
        check_together(self.callback_handler.callbacks)
        if resume_from_checkpoint is True:
            checkpoint = last_whole_checkpoint(str(self.args.output_dir))
            resume_from_checkpoint = True if checkpoint is None else str(checkpoint)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._beginning = None
            self._let_callbacks_go()
            if self.model is not None:
                (self.unfreezing.release_leftovers if self.unfreezing else thaw)(self.model)
            if self.unfreezing is not None and self.model is not None:
                self.unfreezing.rewrap_through(None)  # the next Trainer may be another
                if self._rewraps and ddp_of(self.model_wrapped) is not None:
                    self.model_wrapped = self.model  # the wrapper knows the last stage only

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train, from the same beginning in every attempt of ``auto_find_batch_size``."""
        if self.args.auto_find_batch_size and self.model is not None:
            if self._beginning is None:
                folder = str(self.args.output_dir)
                self._beginning = Beginning(self.model, self.optimizer, self.lr_scheduler, folder)
            else:
                self._beginning.restore(self.model)
                self.optimizer = self._beginning.optimizer  # None: it is built anew
        return super()._inner_training_loop(*args, **kwargs)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        """Take up a checkpoint's state, and the best checkpoint also where the folder of both has been moved."""
        if checkpoint is None:
            self._evaluations.begin()
        begun = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial)
        if checkpoint is not None and self.state.best_model_checkpoint is None and self.state.best_global_step:
            best = checkpoints(Path(checkpoint).parent).get(self.state.best_global_step)
            self.state.best_model_checkpoint = None if best is None else str(best)
        return begun

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """Train an epoch, unless a checkpoint of a complete training was resumed: it would get one more update."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load what a checkpoint holds: under FSDP2, PyTorch misses a state of layers that it sees as trainable."""
        model: Any = self.model
        for callback in self._intervening:
            callback.check_checkpoint(self.state)
            callback.load_from(checkpoint)
        if checkpoint is not None:
            check_resumable(checkpoint)
        if self.unfreezing is None or checkpoint is None or not sharded_modules(model):
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            with self.unfreezing.as_saved(model, self.state):
                super()._load_optimizer_and_scheduler(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random numbers of all ranks before ``trainer_state.json``, which marks a checkpoint as whole."""
        super()._save_rng_state(output_dir)
        for callback in self._intervening if self.args.should_save else ():
            callback.save_to(Path(output_dir))
        self.accelerator.wait_for_everyone()

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate one set, or a dict of sets together with the summary over those named ``ood/<name>``."""
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(sets, Mapping) or self._read is None:
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            self._evaluations.note(self, sets, metric_key_prefix, metrics)
            return metrics
        self._seen.clear()
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if len(self._seen) != len(sets):  # prediction_loss_only
            self._evaluations.note(self, sets, metric_key_prefix, metrics)
            return metrics
        seen = zip(sets, self._seen, strict=True)
        evaluation = evaluate_predictions({name: self._read(*gathered) for name, gathered in seen})
        self._seen.clear()
        summary = evaluation.logged(metric_key_prefix)
        if summary:
            LiveLog(self.state, self).numbers(summary)
            metrics.update(summary)
        record = evaluation.to_record()
        self._evaluations.note(self, sets, metric_key_prefix, metrics, record)
        if self.is_world_process_zero() and self.args.output_dir:
            write_json(Path(self.args.output_dir) / names.EVALUATION_FILE, record.to_dict())
        return metrics

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write a model card with every evaluation set, unless a person has written one; arguments as for `Trainer`."""
        given = inspect.signature(super().create_model_card).bind(*args, **kwargs).arguments
        if self.is_world_process_zero():
            model: Any = self.model
            write_trainer_card(self, self._evaluations, task_of_model(model), hyperparameters(self), **given)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return metrics_of(self._read(_logits(prediction), prediction.label_ids)) if self._read else {}

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
