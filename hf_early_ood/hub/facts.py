"""What a model card says, taken from the record of a run; each sentence only where the record has the fact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_early_ood.attributions import BUNDLED, of_method
from hf_early_ood.hub.redaction import sources
from hf_early_ood.languages import LANGUAGES, base_language
from hf_early_ood.names import (
    GRADUAL_UNFREEZING,
    ID_TEST,
    LAST_UPDATE,
    MULTIPLE_CHOICE,
    OOD_WORST,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    STANDARD,
    TOKEN_CLASSIFICATION,
    TRAIN,
    is_ood,
)
from hf_early_ood.report.layout import Table, duration, metric_title, share, with_interval
from hf_early_ood.report.reading import set_name, split_label
from hf_early_ood.report.tables import why
from hf_early_ood.results import EvaluationRecord, ModelRecord, RunRecord

PIPELINES = {
    SEQUENCE_CLASSIFICATION: "text-classification",
    TOKEN_CLASSIFICATION: "token-classification",
    QUESTION_ANSWERING: "question-answering",
    MULTIPLE_CHOICE: "multiple-choice",
}
# Sections of an intervention that are off unless they are written.
_SECTIONS = (
    "lisa", "autofreeze", "learning_rates", "generations", "fisher_penalty", "perturbation", "pretext",
    "weight_interpolation"
)  # fmt: skip
# The first of these that a run has is what its summary gives.
_MOST_LABELS = 20
_HEADLINES = ("balanced_accuracy", "f1", "exact_match", "accuracy")


def task_of(record: RunRecord) -> str:
    """The task of a run; the default of a configuration, where it does not say."""
    return str(record.config.get("task", SEQUENCE_CLASSIFICATION))


def is_adapter(record: RunRecord) -> bool:
    """Whether what was trained are adapters on a model that stays."""
    return (record.config.get("model") or {}).get("lora") is not None


def base_model(model: ModelRecord | None) -> str | None:
    """Name of the base model on the Hub; None: it is not there, or not known.

    Example:
        >>> base_model(ModelRecord("bundled:all-MiniLM-L6-v2", 22_713_986))
        'sentence-transformers/all-MiniLM-L6-v2'
    """
    if model is None or not model.name or model.is_local:
        return None
    return BUNDLED[model.name].name if model.name in BUNDLED else model.name


def languages(record: RunRecord) -> list[str]:
    """ISO 639 codes of the texts, those of training first; what the data does not say is not guessed."""
    given = sources(record.config)
    found = []
    for split in sorted(record.data, key=lambda split: split != TRAIN):
        bundled = BUNDLED.get(str((given.get(split) or {}).get("source")))
        language = record.data[split].language or (bundled.language if bundled else None)
        found += [base_language(language)] if language else []
    return list(dict.fromkeys(found))


def headline_metric(evaluation: EvaluationRecord) -> str | None:
    """The metric that a summary gives."""
    known = {metric for split in evaluation.splits.values() for metric in split.metrics}
    return next((metric for metric in _HEADLINES if metric in known), None)


def summary(record: RunRecord) -> str:
    """What this is and how good it is, in a few sentences."""
    model = record.model
    what = "An adapter (LoRA) for" if is_adapter(record) else "A fine-tuned version of"
    name = (
        "a model of one's own"
        if model is None or not model.name
        else base_model(model) or f"a local model, {model.name}"
    )
    text = f"{what} {name}, trained with {method_in_words(record)} for {PIPELINES.get(task_of(record), 'its task')}."
    evaluation = record.evaluation
    metric = headline_metric(evaluation) if evaluation is not None else None
    if evaluation is None or metric is None:
        return text
    parts = []
    id_test = evaluation.splits.get(ID_TEST)
    if id_test is not None and metric in id_test.metrics:
        value = id_test.metrics[metric]
        parts.append(f"in distribution {with_interval(value.value, value.low, value.high)} (n = {id_test.n})")
    ood = evaluation.ood.get(metric)
    if ood is not None:
        mean, count = ood.macro_mean, sum(map(is_ood, evaluation.splits))
        sets = f"mean of {count} sets " if count > 1 else ""
        parts.append(f"out of distribution {sets}{with_interval(mean.value, mean.low, mean.high)}")
        if count > 1 and ood.worst.value is not None:
            worst = with_interval(ood.worst.value, ood.worst.low, ood.worst.high)
            parts.append(f"{split_label(OOD_WORST)} {worst} ({set_name(ood.worst.set)})")
    if not parts:
        return text
    head = metric_title(metric)
    interval = f"{evaluation.confidence:.0%} interval in brackets"
    return f"{text} {head[:1].upper()}{head[1:]} in percent, {interval}: {'; '.join(parts)}."


def method_in_words(record: RunRecord) -> str:
    """The intervention, as a phrase."""
    intervention = record.intervention
    if intervention is None or (intervention.method == STANDARD and not intervention.also):
        return "standard fine-tuning"
    names = [intervention.method, *intervention.also] if intervention.method != STANDARD else list(intervention.also)
    return " and ".join(name.replace("_", " ") for name in names)


def procedure(record: RunRecord) -> str:
    """How training went: what was released when and why, how long it took, which weights these are."""
    intervention, training = record.intervention, record.training
    text = f"Trained with {method_in_words(record)}."
    if intervention is not None and intervention.decision is not None:
        decision = intervention.decision
        settings = ", ".join(
            f"{key} {value}" for key, value in decision.settings.items() if key in ("window", "tolerance")
        )
        text += (
            f" Further layers were released from update {decision.step} on: {why(intervention)}"
            f" ({decision.signal or 'signal'}{f', {settings}' if settings else ''})."
        )
    if training is not None:
        loss = "" if training.train_loss is None else f", mean loss {training.train_loss:.4g}"
        text += f" {training.updates:,} updates, {training.epochs:g} epochs, {duration(training.seconds)}{loss}."
        for measure, probe in record.probes.items():
            text += (
                f" {probe.count} measurements of {measure.replace('_', ' ')} took {duration(probe.seconds)}"
                f" ({share(probe.seconds, training.seconds)} of training)."
            )
    if record.interpolation is not None:
        path = record.interpolation
        text += f" Weights between before and after training, alpha = {path.chosen:g}, chosen on ID validation."
    return text


def settings(record: RunRecord) -> list[tuple[str, str]]:
    """Optimizer and intervention, name and value, defaults too."""
    found = record.training.hyperparameters if record.training is not None else {}
    rows = {**(found or record.config.get("training") or {}), "seed": record.seed}
    rows = {key: value for key, value in rows.items() if value is not None}
    model = record.config.get("model") or {}
    rows |= _flat("lora", model.get("lora"))
    rows |= _flat("intervention", _in_use(record.config.get("intervention") or {}))
    return [(key, _plain(value)) for key, value in rows.items()]


def _in_use(intervention: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys that this method reads: those of gradual unfreezing are in every configuration."""
    if intervention.get("method") == GRADUAL_UNFREEZING:
        return intervention
    kept = ("method", *(key for key in _SECTIONS if isinstance(intervention.get(key), Mapping)))
    return {key: intervention[key] for key in kept if key in intervention}


