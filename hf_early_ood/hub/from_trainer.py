"""The model card of an `EarlyOODTrainer`: every evaluation set that judged the weights it holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_early_ood.config.checks import is_local
from hf_early_ood.dynamics import read_dynamics
from hf_early_ood.environment import capture_environment, timestamp
from hf_early_ood.hub.card import MARKER, CardOptions, model_card
from hf_early_ood.hub.entries import SetOnHub, with_own_keys
from hf_early_ood.names import (
    AUTOFREEZE,
    DYNAMICS_FILE,
    GRADUAL_UNFREEZING,
    LAST_UPDATE,
    LISA,
    STANDARD,
    TRAIN,
    is_ood,
)
from hf_early_ood.report.reading import split_label
from hf_early_ood.results import (
    EvaluationRecord,
    InterventionRecord,
    MetricValue,
    ModelRecord,
    OODSummary,
    RunRecord,
    SplitEvaluation,
    SplitRecord,
    TrainingRecord,
)

logger = logging.getLogger(__name__)

README = "README.md"
ONLY_SET = "evaluation"  # what a single evaluation set without a name is called
# What a Trainer puts beside the metrics of a set.
_NO_METRICS = ("runtime", "samples_per_second", "steps_per_second", "epoch", "time", "delta")
_OF_THE_TRAINER = (
    "This model card has been generated automatically according to the information the Trainer had access to"
)
_METHODS = {
    "GradualUnfreezingCallback": GRADUAL_UNFREEZING,
    "LISACallback": LISA,
    "AutoFreezeCallback": AUTOFREEZE,
}
_ALSO = {
    "LearningRatesCallback": "learning_rates",
    "GenerationsCallback": "generations",
    "FisherPenaltyCallback": "fisher_penalty",
    "PerturbationCallback": "perturbation",
}
_FILES = ("csv", "json", "pandas", "parquet", "text", "arrow", "generator")


class Evaluations:
    """What a Trainer's evaluations have found, by the training and the update after which its weights were those."""

    def __init__(self) -> None:
        self._splits: dict[tuple[int, int], dict[str, SplitEvaluation]] = {}
        self._ood: dict[tuple[int, int], dict[str, OODSummary]] = {}
        self._sets: dict[str, SetOnHub] = {}
        self._training = 0

    def begin(self) -> None:
        """A training begins at its first update: weights after as many updates as before are others."""
        self._training += 1

    def note(
        self, trainer: Any, sets: Any, prefix: str, metrics: Mapping[str, Any], record: EvaluationRecord | None = None
    ) -> None:
        """Keep one evaluation.

        Args:
            trainer: Whose it is.
            sets: The evaluation set, the name of one of the Trainer's, or several by name.
            prefix: Of the keys of ``metrics``.
            metrics: What ``evaluate`` returns.
            record: The same with intervals, where there are any.
        """
        key = self._training, weights_step(trainer)
        found = self._splits.setdefault(key, {})
        if isinstance(sets, Mapping):
            for name, dataset in sets.items():
                found.pop(f"{prefix}_{name}", None)  # the Trainer has evaluated it as a single set before
                self._sets.pop(f"{prefix}_{name}", None)
                judged = record.splits.get(name) if record is not None else None
                found[name] = _split(
                    _values(metrics, f"{prefix}_{name}", [f"{prefix}_{other}" for other in sets]), dataset, judged
                )
                self._sets[name] = _set_on_hub(name, dataset)
            noted = set(sets)
        else:
            name = ONLY_SET if prefix == "eval" else prefix
            if isinstance(sets, str):
                name, sets = sets, trainer.eval_dataset[sets]
            found[name] = _split(_values(metrics, prefix, ()), sets, None)
            self._sets[name] = _set_on_hub(name, sets)
            noted = {name}
        if any(map(is_ood, noted)):  # of some of the OOD sets, a mean is not that of the sets that the card shows
            summed = noted.issuperset(split for split in found if is_ood(split))
            self._ood[key] = record.ood if record is not None and summed else {}

    def of(self, trainer: Any) -> tuple[EvaluationRecord | None, int | None]:
        """The evaluation of the weights that the Trainer holds, else the last one.

        Returns:
            It, and the update after which it was made if the Trainer's weights are others.
        """
        if not self._splits:
            return None, None
        held = self._training, weights_step(trainer)
        key = held if held in self._splits else list(self._splits)[-1]
        args, state = trainer.args, trainer.state
        selected_by = (
            f"{args.metric_for_best_model}" if args.load_best_model_at_end and state.best_global_step else LAST_UPDATE
        )
        record = EvaluationRecord(self._splits[key], self._ood.get(key, {}), selected_by=selected_by)
        return record, None if key == held else key[1]

    def sets(self, splits: Sequence[str]) -> dict[str, SetOnHub]:
        """What the Hub is told about these splits."""
        return with_own_keys({split: self._sets[split] for split in splits})


