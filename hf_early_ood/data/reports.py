"""What the splits of a run hold: counts, fingerprints, duplicates."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from datasets import Dataset

from hf_early_ood.names import ANSWERS, GROUP, ID, LABEL, TAGS

WITH_ANSWER, WITHOUT_ANSWER = "with an answer", "without"
_NOT_READ = (ID, GROUP, LABEL, TAGS, ANSWERS)  # by the model


@dataclass(frozen=True)
class SplitReport:
    """What one split holds.

    Attributes:
        source: The ``SplitSpec`` as a dictionary.
        num_examples: Examples in the split.
        label_counts: Label -> examples; tag -> words; of questions, those with an answer and those without.
        fingerprint: First 16 hex digits of the SHA-256 of all columns, labels by name: the same examples in the same
            order, the same fingerprint.
        near_duplicates: Examples that are nearly the same as a training example, counted before any were dropped;
            0 for train.
        duplicates: Examples whose inputs are exactly those of an earlier one of this split.
        findings: What else was noticed -> how often.
        truncated: Examples of which the model does not see everything; ``None``: not counted yet.
    """

    source: dict[str, Any]
    num_examples: int
    label_counts: dict[str, int]
    fingerprint: str
    near_duplicates: int
    duplicates: int = 0
    findings: dict[str, int] = field(default_factory=dict)
    truncated: int | None = None

    def noticed(self) -> str:
        """What a reader should know, in words; empty if nothing was noticed.

        Example:
            >>> SplitReport({}, 9, {}, "", near_duplicates=2, findings={"left out": 1}, truncated=3).noticed()
            '2 nearly repeat a training example, 3 are longer than the model sees, 1 left out'
        """
        counts = {
            "nearly repeat a training example": self.near_duplicates,
            "repeat an earlier one exactly": self.duplicates,
            "are longer than the model sees": self.truncated,
            **self.findings,
        }
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


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

    def with_truncated(self, counts: Mapping[str, int]) -> DataReport:
        """The same with the number of examples that tokenization has cut, by split."""
        splits = {name: replace(report, truncated=counts.get(name)) for name, report in self.splits.items()}
        return replace(self, splits=splits)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, for JSON."""
        return asdict(self)


def label_counts(dataset: Dataset) -> dict[str, int]:
    """How often each label, each tag, and an answer or none occurs.

    Example:
        >>> label_counts(Dataset.from_dict({"answers": [{"text": ["a"]}, {"text": []}, {"text": ["b"]}]}))
        {'with an answer': 2, 'without': 1}
    """
    if ANSWERS in dataset.column_names:
        answered = sum(bool(answers["text"]) for answers in dataset[ANSWERS])
        return {WITH_ANSWER: answered, WITHOUT_ANSWER: len(dataset) - answered}
    if TAGS in dataset.column_names:
        names, ids = dataset.features[TAGS].feature.names, [tag for tags in dataset[TAGS] for tag in tags]
    else:
        names, ids = dataset.features[LABEL].names, dataset[LABEL][:]
    counts = Counter(ids)
    return {name: counts[index] for index, name in enumerate(names)}


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of every column of every example, labels by name."""
    digest = hashlib.sha256()
    columns = [dataset[column][:] for column in dataset.column_names if column not in (LABEL, TAGS)]
    if LABEL in dataset.column_names:
        columns.append([dataset.features[LABEL].names[label] for label in dataset[LABEL]])
    if TAGS in dataset.column_names:
        tag_names = dataset.features[TAGS].feature.names
        columns.append([[tag_names[tag] for tag in tags] for tags in dataset[TAGS]])
    for row in zip(*columns, strict=True):
        digest.update(json.dumps(list(row)).encode() + b"\n")
    return digest.hexdigest()[:16]


def exact_duplicates(dataset: Dataset) -> int:
    """Examples whose inputs are exactly those of an earlier one.

    Example:
        >>> exact_duplicates(Dataset.from_dict({"text": ["a", "b", "a", "a"], "label": [0, 0, 0, 1]}))
        2
    """
    return len(dataset) - len(set(_inputs(dataset)))


def joined_texts(dataset: Dataset) -> list[str]:
    """All that the model reads of each example, as one text: what near-duplicates are found by.

    Example:
        >>> joined_texts(Dataset.from_dict({"tokens": [["in", "Rome"]], "id": ["7"]}))
        ['in Rome']
    """
    return [" ".join(parts) for parts in _inputs(dataset)]


def _inputs(dataset: Dataset) -> Iterator[tuple[str, ...]]:
    columns = [dataset[column][:] for column in dataset.column_names if column not in _NOT_READ]
    for row in zip(*columns, strict=True):
        yield tuple(part for value in row for part in ([value] if isinstance(value, str) else value))