def _flat(path: str, value: Any) -> dict[str, Any]:
    """Nested keys as dotted ones; what is off or empty is left out."""
    if isinstance(value, Mapping):
        return {name: item for key, part in value.items() for name, item in _flat(f"{path}.{key}", part).items()}
    return {} if value is None or value == [] else {path: value}


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)


def data_table(record: RunRecord, shown: Mapping[str, str]) -> Table | None:
    """Every set with its source and size; None where none is known."""
    rows = [
        (split_label(split), shown.get(split, "-"), f"{item.n:,}", item.language or "-", item.fingerprint)
        for split, item in record.data.items()
    ]
    return (
        Table(
            "Data",
            ("set", "source", "examples", "language", "fingerprint"),
            rows,
            left=("source", "language", "fingerprint"),
        )
        if rows
        else None
    )


def reproduce_notes(record: RunRecord) -> list[str]:
    """Versions, machine and commit."""
    environment = record.environment
    packages = ", ".join(f"{name} {version}" for name, version in environment.packages.items() if version)
    text = f"Made with Python {environment.python}, {packages}, on {environment.device} ({environment.platform})."
    if environment.git_commit is not None:
        changed = ", with uncommitted changes" if environment.git_dirty else ""
        text += f" The working folder was at commit {environment.git_commit}{changed}."
    return [f"{text} Seed {record.seed}; finished {record.finished}."]


