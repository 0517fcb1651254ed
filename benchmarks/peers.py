"""What a method that is compared is: a quantity, how it is set up, and the work-arounds that this took."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from harness import Batch, Job, bert, padded
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

AS_IT_COMES = "as it comes"
WRAPPED = "wrapped: ids in, logits out"
FISHER = "empirical Fisher trace"
HESSIAN = "Hessian trace"
EIGENVALUE = "largest Hessian eigenvalue"
AVERAGE = "average sharpness"
WORST = "worst-case sharpness"


@dataclass(frozen=True)
class Answer:
    """What one run of a method gives.

    Attributes:
        value: The number.
        standard_error: What the method says about it; None if it says nothing.
        products: Products with the matrix that it made, where it makes products.
    """

    value: float
    standard_error: float | None = None
    products: int | None = None


@dataclass(frozen=True)
class Attempt:
    """One way to set a method up.

    Attributes:
        how: `AS_IT_COMES`, or what has to be done to the model or to the batch.
        make: Model and batch to a function that returns an `Answer` and can be called many times.
        attention: The attention implementation of transformers that the model is built with.
    """

    how: str
    make: Callable[[argparse.Namespace, nn.Module, Batch], Job]
    attention: str = "sdpa"


@dataclass(frozen=True)
class Method:
    """Something that computes a quantity.

    Attributes:
        name: As in the tables.
        quantity: What it computes.
        attempts: Tried in this order, until one runs and, if ``exact``, is right.
        package: The distribution that it comes from; None: this one, or a few lines of PyTorch.
        exact: Whether it is to agree with the loop over examples, and not only on average.
    """

    name: str
    quantity: str
    attempts: tuple[Attempt, ...]
    package: str | None = None
    exact: bool = False


def prepare(options: argparse.Namespace, attempt: Attempt) -> Job:
    """Set a method up on the common model and batch; without dropout, so that train mode computes the same."""
    model = bert(options, dropout=0.0, attention=attempt.attention)
    return attempt.make(options, model, padded(options, options.examples, options.length))


class Logits(nn.Module):
    """The model as libraries expect one: a tensor of token ids (0: padding) or a dictionary in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor | Batch) -> Tensor:
        """Logits (B, C)."""
        if isinstance(inputs, Tensor):
            inputs = {"input_ids": inputs, "attention_mask": (inputs != 0).long()}
        return self.model(**inputs).logits


def without_labels(batch: Batch) -> Batch:
    """What the model reads."""
    return {key: value for key, value in batch.items() if key != "labels"}


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy."""
    return cross_entropy(model(**without_labels(batch)).logits, batch["labels"])
