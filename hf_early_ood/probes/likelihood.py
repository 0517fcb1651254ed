"""What a task predicts: p(y|x) of every kind of Hugging Face model that the measurements know.

Sequence classification, regression, several labels at once, token classification, question answering, multiple
choice, and causal, masked and sequence-to-sequence language models. A further task is a further class with
``predictions`` and, if it chooses among classes, ``given``; the estimators only ever see the scores, one number per
example, and other measurements the ``nll``.

Notation: B examples, T positions, P predictions per example, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_early_ood.errors import DataError, NonFiniteError, UnsupportedModelError
from hf_early_ood.probes.batches import num_rows
from hf_early_ood.probes.outcomes import (
    IGNORED,
    LABEL_CHOICES,
    LABEL_KEYS,
    CategoricalLikelihood,
    Likelihood,
    RegressionLikelihood,
    full_precision,
    given_labels,
    logits_of,
    missing_labels,
    sample_labels,
    wrong_shape,
)
from hf_early_ood.sharding import check_whole

__all__ = [
    "LABEL_CHOICES",
    "LABEL_KEYS",
    "ClassificationLikelihood",
    "Likelihood",
    "MultiLabelLikelihood",
    "QuestionAnsweringLikelihood",
    "RegressionLikelihood",
    "Scorer",
    "TokenLikelihood",
    "count_empty",
    "likelihood_for",
    "sample_labels",
]

_SUPPORTED = (
    "models of transformers for sequence classification, regression, token classification, question answering, "
    "multiple choice, and causal, masked or sequence-to-sequence language modeling, also inside PEFT"
)


class ClassificationLikelihood(CategoricalLikelihood):
    """One class per example: sequence classification, and multiple choice, where the classes are the choices.

    ``predictions`` are (B, 1, C).
    """

    def predictions(self, outputs: Any) -> Tensor:
        """Log-probabilities (B, 1, C) in float32 or better."""
        return full_precision(logits_of(outputs)).log_softmax(-1)[:, None]

    def given(self, batch: Mapping[str, Tensor], log_probs: Tensor) -> Tensor | None:
        """Class indices (B, 1)."""
        given = given_labels(batch)
        if given is None:
            return None
        if given.is_floating_point() or given.shape != log_probs.shape[:1]:
            raise DataError(
                "The labels of the batch are not class indices.",
                got=f"{given.dtype} of shape {tuple(given.shape)}",
                allowed="whole numbers, one per example",
                fix="For several labels per example, set config.problem_type='multi_label_classification'.",
            )
        return given[:, None]

    def _required(self, given: Tensor | None, log_probs: Tensor) -> Tensor:
        # There is one prediction, so an example without a label would be an example without a likelihood.
        return super()._required(None if given is None else given.masked_fill(given == IGNORED, -1), log_probs)


class MultiLabelLikelihood(CategoricalLikelihood):
    """Every label is there or not, independently of the others: P labels with two classes each."""

    def predictions(self, outputs: Any) -> Tensor:
        """Log-probabilities (B, P, 2) of no and yes."""
        logits = full_precision(logits_of(outputs))
        return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1)

    def given(self, batch: Mapping[str, Tensor], log_probs: Tensor) -> Tensor | None:
        """Zeros and ones (B, P)."""
        given = given_labels(batch)
        if given is None:
            return None
        if given.shape != log_probs.shape[:2]:
            raise wrong_shape(given, f"0 or 1 for each of {log_probs.shape[1]} labels")
        if not bool(((given == 0) | (given == 1)).all()):
            raise DataError("The labels of the batch are not all 0 or 1.", allowed="0 or 1 for every label")
        return given.long()


@dataclass(frozen=True)
class TokenLikelihood(CategoricalLikelihood):
    """One class per position: token classification and language models.

    What is predicted: the positions with a label other than -100 where the batch has labels, else those that the
    mask shows. A language model predicts each token given the true ones before it, also when labels are drawn.

    Attributes:
        mask: Key of the mask (B, T) that counts where there are no labels; None: labels are needed.
        shifted: Position t predicts token t + 1, as a causal language model does.
        decoder_inputs: Makes the inputs of the decoder from the labels, for an encoder-decoder.
    """

    mask: str | None = "attention_mask"
    shifted: bool = False
    decoder_inputs: Callable[[Tensor], Tensor] | None = None

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Everything but the labels; with them go the inputs of a decoder that are made from them."""
        inputs = super().inputs(batch)
        if self.decoder_inputs is not None and "decoder_input_ids" not in inputs:
            labels = given_labels(batch)
            if labels is None:
                raise missing_labels("labels or decoder_input_ids")
            inputs["decoder_input_ids"] = self.decoder_inputs(labels)
        return inputs

    def predictions(self, outputs: Any) -> Tensor:
        """Log-probabilities (B, T, C). Where they are shifted, the last position predicts nothing."""
        return full_precision(logits_of(outputs)).log_softmax(-1)

    def given(self, batch: Mapping[str, Tensor], log_probs: Tensor) -> Tensor | None:
        """Labels (B, T), -100 where nothing is predicted."""
        given = given_labels(batch)
        return None if given is None else self._aligned(given, log_probs, IGNORED)

    def predicted(self, given: Tensor | None, batch: Mapping[str, Tensor], log_probs: Tensor) -> Tensor:
        """Where there is a label, or, without labels, a token; where they are shifted, only after another token.

        So the first token of an example is not predicted, and neither is it behind left padding.
        """
        if given is None and self.mask is None:
            raise DataError(
                "Only labels tell which positions a masked language model predicts, and the batch has none.",
                allowed=f"a tensor named {' or '.join(LABEL_KEYS)} with -100 at all other positions",
                fix="Collate the probe data with DataCollatorForLanguageModeling.",
            )
        mask = batch.get(self.mask) if self.mask is not None else None
        if mask is None or mask.dim() != 2:  # a mask of pairs of positions does not say which are tokens
            mask = super().predicted(given, batch, log_probs)
        mask = mask.to(log_probs.device).bool()
        predicted = self._aligned(mask, log_probs, 0) if given is None else given != IGNORED
        return predicted & mask if self.shifted else predicted

    def answered(self, batch: Mapping[str, Tensor], labels: str) -> Tensor:
        """Where there is any position with a label, or, without labels, any token that is predicted."""
        keys = (*LABEL_KEYS, *([self.mask] if self.mask else []), "decoder_input_ids", "input_ids")
        found = next((batch[key] for key in keys if key in batch and batch[key].dim() == 2), None)
        if found is None:
            return super().answered(batch, labels)
        shaped = found[..., None]
        return self.predicted(self.given(batch, shaped), batch, shaped).any(1)

    def _aligned(self, values: Tensor, log_probs: Tensor, nothing: int) -> Tensor:
        """(B, T): what each position predicts, ``nothing`` at the last one where they are shifted."""
        if values.is_floating_point() or values.shape != log_probs.shape[:2]:
            raise wrong_shape(values, "whole numbers, one per position of the input")
        return (F.pad(values[:, 1:], (0, 1), value=nothing) if self.shifted else values).to(log_probs.device)