def limits(record: RunRecord) -> list[str]:
    """What a reader must know before taking the scores for more than they are."""
    evaluation, found = record.evaluation, []
    if evaluation is not None:
        found.append(
            "This is one training run. The intervals cover the choice of test examples, and not the seed of training: "
            "another seed gives other scores."
        )
        if evaluation.selected_by != LAST_UPDATE:
            found.append(f"The weights were chosen by: {evaluation.selected_by}.")
        found += evaluation.notes
        found += [f"{split_label(split)}: {note}" for split, item in evaluation.splits.items() for note in item.notes]
    for split, item in record.data.items():
        noticed = [
            (
                item.near_duplicates,
                "nearly repeat a training text" if split != TRAIN else "nearly repeat an evaluation text",
            ),
            (item.duplicates, "repeat an earlier one exactly"),
            (item.truncated, "are longer than what the model was given to see"),
            *((count, name) for name, count in (item.findings or {}).items()),
        ]
        words = [f"{count:,} {what}" for count, what in noticed if count]
        found += [f"{split_label(split)}, of {item.n:,} examples: {'; '.join(words)}."] if words else []
    decision = record.intervention.decision if record.intervention is not None else None
    if decision is not None and decision.at_first_chance:
        found.append(
            "The signal was stable at the first measurement that could decide, and may not have begun to move."
        )
    if decision is not None and decision.reason == "fallback":
        found.append("The signal was not stable in time: the moment of release is the fallback, not a finding.")
    if record.model is not None and record.model.is_local:
        found.append(f"The base model, {record.model.name}, was a folder on one machine; only its name is known.")
    if record.rescored is not None:
        found.append("The stored predictions were scored anew after the run.")
    found.append(
        "Scores differ between sets of data. What was not measured here, such as other domains, languages or groups of "
        "people, is not known; measure it before use."
    )
    return found


def intended(record: RunRecord) -> str:
    """What the model is for."""
    more = len(record.label_names) - _MOST_LABELS
    listed = ", ".join(record.label_names[:_MOST_LABELS]) + (f" and {more} more" if more > 0 else "")
    spoken = [LANGUAGES.get(code, code) for code in languages(record)]
    texts = f"texts in {', '.join(spoken)}" if spoken else "texts"
    task = PIPELINES.get(task_of(record), "The task it was trained for").replace("-", " ")
    return (
        f"{task[:1].upper()}{task[1:]} on {texts} like those it was evaluated on, and research on early training and "
        f"distribution shift.{f' It tells apart: {listed}.' if listed else ''} Not for decisions about people without "
        "a person who checks them."
    )


def citations(record: RunRecord) -> list[str]:
    """Of the method, of bundled data and of a bundled model."""
    names = [record.model.name if record.model is not None else ""]
    names += [str(source.get("source")) for source in sources(record.config).values()]
    found = [f"{BUNDLED[name].citation} License: {BUNDLED[name].license}." for name in names if name in BUNDLED]
    return list(dict.fromkeys([*of_method(record.config), *found]))


def use(record: RunRecord, repo_id: str) -> Sequence[str]:
    """Lines of Python that load the model; none for a task without a pipeline."""
    pipeline, base = PIPELINES.get(task_of(record)), base_model(record.model)
    if pipeline is None or pipeline == PIPELINES[MULTIPLE_CHOICE]:
        return []
    if not is_adapter(record):
        return ["from transformers import pipeline", "", f'model = pipeline("{pipeline}", model="{repo_id}")']
    if base is None:
        return []
    auto = "AutoModelFor" + "".join(word.capitalize() for word in pipeline.replace("text", "sequence").split("-"))
    # An adapter does not say what its classes are called.
    classes = [f"labels = {dict(enumerate(record.label_names))!r}"] if record.label_names else []
    labels = ", id2label=labels, label2id={name: index for index, name in labels.items()}" if classes else ""
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        *classes,
        f'base = {auto}.from_pretrained("{base}"{labels})',
        f'model = PeftModel.from_pretrained(base, "{repo_id}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")',
    ]
