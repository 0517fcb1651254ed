"""What a task predicts: log p(y|x), and the scores whose gradients the Fisher trace is made of.

B examples, C classes. Supported: single-label sequence classification. A further task is a further class with
``log_probs`` and ``scores``; the estimators only ever see the scores, one number per example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_early_ood.errors import ConfigurationError, DataError, NonFiniteError, UnsupportedModelError, did_you_mean

LABEL_CHOICES = ("sampled", "expected", "empirical", "argmax")
LABEL_KEYS = ("labels", "label")
_SUPPORTED = "*ForSequenceClassification with num_labels >= 2 and one label per example, also inside PEFT"


@dataclass(frozen=True)
class ClassificationLikelihood:
    """p(y|x) of a sequence classifier with C classes.

    Attributes:
        num_labels: C.
    """

    num_labels: int

    def log_probs(self, outputs: Any) -> Tensor:
        """Log-probabilities (B, C) in float32 or better.

        Args:
            outputs: What the model returned: ``.logits`` (B, C), or a tuple that starts with them.
        """
        logits = outputs.logits if hasattr(outputs, "logits") else outputs[0]
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def scores(self, log_probs: Tensor, labels: str, given: Tensor | None, uniforms: Tensor) -> list[Tensor]:
        r"""Scores a_k (B,) with sum_k ||grad a_k(x)||^2 = what one example adds to the Fisher trace.

        One score, log p(y|x), for one label y. For ``expected``, C of them: sqrt(p(c|x)) log p(c|x) with the
        square root held constant, so that the squared norms add up to the expectation over classes.

        Args:
            log_probs: (B, C).
            labels: One of `LABEL_CHOICES`.
            given: Class indices (B,) of the data; used by ``empirical`` only.
            uniforms: (B,), float64, in [0, 1); used by ``sampled`` only.

        Raises:
            DataError: ``empirical`` without usable labels.
        """
        if labels == "expected":
            weighted = log_probs.detach().mul(0.5).exp() * log_probs
            return list(weighted.unbind(-1))
        if labels == "sampled":
            chosen = sample_labels(log_probs.detach(), uniforms)
        elif labels == "argmax":
            chosen = log_probs.detach().argmax(-1)
        else:
            chosen = self._checked(given, log_probs)
        return [log_probs.gather(-1, chosen[:, None])[:, 0]]

    def _checked(self, given: Tensor | None, log_probs: Tensor) -> Tensor:
        expected = f"whole numbers from 0 to {self.num_labels - 1}, one per example"
        if given is None:
            raise DataError(
                "Empirical labels were asked for, but the batch has none.",
                allowed=f"a tensor named {' or '.join(LABEL_KEYS)}",
                fix="Add labels to the probe data, or use labels='sampled'.",
            )
        if given.is_floating_point() or given.shape != log_probs.shape[:1]:
            raise DataError(
                "The labels of the batch are not class indices.",
                got=f"{given.dtype} of shape {tuple(given.shape)}",
                allowed=expected,
            )
        wrong = given[(given < 0) | (given >= self.num_labels)]
        if wrong.numel():
            raise DataError(
                "A label of the batch is not a class of the model.",
                got=wrong[0].item(),
                allowed=expected,
                fix="Drop unlabeled examples (-100) from the probe data, or use labels='sampled'.",
            )
        return given.to(log_probs.device, torch.long)


def likelihood_for(model: nn.Module) -> ClassificationLikelihood:
    """The likelihood of the task that a model was built for.

    Args:
        model: A ``*ForSequenceClassification`` model of transformers, or PEFT around one.

    Raises:
        UnsupportedModelError: Another task, regression, multi-label, or a data-parallel wrapper.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    kind = type(base).__name__
    if not any(cls.__name__.endswith("ForSequenceClassification") for cls in type(base).__mro__):
        wrapped = getattr(base, "module", getattr(base, "_orig_mod", None))
        raise UnsupportedModelError(
            "The log-likelihood of this model is not known.",
            got=kind,
            allowed=_SUPPORTED,
            fix=f"Pass the {type(wrapped).__name__} inside it." if isinstance(wrapped, nn.Module) else None,
        )
    problem = getattr(base.config, "problem_type", None)
    if base.config.num_labels < 2 or problem not in (None, "single_label_classification"):
        raise UnsupportedModelError(
            "Regression and multi-label models are not supported.",
            got=f"{kind} with num_labels={base.config.num_labels}, problem_type={problem}",
            allowed=_SUPPORTED,
        )
    return ClassificationLikelihood(num_labels=base.config.num_labels)


def sample_labels(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Labels (B,) drawn from p by the inverse of its distribution function: y = min{c : F(c) > u}.

    Args:
        log_probs: (B, C).
        uniforms: (B,), in [0, 1).

    Example:
        >>> p = torch.tensor([[0.25, 0.75], [0.25, 0.75]])
        >>> sample_labels(p.log(), torch.tensor([0.2, 0.3])).tolist()
        [0, 1]
    """
    # float64 on the CPU: the same draw on every device, as long as the probabilities agree.
    cumulated = log_probs.detach().cpu().double().exp().cumsum(-1)
    below = cumulated <= uniforms.cpu().double()[:, None] * cumulated[:, -1:]
    return below.sum(-1).clamp(max=log_probs.shape[-1] - 1).to(log_probs.device)


@dataclass(frozen=True)
class Scorer:
    """Forward pass of a model up to the scores of its examples.

    Attributes:
        model: In eval mode, so that examples do not influence each other.
        likelihood: Of the model's task.
        labels: One of `LABEL_CHOICES`.
    """

    model: nn.Module
    likelihood: ClassificationLikelihood
    labels: str

    def log_probs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities (B, C); the labels of the batch are not shown to the model.

        A model that sees labels would compute a loss for nothing and note the kind of problem in its config.
        """
        return self.likelihood.log_probs(self.model(**{k: v for k, v in batch.items() if k not in LABEL_KEYS}))

    def scores(self, log_probs: Tensor, batch: Mapping[str, Tensor], uniforms: Tensor, index: int) -> list[Tensor]:
        """Scores of the examples of batch ``index``.

        Raises:
            NonFiniteError: A log-probability is not finite.
        """
        if not bool(torch.isfinite(log_probs).all()):
            raise NonFiniteError(
                f"The log-probabilities of probe batch {index} are not finite.",
                got=f"{int((~torch.isfinite(log_probs)).sum())} of {log_probs.numel()} values",
                fix="The model has diverged or its inputs are broken: look at the loss and the learning rate.",
            )
        given = next((batch[key] for key in LABEL_KEYS if key in batch), None)
        return self.likelihood.scores(log_probs, self.labels, given, uniforms)


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Check that a setting is one of the allowed words.

    Raises:
        ConfigurationError: It is not.

    Example:
        >>> check_choice("labels", "sampled", LABEL_CHOICES)
    """
    if value not in allowed:
        raise ConfigurationError(
            f"Unknown {name}.", got=value, allowed=", ".join(allowed), fix=did_you_mean(str(value), allowed)
        )
