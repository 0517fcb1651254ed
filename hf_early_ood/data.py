"""Splits of a run: train, ID and OOD sets with one label vocabulary, checked before anything is trained."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.duplicates import DEFAULT_THRESHOLD, near_duplicates
from hf_early_ood.errors import DataError, did_you_mean
from hf_early_ood.names import LABEL, TEXT, TEXT_PAIR
from hf_early_ood.sources import SplitSpec, read_source

__all__ = ["DataReport", "SplitReport", "SplitSpec", "Splits", "load_split", "load_splits"]

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class SplitReport:
    """What one split holds.

    Attributes:
        source: The ``SplitSpec`` as a dictionary.
        num_examples: Examples in the split.
        label_counts: Label -> examples.
        fingerprint: First 16 hex digits of the SHA-256 of texts and label names: the same examples in the same
            order, the same fingerprint.
        near_duplicates: Examples that are nearly the same as a training example, counted before any were dropped;
            0 for train.
    """

    source: dict[str, Any]
    num_examples: int
    label_counts: dict[str, int]
    fingerprint: str
    near_duplicates: int


@dataclass(frozen=True)
class DataReport:
    """What all splits hold, and what was dropped.

    Attributes:
        splits: Split -> its report.
        near_duplicate_threshold: Jaccard similarity of words from which on two texts are near-duplicates.
        train_near_duplicates: Training examples that are nearly the same as one of an evaluation split.
        train_dropped: How many of those were dropped from train: all or none.
        seed: Seed of the sub-sampling.
    """

    splits: dict[str, SplitReport]
    near_duplicate_threshold: float
    train_near_duplicates: int
    train_dropped: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Splits(Mapping[str, Dataset]):
    """Data sets by split name: ``train``, ``id_validation``, ``id_test``, ``ood/<name>``.

    Attributes:
        datasets: Split -> ``Dataset`` with columns text, (text_pair,) label.
        label_names: Label of each class id.
        report: Counts, fingerprints, near-duplicates.
    """

    datasets: dict[str, Dataset]
    label_names: tuple[str, ...]
    report: DataReport

    def __getitem__(self, split: str) -> Dataset:
        return self.datasets[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self.datasets)

    def __len__(self) -> int:
        return len(self.datasets)

    @property
    def evaluation(self) -> dict[str, Dataset]:
        """All splits but train."""
        return {split: dataset for split, dataset in self.datasets.items() if split != names.TRAIN}


def load_split(
    spec: SplitSpec,
    *,
    text: str = TEXT,
    text_pair: str | None = None,
    label: str | None = LABEL,
    label_names: Sequence[str] | None = None,
    seed: int = 0,
    label_owner: str = "the training set",
    label_fix: str = "Write the labels of this set as training does, or leave the set out.",
) -> Dataset:
    """Load one split, check every example, and number its labels.

    Labels are matched by name, never by number. Names come from the ``ClassLabel`` of the column, or are the values
    themselves; the number 1 and the text "1" are the same name. A number where training has words is an error.

    Args:
        spec: Where the examples are.
        text: Column of the text. Bundled data has its own columns: ``text`` and ``label``.
        text_pair: Column of the second text, for pairs.
        label: Column of the label; ``None`` loads texts only.
        label_names: Label of each class id; ``None`` takes those of this split: the ``ClassLabel`` names, or the
            sorted values of the whole split (before sub-sampling).
        seed: Decides which examples ``max_examples`` keeps (their order stays; a smaller number keeps a subset).
        label_owner: Whose ``label_names`` are, for the message about a label that is not one of them.
        label_fix: What to do about it.

    Returns:
        Data set with columns text, (text_pair,) (label, a ``ClassLabel``).

    Raises:
        DataError: If something is not there, a text is missing or blank, or a label is missing or not known.

    Example:
        >>> movie = load_split(SplitSpec("bundled:vader-icwsm2014", split="movie", max_examples=3))
        >>> movie.column_names, movie.features["label"].names
        (['text', 'label'], ['negative', 'positive'])
    """
    if spec.is_bundled:
        if text_pair is not None:
            raise DataError(f"{spec.source} has no text pairs.", got=f"text_pair={text_pair}", fix="Leave it out.")
        text, label = TEXT, None if label is None else LABEL
    columns = {TEXT: text, **({} if text_pair is None else {TEXT_PAIR: text_pair})}
    dataset = read_source(spec, [*columns.values(), *([] if label is None else [label])])
    if len(dataset) == 0:
        raise DataError("The split is empty.", got=spec, fix="Check the source, or leave the split out.")

    if label is not None and label_names is None:
        label_names = _own_label_names(dataset, label)
    if spec.max_examples is not None and spec.max_examples < len(dataset):
        chosen = np.random.default_rng(seed).permutation(len(dataset))[: spec.max_examples]
        dataset = dataset.select(np.sort(chosen))

    values: dict[str, list[Any]] = {role: _texts(dataset, column) for role, column in columns.items()}
    features: dict[str, Any] = {role: Value("string") for role in values}
    if label is not None and label_names is not None:
        values[LABEL] = _label_ids(dataset, label, label_names, label_owner, label_fix)
        features[LABEL] = ClassLabel(names=list(label_names))
    return Dataset.from_dict(values, features=Features(features))


def load_splits(
    *,
    train: SplitSpec,
    id_test: SplitSpec,
    id_validation: SplitSpec | None = None,
    ood: Mapping[str, SplitSpec] | None = None,
    text: str = TEXT,
    text_pair: str | None = None,
    label: str = LABEL,
    label_names: Sequence[str] | None = None,
    seed: int = 0,
    drop_near_duplicates: bool = False,
) -> Splits:
    """Load all splits of a run, with the labels of train, and look for leaks between them.

    All problems of all splits are reported together.

    Args:
        train: Training set; its labels are the vocabulary.
        id_test: Test set of the training distribution.
        id_validation: For choices made during training; ``None``: there is none.
        ood: Name -> test set of another distribution.
        text: Column of the text, in every source that is not bundled.
        text_pair: Column of the second text, for pairs.
        label: Column of the label.
        label_names: Label of each class id, where train does not say it right.
        seed: Seed of the sub-sampling.
        drop_near_duplicates: Drop training examples that are nearly the same as one of any evaluation split. They are
            counted either way. Evaluation sets are never touched.

    Returns:
        Splits by name, with a report.

    Raises:
        DataError: If any split has a problem, if there are fewer than two labels, or if no training example is left.

    Example:
        >>> def tweets(split):
        ...     return SplitSpec("bundled:vader-icwsm2014", split="tweets/" + split)
        >>> splits = load_splits(train=tweets("train"), id_test=tweets("id_test"))
        >>> list(splits), splits.report.train_near_duplicates
        (['train', 'id_test'], 0)
    """
    specs = {names.TRAIN: train}
    if id_validation is not None:
        specs[names.ID_VALIDATION] = id_validation
    specs[names.ID_TEST] = id_test
    specs |= {names.ood(name): spec for name, spec in (ood or {}).items()}

    datasets: dict[str, Dataset] = {}
    problems: dict[str, DataError] = {}
    for split, spec in specs.items():
        # Without a usable train there is no vocabulary yet: the other splits are still checked by themselves.
        known = datasets[names.TRAIN].features[LABEL].names if names.TRAIN in datasets else label_names
        try:
            datasets[split] = load_split(
                spec, text=text, text_pair=text_pair, label=label, label_names=known, seed=seed
            )
        except DataError as error:
            problems[split] = error
    if problems:
        lines = [f"{split} ({specs[split]}): {error}" for split, error in problems.items()]
        raise DataError("\n".join(["The data is not usable.", *lines])) from next(iter(problems.values()))
    vocabulary = tuple(datasets[names.TRAIN].features[LABEL].names)
    if len(vocabulary) < 2:
        raise DataError("The training set has fewer than two labels.", got=", ".join(vocabulary), allowed="2 or more")

    near_train, leaked = _leaks(datasets)
    if drop_near_duplicates and leaked:
        kept = [position for position in range(len(datasets[names.TRAIN])) if position not in leaked]
        if not kept:
            raise DataError(
                "Every training example is a near-duplicate of an evaluation example.",
                got=f"{len(leaked)} examples",
                fix="Check that train and the evaluation splits are not the same data.",
            )
        datasets[names.TRAIN] = datasets[names.TRAIN].select(kept)
    elif leaked:
        logger.warning(
            f"{len(leaked)} training examples are near-duplicates of evaluation examples; they are kept "
            "(drop_near_duplicates=True drops them)."
        )
    report = DataReport(
        splits=_split_reports(datasets, specs, near_train),
        near_duplicate_threshold=DEFAULT_THRESHOLD,
        train_near_duplicates=len(leaked),
        train_dropped=len(leaked) if drop_near_duplicates else 0,
        seed=seed,
    )
    return Splits(datasets, vocabulary, report)


def _texts(dataset: Dataset, column: str) -> list[str]:
    texts = dataset[column][:]
    for row, value in enumerate(texts):
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"Column {column!r} has an example without text.",
                got=f"{value!r} in example {row}",
                allowed="text that is not blank",
                fix="Remove such examples from the source.",
            )
    return texts


def _own_label_names(dataset: Dataset, column: str) -> list[str]:
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    found = set(_label_values(dataset, column))
    # "10" after "9", where all labels are numbers.
    return sorted(found, key=lambda name: (int(name), name)) if all(map(_is_index, found)) else sorted(found)


def _label_values(dataset: Dataset, column: str) -> list[str]:
    """Every label as a string: its name where the column knows names."""
    feature = dataset.features[column]
    values = dataset[column][:]
    for row, value in enumerate(values):
        missing = value is None or value == "" or (isinstance(feature, ClassLabel) and value < 0)
        if missing or not isinstance(value, str | int):
            raise DataError(
                f"Column {column!r} has an example without a label that names a class.",
                got=f"{value!r} in example {row}",
                allowed="a name, or an index from 0 on",
                fix="Choose a split with labels (hidden test labels are often -1), or remove such examples.",
            )
    if isinstance(feature, ClassLabel):
        return [feature.names[value] for value in values]
    return [str(int(value)) if isinstance(value, bool) else str(value) for value in values]


def _label_ids(dataset: Dataset, column: str, label_names: Sequence[str], owner: str, fix: str) -> list[int]:
    ids = {name: index for index, name in enumerate(label_names)}
    values = _label_values(dataset, column)
    counts = Counter(value for value in values if value not in ids)
    if counts:
        unknown = sorted(counts)
        raise DataError(
            f"A label is not one of those of {owner}.",
            got=", ".join(f"{name!r} ({counts[name]} examples)" for name in unknown),
            allowed=", ".join(map(repr, label_names)),
            fix=did_you_mean(unknown[0], label_names)
            + (" Numbers say nothing about which name they mean." if all(map(_is_index, unknown)) else "")
            + f" {fix}",
        )
    return [ids[value] for value in values]


def _is_index(name: str) -> bool:
    return name.isdecimal() and name.isascii()


def _joined_texts(dataset: Dataset) -> list[str]:
    if TEXT_PAIR not in dataset.column_names:
        return dataset[TEXT][:]
    return [f"{first} {second}" for first, second in zip(dataset[TEXT][:], dataset[TEXT_PAIR][:], strict=True)]


def _leaks(datasets: Mapping[str, Dataset]) -> tuple[dict[str, int], set[int]]:
    """Per split: examples close to train; and the training examples that are close to any of them."""
    train_texts = _joined_texts(datasets[names.TRAIN])
    near_train: dict[str, int] = {}
    leaked: set[int] = set()
    for split, dataset in datasets.items():
        if split == names.TRAIN:
            near_train[split] = 0
            continue
        pairs = near_duplicates(train_texts, _joined_texts(dataset))
        near_train[split] = len({pair.right for pair in pairs})
        leaked |= {pair.left for pair in pairs}
    return near_train, leaked


def _split_reports(
    datasets: Mapping[str, Dataset], specs: Mapping[str, SplitSpec], near_train: Mapping[str, int]
) -> dict[str, SplitReport]:
    reports: dict[str, SplitReport] = {}
    seen = {name for name, count in _label_counts(datasets[names.TRAIN]).items() if count}
    for split, dataset in datasets.items():
        counts = _label_counts(dataset)
        unseen = tuple(name for name, count in counts.items() if count and name not in seen)
        if unseen:
            raise DataError(
                f"{split} has labels that training never saw.",
                got=", ".join(unseen),
                allowed=", ".join(sorted(seen)),
                fix="Add training examples of them, or leave them out of the set.",
            )
        reports[split] = SplitReport(
            source=asdict(specs[split]),
            num_examples=len(dataset),
            label_counts=counts,
            fingerprint=_fingerprint(dataset),
            near_duplicates=near_train[split],
        )
    return reports


def _label_counts(dataset: Dataset) -> dict[str, int]:
    label_names = dataset.features[LABEL].names
    counts = np.bincount(np.asarray(dataset[LABEL][:], dtype=np.int64), minlength=len(label_names))
    return {name: int(count) for name, count in zip(label_names, counts, strict=True)}


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    label_names = dataset.features[LABEL].names
    texts = [dataset[column][:] for column in dataset.column_names if column != LABEL]
    for *parts, label in zip(*texts, dataset[LABEL][:], strict=True):
        digest.update(json.dumps([*parts, label_names[label]]).encode() + b"\n")
    return digest.hexdigest()[:16]
