"""The loss that sharpness is about: the negative log-likelihood of the labels in the data.

B examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from hf_early_ood.errors import NonFiniteError, ProbeError, UnsupportedModelError
from hf_early_ood.probes.likelihood import ClassificationLikelihood, Likelihood, TokenLikelihood, likelihood_for
from hf_early_ood.probes.outcomes import full_precision, logits_of

_SMALLEST_NORM = 1e-10


@dataclass(frozen=True)
class GivenLoss:
    """Negative log-likelihood of the given labels: per example the sum over its predictions, as for the trace.

    Attributes:
        model: In eval mode, so that examples do not influence each other.
        likelihood: Of the model's task.
        normalize_logits: Whether `normalized` logits are used instead of the model's.
    """

    model: nn.Module
    likelihood: Likelihood
    normalize_logits: bool

    @classmethod
    def of(cls, model: nn.Module, normalize_logits: bool = False) -> GivenLoss:
        """The loss of the task that ``model`` was built for.

        Raises:
            UnsupportedModelError: An unknown task, or one whose logits are not those of one choice among classes.
        """
        likelihood = likelihood_for(model)
        if normalize_logits and not isinstance(likelihood, ClassificationLikelihood | TokenLikelihood):
            raise UnsupportedModelError(
                "Only logits over classes can be normalized.",
                got=f"{type(model).__name__} with {type(likelihood).__name__}",
                allowed="classification of sequences or tokens, multiple choice, language models",
                fix="Use normalize_logits=False.",
            )
        return cls(model, likelihood, normalize_logits)

    def per_example(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Losses (B,), in float32 or better.

        Args:
            batch: B examples with labels, anywhere: they are brought to the device of the model.
        """
        device = next(self.model.parameters()).device
        batch = {key: value.to(device) for key, value in batch.items()}
        outputs = self.model(**self.likelihood.inputs(batch))
        if self.normalize_logits:
            logits = normalized(logits_of(outputs))
            if torch.is_grad_enabled() and logits.shape[-1] == 2:
                # They are +-1/sqrt(2); what autograd returns is rounding noise.
                raise ProbeError(
                    "Normalized logits of two classes have no gradient: only their sign is left.",
                    fix="Use normalize_logits=False for the worst case.",
                )
            outputs = SimpleNamespace(logits=logits)
        return self.likelihood.nll(outputs, batch)

    def of_batch(self, batch: Mapping[str, Tensor], index: int, *, moved: bool = False) -> float:
        """Mean loss of one batch; the arguments and errors are those of `per_example` and `mean_loss`."""
        return mean_loss(self.per_example(batch), index, moved=moved)


def mean_loss(losses: Tensor, index: int, *, moved: bool = False) -> float:
    """Mean of the losses (B,) of one batch, summed in float64.

    Args:
        losses: From `GivenLoss.per_example`.
        index: Position of the batch, for the message.
        moved: Whether the weights were perturbed, for the message.

    Raises:
        NonFiniteError: A loss is not finite.

    Example:
        >>> mean_loss(torch.tensor([1.0, 2.0]), 0)
        1.5
    """
    # Not every device has float64.
    value = float(losses.detach().cpu().double().mean())
    if not math.isfinite(value):
        raise NonFiniteError(
            f"The loss of probe batch {index} is not finite" + (" for perturbed weights." if moved else "."),
            got=f"{int((~torch.isfinite(losses)).sum())} of {losses.numel()} values",
            fix="Use a smaller rho, or measure in float32 or bfloat16."
            if moved
            else "The model has diverged or its inputs are broken: look at the loss and the learning rate.",
        )
    return value


def normalized(logits: Tensor) -> Tensor:
    r"""Logits z (..., C) as (z - mean z) / ||z - mean z||, in float32 or better.

    Source: Andriushchenko et al. (2023, arXiv 2302.07011). Constant logits become zeros.

    Example:
        >>> normalized(torch.tensor([[7.0, 7.0, 3.0, 3.0], [5.0, 5.0, 5.0, 5.0]])).tolist()
        [[0.5, 0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]
    """
    centered = full_precision(logits)
    centered = centered - centered.mean(-1, keepdim=True)
    return centered / centered.norm(dim=-1, keepdim=True).clamp(min=_SMALLEST_NORM)
