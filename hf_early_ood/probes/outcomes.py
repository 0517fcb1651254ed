r"""What y can be: outcomes drawn from classes or from a Gaussian, and the scores that the Fisher trace is made of.

A *score* is one number per example whose gradient is wanted. The squared gradient norms of the scores of an example
add up to what it contributes to the trace, so the estimators need to know scores only, and nothing of labels.

The predictions of one example are independent given x, so that log p(y|x) is a sum over them, and since the
gradient of log p has mean zero under p, their cross terms vanish in expectation:

    E_y ||sum_j grad log p_j(y_j|x)||^2 = sum_j E_y ||grad log p_j(y_j|x)||^2

Notation: B examples, P predictions per example, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_early_ood.errors import ConfigurationError, DataError

LABEL_CHOICES = ("sampled", "expected", "empirical", "argmax")
LABEL_KEYS = ("labels", "label")
# Further keys by which a model would know the answer, and compute a loss.
_ANSWER_KEYS = (*LABEL_KEYS, "start_positions", "end_positions")
IGNORED = -100  # what transformers puts where nothing is to be predicted
_CHUNK = 1 << 23  # entries of the largest temporary: 64 MiB in float64
_MOST_EXPECTED = 256  # backward passes for one batch


class Likelihood(ABC):
    """p(y|x) of a task: how to read what its model returns, and the scores that follow from it."""

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model is shown: everything but the answer.

        A model that sees labels would compute a loss for nothing and note the kind of problem in its config.
        """
        return {key: value for key, value in batch.items() if key not in _ANSWER_KEYS}

    @abstractmethod
    def predictions(self, outputs: Any) -> Tensor:
        """What describes p(.|x), (B, ...), in float32 or better: log-probabilities (B, P, C), or means (B, K)."""

    @abstractmethod
    def scores(
        self, predictions: Tensor, batch: Mapping[str, Tensor], labels: str, uniforms: Tensor | None
    ) -> list[Tensor]:
        """Scores a_k (B,) with sum_k ||grad a_k(x)||^2 = what one example adds to the Fisher trace.

        One score, log p(y|x), unless ``labels`` is "expected".

        Args:
            predictions: From `predictions`.
            batch: The batch that they were made from; its labels say what y is, and what is predicted at all.
            labels: One of `LABEL_CHOICES`.
            uniforms: (B,), float64, in [0, 1): the seeds of the draws; used by "sampled" only.

        Raises:
            DataError: ``empirical`` without usable labels.
            ConfigurationError: A choice of labels that this task does not offer.
        """

    def answered(self, batch: Mapping[str, Tensor], labels: str) -> Tensor:
        """Examples (B,) for which anything is predicted: all, if the task does not say otherwise.

        Args:
            batch: The batch.
            labels: One of `LABEL_CHOICES`.
        """
        return torch.ones(len(next(iter(batch.values()))), dtype=torch.bool, device="cpu")

    def num_empty(self, batch: Mapping[str, Tensor], labels: str) -> int:
        """Number of the other examples, which add 0 to a mean over examples; the arguments are those of `answered`."""
        return int((~self.answered(batch, labels)).sum())

    def nll(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Negative log-likelihood (B,) of the labels in the batch, summed over the predictions of an example.

        Raises:
            DataError: The batch has no labels, or they are not usable.
        """
        (log_likelihood,) = self.scores(self.predictions(outputs), batch, "empirical", None)
        return -log_likelihood


class CategoricalLikelihood(Likelihood):
    """P independent choices among C classes each. ``predictions`` are log-probabilities (B, P, C)."""

    @abstractmethod
    def given(self, batch: Mapping[str, Tensor], log_probs: Tensor) -> Tensor | None:
        """Class indices (B, P) from the data, `IGNORED` where nothing is predicted; None if the batch has none."""

    def predicted(self, given: Tensor | None, batch: Mapping[str, Tensor], log_probs: Tensor) -> Tensor:
        """Which predictions count, (B, P): all of them, if the task does not say otherwise."""
        return torch.ones(log_probs.shape[:2], dtype=torch.bool, device=log_probs.device)

    def scores(
        self, predictions: Tensor, batch: Mapping[str, Tensor], labels: str, uniforms: Tensor | None
    ) -> list[Tensor]:
        """One score, the log-probability of the chosen classes, summed over what is predicted.

        For "expected", P C of them: sqrt(p(c|x)) log p(c|x) with the square root held constant, so that the squared
        norms add up to the expectation over classes.
        """
        log_probs, fixed = predictions, predictions.detach()
        given = self.given(batch, fixed)
        predicted = self.predicted(given, batch, fixed)
        if labels == "expected":
            return _expected_scores(log_probs, predicted)
        if labels == "argmax":
            chosen = fixed.argmax(-1)
        elif labels == "sampled" and uniforms is not None:
            chosen = _sample_where(predicted, fixed, uniforms)
        else:
            chosen = self._required(given, fixed)
            predicted = predicted & (chosen != IGNORED)
        picked = log_probs.gather(-1, chosen.clamp(min=0)[..., None])[..., 0]
        return [picked.masked_fill(~predicted, 0.0).sum(-1)]

    def _required(self, given: Tensor | None, log_probs: Tensor) -> Tensor:
        if given is None:
            raise missing_labels()
        classes = log_probs.shape[-1]
        wrong = given[((given < 0) & (given != IGNORED)) | (given >= classes)]
        if wrong.numel():
            raise DataError(
                "A label of the batch is not a class of the model.",
                got=wrong[0].item(),
                allowed=f"whole numbers from 0 to {classes - 1}",
                fix="Drop unlabeled examples from the probe data, or use labels='sampled'.",
            )
        return given.to(log_probs.device, torch.long)


class RegressionLikelihood(Likelihood):
    r"""K numbers with Gaussian noise of variance one: log p(y|x) = -||y - f(x)||^2 / 2, up to a constant.

    The mean squared error that transformers minimizes is 2/K times the mean of this over examples, so a trace in
    units of that loss is (2/K)^2 times the trace given here. With expected labels the trace has a closed form,
    E_x sum_k ||grad f_k(x)||^2. The most likely y is f(x), at which the gradient is zero: "argmax" is refused.
    """

    def predictions(self, outputs: Any) -> Tensor:
        """Means f(x), (B, K)."""
        means = full_precision(logits_of(outputs))
        return means[:, None] if means.dim() == 1 else means

    def scores(
        self, predictions: Tensor, batch: Mapping[str, Tensor], labels: str, uniforms: Tensor | None
    ) -> list[Tensor]:
        """One score, -||y - f(x)||^2 / 2; for "expected" the K outputs themselves."""
        means = predictions
        if labels == "expected":
            return list(means.unbind(-1))
        if labels == "argmax":
            raise ConfigurationError(
                "The most likely y of a regression model is its output, where the gradient is zero.",
                got="labels='argmax'",
                allowed="'sampled', 'expected' or 'empirical'",
            )
        if labels == "sampled" and uniforms is not None:
            # Through the inverse distribution function: draw k does not depend on how many are drawn.
            drawn = spread(uniforms, means.shape[1]).clamp(min=2.0**-54)
            target = means.detach() + torch.special.ndtri(drawn).to(means)
        else:
            target = self._target(batch, means.detach())
        return [-(target - means).square().sum(-1) / 2]

    def _target(self, batch: Mapping[str, Tensor], means: Tensor) -> Tensor:
        target = given_labels(batch)
        if target is None:
            raise missing_labels()
        if target.shape[0] != means.shape[0] or target.numel() != means.numel():
            raise wrong_shape(target, f"{means.shape[1]} numbers per example")
        if not bool(torch.isfinite(target).all()):
            raise DataError("A label of the batch is not finite.", fix="Drop such examples from the probe data.")
        return target.reshape(means.shape).to(means)


def full_precision(tensor: Tensor) -> Tensor:
    """In float32, or float64 if that is what it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def logits_of(outputs: Any) -> Tensor:
    """The logits among what a model returned: a field, or the first entry of a tuple."""
    return outputs.logits if hasattr(outputs, "logits") else outputs[0]


def given_labels(batch: Mapping[str, Tensor]) -> Tensor | None:
    """The labels of a batch, if it has any."""
    return next((batch[key] for key in LABEL_KEYS if key in batch), None)


def missing_labels(keys: str = " or ".join(LABEL_KEYS)) -> DataError:
    """The error for a batch without labels where they are needed."""
    return DataError(
        "Labels were asked for, but the batch has none.",
        allowed=f"a tensor named {keys}",
        fix="Add labels to the probe data, or, for a Fisher trace, use labels='sampled'.",
    )


def wrong_shape(given: Tensor, allowed: str) -> DataError:
    """The error for labels that do not fit the predictions."""
    return DataError(
        "The labels of the batch do not fit what the model predicts.",
        got=f"{given.dtype} of shape {tuple(given.shape)}",
        allowed=allowed,
    )


def spread(uniforms: Tensor, count: int) -> Tensor:
    """Uniforms (B, count): for each example its own stream, which begins with its seed.

    Number k of an example depends on the seed and on k only: not on ``count``, nor on the other examples.

    Args:
        uniforms: (B,), float64, in [0, 1).
        count: How many for each example.

    Example:
        >>> u = torch.rand(2, dtype=torch.float64)
        >>> bool((spread(u, 5)[1:, :3] == spread(u[1:], 3)).all())
        True
    """
    generator = torch.Generator("cpu")
    rows = [
        torch.rand(count - 1, generator=generator.manual_seed(int(u * 2**53)), dtype=torch.float64, device="cpu")
        for u in (uniforms.tolist() if count > 1 else [])
    ]
    first = uniforms.cpu().double()[:, None]
    return torch.cat([first, torch.stack(rows)], 1) if rows else first


def sample_labels(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Labels (...) drawn from p by the inverse of its distribution function: y = min{c : F(c) > u}.

    Args:
        log_probs: (..., C).
        uniforms: (...), in [0, 1).

    Example:
        >>> p = torch.tensor([[0.25, 0.75], [0.25, 0.75]])
        >>> sample_labels(p.log(), torch.tensor([0.2, 0.3])).tolist()
        [0, 1]
    """
    # Added up in float64, so that the draws of two devices agree as long as the probabilities do.
    device = "cpu" if log_probs.device.type == "mps" else log_probs.device
    cumulated = log_probs.detach().to(device).exp().cumsum(-1, dtype=torch.float64)
    thresholds = uniforms.to(device).double()[..., None] * cumulated[..., -1:]
    labels = torch.searchsorted(cumulated, thresholds, right=True)[..., 0]
    return labels.clamp(max=log_probs.shape[-1] - 1).to(log_probs.device)


def _sample_where(predicted: Tensor, log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Labels (B, P). The uniform of a prediction is numbered among those that count: padding does not shift it."""
    numbers = (predicted.cumsum(1) - 1).clamp(min=0).cpu()
    drawn = spread(uniforms, predicted.shape[1]).gather(1, numbers)
    some = max(1, _CHUNK // log_probs[0].numel())
    pairs = zip(log_probs.split(some), drawn.split(some), strict=True)
    return torch.cat([sample_labels(p, u) for p, u in pairs])


def _expected_scores(log_probs: Tensor, predicted: Tensor) -> list[Tensor]:
    somewhere = predicted.any(0)
    count = int(somewhere.sum()) * log_probs.shape[-1]
    if count > _MOST_EXPECTED:
        raise ConfigurationError(
            "The expectation over labels would take too many backward passes.",
            got=f"{count} for a batch: {int(somewhere.sum())} predictions with {log_probs.shape[-1]} classes each",
            allowed=f"{_MOST_EXPECTED} at most",
            fix="Use labels='sampled', which needs one.",
        )
    if count == 0:
        return [log_probs.flatten(1).sum(1) * 0.0]
    weighted = log_probs.detach().mul(0.5).exp() * log_probs
    return list(weighted.masked_fill(~predicted[..., None], 0.0)[:, somewhere].flatten(1).unbind(-1))
