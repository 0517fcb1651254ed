"""The task of a configuration, and what its model predicts on every split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_early_ood.config import RunConfig
from hf_early_ood.data import SplitInfo
from hf_early_ood.evaluation.predictions import Predictions
from hf_early_ood.names import LABEL, PREDICTION, PROBABILITIES, QUESTION_ANSWERING
from hf_early_ood.tasks import TASKS, Task


def task_for(config: RunConfig) -> Task:
    """The task of a run with its settings.

    Raises:
        ConfigurationError: A setting is out of its range.
    """
    longest = config.data.max_length
    own = asdict(config.question_answering) if config.task == QUESTION_ANSWERING else {}
    if own and own["doc_stride"] is None:
        own["doc_stride"] = longest // 3
    return TASKS[config.task](max_length=longest, **own)


def predict_splits(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    datasets: Mapping[str, Dataset],
    info: Mapping[str, SplitInfo],
    *,
    batch_size: int = 64,
) -> dict[str, Predictions]:
    """What a model says about every example of every split.

    Where the labels of a split are coarser than those of the model, its probabilities are summed over the labels that
    are one there. The predicted label is that of the most probable label of the model, as McCoy et al. 2019 (HANS,
    arXiv 1902.01007) judge models of three labels on two: not always the one with the largest sum.

    Args:
        task: Of the model.
        model: On any device.
        tokenizer: Its tokenizer.
        datasets: Split -> examples, as `hf_early_ood.data.load_splits` gives them.
        info: Split -> how it is to be judged.
        batch_size: Examples at a time.

    Returns:
        Split -> predictions.
    """
    predictions = {}
    for split, dataset in datasets.items():
        own = info[split]
        # Labels that are none of the model's are put in their place afterwards.
        asked = dataset if own.coarse is None else dataset.remove_columns(LABEL).add_column(LABEL, [0] * len(dataset))
        found = task.predict(model, tokenizer, asked, batch_size=batch_size, language=own.language)
        if own.coarse is not None:
            found = _coarsened(found, own.coarse, own.label_names, dataset[LABEL][:])
        predictions[split] = found
    return predictions


def _coarsened(
    predictions: Predictions, coarse: tuple[int, ...], label_names: tuple[str, ...], labels: list[int]
) -> Predictions:
    mapping = np.asarray(coarse)
    is_part_of = np.eye(len(label_names), dtype=np.float32)[mapping]  # (C, C of the split)
    columns = {
        LABEL: labels,
        PREDICTION: mapping[np.asarray(predictions.columns[PREDICTION])],
        PROBABILITIES: np.asarray(predictions.columns[PROBABILITIES]) @ is_part_of,
    }
    return replace(predictions, columns=columns, label_names=label_names)
