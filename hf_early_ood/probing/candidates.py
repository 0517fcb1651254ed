"""What is asked of similarity before training, and its material: a target, and sources as teachers on its features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor

from hf_early_ood.checks import check_choice, check_count, check_number, check_seed
from hf_early_ood.config.schema import DataConfig
from hf_early_ood.data.labels import Vocabulary
from hf_early_ood.data.loading import read_split
from hf_early_ood.errors import ConfigurationError, DataError, UnsupportedModelError, named
from hf_early_ood.evaluation.metrics import classification_metrics
from hf_early_ood.names import BALANCED_ACCURACY, LABEL, SEQUENCE_CLASSIFICATION, TEXT, TEXT_PAIR
from hf_early_ood.probes.transfer import LinearTask
from hf_early_ood.probing.checkpoints import SavedModel, find_saved_models, holds_model
from hf_early_ood.probing.loading import Blueprint, NewHead, read_blueprint
from hf_early_ood.similarities import INFINITE_DEPTH, LINEAR, MEASURES, NTK
from hf_early_ood.sources import SplitSpec
from hf_early_ood.tasks.features import LastLayer, last_layer
from hf_early_ood.tasks.loading import class_names, load_tokenizer, task_of_class
from hf_early_ood.tasks.losses import is_single_label
from hf_early_ood.tasks.sequence_classification import SequenceClassification

_SPLIT = "#"
_NUMBERED = (
    " Where a saved classifier has only LABEL_0, ..., give the label of each of its classes, as the data writes it,"
    " with --label-names."
)


@dataclass(frozen=True)
class SimilarityRequest:
    """Everything that decides the numbers.

    Attributes:
        sources: With ``model``, data with labels to train on first, ``SOURCE`` or ``SOURCE#SPLIT``; without, saved
            classifiers, or folders of checkpoints.
        target: Data with labels.
        model: A pretrained encoder or decoder, on whose features all sources are compared; None: each source is a
            classifier and has its own.
        few: n, number of the target's examples to fine-tune on.
        draws: How often they are drawn.
        size: Most examples that are read of a data set.
        rank_by: A measure; None: infinite_depth, with a ridge linear.
        ridge: Of the linear model, in units of the mean variance of a feature; needed where n >= d.
        text: Column of the text in all data sets; None: ``text``.
        text_pair: Column of the second text.
        label: Column of the label; None: ``label``.
        label_names: Label of each class of the saved classifiers, where their config does not say it (``LABEL_0``).
        max_length: Longest input in tokens.
        batch_size: Examples per forward pass.
        seed: Of the choice of examples, and of a new head's layers below its last.
        revision: Of ``model`` on the Hub.
        tokenizer: Name or folder, where none is beside a model.

    Raises:
        ConfigurationError: A value is not usable.

    Example:
        >>> domains = ["bundled:vader-icwsm2014#movie", "bundled:vader-icwsm2014#amazon"]
        >>> asked = SimilarityRequest(domains, "bundled:vader-icwsm2014#nyt", model="bundled:all-MiniLM-L6-v2")
        >>> asked.rank_by
        'infinite_depth'
    """

    sources: tuple[str, ...]
    target: str
    model: str | None = None
    few: int = 32
    draws: int = 10
    size: int = 1000
    rank_by: str = None  # type: ignore[assignment]  # a name from __post_init__ on
    ridge: float = 0.0
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    label_names: tuple[str, ...] | None = None
    max_length: int = DataConfig.max_length
    batch_size: int = 64
    seed: int = 0
    revision: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sources, str) or not all(isinstance(name, str) and name for name in self.sources):
            raise ConfigurationError("sources is not usable.", got=repr(self.sources), allowed="a list of names")
        object.__setattr__(self, "sources", tuple(self.sources))
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise ConfigurationError("Sources are needed, each once.", got=", ".join(self.sources) or "none")
        for key in ("few", "draws", "size", "max_length", "batch_size"):
            check_count(key, getattr(self, key))
        check_seed(self.seed)
        check_number("ridge", self.ridge, zero=True)
        usable = (LINEAR, NTK) if self.ridge else MEASURES
        if self.rank_by is None:
            object.__setattr__(self, "rank_by", LINEAR if self.ridge else INFINITE_DEPTH)
        check_choice("rank_by", self.rank_by, usable)
        if self.model is None and self.revision is not None:
            raise ConfigurationError("--revision is that of --model, and there is none.", got=self.revision)
        if self.model is not None and self.label_names is not None:
            raise ConfigurationError("With --model the labels are those of the target.", got=self.label_names)

    def spec(self, data: str) -> SplitSpec:
        """Where a data set is."""
        source, _, split = data.partition(_SPLIT)
        return SplitSpec(source, split=split or None, max_examples=self.size)


class Candidate(NamedTuple):
    """A source, as a linear model of the target's classes on the features that it is fine-tuned with.

    Attributes:
        name: What a reader calls it.
        source: As the user gave it.
        target: The target on these features.
        weights: (d, K).
        error_before: 1 - balanced accuracy of the source on the target.
        explained: Of its own data, by its teacher; None for a head.
        num_examples: Of its own data; None for a head.
        layer: The last layer of a head; None for data.
    """

    name: str
    source: str
    target: LinearTask
    weights: Tensor
    error_before: float
    explained: float | None = None
    num_examples: int | None = None
    layer: str | None = None


@dataclass(frozen=True, eq=False)
class Material:
    """What a request names, read and checked but for the weights.

    Attributes:
        request: What is asked for.
        target: The target's examples.
        labels: Its classes.
        data: Source -> its examples, where sources are data.
        models: Saved classifier -> what it is, where sources are those.
        encoder: The pretrained model, where sources are data.
    """

    request: SimilarityRequest
    target: Dataset
    labels: tuple[str, ...]
    data: Mapping[str, Dataset]
    models: Mapping[SavedModel, Blueprint]
    encoder: Blueprint | None

    @classmethod
    def read(cls, request: SimilarityRequest) -> Material:
        """Read the data and what the models are.

        Raises:
            ConfigurationError: Sources are data where models are asked for, or the other way round.
            DataError: Data or labels are not usable, or there are too few.
            UnsupportedModelError: A model is no classifier of sequences with one label, or not of these labels.
        """
        _check_kind_of_sources(request)
        models = {} if request.model is not None else _classifiers(request)
        labels = request.label_names
        if models and labels is None:
            labels = tuple(class_names(next(iter(models.values())).config))
        with named(f"target {request.target}"):
            target = _examples(request, request.target, labels, "the model")
        names = tuple(target.features[LABEL].names)
        if request.few >= len(target):
            raise DataError(
                "The target has too few examples: besides those to fine-tune on, some are needed to judge by.",
                got=f"{len(target)} examples, of which {request.few} to fine-tune on",
                fix="Give more examples with labels, or set --few lower.",
            )
        data = {}
        for source in () if models else request.sources:
            with named(f"source {source}"):
                data[source] = _examples(request, source, names, "the target")
        missing = {source: sorted({*names} - {names[label] for label in part[LABEL]}) for source, part in data.items()}
        for source, classes in missing.items():
            if classes:
                raise DataError("A source has no example of a class.", got=f"{source} without {', '.join(classes)}")
        for model, blueprint in models.items():
            _classes_in_order(model, blueprint, names, request.label_names)
        encoder = None
        if request.model is not None:
            encoder = NewHead.of(request.model, names, seed=request.seed, revision=request.revision)
        return cls(request, target, names, data, models, encoder)

    def text(self) -> str:
        """What would be compared, in words."""
        request = self.request
        lines = [
            f"target {request.target}: {len(self.target):,} examples of {', '.join(self.labels)};"
            f" {request.draws} draws of {request.few}",
            *(f"source {source}: {len(examples):,} examples" for source, examples in self.data.items()),
            *(f"source {model.path}: {blueprint.model_class.__name__}" for model, blueprint in self.models.items()),
        ]
        return "\n".join(lines)

    def candidates(self, device: torch.device) -> Iterator[Candidate]:
        """The sources one by one; a model is loaded when it is reached."""
        for model, blueprint in self.models.items():
            with named(f"source {model.path}"):
                head = self._head(model, blueprint, device)
            yield head
        if self.encoder is None:
            return
        encoder = self.encoder.load(device=device)
        with named(f"target {self.request.target}"):
            target = self._task(self._last_layer(encoder, self.encoder.name, self.target), self.target)
        for source, examples in self.data.items():
            with named(f"source {source}"):
                task = self._task(self._last_layer(encoder, self.encoder.name, examples), examples)
            yield Candidate(
                _short(source), source, target, task.teacher.weights, _error(task.predict(target.features), target),
                explained=task.teacher.explained, num_examples=len(examples),
            )  # fmt: skip

    def _head(self, model: SavedModel, blueprint: Blueprint, device: torch.device) -> Candidate:
        layer = self._last_layer(blueprint.load(device=device), model.path, self.target)
        target = self._task(layer, self.target)
        order = _classes_in_order(model, blueprint, self.labels, self.request.label_names)
        weight, bias = layer.weight[order].double(), layer.bias[order].double()
        guesses = (target.features @ weight.T + bias).argmax(1)
        return Candidate(model.name, model.path, target, target.head(weight), _error(guesses, target), layer=layer.name)

    def _last_layer(self, model: Any, name: str, examples: Dataset) -> LastLayer:
        task = SequenceClassification(max_length=self.request.max_length)
        given = self.request.tokenizer
        tokenizer = load_tokenizer(given or name, revision=None if given else self.request.revision)
        rows = task.encode(examples, tokenizer).rows
        return last_layer(model, task.collator(tokenizer), rows, batch_size=self.request.batch_size)

    def _task(self, layer: LastLayer, examples: Dataset) -> LinearTask:
        return LinearTask(layer.features, torch.tensor(examples[LABEL][:]), len(self.labels))


def _check_kind_of_sources(request: SimilarityRequest) -> None:
    for source in request.sources:
        path = Path(source).expanduser()
        if request.model is None and (path.is_file() or (_SPLIT in source and not path.exists())):
            raise ConfigurationError(
                "A source is data, and no model to train on it is named.",
                got=source,
                fix="Name a pretrained model with --model, or give saved classifiers as sources.",
            )
        if request.model is not None and holds_model(path):
            raise ConfigurationError(
                "A source is a saved model, where data is asked for to train another one on.",
                got=f"{source}, model {request.model}",
                fix="Leave out --model to rank saved classifiers, or give data as sources.",
            )


def _classifiers(request: SimilarityRequest) -> dict[SavedModel, Blueprint]:
    found = {}
    for source in request.sources:
        for model in find_saved_models(source):
            blueprint = read_blueprint(model.path)
            if task_of_class(blueprint.model_class) != SEQUENCE_CLASSIFICATION or not is_single_label(blueprint.config):
                raise UnsupportedModelError(
                    "A source is no classifier of texts with one label each.",
                    got=f"{model.path}, a {blueprint.model_class.__name__}",
                )
            found[model] = blueprint
    return found


def _classes_in_order(
    model: SavedModel, blueprint: Blueprint, labels: Sequence[str], given: Sequence[str] | None
) -> list[int]:
    """For each label of the target, the class of the model."""
    known = class_names(blueprint.config)
    if {*known} == {*labels}:
        return [known.index(name) for name in labels]
    if given is not None and len(known) == len(given):
        return list(range(len(known)))
    raise UnsupportedModelError(
        "The classes of a source are not those of the target.",
        got=f"{model.path} with {', '.join(known)}",
        allowed=", ".join(labels),
        fix="Where the model has only LABEL_0, ..., give the label of each of its classes with --label-names.",
    )


def _examples(request: SimilarityRequest, data: str, labels: tuple[str, ...] | None, owner: str) -> Dataset:
    spec = request.spec(data)
    columns = {TEXT: request.text or TEXT, TEXT_PAIR: request.text_pair, LABEL: request.label or LABEL}
    named = {role: column for role, column in columns.items() if column is not None}
    loaded = read_split(
        spec,
        task=SEQUENCE_CLASSIFICATION,
        columns=named,
        vocabulary=Vocabulary(
            labels,
            owner,
            "Sources and target need the same classes, written in the same way."
            + ("" if request.model is not None else _NUMBERED),
        ),
        seed=request.seed,
    )
    return loaded.dataset


def _error(guesses: Tensor, target: LinearTask) -> float:
    return 1 - classification_metrics(target.labels.numpy(), guesses.numpy())[BALANCED_ACCURACY]


def _short(data: str) -> str:
    """The split of a data set, or the name of a file."""
    source, _, split = data.partition(_SPLIT)
    return split or Path(source).name