class QuestionAnsweringLikelihood(CategoricalLikelihood):
    """Where an answer starts and where it ends: two choices among the T positions.

    The positions are all those of the batch, padding included, as in the model's own loss; so is the rule that a
    given position outside of the input does not count.
    """

    def predictions(self, outputs: Any) -> Tensor:
        """Log-probabilities (B, 2, T) of start and end."""
        if hasattr(outputs, "keys") and "start_logits" not in outputs:
            raise UnsupportedModelError(
                "The model does not return start and end logits.",
                got=f"{type(outputs).__name__} with {', '.join(outputs.keys())}",
                allowed="start_logits and end_logits over all positions",
            )
        start, end = (outputs.start_logits, outputs.end_logits) if hasattr(outputs, "start_logits") else outputs[:2]
        return full_precision(torch.stack([start, end], 1)).log_softmax(-1)

    def given(self, batch: Mapping[str, Tensor], log_probs: Tensor) -> Tensor | None:
        """Positions (B, 2), -100 where they are outside of the input."""
        if "start_positions" not in batch or "end_positions" not in batch:
            return None
        pair = batch["start_positions"], batch["end_positions"]
        if any(p.is_floating_point() or p.numel() != len(log_probs) for p in pair):
            raise wrong_shape(pair[0], "whole numbers, one start and one end per example")
        given = torch.stack([p.reshape(-1) for p in pair], 1)
        return given.masked_fill(given >= log_probs.shape[-1], IGNORED)

    def answered(self, batch: Mapping[str, Tensor], labels: str) -> Tensor:
        """Where the start or the end of the answer is inside of the input, if they are the given ones."""
        ids = next((batch[key] for key in ("input_ids", "inputs_embeds") if key in batch), None)
        given = None
        if ids is not None and labels == "empirical":
            given = self.given(batch, ids.new_empty(len(ids), 0, ids.shape[1]))
        return super().answered(batch, labels) if given is None else (given != IGNORED).any(1)

    def _required(self, given: Tensor | None, log_probs: Tensor) -> Tensor:
        if given is None:
            raise missing_labels("start_positions and one named end_positions")
        return super()._required(given, log_probs)


