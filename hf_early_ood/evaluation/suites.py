"""Evaluate a model on ID and OOD sets in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.evaluation.metrics import METRICS, FloatArray, IntArray, check_predictions, predicted_classes
from hf_early_ood.evaluation.statistics import (
    CONFIDENCE,
    NUM_RESAMPLES,
    Estimate,
    Run,
    Summary,
    summarize_runs,
)
from hf_early_ood.names import LABELS
from hf_early_ood.results import EvaluationRecord, MetricValue, OODSummary, WorstSet
from hf_early_ood.results import SplitEvaluation as SplitRecord
from hf_early_ood.tasks.forward import logits_of

Predict = Callable[[Dataset], FloatArray]
"""Data set -> logits (n, C), in the order of the data set."""


@dataclass(frozen=True, eq=False)
class SplitEvaluation:
    """What a model does on one set.

    Attributes:
        n: Number of examples.
        labels: (n,) class ids.
        predictions: (n,) class ids.
        probabilities: (n, C), float32.
        metrics: Metric -> estimate with an interval over examples.
        notes: What a reader must know about these numbers, e.g. that the set has a single class.
    """

    n: int
    labels: IntArray
    predictions: IntArray
    probabilities: FloatArray
    metrics: dict[str, Estimate]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SuiteEvaluation:
    """What a model does on all sets.

    Attributes:
        splits: Split -> evaluation.
        summaries: Metric -> OOD mean, worst set and gap to ID.
        confidence: Coverage of the intervals.
    """

    splits: dict[str, SplitEvaluation]
    summaries: dict[str, Summary]
    confidence: float

    @property
    def run(self) -> Run:
        """Split -> (labels, predictions), for ``statistics.compare_arms``."""
        return {split: (evaluation.labels, evaluation.predictions) for split, evaluation in self.splits.items()}

    def to_record(self, selected_by: str = "last update") -> EvaluationRecord:
        """All but the arrays, in the form of the results file.

        Args:
            selected_by: What chose the weights that were judged. Never OOD data.
        """
        splits = {
            split: SplitRecord(part.n, {name: _value(estimate) for name, estimate in part.metrics.items()}, part.notes)
            for split, part in self.splits.items()
        }
        ood = {}
        for metric, summary in self.summaries.items():
            mean, worst, gap = summary.ood_mean, summary.ood_worst, summary.gap
            if mean is not None and worst is not None and summary.worst_set is not None:
                lowest = WorstSet(summary.worst_set, worst.value, worst.low, worst.high)
                ood[metric] = OODSummary(_value(mean), lowest, None if gap is None else _value(gap))
        return EvaluationRecord(splits, ood, self.confidence, selected_by)


def _value(estimate: Estimate) -> MetricValue:
    return MetricValue(estimate.value, estimate.low, estimate.high)


def evaluate_splits(
    predict: Predict,
    splits: Mapping[str, Dataset],
    *,
    labels: str = LABELS,
    label_names: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> SuiteEvaluation:
    """Run a model over all sets: predictions, metrics with intervals, and the summary over the OOD sets.

    Args:
        predict: Data set -> logits (n, C). ``model_predictor`` makes one from a model.
        splits: Split -> data set; OOD sets are those named ``ood/<name>``.
        labels: Column of the class ids.
        label_names: Label of each class id, for the notes.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        seed: Seed of the resampling.

    Returns:
        The evaluation, with everything that a comparison with another model needs.

    Raises:
        DataError: If a set is empty or has no labels, or the logits do not fit it.
        ProbeError: If logits are NaN or infinite.

    Example:
        >>> sets = {name: Dataset.from_dict({"labels": [0, 1] * 10}) for name in ("id_test", "ood/a", "ood/b")}
        >>> result = evaluate_splits(lambda dataset: np.eye(2)[dataset["labels"][:]], sets)
        >>> result.summaries["accuracy"].ood_mean.value
        1.0
    """
    if not splits:
        raise DataError("There are no sets to evaluate on.", allowed="one or more splits")
    # Everything that can be wrong with the sets is found before the model runs.
    targets = {split: _targets(split, dataset, labels) for split, dataset in splits.items()}
    logits = {split: np.asarray(predict(dataset)) for split, dataset in splits.items()}

    run = {}
    for split, target in targets.items():
        run[split] = check_predictions(target, predicted_classes(logits[split]))
        num_classes = logits[split].shape[1]
        if target.max() >= num_classes:
            raise DataError(
                f"{split} has a label that the model has no output for.", got=target.max(), allowed=f"< {num_classes}"
            )
    summaries = {
        metric: summarize_runs([run], metric=metric, num_resamples=num_resamples, confidence=confidence, seed=seed)
        for metric in METRICS
    }
    evaluations = {
        split: SplitEvaluation(
            n=len(target),
            labels=target,
            predictions=predictions,
            probabilities=_softmax(logits[split]),
            metrics={metric: summaries[metric].splits[split] for metric in METRICS},
            notes=_notes(target, predictions, logits[split].shape[1], label_names),
        )
        for split, (target, predictions) in run.items()
    }
    return SuiteEvaluation(evaluations, summaries, confidence)


def model_predictor(
    model: nn.Module,
    collator: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]],
    *,
    batch_size: int = 64,
) -> Predict:
    """Make the ``predict`` of ``evaluate_splits`` from a model.

    Args:
        model: Model whose output has ``logits`` (B, C).
        collator: Examples -> batch of tensors, e.g. ``tasks.sequence_classification.data_collator``.
        batch_size: Examples B in a batch.

    Returns:
        Function: tokenized data set with ``input_ids`` -> logits (n, C) as float32, in the order of the data set; see
        :func:`~hf_early_ood.tasks.forward.logits_of`.

    Raises:
        ConfigurationError: If the batch size is not positive.

    Example:
        >>> from hf_early_ood.tasks.sequence_classification import SequenceClassification
        >>> task = SequenceClassification(max_length=16)
        >>> model, tokenizer = task.load("bundled:all-MiniLM-L6-v2", ["no", "yes"])
        >>> dataset = task.encode(Dataset.from_dict({"text": ["a", "a b c"], "label": [0, 1]}), tokenizer)
        >>> model_predictor(model, task.collator(tokenizer))(dataset).shape
        (2, 2)
    """
    if batch_size < 1:
        raise ConfigurationError("The batch size is too small.", got=batch_size, allowed="1 or more")

    def predict(dataset: Dataset) -> FloatArray:
        inputs = dataset.select_columns([column for column in dataset.column_names if column != LABELS])
        return logits_of(model, collator, inputs, batch_size=batch_size)

    return predict


def _targets(split: str, dataset: Dataset, column: str) -> IntArray:
    if column not in dataset.column_names:
        raise DataError(f"{split} has no column of labels.", got=", ".join(dataset.column_names), allowed=column)
    targets = np.asarray(dataset[column][:])
    if len(targets) == 0:
        raise DataError(f"{split} is empty.", fix="Check its source, or leave it out.")
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer) or targets.min() < 0:
        raise DataError(f"The labels of {split} are not class ids.", got=targets[:3], allowed="0, 1, ...")
    return targets


def _softmax(logits: FloatArray) -> FloatArray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def _notes(
    labels: IntArray, predictions: IntArray, num_classes: int, label_names: Sequence[str] | None
) -> tuple[str, ...]:
    def names(ids: IntArray) -> str:
        return ", ".join(str(i) if label_names is None else label_names[i] for i in ids)

    notes = []
    present = np.unique(labels)
    if len(present) < num_classes:
        absent = np.setdiff1d(np.arange(num_classes), present)
        notes.append(f"No example has the label {names(absent)}: means over classes leave it out.")
    if len(present) == 1:
        notes.append(f"Every example has the label {names(present)}: balanced accuracy is the recall of that class.")
    predicted = np.unique(predictions)
    if len(predicted) == 1:
        notes.append(f"Every example is predicted to be {names(predicted)}.")
    if (labels == predictions).all():
        notes.append("Every prediction is right: the interval has no width, which is not certainty.")
    return tuple(notes)
