"""Judge a model that was trained elsewhere on the sets of a recipe, as a run is judged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset

from hf_early_ood import names
from hf_early_ood.claiming import holding
from hf_early_ood.config import RunConfig, is_local
from hf_early_ood.config.schema import SplitConfig, fingerprint
from hf_early_ood.data import SplitInfo, load_test_splits
from hf_early_ood.data.labels import Vocabulary
from hf_early_ood.data.reports import exact_duplicates
from hf_early_ood.data.reports import fingerprint as content_hash
from hf_early_ood.environment import capture_environment, timestamp
from hf_early_ood.errors import ConfigurationError, ResumeError, UnsupportedModelError
from hf_early_ood.evaluation.predictions import write_predictions
from hf_early_ood.evaluation.suites import evaluate_predictions
from hf_early_ood.folders import is_free, remove_unfinished
from hf_early_ood.probing.checkpoints import weights_sha256
from hf_early_ood.probing.loading import Blueprint, read_blueprint
from hf_early_ood.results import ModelRecord, RunRecord, SplitRecord, read_run, write_record
from hf_early_ood.sources import SplitSpec
from hf_early_ood.tasks import Task
from hf_early_ood.tasks.configured import count_cut, predict_splits, task_for
from hf_early_ood.tasks.loading import class_names, load_tokenizer, task_of_class

SELECTED_ELSEWHERE = "trained elsewhere"
_WITH_LABELS = (names.SEQUENCE_CLASSIFICATION, names.TOKEN_CLASSIFICATION)


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
        ResumeError: The output folder holds something else, or the model or the data has changed since it was made.
        BusyError: Another process is at work on it.
    """
    folder, started, begin = Path(suite.output_dir), timestamp(), time.perf_counter()
    config = _settings(suite, label_names, tokenizer)
    with holding(folder):
        finished = _finished(folder, config)
        checked, weights = material(suite, label_names), weights_sha256(suite.model.name)
        fingerprints = {split: content_hash(part) for split, part in checked.datasets.items()}
        if finished is not None:
            _check_unchanged(finished, weights, fingerprints, folder)
            return finished
        remove_unfinished(folder)
        loaded = load_tokenizer(tokenizer or suite.model.name, revision=None if tokenizer else suite.model.revision)
        truncated = count_cut(checked.task, checked.datasets, loaded)
        model: Any = checked.blueprint.load(device="cuda" if torch.cuda.is_available() else "cpu")
        if checked.label_names:
            model.config.id2label = dict(enumerate(checked.label_names))
        load_seconds = time.perf_counter() - begin
        evaluation = evaluate_predictions(
            predict_splits(
                checked.task,
                model,
                loaded,
                checked.datasets,
                checked.info,
                batch_size=suite.evaluation.batch_size,
            ),
            num_resamples=suite.evaluation.bootstrap_samples,
            confidence=suite.evaluation.confidence,
            seed=suite.evaluation.seed,
        )
        write_predictions(folder / names.PREDICTIONS_FILE, evaluation.predictions)
        sources = suite.data.sources()
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
            data={
                split: SplitRecord(
                    len(part),
                    fingerprints[split],
                    duplicates=exact_duplicates(part),
                    truncated=truncated[split],
                    findings=checked.findings[split],
                    language=checked.info[split].language,
                    is_local=is_local(sources[split].source),
                )
                for split, part in checked.datasets.items()
            },
            model=ModelRecord(
                name=suite.model.name,
                num_parameters=sum(parameter.numel() for parameter in model.parameters()),
                revision=suite.model.revision,
                weights_sha256=weights,
                is_local=is_local(suite.model.name),
            ),
            evaluation=evaluation.to_record(SELECTED_ELSEWHERE),
            timing={"load": load_seconds, "evaluate": time.perf_counter() - begin - load_seconds},
        )
        write_record(folder / names.RESULTS_FILE, record)
    return record


class Checked(NamedTuple):
    """What `evaluate_checkpoint` works on, checked but for the weights."""

    task: Task
    blueprint: Blueprint
    label_names: tuple[str, ...]
    datasets: dict[str, Dataset]
    info: dict[str, SplitInfo]
    findings: dict[str, dict[str, int]]