def likelihood_for(model: nn.Module) -> Likelihood:
    """The likelihood of the task that a model was built for.

    Args:
        model: A model of transformers with a head, or PEFT around one.

    Raises:
        UnsupportedModelError: An unknown task, a data-parallel wrapper, or a model that is sharded now.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1)
        >>> type(likelihood_for(BertForSequenceClassification(config))).__name__
        'RegressionLikelihood'
    """
    check_whole(model)
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    names = [cls.__name__ for cls in type(base).__mro__]

    def is_for(*endings: str) -> bool:
        return any(name.endswith(endings) for name in names)

    if is_for("ForSequenceClassification"):
        return _for_sequences(base)
    if is_for("ForMultipleChoice"):
        return ClassificationLikelihood()
    if is_for("ForTokenClassification"):
        return TokenLikelihood()
    if is_for("ForQuestionAnswering", "ForQuestionAnsweringSimple"):
        return QuestionAnsweringLikelihood()
    if is_for("ForMaskedLM", "WithLMHeadModel"):
        return TokenLikelihood(mask=None)
    if is_for("ForCausalLM", "LMHeadModel"):
        return TokenLikelihood(shifted=True)
    if is_for("ForConditionalGeneration") and hasattr(base, "prepare_decoder_input_ids_from_labels"):
        return TokenLikelihood("decoder_attention_mask", decoder_inputs=base.prepare_decoder_input_ids_from_labels)
    wrapped = getattr(base, "module", getattr(base, "_orig_mod", None))
    raise UnsupportedModelError(
        "The log-likelihood of this model is not known.",
        got=type(base).__name__,
        allowed=_SUPPORTED,
        fix=f"Pass the {type(wrapped).__name__} inside it." if isinstance(wrapped, nn.Module) else None,
    )


def _for_sequences(model: Any) -> Likelihood:
    """By the rule of transformers: what the config says, else regression for one label."""
    problem = getattr(model.config, "problem_type", None)
    if problem == "regression" or (problem is None and model.config.num_labels == 1):
        return RegressionLikelihood()
    if problem == "multi_label_classification":
        return MultiLabelLikelihood()
    if model.config.num_labels < 2:
        raise UnsupportedModelError(
            "A classifier with one class predicts nothing.",
            got=f"{type(model).__name__} with num_labels={model.config.num_labels}, problem_type={problem}",
            allowed="num_labels >= 2, or problem_type='regression'",
        )
    return ClassificationLikelihood()


@dataclass(frozen=True)
class Scorer:
    """Forward pass of a model up to the scores of its examples.

    Attributes:
        model: In eval mode, so that examples do not influence each other.
        likelihood: Of the model's task.
        labels: One of `LABEL_CHOICES`.
    """

    model: nn.Module
    likelihood: Likelihood
    labels: str

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What describes p(.|x), (B, ...); the labels of the batch are not shown to the model."""
        return self.likelihood.predictions(self.model(**self.likelihood.inputs(batch)))

    def scores(self, predictions: Tensor, batch: Mapping[str, Tensor], uniforms: Tensor, index: int) -> list[Tensor]:
        """Scores of the examples of batch ``index``.

        Raises:
            NonFiniteError: A prediction is not finite.
        """
        if not bool(torch.isfinite(predictions.detach().sum())):  # one pass over what may be a large vocabulary
            raise NonFiniteError(
                f"The predictions for probe batch {index} are not finite.",
                got=f"{int((~torch.isfinite(predictions)).sum())} of {predictions.numel()} values",
                fix="The model has diverged or its inputs are broken: look at the loss and the learning rate.",
            )
        return self.likelihood.scores(predictions, batch, self.labels, uniforms)


def count_empty(likelihood: Likelihood, batches: Iterable[Mapping[str, Tensor]], labels: str) -> int:
    """Number of examples for which nothing is predicted: they add 0 to a mean over examples.

    Args:
        likelihood: Of the model's task.
        batches: What to measure on.
        labels: One of `LABEL_CHOICES`.

    Raises:
        DataError: There are no others, so that a measure would be 0 whatever the model is.

    Example:
        >>> batch = {"input_ids": torch.ones(2, 3), "labels": torch.tensor([[1, 0, 2], [-100, -100, -100]])}
        >>> count_empty(TokenLikelihood(), [batch], "sampled")
        1
    """
    listed = list(batches)
    empty = sum(likelihood.num_empty(batch, labels) for batch in listed)
    check_not_all_empty(empty, sum(num_rows(batch, index) for index, batch in enumerate(listed)))
    return empty


def check_not_all_empty(empty: int, total: int) -> None:
    """Refuse examples that are all empty; see `count_empty`.

    Raises:
        DataError: They are.
    """
    if empty and empty == total:
        raise DataError(
            "Nothing is predicted for any example, so that a measure would be 0 whatever the model is.",
            got=f"{total} examples whose labels are all -100, or whose answers are all outside of the input",
            allowed="at least one example with a label other than -100, or with its answer inside of the input",
            fix="Look at how the labels were made: inputs that are cut too short lose their labels or their answers.",
        )