def weights_step(trainer: Any) -> int:
    """The update after which the weights that a Trainer holds were those."""
    state = trainer.state
    is_best = trainer.args.load_best_model_at_end and not trainer.is_in_train and state.best_global_step
    return int(state.best_global_step if is_best else state.global_step)


def _values(metrics: Mapping[str, Any], prefix: str, all_prefixes: Sequence[str]) -> dict[str, float]:
    """The metrics of one set; of ``a`` and ``a_b``, those of the latter are not those of the former."""
    longer = tuple(f"{other}_" for other in all_prefixes if len(other) > len(prefix))
    found = {
        key.removeprefix(f"{prefix}_"): value
        for key, value in metrics.items()
        if key.startswith(f"{prefix}_") and not key.startswith(longer) and isinstance(value, (int, float))
    }
    return {key: float(value) for key, value in found.items() if not key.endswith(_NO_METRICS)}


def _split(values: Mapping[str, float], dataset: Any, judged: SplitEvaluation | None) -> SplitEvaluation:
    metrics = {key: MetricValue(value) for key, value in values.items()}
    if judged is not None:
        return SplitEvaluation(judged.n, {**metrics, **judged.metrics}, judged.notes, judged.language)
    try:
        return SplitEvaluation(len(dataset), metrics)
    except TypeError:  # it is read as it comes
        return SplitEvaluation(0, metrics, ("The number of examples is not known.",))


def _set_on_hub(name: str, dataset: Any) -> SetOnHub:
    info, part = getattr(dataset, "info", None), getattr(dataset, "split", None)
    kind = getattr(info, "dataset_name", None) or getattr(dataset, "builder_name", None)
    if kind is None or kind in _FILES:
        return SetOnHub(split_label(name), name.rpartition("/")[2], split=name)
    config = getattr(dataset, "config_name", None)
    return SetOnHub(
        split_label(name), kind, None if config == "default" else config, None if part is None else str(part)
    )


def write_trainer_card(
    trainer: Any,
    evaluations: Evaluations,
    task: str | None,
    hyperparameters: Mapping[str, Any],
    *,
    language: str | Sequence[str] | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    tasks: str | Sequence[str] | None = None,
    dataset_tags: str | Sequence[str] | None = None,
    dataset: str | Sequence[str] | None = None,
    dataset_args: str | Sequence[str] | None = None,
) -> None:
    """Write ``README.md`` into the output folder, unless a person has written one.

    A card with results is not replaced by a Trainer that has neither trained nor evaluated.

    Args:
        trainer: After training.
        evaluations: What it has found.
        task: Of the model, as a configuration names it; None: not known.
        hyperparameters: What it worked with.
        language: ISO 639 codes.
        license: Identifier of the license.
        tags: Further tags; those of a card that is there are kept.
        model_name: Title.
        finetuned_from: Base model on the Hub.
        tasks: What the Hub calls the task.
        dataset_tags: Names of data sets on the Hub.
        dataset: Names of data sets for readers; not used where ``dataset_tags`` are given.
        dataset_args: As in ``Trainer``; each set has a key of its own without them.
    """
    path = Path(trainer.args.output_dir) / README
    before = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True) if path.is_file() else None
    if before is not None and not _is_generated(before):
        logger.warning("%s was written by a person and is kept; remove it to get one with the results.", path)
        return
    evaluation, judged_after = evaluations.of(trainer)
    if before is not None and evaluation is None and trainer.state.global_step == 0 and MARKER in before.content:
        return
    record = _record(trainer, task, hyperparameters, evaluation, finetuned_from)
    # Those that peft adds with the name of the base model may be a folder of this machine.
    kept = (before.data.get("tags") or []) if before is not None else []
    kept = [tag for tag in kept if not tag.startswith("base_model:")]
    options = CardOptions(
        title=model_name or Path(trainer.args.output_dir).name,
        license=license,
        language=_listed(language),
        base_model=finetuned_from,
        pipeline_tag=next(iter(_listed(tasks)), None),
        datasets=_listed(dataset_tags) or _listed(dataset),
        tags=("generated_from_trainer", *_listed(tags), *kept),
        judged_after=judged_after,
    )
    sets = evaluations.sets(list(evaluation.splits)) if evaluation is not None else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    model_card(record, options=options, sets=sets).save(path)


