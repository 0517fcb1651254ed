"""Gradients of log p(y|x) summed over examples, batch by batch: what norms of mean gradients are made of.

Notation: B examples in a batch, P parameter tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hf_early_ood.errors import NonFiniteError
from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.batches import check_some, num_rows
from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import Scorer, check_not_all_empty, likelihood_for
from hf_early_ood.probes.memory import in_pieces
from hf_early_ood.probes.outcomes import full_precision
from hf_early_ood.probes.ranks import Share
from hf_early_ood.probes.trace_record import Measured


class GradientSums:
    """Gradients of sum_i log p(y_i|x_i), added up over the examples of batches; made by `gradient_sums`.

    Attributes:
        measured: The parameters and their layer groups.
        batch_sizes: Examples of the batches seen so far, whoever measures them.
        num_empty: How many of these examples have nothing to be predicted.
    """

    def __init__(self, scorer: Scorer, measured: Measured) -> None:
        self.measured = measured
        self.batch_sizes: list[int] = []
        self.num_empty = 0
        self._scorer = scorer
        self._device = next(scorer.model.parameters()).device
        # Added to in place, which needs no memory: examples that run out of it have added nothing.
        self._sums = {
            name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
            for name, p in measured.parameters.items()
        }

    def of_batches(
        self, batches: Iterable[Mapping[str, Tensor]], share: Share | None = None, seed: int = 0
    ) -> Iterator[tuple[int, int]]:
        """Add up the gradients of the batches of a share; index and number of examples B of each, once it is added."""
        scorer, draws = self._scorer, torch.Generator("cpu").manual_seed(seed)
        for index, batch in enumerate(batches):
            rows = num_rows(batch, index)
            self.batch_sizes.append(rows)
            self.num_empty += scorer.likelihood.num_empty(batch, scorer.labels)
            # The draws of `fisher_trace`; they belong to the examples, so that a rank draws for the others too.
            uniforms = torch.rand(rows, generator=draws, dtype=torch.float64, device="cpu")
            if share is None or index in share:
                on_device = {key: value.to(self._device) for key, value in batch.items()}
                in_pieces(partial(self._add, on_device, uniforms, index), rows, f"probe batch {index}")
                yield index, rows
        check_some(self.batch_sizes)
        check_not_all_empty(self.num_empty, sum(self.batch_sizes))

    def take(self) -> Tensor:
        """Squared norms (P,) of what was added up, which begins anew from zero."""
        squares = squared_norms(self._sums, "A gradient")
        for total in self._sums.values():
            total.zero_()
        return squares

    def _add(self, batch: Mapping[str, Tensor], uniforms: Tensor, index: int, piece: slice) -> None:
        batch = {key: value[piece] for key, value in batch.items()}
        (score,) = self._scorer.scores(self._scorer.predictions(batch), batch, uniforms[piece], index)
        if not score.requires_grad:
            return  # the outcome depends on none of the parameters
        found = torch.autograd.grad(score.sum(), list(self.measured.parameters.values()), allow_unused=True)
        converted = [None if gradient is None else full_precision(gradient) for gradient in found]
        for total, gradient in zip(self._sums.values(), converted, strict=True):
            if gradient is not None:
                total.add_(gradient)


@contextmanager
def gradient_sums(model: nn.Module, labels: str, parameters: str, groups: LayerGroups | None) -> Iterator[GradientSums]:
    """The gradients of the measured parameters, all others held constant, and the model left as it was.

    The arguments and errors are those of `hf_early_ood.probes.gradients.fisher_trace_batch_mean`.
    """
    scorer = Scorer(model, likelihood_for(model), labels)
    measured = Measured.of(model, parameters, groups)
    with (
        isolated(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        requires_grad_set(dict(model.named_parameters()), measured.parameters),
    ):
        yield GradientSums(scorer, measured)


def squared_norms(tensors: Mapping[str, Tensor], what: str) -> Tensor:
    """Squared norms (P,) of tensors by parameter name, float64 on the CPU; ``what`` they are, for the message."""
    norms = [full_precision(tensor.detach()).square().sum() for tensor in tensors.values()]
    # One transfer for all of them: each would make an accelerator wait.
    squares = torch.stack([norm.to(norms[0].device) for norm in norms]).cpu().double()
    broken = [name for name, finite in zip(tensors, torch.isfinite(squares).tolist(), strict=True) if not finite]
    if broken:
        raise NonFiniteError(
            f"{what} is not finite, or too large to be squared.",
            got=f"{len(broken)} of {len(squares)} tensors, such as {broken[0]}",
            fix="Measure the model in float32 or bfloat16; if it is, it has diverged: look at the learning rate.",
        )
    return squares
