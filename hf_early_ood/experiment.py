"""One run: configuration -> data and model -> training -> evaluation on every split -> results file."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from hf_early_ood import names
from hf_early_ood.atomic import write_text
from hf_early_ood.callbacks.making import check_together, make_callbacks, make_dynamics, make_staged
from hf_early_ood.callbacks.measuring import from_main_process
from hf_early_ood.callbacks.previewing import beside, measured
from hf_early_ood.callbacks.watching import watch
from hf_early_ood.checkpoints import checkpoints, last_whole_checkpoint
from hf_early_ood.claiming import holding
from hf_early_ood.config import RunConfig, load_run
from hf_early_ood.data import Splits, load_splits
from hf_early_ood.environment import capture_environment, timestamp
from hf_early_ood.errors import ConfigurationError, EarlyOODError, ResumeError, named
from hf_early_ood.evaluation.predictions import write_predictions
from hf_early_ood.evaluation.scoring import METRIC_OF_GROUPS
from hf_early_ood.evaluation.suites import evaluate_predictions
from hf_early_ood.folders import check_writable, differing_keys, is_free, model_sha256, remove_unfinished
from hf_early_ood.hyperparameters import hyperparameters
from hf_early_ood.interpolating import interpolated_run
from hf_early_ood.interventions.weight_interpolation import copied_weights
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.measures import reads_examples
from hf_early_ood.results import RunRecord, TrainingRecord, read_run, write_record
from hf_early_ood.run_record import data_record, intervention_record, model_record, probe_records
from hf_early_ood.sharding import gathered, is_distributed
from hf_early_ood.sources import SplitSpec
from hf_early_ood.tasks import Task
from hf_early_ood.tasks.adapters import with_lora
from hf_early_ood.tasks.configured import count_cut, predict_splits, task_for
from hf_early_ood.tasks.depth import add_depths, check_support
from hf_early_ood.tracking import tracked
from hf_early_ood.trainer import EarlyOODTrainer
from hf_early_ood.training import (
    LogAtCheckpoints,
    ProgressLines,
    StageTimer,
    count_updates,
    logged,
    make_arguments,
    mean_loss,
)

logger = logging.getLogger(__name__)


def run(
    config: RunConfig,
    *,
    command: str = "",
    keep_failure: bool = False,
    on_start: Callable[[], object] = lambda: None,
) -> RunRecord:
    """Train and evaluate one model; write the folder of the run.

    The folder gets the resolved configuration, ``results.json``, ``predictions.parquet`` (what every example was
    predicted to be, for paired comparisons), the series of measurements and its figure, and the model. A run that is
    finished is read, not made again; one that was stopped goes on from its last checkpoint. Unless
    ``training.save_strategy`` says otherwise there is one checkpoint an epoch, removed when the run is complete.

    Args:
        config: The settings of the run.
        command: What the user typed, for the record.
        keep_failure: Return the record of a run that failed in training or evaluation, instead of raising.
        on_start: Called when it is known that the run is not finished and nobody else is at work on it.

    Returns:
        The record that was written to ``results.json``.

    Raises:
        BusyError: If another process, on this or another machine, is making this run.
        ResumeError: If the folder belongs to another run.
        EarlyOODError: If anything else is wrong with settings, data or model, before the first update.
    """
    with _holding(Path(config.output_dir)):
        return _run(config, command, keep_failure, on_start)


@contextmanager
def _holding(folder: Path) -> Iterator[None]:
    """`holding` by the main process for all processes of a training, which share its outcome."""
    with ExitStack() as stack:
        failure = None
        PartialState()  # joins the processes
        # By the rank: with the settings of FSDP and no GPU, accelerate takes every process for the main one.
        if not is_distributed() or torch.distributed.get_rank() == 0:
            try:
                stack.enter_context(holding(folder))
            except EarlyOODError as error:
                failure = error
        failure = from_main_process(failure)
        if failure is not None:
            raise failure
        yield


def _run(config: RunConfig, command: str, keep_failure: bool, on_start: Callable[[], object]) -> RunRecord:
    folder, everyone = Path(config.output_dir), PartialState()
    finished = claim(folder, config)
    everyone.wait_for_everyone()  # nobody writes before all have looked
    if everyone.is_main_process:
        remove_unfinished(folder)
    if finished is not None:
        _drop_checkpoints(folder, config)  # it may have been killed while it did that
        logger.info("%s, seed %s: finished before, read from %s", config.name, config.seed, folder)
        return finished
    on_start()
    progress = _Progress(command)
    try:
        with progress.phase("load"):
            material = prepare(config)
        if everyone.is_main_process:
            write_text(folder / names.CONFIG_FILE, config.to_yaml())
        everyone.wait_for_everyone()  # the folder is there
        record = _train_and_evaluate(config, material, folder, progress)
    except Exception as error:
        if isinstance(error, EarlyOODError) and "train" not in progress.seconds:
            raise  # nothing was trained: the user has to act
        # The record says what happened; the checkpoint and the series are still there to go on from.
        record = progress.record(config, status="failed", error=f"{type(error).__name__}: {error}")
        if everyone.is_main_process:
            with suppress(OSError):  # a full disk may be what happened
                write_record(folder / names.RESULTS_FILE, record)
        if not keep_failure:
            raise
        logger.exception("%s, seed %s failed", config.name, config.seed)
        return record
    if everyone.is_main_process:
        write_record(folder / names.RESULTS_FILE, record)
    _drop_checkpoints(folder, config)
    everyone.wait_for_everyone()
    return record


def _drop_checkpoints(folder: Path, config: RunConfig) -> None:
    """Remove what a complete run needs no longer, unless the user has asked for checkpoints."""
    if PartialState().is_main_process and "save_strategy" not in config.training:
        for checkpoint in checkpoints(folder).values():
            shutil.rmtree(checkpoint)
        for file in (names.PERTURBATION_START_FILE, names.START_WEIGHTS_FILE):
            shutil.rmtree((folder / file).parent, ignore_errors=True)


def check(config: RunConfig) -> str:
    """Do everything that comes before training and return what would be trained, in words.

    Raises:
        EarlyOODError: Whatever is wrong with folder, settings, data or model.
    """
    claim(Path(config.output_dir), config)
    arguments, callback = make_arguments(config), make_staged(config.intervention)
    check_together([*make_dynamics(config.dynamics), *make_callbacks(config.intervention)])  # raises
    material = prepare(config)
    lines = [f"labels: {', '.join(material.splits.label_names)}"] if material.splits.label_names else []
    for name, report in material.splits.report.splits.items():
        counts = ", ".join(f"{count:,} {label}" for label, count in report.label_counts.items())
        lines.append(
            f"{name}: {report.num_examples:,} ({counts})" + (f"; {noticed}" if (noticed := report.noticed()) else "")
        )
    num_examples = len(material.encoded[names.TRAIN])
    updates = count_updates(arguments, num_examples)
    others = beside(config.intervention, material.model, updates, material.tokenizer)  # raises
    if config.dynamics is not None:
        if any(map(reads_examples, config.dynamics.measures)):
            _check_probe_set("dynamics", config.dynamics.probe.size, num_examples)
        others.append(measured(config.dynamics, updates))
    if callback is None:
        return "\n".join([*lines, f"{updates} updates of all layers", *others])
    if callback.measures(material.model, updates):
        _check_probe_set("intervention", config.intervention.probe.size, num_examples)
    preview = callback.preview(material.model, updates, arguments.get_warmup_steps(updates))
    return "\n".join([*lines, preview, *others])


def _check_probe_set(section: str, size: int, num_examples: int) -> None:
    if size > num_examples:
        raise ConfigurationError(
            "The probe set is larger than the training set.",
            got=f"{section}.probe.size={size}, {num_examples} training examples",
            fix=f"Lower {section}.probe.size.",
        )


def claim(folder: Path, config: RunConfig) -> RunRecord | None:
    """Make sure that a folder is free or belongs to this very run; return its record if it is complete.

    Raises:
        ResumeError: The folder holds another run, or something else.
    """
    check_writable(folder)
    if is_free(folder):
        return None
    fix = "Give another output_dir, or delete the folder."
    if not (folder / names.CONFIG_FILE).is_file():
        raise ResumeError(
            "The output folder is not empty and holds no run.", got=folder, fix="Give another output_dir."
        )
    try:
        theirs = load_run(folder / names.CONFIG_FILE)
    except ConfigurationError as error:
        raise ResumeError(f"The output folder holds a run whose settings cannot be read: {error}", fix=fix) from error
    if theirs.fingerprint() != config.fingerprint():
        differing = [key for key in differing_keys(theirs.to_dict(), config.to_dict()) if key != "output_dir"]
        raise ResumeError(
            "The output folder belongs to another run.",
            got=f"{folder}, which differs in {', '.join(differing)}",
            fix=fix,
        )
    results = folder / names.RESULTS_FILE
    record = read_run(results) if results.is_file() else None
    if record is None or record.status != "complete":
        return None
    _check_data(record, load(config), folder)
    return record


def _check_data(record: RunRecord, splits: Splits, folder: Path) -> None:
    """Refuse to take up a finished run whose data is not what the same configuration loads now.

    Raises:
        ResumeError: Naming the sets that changed.
    """
    now = {name: report.fingerprint for name, report in splits.report.splits.items()}
    changed = [name for name, split in record.data.items() if split.fingerprint != now.get(name)]
    if changed:
        raise ResumeError(
            "The data has changed since this run was made.",
            got=f"other examples in {', '.join(changed)} than {folder} was made with",
            fix="Give another output_dir, or delete the folder to make the run again.",
        )


def load(config: RunConfig) -> Splits:
    """Load and check all splits of a run; the runs of a study share them."""
    return _load(config.task, json.dumps(config.to_dict()["data"]))


@functools.lru_cache(maxsize=1)
def _load(task: str, data: str) -> Splits:
    settings = json.loads(data)
    validation = settings["id_validation"]
    return load_splits(
        train=SplitSpec(**settings["train"]),
        id_validation=None if validation is None else SplitSpec(**validation),
        id_test=SplitSpec(**settings["id_test"]),
        ood={name: SplitSpec(**split) for name, split in settings["ood"].items()},
        task=task,
        **{key: settings[key] for key in ("columns", "seed", "leave_out_blank", "drop_near_duplicates")},
    )


@dataclass(frozen=True, eq=False)
class Material:
    """What training and evaluation work on."""

    task: Task
    splits: Splits
    encoded: dict[str, Dataset]
    """What the Trainer is given: training set and validation set."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def prepare(config: RunConfig) -> Material:
    """Load the data and the model of a run."""
    splits, task = load(config), task_for(config)
    loaded, tokenizer = task.load(
        config.model.name, splits.label_names, seed=config.seed, revision=config.model.revision
    )
    lora = config.model.lora
    # peft's wrapper stands for the model that it holds.
    model = loaded if lora is None else cast(PreTrainedModel, with_lora(loaded, **asdict(lora)))
    encoded = {}
    for name in (names.TRAIN, names.ID_VALIDATION):
        if name in splits:
            with named(name):
                encoded[name] = task.encode(splits[name], tokenizer)
    check_support(config.evaluation, len(splits[names.TRAIN]))
    splits = replace(splits, report=splits.report.with_truncated(count_cut(task, splits, tokenizer, encoded)))
    return Material(task, splits, {name: part.rows for name, part in encoded.items()}, model, tokenizer)


