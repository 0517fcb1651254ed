"""The slow, obviously right twin of every estimator: one example at a time, one gradient at a time.

Nothing here is clever, and nothing here shares code with what it is the twin of, beyond the forward pass. B examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.batches import num_rows
from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import Scorer, likelihood_for
from hf_early_ood.probes.trace_record import FisherTrace, Measured, summarize


def loop_norms(
    scorer: Scorer,
    batch: Mapping[str, Tensor],
    uniforms: Tensor,
    parameters: Mapping[str, nn.Parameter],
    index: int = 0,
) -> dict[str, Tensor]:
    """Per-example squared gradient norms by parameter name, from batches of one.

    Args:
        scorer: Model, likelihood and choice of labels.
        batch: B examples; each keeps the padding of the batch.
        uniforms: (B,), for sampled labels.
        parameters: Parameters by name; they must require a gradient.
        index: Position of the batch, for error messages.

    Returns:
        Parameter name to squared norms (B,), float64.
    """
    rows = num_rows(batch, index)
    norms = {name: torch.zeros(rows, dtype=torch.float64, device="cpu") for name in parameters}
    for i in range(rows):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        log_probs = scorer.predictions(one)
        for score in scorer.scores(log_probs, one, uniforms[i : i + 1], index):
            if not score.requires_grad:
                continue  # the outcome depends on none of the parameters
            gradients = torch.autograd.grad(
                score.sum(), list(parameters.values()), retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    norms[name][i] += (
                        gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square().sum().cpu()
                    )
    return norms


def fisher_trace_loop(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    labels: str = "sampled",
    parameters: str = "trainable",
    seed: int = 0,
    groups: LayerGroups | None = None,
) -> FisherTrace:
    """Trace of the Fisher information by its definition: a gradient for each example, squared, summed, averaged.

    The arguments, the result and the errors are those of `fisher_trace` with ``estimator="loop"``.
    """
    scorer = Scorer(model, likelihood_for(model), labels)
    measured = Measured.of(model, parameters, groups)
    generator = torch.Generator("cpu").manual_seed(seed)
    device = next(model.parameters()).device
    units, empty = [], 0
    with isolated(model), torch.enable_grad(), requires_grad_set(dict(model.named_parameters()), measured.parameters):
        for index, batch in enumerate(batches):
            rows = num_rows(batch, index)
            empty += scorer.likelihood.num_empty(batch, labels)
            uniforms = torch.rand(rows, generator=generator, dtype=torch.float64, device="cpu")
            on_device = {key: value.to(device) for key, value in batch.items()}
            norms = loop_norms(scorer, on_device, uniforms, measured.parameters, index)
            units.append((1, measured.add_up(norms, rows)))
    return summarize(units, measured, labels=labels, estimator="loop", fallbacks={}, seed=seed, num_empty=empty)


def squared_norm_of_mean_gradient(
    model: nn.Module, batch: Mapping[str, Tensor], *, labels: str = "sampled", seed: int = 0
) -> float:
    r"""||mean_i grad log p(y_i|x_i)||^2 of one batch. Not the Fisher trace, though often taken for it.

    The Fisher trace is the mean of squared norms; this is the squared norm of the mean, in which the gradients of
    different examples cancel. With labels sampled from the model its expectation is about trace / B; with other
    labels it is no fixed multiple of the trace at all. It is here to be told apart in tests.

    Args:
        model: The model.
        batch: B examples.
        labels: As in `fisher_trace`, except "expected".
        seed: Seed of the label draws.

    Returns:
        The squared norm, over the trainable parameters.
    """
    scorer = Scorer(model, likelihood_for(model), labels)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator("cpu").manual_seed(seed)
    uniforms = torch.rand(num_rows(batch, 0), generator=generator, dtype=torch.float64, device="cpu")
    with isolated(model), torch.enable_grad():
        (score,) = scorer.scores(scorer.predictions(batch), batch, uniforms, 0)
        gradients = torch.autograd.grad(score.mean(), parameters, allow_unused=True)
    return sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None)
