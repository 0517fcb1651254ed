"""Losses that are right under gradient accumulation and on several processes. B examples, T positions, C classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import PretrainedConfig

from hf_early_ood import names
from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.probes.outcomes import IGNORED
from hf_early_ood.tasks.answer_loss import QuestionAnsweringLoss
from hf_early_ood.tasks.loading import task_of_model

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


def is_single_label(config: PretrainedConfig) -> bool:
    """Whether a classifier chooses one of several labels, as far as its configuration says.

    Example:
        >>> is_single_label(PretrainedConfig(num_labels=3)), is_single_label(PretrainedConfig(num_labels=1))
        (True, False)
    """
    return (config.num_labels or 0) > 1 and getattr(config, "problem_type", None) in (None, SINGLE_LABEL)


def loss_for(model: Any, *, label_smoothing: float = 0.0) -> LabelLoss | QuestionAnsweringLoss | None:
    """The loss of a model's task, for ``Trainer(compute_loss_func=...)``; None where transformers' own is left alone.

    Args:
        model: A model of transformers with a head, perhaps inside of peft.
        label_smoothing: e in [0, 1), of single-label classification; of sequences, tokens or choices.

    Raises:
        ConfigurationError: If the model's ``problem_type`` or ``label_smoothing`` is not usable.

    Example:
        >>> from transformers import BertConfig, BertForMultipleChoice
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> loss_for(BertForMultipleChoice(config)).problem_type
        'single_label_classification'
    """
    task = task_of_model(model)
    if task == names.SEQUENCE_CLASSIFICATION:
        if not model.config.num_labels:
            raise ConfigurationError(
                "The configuration does not say how many labels there are.", got=model.config.num_labels
            )
        problem_type = getattr(model.config, "problem_type", None)
        if problem_type is None and model.config.num_labels == 1:
            problem_type = REGRESSION
        return LabelLoss(problem_type, label_smoothing=label_smoothing)
    if task in (names.TOKEN_CLASSIFICATION, names.MULTIPLE_CHOICE):
        return LabelLoss(SINGLE_LABEL, label_smoothing=label_smoothing)
    if task == names.QUESTION_ANSWERING:
        if label_smoothing:
            raise ConfigurationError(
                "Label smoothing is not for question answering, whose classes are places.", fix="Set label_smoothing=0."
            )
        return QuestionAnsweringLoss()
    return None


class LabelLoss:
    r"""Loss of whatever has labels: sequences, tokens (each but those with label -100), or a choice among several.

    Without ``num_items_in_batch`` it has the value of the model's own loss: the mean over the labels of this batch.
    With it, it is the sum over the labels of this batch, divided by the number of labels of the whole update
    (all micro-batches, all processes). These add up to the mean over the update however uneven the parts are; the mean
    of means does not. Pass it to ``Trainer(compute_loss_func=...)``, which counts the labels other than -100.

    The kind of loss is chosen as ``transformers`` does for sequences: regression is mean squared error, single-label
    cross entropy, multi-label binary cross entropy. Where the problem type is not stated, integer labels are
    single-label, others multi-label. Unlike there, no configuration is changed by the choice.

    With label smoothing e, the cross entropy of C classes is (1 - e) (-log p_y) - (e / C) \sum_c log p_c, the formula
    of transformers' ``LabelSmoother``.

    Args:
        problem_type: One of ``PROBLEM_TYPES``, or None: as the labels say.
        label_smoothing: e in [0, 1); single-label classification only.

    Raises:
        ConfigurationError: If ``problem_type`` or ``label_smoothing`` is not usable.

    Example:
        >>> loss = LabelLoss()
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 1, 0])
        >>> whole = loss({"logits": logits}, labels)
        >>> parts = [loss({"logits": logits[i]}, labels[i], 3) for i in (slice(2), slice(2, 3))]
        >>> torch.allclose(whole, sum(parts))
        True
    """

    def __init__(self, problem_type: str | None = None, *, label_smoothing: float = 0.0) -> None:
        self.problem_type, self.label_smoothing = problem_type, label_smoothing
        if problem_type not in (None, *PROBLEM_TYPES):
            raise ConfigurationError(
                "Unknown problem type.", got=problem_type, allowed=", ".join(PROBLEM_TYPES) + " or nothing"
            )
        if not 0 <= label_smoothing < 1:
            raise ConfigurationError("Label smoothing is out of range.", got=label_smoothing, allowed="0 <= e < 1")
        if label_smoothing and problem_type in (MULTI_LABEL, REGRESSION):
            raise ConfigurationError(
                "Label smoothing is only for single-label classification.",
                got=f"problem_type={problem_type}",
                fix="Set label_smoothing=0.",
            )

    def __call__(
        self,
        outputs: Mapping[str, Any] | Sequence[Any],
        labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Loss of one (micro-)batch.

        Args:
            outputs: Model output with ``logits`` (B, C), of tokens (B, T, C), or a tuple with them first (the model was
                called without labels).
            labels: (B,) or (B, T) class ids, -100 for what to leave out; (B, C) for multi-label; floats for regression.
            num_items_in_batch: Number of labels of the whole update, or ``None`` for the mean over this batch.

        Returns:
            Scalar with gradient. NaN if there is not one label to average over.

        Raises:
            DataError: If there are no labels, or they do not fit the logits.
        """
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        if labels is None:
            raise DataError("The batch has no labels.", fix='Keep the column "labels" in the training set.')
        labels = labels.to(logits.device)
        problem_type = self._problem_type(labels)
        reduction = "mean" if num_items_in_batch is None else "sum"

        if problem_type == SINGLE_LABEL:
            num_classes = logits.shape[-1]
            if labels.numel() * num_classes != logits.numel():
                raise DataError(
                    "Labels do not fit the logits.", got=tuple(labels.shape), allowed=tuple(logits.shape[:-1])
                )
            loss = functional.cross_entropy(
                logits.reshape(-1, num_classes),
                labels.reshape(-1),
                ignore_index=IGNORED,
                label_smoothing=self.label_smoothing,
                reduction=reduction,
            )
        else:
            if logits.shape[-1] == 1:
                logits, labels = logits.view(-1), labels.view(-1)
            if logits.shape != labels.shape:  # mse_loss would broadcast
                raise DataError("Labels do not fit the logits.", got=tuple(labels.shape), allowed=tuple(logits.shape))
            elementwise = (
                functional.mse_loss if problem_type == REGRESSION else functional.binary_cross_entropy_with_logits
            )
            loss = elementwise(logits, labels.to(logits.dtype), reduction=reduction)
        if isinstance(num_items_in_batch, torch.Tensor):
            num_items_in_batch = num_items_in_batch.to(loss.device)
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    def _problem_type(self, labels: torch.Tensor) -> str:
        if self.problem_type is not None:
            return self.problem_type
        if labels.dtype in (torch.long, torch.int):
            return SINGLE_LABEL
        if self.label_smoothing:
            raise DataError("Label smoothing needs integer labels.", got=labels.dtype)
        return MULTI_LABEL
