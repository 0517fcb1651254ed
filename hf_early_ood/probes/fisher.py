"""Trace of the Fisher information, total and per layer group, exact at about the price of two forward passes.

Notation: B examples, C classes, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_early_ood.errors import ConfigurationError, ProbeError
from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.batches import num_rows
from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import LABEL_CHOICES, Scorer, check_choice, likelihood_for
from hf_early_ood.probes.reference import loop_norms
from hf_early_ood.probes.survey import graph_reads, survey
from hf_early_ood.probes.taps import Plan, Taps
from hf_early_ood.probes.trace_record import FisherTrace, Measured, summarize

ESTIMATORS = ("auto", "exact", "rademacher", "loop")


def fisher_trace(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    labels: str = "sampled",
    parameters: str = "trainable",
    estimator: str = "auto",
    seed: int = 0,
    groups: LayerGroups | None = None,
    num_draws: int = 1,
) -> FisherTrace:
    r"""Trace of the Fisher information: the mean over examples of the squared gradient norm of log p(y|x).

    Source: the signal of Liu and Gurevych (2024, arXiv 2403.15210, eq. 2).

        tr F = E_x E_{y ~ p(.|x)} ||grad_w log p(y|x)||^2

    The norm is taken per example and then averaged; the squared norm of an averaged gradient is another, much
    smaller number (`hf_early_ood.probes.reference.squared_norm_of_mean_gradient`). The model is put in eval mode
    for the measurement and left as it was, random states included.

    Args:
        model: A sequence classification model of transformers, or PEFT around one; unwrapped, not DDP.
        batches: A `ProbeSet`, or dictionaries of tensors whose leading dimension is the B examples.
        labels: ``"sampled"``: one draw of y per example, from uniforms that depend on ``seed`` and the position
            of the example only, so that measurements can be compared. ``"expected"``: the exact expectation over
            the C classes, at C backward passes. ``"empirical"``: y from the data (then it is the empirical Fisher
            trace). ``"argmax"``: the most likely y.
        parameters: ``"trainable"``: what requires a gradient now. ``"all"``: every parameter.
        estimator: ``"exact"``: per-example norms from layer inputs and output gradients; parameters that no rule
            covers are measured in a loop over examples. ``"auto"``: the same, but these few parameters are left to
            ``"rademacher"``. ``"rademacher"``: squared norm of the gradient of sum_i s_i log p(y_i|x_i) with random
            signs s_i, unbiased for any module, with a relative standard deviation of up to sqrt(2) per batch and
            draw. ``"loop"``: one example at a time.
        seed: Seed of the label draws and of the signs.
        groups: Layer groups to report; by default those of `find_layer_groups`.
        num_draws: Sign draws per batch that ``"rademacher"`` averages over.

    Returns:
        The trace, per group and in total, with what else is needed to compare it with another.

    Raises:
        ConfigurationError: An unknown choice, or no batch.
        DataError: A batch is not usable, or ``"empirical"`` without usable labels.
        ProbeError: Nothing to measure, or examples that depend on each other.
        NonFiniteError: A log-probability or a gradient is NaN or infinite.
        UnsupportedModelError: A task other than single-label sequence classification.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        ...                     intermediate_size=8)
        >>> model = BertForSequenceClassification(config)
        >>> trace = fisher_trace(model, [{"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}])
        >>> trace.num_examples, sorted(trace.per_group), trace.fallbacks
        (2, ['block.0', 'embeddings', 'head'], {})
    """
    check_choice("labels", labels, LABEL_CHOICES)
    check_choice("estimator", estimator, ESTIMATORS)
    if num_draws < 1:
        raise ConfigurationError("The number of sign draws is not usable.", got=num_draws, allowed="1 or more")
    scorer = Scorer(model, likelihood_for(model), labels)
    measured = Measured.of(model, parameters, groups)
    label_draws = torch.Generator().manual_seed(seed)
    # Another stream than that of the labels: signs that go with the labels would bias the estimate.
    sign_draws = torch.Generator().manual_seed(seed ^ 0x5EED51)
    device = next(model.parameters()).device
    task: _Task | None = None
    units = []
    with isolated(model), torch.inference_mode(False), torch.enable_grad():
        for index, batch in enumerate(batches):
            rows = num_rows(batch, index)
            on_device = {key: value.to(device) for key, value in batch.items()}
            if task is None:
                task = _Task.of(scorer, measured, estimator, on_device)
            uniforms = torch.rand(rows, generator=label_draws, dtype=torch.float64)
            table = task.per_example(on_device, uniforms, index, rows)
            if task.signed:
                signed = task.per_batch(on_device, uniforms, index, rows, sign_draws, num_draws)
                units.append((rows, table.sum(0, keepdim=True) + signed))
            else:
                units.append((1, table))
    return summarize(
        units,
        measured,
        labels=labels,
        estimator="exact" if estimator == "auto" else estimator,
        fallbacks=task.fallbacks if task is not None else {},
        seed=seed,
    )


@dataclass(frozen=True)
class _Task:
    """Which parameters are measured in which way: tapped, in a loop over examples, or through signed scores."""

    scorer: Scorer
    measured: Measured
    everything: dict[str, nn.Parameter]
    plan: Plan | None
    looped: dict[str, nn.Parameter]
    signed: dict[str, nn.Parameter]
    fallbacks: dict[str, str]

    @classmethod
    def of(cls, scorer: Scorer, measured: Measured, estimator: str, batch: Mapping[str, Tensor]) -> _Task:
        every, model = measured.parameters, dict(scorer.model.named_parameters())
        if estimator == "loop":
            return cls(scorer, measured, model, None, every, {}, {})
        if estimator == "rademacher":
            return cls(scorer, measured, model, None, {}, every, {})
        plan = survey(scorer.model, every, batch, scorer.log_probs)
        left = {name: p for name, p in every.items() if name not in plan.covered | plan.unused}
        if estimator == "exact":
            return cls(scorer, measured, model, plan, left, {}, dict.fromkeys(left, "loop"))
        return cls(scorer, measured, model, plan, {}, left, dict.fromkeys(left, "rademacher"))

    def per_example(self, batch: Mapping[str, Tensor], uniforms: Tensor, index: int, rows: int) -> Tensor:
        """Squared norms (B, G) of the tapped and of the looped parameters."""
        table = torch.zeros(rows, len(self.measured.group_names), dtype=torch.float64)
        if self.plan is not None and self.plan.covered:
            table += self._tapped(self.plan, batch, uniforms, index, rows)
        if self.looped:
            with requires_grad_set(self.everything, self.looped):
                table += self.measured.add_up(loop_norms(self.scorer, batch, uniforms, self.looped, index), rows)
        return table

    def _tapped(self, plan: Plan, batch: Mapping[str, Tensor], uniforms: Tensor, index: int, rows: int) -> Tensor:
        unused = {name: self.measured.parameters[name] for name in plan.unused}
        table = torch.zeros(rows, len(self.measured.group_names), dtype=torch.float64)
        # What the first example did not use keeps its flag, so that the graph tells whether another one does.
        with requires_grad_set(self.everything, unused):
            with Taps(self.scorer.model, self.measured.parameters, plan, rows) as taps:
                log_probs = self.scorer.log_probs(batch)
            used = graph_reads(log_probs, unused) if unused else None
            if used:
                raise ProbeError(
                    "A parameter is used for some probe examples only.",
                    got=f"{next(iter(used))}, used in batch {index} but not by the first example",
                    fix="Use estimator='rademacher' (fast, noisy) or 'loop' (slow, exact) for this model.",
                )
            scores = self.scorer.scores(log_probs, batch, uniforms, index)
            for number, score in enumerate(scores, start=1):
                torch.autograd.grad(score.sum(), taps.anchors, retain_graph=number < len(scores), allow_unused=True)
                table += self.measured.add_up(taps.collect(), rows)
        return table

    def per_batch(
        self,
        batch: Mapping[str, Tensor],
        uniforms: Tensor,
        index: int,
        rows: int,
        sign_draws: torch.Generator,
        num_draws: int,
    ) -> Tensor:
        """Estimates (1, G) of the sum over examples, for the signed parameters: E_s ||sum_i s_i g_i||^2."""
        table = torch.zeros(1, len(self.measured.group_names), dtype=torch.float64)
        with requires_grad_set(self.everything, self.signed):
            log_probs = self.scorer.log_probs(batch)
            scores = torch.stack(self.scorer.scores(log_probs, batch, uniforms, index))
            for draw in range(1, num_draws + 1):
                signs = torch.randint(2, scores.shape, generator=sign_draws).to(scores) * 2 - 1
                gradients = torch.autograd.grad(
                    (signs * scores).sum(),
                    list(self.signed.values()),
                    retain_graph=draw < num_draws,
                    allow_unused=True,
                )
                norms = {
                    name: gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square().sum()[None]
                    for name, gradient in zip(self.signed, gradients, strict=True)
                    if gradient is not None
                }
                table += self.measured.add_up(norms, 1) / num_draws
        return table