def material(suite: RunConfig, label_names: Sequence[str] | None = None, *, with_train: bool = False) -> Checked:
    """The model, its labels and the sets by split.

    Args:
        suite: From `hf_early_ood.config.load_suite`.
        label_names: As in `evaluate_checkpoint`.
        with_train: Load the training set, too: first, and as a training would, so that its near-duplicates of the other
            sets are left out where the suite says so.

    Raises:
        UnsupportedModelError: The model cannot be read, or is for another task.
        DataError: The data is not usable, or has a label that the model does not know.
        ConfigurationError: The label names are not usable.
    """
    task, blueprint = task_for(suite), read_blueprint(suite.model.name, revision=suite.model.revision)
    if task_of_class(blueprint.model_class) != task.name:
        raise UnsupportedModelError(
            "The model is not for the task of the suite.", got=blueprint.model_class.__name__, allowed=suite.task
        )
    known = _label_names(blueprint, label_names) if task.name in _WITH_LABELS else ()
    if label_names is not None and not known:
        raise ConfigurationError(f"There are no labels in {task.name}.", got=", ".join(label_names))
    data = suite.data
    sources: dict[str, SplitConfig | None] = {names.TRAIN: data.train} if with_train else {}
    sources |= {names.ID_VALIDATION: data.id_validation, names.ID_TEST: data.id_test}
    sources |= {names.ood(name): split for name, split in data.ood.items()}
    datasets, info, findings = load_test_splits(
        {split: SplitSpec(**vars(source)) for split, source in sources.items() if source is not None},
        task=task.name,
        columns=data.columns,
        vocabulary=Vocabulary(
            known or None, "the model", "Give the label of each class of the model, in its order, with --label-names."
        ),
        leave_out_blank=data.leave_out_blank,
        drop_near_duplicates=data.drop_near_duplicates,
        seed=data.seed,
    )
    return Checked(task, blueprint, known, datasets, info, findings)


def _label_names(blueprint: Blueprint, given: Sequence[str] | None) -> tuple[str, ...]:
    """Of the classes of a model: those that are given, or its own."""
    own = class_names(blueprint.config)
    if given is None:
        return tuple(own)
    if len(given) != len(own):
        raise ConfigurationError(
            "There are not as many label names as the model has classes.",
            got=", ".join(given),
            allowed=f"{len(own)} names",
        )
    if sorted(given) == sorted(own) and list(given) != own:
        raise ConfigurationError(
            "The label names are those of the model in another order, which would exchange its classes.",
            got=", ".join(given),
            allowed=", ".join(own),
            fix="Leave them out: the model has names of its own.",
        )
    return tuple(given)


def _settings(suite: RunConfig, label_names: Sequence[str] | None, tokenizer: str | None) -> dict[str, object]:
    """What the result depends on."""
    keys = suite.to_dict()
    data = {key: value for key, value in keys["data"].items() if key != names.TRAIN}
    keys["evaluation"].pop("prediction_depth")  # needs the training set: see `deepness`
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


def _check_unchanged(record: RunRecord, weights: str | None, fingerprints: Mapping[str, str], folder: Path) -> None:
    """Refuse to take up what was found of another model, or other data, under the same names.

    Raises:
        ResumeError: Naming what has changed.
    """
    before = record.model.weights_sha256 if record.model else None
    changed = ["the weights of the model"] if weights is not None and before not in (None, weights) else []
    changed += [split for split, part in record.data.items() if part.fingerprint != fingerprints.get(split)]
    if changed:
        raise ResumeError(
            "The model or the data has changed since this evaluation was made.",
            got=f"other than {folder} was made with: {', '.join(changed)}",
            fix="Give another --output, or delete the folder to judge again.",
        )


def _only_predictions(folder: Path) -> bool:
    """Whether nothing but predictions is there: what an evaluation that was killed may leave."""
    visible = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    return visible == {names.PREDICTIONS_FILE}
