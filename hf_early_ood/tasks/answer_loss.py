"""Loss of question answering that is right however a batch is cut. B examples, T positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from hf_early_ood.errors import DataError, UnsupportedModelError
from hf_early_ood.names import LABELS
from hf_early_ood.probes.outcomes import IGNORED

START_POSITIONS, END_POSITIONS = "start_positions", "end_positions"


def span_logits(outputs: Mapping[str, Any] | Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Start and end logits (B, T) of a model that was called without positions.

    Args:
        outputs: What the model returned.

    Raises:
        UnsupportedModelError: If there are none.

    Example:
        >>> [tuple(logits.shape) for logits in span_logits((torch.zeros(2, 3), torch.zeros(2, 3)))]
        [(2, 3), (2, 3)]
    """
    if not isinstance(outputs, Mapping):
        return outputs[0], outputs[1]
    if "start_logits" not in outputs:
        raise UnsupportedModelError(
            "The model does not return start and end logits.",
            got=", ".join(outputs),
            allowed="models behind AutoModelForQuestionAnswering that return start_logits and end_logits",
        )
    return outputs["start_logits"], outputs["end_logits"]


class QuestionAnsweringLoss:
    r"""Loss of question answering that is right under gradient accumulation and on several processes.

    The mean of -log p over the 2 B starts and ends, each a choice among all T positions: the value of the models' own
    loss. (Where a start counts and its end does not, being outside of the input, theirs is the mean of two means.) With
    ``num_items_in_batch`` it is the sum over this batch divided by that number, as for
    `~hf_early_ood.tasks.losses.LabelLoss`.

    The Trainer counts what is named ``labels``: `with_labels` makes them from start and end positions.

    Example:
        >>> outputs = {"start_logits": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "end_logits": torch.zeros(2, 2)}
        >>> labels = torch.tensor([[0, 1], [0, 2]])  # the last one is outside of the input
        >>> one = QuestionAnsweringLoss()(outputs, labels)
        >>> parts = [
        ...     QuestionAnsweringLoss()({key: value[i] for key, value in outputs.items()}, labels[i], 3)
        ...     for i in (slice(1), slice(1, 2))
        ... ]
        >>> torch.allclose(one, sum(parts))
        True
    """

    def __call__(
        self,
        outputs: Mapping[str, Any] | Sequence[Any],
        labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Loss of one (micro-)batch.

        Args:
            outputs: Model output with start and end logits (B, T) (the model was called without positions).
            labels: (B, 2) start and end, -100 or T and above where they do not count.
            num_items_in_batch: Number of starts and ends of the whole update that count, or ``None`` for the mean over
                this batch.

        Returns:
            Scalar with gradient. NaN if nothing counts.

        Raises:
            DataError: If there are no labels.
        """
        if labels is None:
            raise DataError(
                "The batch has no answers.", fix="Keep the columns start_positions and end_positions in the set."
            )
        logits = torch.stack(span_logits(outputs), 1)
        labels = labels.to(logits.device)
        labels = labels.masked_fill(labels >= logits.shape[-1], IGNORED)
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction=reduction
        )
        if isinstance(num_items_in_batch, torch.Tensor):
            num_items_in_batch = num_items_in_batch.to(loss.device)
        return loss if num_items_in_batch is None else loss / num_items_in_batch


def with_labels(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch whose start and end positions are ``labels`` (B, 2), for `QuestionAnsweringLoss` and who counts them.

    As in the models of transformers, a negative position is that of the first token, and one outside of the input does
    not count.

    Args:
        batch: Inputs of a model, and start_positions and end_positions; it is not changed.

    Returns:
        A new batch; the same one if it has no positions.

    Example:
        >>> ids, start, end = torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor([2, 3])
        >>> with_labels({"input_ids": ids, "start_positions": start, "end_positions": end})["labels"]
        tensor([[   0,    2],
                [   1, -100]])
    """
    if START_POSITIONS not in batch or END_POSITIONS not in batch:
        return batch
    rest = {key: value for key, value in batch.items() if key not in (START_POSITIONS, END_POSITIONS)}
    labels = torch.stack([batch[key].reshape(-1) for key in (START_POSITIONS, END_POSITIONS)], 1).clamp(min=0)
    inputs = rest["input_ids"] if "input_ids" in rest else rest["inputs_embeds"]
    return {**rest, LABELS: labels.masked_fill(labels >= inputs.shape[1], IGNORED)}