def _listed(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _is_generated(card: ModelCard) -> bool:
    """Whether no person has written this card: it is ours, or the Trainer's, or the empty one that peft makes."""
    empty = ModelCard.from_template(ModelCardData()).text.strip()
    return MARKER in card.content or _OF_THE_TRAINER in card.content.replace("\n", " ") or empty in card.content


def _record(
    trainer: Any,
    task: str | None,
    hyperparameters: Mapping[str, Any],
    evaluation: EvaluationRecord | None,
    finetuned_from: str | None,
) -> RunRecord:
    """The record that a run of ours would have left, as far as a Trainer knows it."""
    callbacks = {type(callback).__name__: callback for callback in trainer.callback_handler.callbacks}
    method = next((name for kind, name in _METHODS.items() if kind in callbacks), STANDARD)
    also = tuple(name for kind, name in _ALSO.items() if kind in callbacks)
    intervention: dict[str, Any] = {"method": method}
    for kind, callback in callbacks.items():
        if kind in _METHODS:
            intervention |= callback.settings
        elif kind in _ALSO:
            intervention[_ALSO[kind]] = callback.settings
    adapters = getattr(trainer.model, "peft_config", None)
    record = _intervention(trainer, method, also)
    return RunRecord(
        arm=record.method,
        seed=trainer.args.seed,
        config={"task": task or "", "model": {"lora": {} if adapters else None}, "intervention": intervention},
        config_fingerprint="",
        status="complete",
        environment=capture_environment(device=str(trainer.args.device)),
        started="",
        finished=timestamp(),
        command="",
        data=_data(trainer),
        model=_model(trainer, adapters, finetuned_from),
        training=_training(trainer, hyperparameters),
        intervention=record,
        evaluation=evaluation,
    )


def _intervention(trainer: Any, method: str, also: tuple[str, ...]) -> InterventionRecord:
    file = Path(trainer.args.output_dir) / DYNAMICS_FILE
    if trainer.unfreezing is None or not trainer.unfreezing.records or not file.is_file():
        return InterventionRecord(method, also=also)
    series = read_dynamics(file)
    return InterventionRecord(method, series.stages, series.decision, also)


def _model(trainer: Any, adapters: Any, finetuned_from: str | None) -> ModelRecord:
    model = trainer.model
    name = str(finetuned_from or getattr(model.config, "_name_or_path", None) or "")
    if adapters and not finetuned_from:
        name = next(iter(adapters.values())).base_model_name_or_path or name
    count = sum(parameter.numel() for parameter in model.parameters())
    return ModelRecord(name, count, is_local=bool(name) and not finetuned_from and is_local(name))


def _training(trainer: Any, hyperparameters: Mapping[str, Any]) -> TrainingRecord | None:
    state = trainer.state
    if state.global_step == 0:
        return None
    ends = [entry for entry in state.log_history if "train_runtime" in entry]
    seconds, loss = (ends[-1]["train_runtime"], ends[-1].get("train_loss")) if ends else (0.0, None)
    return TrainingRecord(
        state.global_step, float(state.epoch or 0.0), seconds, loss, hyperparameters=dict(hyperparameters)
    )


def _data(trainer: Any) -> dict[str, SplitRecord]:
    dataset = trainer.train_dataset
    try:
        return {TRAIN: SplitRecord(len(dataset), getattr(dataset, "_fingerprint", "-"))}
    except TypeError:  # none, or it is read as it comes
        return {}
