r"""The Fisher penalty: training that keeps the gradients of its own predictions small.

Source: Jastrzebski, Arpit, Astrand, Kerg, Wang, Xiong, Socher, Cho, Geras 2021, "Catastrophic Fisher Explosion: Early
Phase Fisher Matrix Impacts Generalization" (arXiv 2012.14193). With a small learning rate, the trace of the Fisher
information grows fast in the first updates, and the network that results generalizes worse; a large learning rate holds
the trace down by itself. The penalty does so at any learning rate: to the loss of a batch is added

.. math:: \alpha \Big\lVert \nabla_w \frac{1}{B} \sum_b \log p_w(\hat y_b|x_b) \Big\rVert^2,
    \qquad \hat y_b \sim p_w(\cdot|x_b) \text{, held constant},

the squared norm of *one* gradient, that of the mean over the batch. Under p, the gradient of log p has mean zero, so
that the gradients of different examples are not correlated, and B times this norm is, in expectation over the labels,
the trace :math:`\mathrm{tr} F` of `hf_early_ood.fisher_trace` on this batch: in train mode with the dropout of this
pass, over what trains now. The penalty is a B-th of the trace: a larger batch wants a larger alpha.

When it helps, and when not. In the source, images are learned from scratch: at learning rates that are too small it
brings back the generalization that is lost, and it slows down the memorizing of wrong labels. We know of no result out
of distribution. Liu, Pfeiffer, Vulić, Gurevych 2024 (arXiv 2301.05487) note that its effect depends on a
learning rate of a tenth of the best one and leave it out; among their runs, a higher and wider hill of the early trace
goes with *better* transfer across languages, the opposite of what the penalty enforces. Liu & Gurevych 2024 (arXiv
2403.15210) discuss it and do not run it. So compare with the same training without it, and with a larger learning rate.

Cost: in each update that has it, one more forward pass and a backward pass that is itself differentiated, in plain
attention: about 2.5 further training steps on a CPU, so that with every=10 training takes a quarter longer. It needs
more memory than a step, which is free again before the step itself begins.

Notation: B examples, w parameters that require a gradient now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.probes.double_backward import (
    double_backward_explained,
    refuse_once_differentiable,
    twice_differentiable_attention,
)
from hf_early_ood.probes.isolation import buffers_kept, random_state_kept
from hf_early_ood.probes.likelihood import likelihood_for
from hf_early_ood.probes.outcomes import full_precision

_FIX = "Leave out the Fisher penalty."


@dataclass(frozen=True)
class FisherPenalty:
    """The penalty of one batch, and its gradient, of which no graph is left.

    Attributes:
        value: The squared norm, without alpha; a scalar, in float32 or better.
        gradient: Its gradient by parameter name, where there is one.
        parameters: The parameters of these names.
    """

    value: Tensor
    gradient: Mapping[str, Tensor]
    parameters: Mapping[str, nn.Parameter]

    def as_loss(self, alpha: float) -> Tensor:
        """A scalar with the value alpha * penalty, whose backward pass adds alpha * gradient to the parameters."""
        parameters = [self.parameters[name] for name in self.gradient]
        return _WithGradient.apply(self.value * alpha, alpha, list(self.gradient.values()), *parameters)


class _WithGradient(torch.autograd.Function):
    """A number whose gradient is known, up to a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float, gradients: list[Tensor], *parameters: nn.Parameter) -> Tensor:
        ctx.factor, ctx.gradients = factor, gradients
        return value

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        factor = outer[0] * ctx.factor
        return (None, None, None, *(gradient * factor.to(gradient) for gradient in ctx.gradients))


def fisher_penalty(model: nn.Module, batch: Mapping[str, Tensor], *, seed: int = 0) -> FisherPenalty:
    """The squared norm of the gradient of the mean log-likelihood of labels drawn from the model, and its gradient.

    See the module for source, formula, use and cost. The model runs in the mode it is in: in train mode with the
    dropout masks that its next forward pass on this batch will draw as well, because no random number is used up.
    Nothing else is left behind either: the buffers of the model and its gradients are as they were. Both derivatives
    are taken here, so that attention kernels and activation checkpointing do not matter to whoever uses the result.

    log p of an example is the sum over what is predicted for it, as in `hf_early_ood.fisher_trace`: for tokens the
    penalty grows with their number, though a mean over tokens is what models of transformers minimize.

    Args:
        model: A model of transformers with a head, or PEFT around one; not its data-parallel wrapper.
        batch: What the model takes, (B, ...); labels in it only tell what is predicted.
        seed: Of the labels that are drawn.

    Returns:
        The penalty and its gradient with respect to every parameter that requires one.

    Raises:
        ConfigurationError: Nothing that the predictions depend on requires a gradient.
        UnsupportedModelError: An unknown task, a model that is sharded, or one that cannot be differentiated twice.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> model = BertForSequenceClassification(config)
        >>> penalty = fisher_penalty(model, {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])})
        >>> bool(penalty.value > 0), len(penalty.gradient) == len(list(model.parameters()))
        (True, True)
    """
    likelihood = likelihood_for(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with (
        random_state_kept(),
        buffers_kept(model),
        torch.enable_grad(),
        twice_differentiable_attention(model),
        double_backward_explained(model, fix=_FIX),
    ):
        predictions = likelihood.predictions(model(**likelihood.inputs(batch)))
        if not trained or not predictions.requires_grad:
            raise ConfigurationError(
                "The Fisher penalty has nothing to act on.",
                got=f"{len(trained)} parameters that require a gradient, of which the predictions depend on none",
                fix="Let at least one layer train.",
            )
        refuse_once_differentiable(predictions, model, fix=_FIX)
        generator = torch.Generator("cpu").manual_seed(seed)
        uniforms = torch.rand(len(predictions), generator=generator, dtype=torch.float64, device="cpu")
        (log_likelihood,) = likelihood.scores(predictions, batch, "sampled", uniforms)
        slopes = torch.autograd.grad(
            log_likelihood.mean(), list(trained.values()), create_graph=True, allow_unused=True
        )
        norms = [full_precision(slope).square().sum().to(predictions.device) for slope in slopes if slope is not None]
        value = torch.stack(norms).sum()
        gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    pairs = zip(trained, gradients, strict=True)
    gradient = {name: slope for name, slope in pairs if slope is not None}
    return FisherPenalty(value.detach(), gradient, trained)
