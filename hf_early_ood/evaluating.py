"""Judge a model that was trained elsewhere on the sets of a recipe, as a run is judged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from hf_early_ood import names
from hf_early_ood.claiming import holding
from hf_early_ood.config import RunConfig
from hf_early_ood.config.schema import fingerprint
from hf_early_ood.data import _fingerprint, load_split
from hf_early_ood.environment import capture_environment, timestamp
from hf_early_ood.errors import ConfigurationError, DataError, ResumeError, UnsupportedModelError
from hf_early_ood.evaluation.predictions import write_predictions
from hf_early_ood.evaluation.suites import evaluate_splits, model_predictor
from hf_early_ood.folders import is_free, remove_unfinished
from hf_early_ood.probing.loading import Blueprint, class_names, read_blueprint
from hf_early_ood.results import ModelRecord, RunRecord, SplitRecord, read_run, write_record
from hf_early_ood.sources import SplitSpec
from hf_early_ood.tasks.sequence_classification import data_collator, load_tokenizer, tokenize

SELECTED_ELSEWHERE = "trained elsewhere"


def evaluate_checkpoint(
    suite: RunConfig,
    *,
    label_names: Sequence[str] | None = None,
    tokenizer: str | None = None,
    command: str = "",
) -> RunRecord:
    """Judge the model of ``suite`` on its sets and write ``results.json`` and the predictions.

    Nothing is trained, and no training set is read. The model needs its own head.

    Args:
        suite: From `hf_early_ood.config.load_suite`: model, sets, and how they are judged.
        label_names: Label of each class of the model, in its order, where its config does not say it as the data does.
        tokenizer: Name or folder, where none is beside the model.
        command: What the user typed, for the record.

    Returns:
        The record, which can be read, scored anew and compared like that of a run.

    Raises:
        UnsupportedModelError: The model cannot be read, or has no head for the task.
        DataError: The data is not usable, or has a label that the model does not know.
        ResumeError: The output folder holds something else.
        BusyError: Another process is at work on it.
    """
    folder, started, begin = Path(suite.output_dir), timestamp(), time.perf_counter()
    config = _settings(suite, label_names, tokenizer)
    with holding(folder):
        finished = _finished(folder, config)
        if finished is not None:
            return finished
        remove_unfinished(folder)
        blueprint, known, sets = material(suite, label_names)
        loaded = load_tokenizer(tokenizer or suite.model.name, revision=None if tokenizer else suite.model.revision)
        tokens = {split: tokenize(dataset, loaded, suite.data.max_length) for split, dataset in sets.items()}
        model = blueprint.load(device="cuda" if torch.cuda.is_available() else "cpu")
        load_seconds = time.perf_counter() - begin
        evaluation = evaluate_splits(
            model_predictor(model, data_collator(loaded), batch_size=suite.evaluation.batch_size),
            tokens,
            label_names=known,
            num_resamples=suite.evaluation.bootstrap_samples,
            confidence=suite.evaluation.confidence,
            seed=suite.evaluation.seed,
        )
        write_predictions(folder / names.PREDICTIONS_FILE, evaluation.predictions)
        record = RunRecord(
            arm=suite.name,
            seed=suite.seed,
            config=config,
            config_fingerprint=fingerprint(config),
            status="complete",
            environment=capture_environment(),
            started=started,
            finished=timestamp(),
            command=command,
            data={split: SplitRecord(len(dataset), _fingerprint(dataset)) for split, dataset in sets.items()},
            model=ModelRecord(
                name=suite.model.name,
                num_parameters=sum(parameter.numel() for parameter in model.parameters()),
                revision=suite.model.revision,
            ),
            evaluation=evaluation.to_record(SELECTED_ELSEWHERE),
            timing={"load": load_seconds, "evaluate": time.perf_counter() - begin - load_seconds},
        )
        write_record(folder / names.RESULTS_FILE, record)
    return record


def material(
    suite: RunConfig, label_names: Sequence[str] | None = None
) -> tuple[Blueprint, tuple[str, ...], dict[str, Dataset]]:
    """What `evaluate_checkpoint` works on, checked but for the weights: the model, its labels, the sets by split."""
    blueprint = read_blueprint(suite.model.name, revision=suite.model.revision)
    if blueprint.model_class.__name__ not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values():
        raise UnsupportedModelError(
            "The model is not for the task of the suite.", got=blueprint.model_class.__name__, allowed=suite.task
        )
    own = class_names(blueprint.config)
    if label_names is not None:
        if len(label_names) != len(own):
            raise ConfigurationError(
                "There are not as many label names as the model has classes.",
                got=", ".join(label_names),
                allowed=f"{len(own)} names",
            )
        if sorted(label_names) == sorted(own) and list(label_names) != own:
            raise ConfigurationError(
                "The label names are those of the model in another order, which would exchange its classes.",
                got=", ".join(label_names),
                allowed=", ".join(own),
                fix="Leave them out: the model has names of its own.",
            )
    known = tuple(own if label_names is None else label_names)
    data = suite.data
    sources = {names.ID_VALIDATION: data.id_validation, names.ID_TEST: data.id_test}
    sources |= {names.ood(name): split for name, split in data.ood.items()}
    sets, problems = {}, []
    for split, source in sources.items():
        try:
            sets[split] = load_split(
                SplitSpec(**vars(source)),
                text=data.text,
                text_pair=data.text_pair,
                label=data.label,
                label_names=known,
                seed=data.seed,
                label_owner="the model",
                label_fix="Give the label of each class of the model, in its order, with --label-names.",
            )
        except DataError as error:
            problems.append(f"{split}: {error}")
    if problems:
        raise DataError("\n".join(["The data is not usable.", *problems]))
    return blueprint, known, sets


def _settings(suite: RunConfig, label_names: Sequence[str] | None, tokenizer: str | None) -> dict[str, object]:
    """What the result depends on."""
    keys = suite.to_dict()
    data = {key: value for key, value in keys["data"].items() if key != names.TRAIN}
    settings = {key: keys[key] for key in ("name", "seed", "task", "model", "evaluation")}
    given = None if label_names is None else list(label_names)
    return {**settings, "data": data, "label_names": given, "tokenizer": tokenizer}


def _finished(folder: Path, config: dict[str, object]) -> RunRecord | None:
    """The record of this very evaluation if it was made before.

    Raises:
        ResumeError: The folder holds something else.
    """
    results = folder / names.RESULTS_FILE
    if results.is_file():
        record = read_run(results)
        if record.config_fingerprint == fingerprint(config):
            return record
    elif is_free(folder) or _only_predictions(folder):
        return None
    raise ResumeError("The output folder holds something else.", got=folder, fix="Give another --output.")


def _only_predictions(folder: Path) -> bool:
    """Whether nothing but predictions is there: what an evaluation that was killed may leave."""
    visible = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    return visible == {names.PREDICTIONS_FILE}
