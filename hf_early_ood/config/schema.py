"""The settings of one run. Everything a result depends on is in here, and nothing else."""

# `option` makes a dataclasses.field.
# ruff: noqa: RUF009
from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin

import yaml

from hf_early_ood import names
from hf_early_ood.checks import LARGEST_SEED
from hf_early_ood.config.checks import NAME_IN_WORDS, check_method_written, check_run
from hf_early_ood.config.data_checks import check_data, note_old_keys
from hf_early_ood.config.dynamics import DynamicsConfig
from hf_early_ood.config.interventions import InterventionConfig
from hf_early_ood.config.parsing import Problems, build, join, option, section_of, type_hints, usable
from hf_early_ood.config.presets import with_preset
from hf_early_ood.config.training_arguments import REPORTING, check_training, training_fields
from hf_early_ood.roles import ROLES

# Keys, null by default, that came when there were runs without them.
_LATER = (
    ("dynamics",),
    ("evaluation", "prediction_depth"),
    ("intervention", "perturbation"),
    ("intervention", "pretext"),
)
_COLUMNS_IN_WORDS = "; ".join(f"{task}: {', '.join(roles)}" for task, roles in ROLES.items())


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): only they and the head train."""

    r: int = option("Rank of the adapters.", 8, at_least=1)
    alpha: float = option("What the adapters add is scaled by alpha / r.", 8.0, above=0)
    dropout: float = option("Dropout of the inputs of the adapters.", 0.0, at_least=0, below=1)
    target_modules: tuple[str, ...] | None = option(
        "Ends of the names of the layers that get adapters, or [all-linear]; peft's choice for the model if not set.",
        None,
    )


@dataclass(frozen=True)
class ModelConfig:
    """Where the pretrained model comes from, and how much of it trains."""

    name: str = option("Name of a model on the Hub, or its folder.")
    revision: str | None = option("Commit, tag or branch of the model.", None)
    lora: LoraSection | None = option("Train adapters in place of the weights; {} for the defaults.", None)


@dataclass(frozen=True)
class SplitConfig:
    """Where one set of examples comes from."""

    source: str = option("File or folder (relative to the working directory), or the name of a data set.")
    split: str | None = option("Split of that source.", None)
    name: str | None = option("Configuration of a data set that has several.", None)
    revision: str | None = option("Commit, tag or branch of the data set.", None)
    max_examples: int | None = option("Use only so many examples, drawn with data.seed.", None, at_least=1)
    columns: dict[str, str | tuple[str, ...]] = option(
        "Role to column where this set differs from data.columns.", dict, allowed=_COLUMNS_IN_WORDS
    )
    labels: dict[str, str | None] = option(
        "Label as this set writes it to ours; null leaves such examples out.", dict, allowed="names to names"
    )
    coarse_labels: dict[str, str] = option(
        "For a test set with fewer labels: each of ours to that of the set; what is predicted is mapped.",
        dict,
        allowed="names to names",
    )
    language: str | None = option(
        "Language of the texts: its rules of normalization, and reports.", None, allowed="a code of ISO 639, or null"
    )


@dataclass(frozen=True)
class DataConfig:
    """The training set, the in-distribution sets and the out-of-distribution sets."""

    train: SplitConfig = option("Examples to train on.")
    id_test: SplitConfig = option("In-distribution examples that only judge.")
    ood: dict[str, SplitConfig] = option("Out-of-distribution sets by name; they only judge.")
    id_validation: SplitConfig | None = option(
        "In-distribution examples that may select a checkpoint and calibrate; null: nothing is selected or calibrated.",
        None,
    )
    columns: dict[str, str | tuple[str, ...]] = option(
        "Role to column, in every set but bundled ones. A role that must be there has the column of its own name unless"
        " another is given; id, group and text_pair are read only where a column is given.",
        dict,
        allowed=_COLUMNS_IN_WORDS,
    )
    max_length: int = option("Longest input in tokens; the rest is cut off.", 128, at_least=1)
    leave_out_blank: bool = option(
        "Leave out and count examples in which a text that the model reads is blank or missing: an error otherwise.",
        False,
    )
    drop_near_duplicates: bool = option(
        "Leave out training examples that nearly repeat an evaluation text (counted either way).", False
    )
    seed: int = option("Draws the examples where max_examples is set.", 0, at_least=0, below=LARGEST_SEED)

    def sources(self) -> dict[str, SplitConfig]:
        """Where each split comes from, by the name that records and reports give it."""
        own = {names.TRAIN: self.train, names.ID_TEST: self.id_test}
        if self.id_validation is not None:
            own[names.ID_VALIDATION] = self.id_validation
        return own | {names.ood(name): split for name, split in self.ood.items()}


@dataclass(frozen=True)
class QuestionAnsweringConfig:
    """How answers are looked for in long texts; for the task question_answering."""

    doc_stride: int | None = option(
        "Tokens of the context that a window shares with the one before; a third of data.max_length if not set.",
        None,
        at_least=0,
    )
    max_answer_length: int = option("Tokens in the longest answer that is predicted.", 30, at_least=1)
    no_answer: bool = option("Whether there are questions without an answer, as in SQuAD 2.0.", False)


@dataclass(frozen=True)
class PredictionDepthConfig:
    """Prediction depth (Baldock et al. 2021, arXiv 2106.09647) of every evaluation example; see ``probes.depth``."""

    k: int = option("Neighbors that vote after each layer.", 30, at_least=1)
    support: int | None = option(
        "Training examples among which the neighbors are looked for, drawn with evaluation.seed; null: all, as in the"
        " source.",
        2000,
        at_least=1,
    )
    pooling: Literal["mean", "first", "last"] = option("Which positions of a text make its vector.", "mean")


@dataclass(frozen=True)
class EvaluationConfig:
    """How the trained model is judged."""

    batch_size: int = option("Examples at a time, in training's validation too.", 64, at_least=1)
    bootstrap_samples: int = option("Resamples behind an interval.", 2000, at_least=100)
    confidence: float = option("Confidence of the intervals.", 0.95, above=0, below=1)
    seed: int = option("Draws the resamples.", 0, at_least=0, below=LARGEST_SEED)
    margin: float = option(
        "What an arm may lose in distribution and still be called not worse: 0.01 is one point.",
        0.01,
        at_least=0,
        below=1,
    )
    save_model: bool = option("Keep the trained model in the run's folder.", True)
    prediction_depth: PredictionDepthConfig | None = option(
        "Also measure at which layer each prediction is made; {} for the defaults.", None
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that one run depends on.

    Make one with `RunConfig.from_dict` or `load_config`, which check every key; the constructor checks nothing.

    Example:
        >>> data = {"train": {"source": "a/tweets", "split": "train"},
        ...         "id_validation": {"source": "a/tweets", "split": "validation"},
        ...         "id_test": {"source": "a/tweets", "split": "test"},
        ...         "ood": {"movie": {"source": "a/movies"}}}
        >>> config = RunConfig.from_dict(
        ...     {"name": "plain", "output_dir": "out", "model": {"name": "bert-base-uncased"}, "data": data})
        >>> config.intervention.method, config.intervention.probe.size
        ('standard', 128)
    """

    name: str = option(
        "Name of the run; in a study, the study's name. A file without it gives its own.", allowed=NAME_IN_WORDS
    )
    seed: int = option("Seed of training.", 1, at_least=0, below=LARGEST_SEED)
    output_dir: str = option("Folder that the run writes into; runs/<name> where a file does not say.")
    preset: str | None = option("Published settings, under what is written here.", None)
    task: Literal["sequence_classification", "token_classification", "question_answering", "multiple_choice"] = option(
        "What the model learns.", names.SEQUENCE_CLASSIFICATION
    )
    model: ModelConfig = option("The pretrained model.")
    data: DataConfig = option("The examples.")
    question_answering: QuestionAnsweringConfig = option("How answers are looked for.", QuestionAnsweringConfig)
    training: dict[str, Any] = option("Any field of transformers.TrainingArguments, by its name.", dict)
    intervention: InterventionConfig = option("What is done to training.", InterventionConfig)
    dynamics: DynamicsConfig | None = option("What is measured while the model trains; null: nothing further.", None)
    evaluation: EvaluationConfig = option("How the model is judged.", EvaluationConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Build and check a run.

        Args:
            data: Nested keys, as YAML gives them. It is not changed.

        Raises:
            ConfigurationError: Naming every problem, one a line.
        """
        problems = Problems()
        config = cls.read(data, problems)
        problems.raise_if_any("the configuration")
        return config

    @classmethod
    def read(cls, data: Mapping[str, Any], problems: Problems) -> RunConfig:
        """As `from_dict`, but problems are noted in ``problems`` and the caller reports them."""
        written = with_preset(copy.deepcopy(data), problems)
        note_old_keys(written, problems)
        config = build(cls, written, "", problems, known_keys)
        if usable(config) and usable(config.training):
            config = replace(config, training=check_training(config.training, "training", problems))
        if usable(config):
            check_method_written(written.get("intervention"), problems)
            check_run(config, problems)
        if usable(config) and usable(config.data):
            check_data(config, problems)
        return config

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values, in types that JSON and YAML have."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    def to_yaml(self) -> str:
        """All keys, defaults too, as a YAML file that loads back to an equal configuration."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def fingerprint(self) -> str:
        """SHA-256 over everything but ``output_dir``: two runs with one fingerprint are the same run.

        What changes no run counts as little: ``evaluation.margin``, which is for the words of a study, and who is
        reported to.
        """
        settings = {key: value for key, value in self.to_dict().items() if key != "output_dir"}
        settings["evaluation"].pop("margin")
        for *sections, key in _LATER:
            holder = settings[sections[0]] if sections else settings
            if holder[key] is None:
                del holder[key]  # as in the runs before there was such a key
        for name in REPORTING:
            settings["training"].pop(name, None)
        return fingerprint(settings)


def fingerprint(settings: Any) -> str:
    """SHA-256 of plain values, the same for every order of keys.

    Example:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def walk(cls: type = RunConfig, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every setting: dotted key, dataclass field and type; ``<name>`` stands for a name the user gives.

    A section that is off unless it is written comes as a setting of its own before its keys.
    """
    for field in fields(cls):
        hint, key = type_hints(cls)[field.name], join(path, field.name)
        item = get_args(hint)[1] if get_origin(hint) is dict else None
        section = section_of(hint)
        if section is not None:
            if section is not hint:
                yield key, field, hint
            yield from walk(section, key)
        elif isinstance(item, type) and is_dataclass(item):
            yield from walk(item, f"{key}.<name>")
        else:
            yield key, field, hint


def known_keys() -> Iterator[str]:
    """Every dotted key of a run, those of `TrainingArguments` included; meant for error messages."""
    yield from (f"training.{name}" for name in training_fields())
    yield from (key for key, _, _ in walk())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