def _train_and_evaluate(config: RunConfig, material: Material, folder: Path, progress: _Progress) -> RunRecord:
    arguments, timer = make_arguments(config), StageTimer()
    trainer = EarlyOODTrainer(
        model=material.model,
        args=arguments,
        train_dataset=material.encoded[names.TRAIN],
        # The only set that may choose a checkpoint.
        eval_dataset=material.encoded.get(names.ID_VALIDATION),
        data_collator=material.task.collator(material.tokenizer),
        processing_class=material.tokenizer,
        callbacks=[
            timer,
            LogAtCheckpoints(),
            ProgressLines(),
            *make_dynamics(config.dynamics),
            *make_callbacks(config.intervention),
        ],
    )
    trainer.remove_callback(PrinterCallback)  # it would print between the lines of our report
    timer.stage_of = lambda: trainer.unfreezing.stage if trainer.unfreezing else 0
    progress.parts["data"] = data_record(config, material.splits)
    progress.parts["model"] = model_record(config, material.model)
    progress.parts["label_names"] = tuple(material.splits.label_names or ())

    interpolation = config.intervention.weight_interpolation
    before = None if interpolation is None else copied_weights(material.model)
    # With the weights alone, nothing can be resumed.
    checkpoint = None if arguments.save_only_model else last_whole_checkpoint(folder)
    watch(trainer, {"run": config.to_dict()})
    with progress.phase("train"), tracked(trainer, arm=config.name):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    curve, rates = logged(trainer.state.log_history, "loss"), logged(trainer.state.log_history, "learning_rate")
    progress.parts["training"] = TrainingRecord(
        updates=trainer.state.global_step,
        epochs=float(trainer.state.epoch or 0.0),
        seconds=progress.seconds["train"],
        train_loss=mean_loss(curve),
        seconds_per_stage={str(stage): seconds for stage, seconds in timer.seconds.items()},
        loss_curve=curve,
        learning_rate_curve=rates,
        hyperparameters=hyperparameters(trainer),
    )
    groups = find_layer_groups(material.model).trainable().names
    progress.parts["intervention"] = intervention_record(config, trainer, groups, folder)
    progress.parts["probes"] = probe_records(trainer, progress.seconds["train"], resumed=checkpoint is not None)

    selected_by = names.LAST_UPDATE
    if arguments.load_best_model_at_end:
        selected_by = f"{arguments.metric_for_best_model} on {names.ID_VALIDATION}"
    predict = functools.partial(
        predict_splits,
        material.task,
        material.model,
        material.tokenizer,
        material.splits.evaluation,
        material.splits.info,
        batch_size=config.evaluation.batch_size,
    )
    with ExitStack() as stack:
        stack.enter_context(gathered(material.model))  # by all ranks, and saved by one
        with progress.phase("evaluate"):
            if interpolation is not None and before is not None:
                metric = METRIC_OF_GROUPS[config.task]
                path, alpha = stack.enter_context(
                    interpolated_run(interpolation, material.model, before, folder, predict, metric)
                )
                progress.parts["interpolation"] = path
                selected_by += f", interpolated with alpha={alpha:g}"
            evaluation = evaluate_predictions(
                add_depths(predict(), config.evaluation, material),
                num_resamples=config.evaluation.bootstrap_samples,
                confidence=config.evaluation.confidence,
                seed=config.evaluation.seed,
            )
        progress.parts["evaluation"] = evaluation.to_record(selected_by)
        if PartialState().is_main_process:
            write_predictions(folder / names.PREDICTIONS_FILE, evaluation.predictions)
            if config.evaluation.save_model:
                material.model.save_pretrained(str(folder / names.MODEL_FOLDER))
                material.tokenizer.save_pretrained(folder / names.MODEL_FOLDER)
                # What is published later must be what was judged here.
                progress.parts["weights"] = model_sha256(folder / names.MODEL_FOLDER)
    return progress.record(config, status="complete")


@dataclass
class _Progress:
    """What a run has done so far, so that a failed one can say it too."""

    command: str
    started: str = field(default_factory=timestamp)
    seconds: dict[str, float] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - begin

    def record(self, config: RunConfig, **status: Any) -> RunRecord:
        return RunRecord(
            arm=config.name,
            seed=config.seed,
            config=config.to_dict(),
            config_fingerprint=config.fingerprint(),
            environment=capture_environment(),
            started=self.started,
            finished=timestamp(),
            command=self.command,
            timing=dict(self.seconds),
            **self.parts,
            **status,
        )
