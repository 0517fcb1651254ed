"""Trace of the Fisher information, total and per layer group, exact at about the price of two forward passes.

Notation: B examples, C classes, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hf_early_ood.checks import PARAMETER_CHOICES, check_choice, check_count
from hf_early_ood.errors import ProbeError
from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.batches import num_rows, num_sequences
from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import LABEL_CHOICES, Scorer, likelihood_for
from hf_early_ood.probes.memory import in_pieces
from hf_early_ood.probes.ranks import Share
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
    share: Share | None = None,
) -> FisherTrace:
    r"""Trace of the Fisher information: the mean over examples of the squared gradient norm of log p(y|x).

    Source: the signal of Liu and Gurevych (2024, arXiv 2403.15210, eq. 2).

        tr F = E_x E_{y ~ p(.|x)} ||grad_w log p(y|x)||^2

    The norm is taken per example and then averaged. The squared norm of an averaged gradient,
    ||mean_x grad log p||^2, is another, much smaller number
    (`hf_early_ood.probes.reference.squared_norm_of_mean_gradient`): gradients of different examples cancel in it.

    log p(y|x) of an example is the *sum* over what is predicted for it: one class (sequence classification, multiple
    choice), several yes or no (multi-label), K numbers with Gaussian noise of variance one (regression), start and
    end of an answer, a class for each token. Which tokens count is said by the labels (not -100), or without labels
    by the attention mask; causal models predict each token from the true ones before it. The losses of transformers
    are means over tokens, over start and end, or over 2 ||y - f||^2 / K: their gradients differ by that factor.
    An example for which nothing is predicted (every label is -100) adds 0 to the mean and counts as an example;
    ``num_empty`` says how many there are. A probe set of such examples only is refused.

    The model is put in eval mode for the measurement and left as it was, random states included. Where there is no
    memory for a batch, it is measured in halves.

    Args:
        model: A model of transformers with a head for one of these tasks, or PEFT around one; unwrapped, not DDP.
        batches: A `ProbeSet`, or dictionaries of tensors whose leading dimension is the B examples.
        labels: ``"sampled"``: one draw of y per example, from uniforms that depend on ``seed``, the position of the
            example and the number of the prediction in it only, and so not on batches or padding: measurements can
            be compared. ``"expected"``: the exact expectation over y, at one backward pass for each class of each
            prediction (for each output, in a regression); refused above 256 of them. ``"empirical"``: y from the
            data (then it is the empirical Fisher trace). ``"argmax"``: the most likely y.
        parameters: ``"trainable"``: what requires a gradient now. ``"all"``: every parameter.
        estimator: ``"exact"``: per-example norms from layer inputs and output gradients; parameters that no rule
            covers are measured in a loop over examples. ``"auto"``: the same, but these few parameters are left to
            ``"rademacher"``. ``"rademacher"``: squared norm of the gradient of sum_i s_i log p(y_i|x_i) with random
            signs s_i, unbiased for any module, with a relative standard deviation of up to sqrt(2) per batch and
            draw. ``"loop"``: one example at a time.
        seed: Seed of the label draws and of the signs.
        groups: Layer groups to report; by default those of `find_layer_groups`.
        num_draws: Sign draws per batch that ``"rademacher"`` averages over.
        share: The batches that this process measures, where several do it together; the result is that of all.

    Returns:
        The trace, per group and in total, with what else is needed to compare it with another.

    Raises:
        ConfigurationError: An unknown choice, or no batch.
        DataError: A batch is not usable, nothing is predicted for any example, or ``"empirical"`` without usable
            labels.
        ProbeError: Nothing to measure, examples that depend on each other, or no memory for one of them.
        NonFiniteError: A prediction or a gradient is NaN or infinite.
        UnsupportedModelError: A model without a known task.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        ...                     intermediate_size=8)
        >>> model = BertForSequenceClassification(config)
        >>> trace = fisher_trace(model, [{"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}])
        >>> trace.num_examples, sorted(trace.per_group), trace.fallbacks
        (2, ['block.0', 'embeddings', 'head'], {})
    """
    check_fisher_trace(labels=labels, parameters=parameters, estimator=estimator, num_draws=num_draws)
    scorer = Scorer(model, likelihood_for(model), labels)
    measured = Measured.of(model, parameters, groups)
    label_draws = torch.Generator("cpu").manual_seed(seed)
    # Another stream than that of the labels: signs that go with the labels would bias the estimate.
    sign_draws = torch.Generator("cpu").manual_seed(seed ^ 0x5EED51)
    device = next(model.parameters()).device
    task: _Task | None = None
    share, empty = share or Share(), 0
    units: dict[int, list[tuple[int, Tensor]]] = {}
    with isolated(model), torch.inference_mode(False), torch.enable_grad():
        for index, batch in enumerate(batches):
            rows = num_rows(batch, index)
            empty += scorer.likelihood.num_empty(batch, labels)
            on_device = {key: value.to(device) for key, value in batch.items()}
            if task is None:
                task = _Task.of(scorer, measured, estimator, num_draws, on_device)
            uniforms = torch.rand(rows, generator=label_draws, dtype=torch.float64, device="cpu")
            if index not in share:
                task.skip(on_device, uniforms, index, sign_draws)
                continue
            measure = partial(task.units, on_device, uniforms, index, sign_draws)
            units[index] = [unit for piece in in_pieces(measure, rows, f"probe batch {index}") for unit in piece]
    return summarize(
        [unit for batch in share.gathered(units) for unit in batch],
        measured,
        labels=labels,
        estimator="exact" if estimator == "auto" else estimator,
        fallbacks=task.fallbacks if task is not None else {},
        seed=seed,
        num_empty=empty,
    )


def check_fisher_trace(*, labels: str, parameters: str, estimator: str, num_draws: int) -> None:
    """Refuse settings of `fisher_trace` that no model could be measured with.

    Raises:
        ConfigurationError: Naming the first of them.
    """
    check_choice("labels", labels, LABEL_CHOICES)
    check_choice("parameters", parameters, PARAMETER_CHOICES)
    check_choice("estimator", estimator, ESTIMATORS)
    check_count("num_draws", num_draws)


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
    num_draws: int

    @classmethod
    def of(
        cls, scorer: Scorer, measured: Measured, estimator: str, num_draws: int, batch: Mapping[str, Tensor]
    ) -> _Task:
        every, model = measured.parameters, dict(scorer.model.named_parameters())
        if estimator == "loop":
            return cls(scorer, measured, model, None, every, {}, {}, num_draws)
        if estimator == "rademacher":
            return cls(scorer, measured, model, None, {}, every, {}, num_draws)
        # In one piece: the survey takes two examples, whatever the size of the batch.
        (plan,) = in_pieces(lambda _: survey(scorer.model, every, batch, scorer.predictions), 1, "two short examples")
        left = {name: p for name, p in every.items() if name not in plan.covered | plan.unused}
        if estimator == "exact":
            return cls(scorer, measured, model, plan, left, {}, dict.fromkeys(left, "loop"), num_draws)
        return cls(scorer, measured, model, plan, {}, left, dict.fromkeys(left, "rademacher"), num_draws)

    def units(
        self, batch: Mapping[str, Tensor], uniforms: Tensor, index: int, sign_draws: torch.Generator, piece: slice
    ) -> list[tuple[int, Tensor]]:
        """What `summarize` takes, of some examples of a batch: one unit for each, or one for all if signs mix them."""
        batch, uniforms = {key: value[piece] for key, value in batch.items()}, uniforms[piece]
        rows = len(uniforms)
        table = self.per_example(batch, uniforms, index, rows)
        if not self.signed:
            return [(1, table)]
        return [(rows, table.sum(0, keepdim=True) + self.per_batch(batch, uniforms, index, sign_draws))]

    def skip(self, batch: Mapping[str, Tensor], uniforms: Tensor, index: int, sign_draws: torch.Generator) -> None:
        """Draw the signs of a batch that another process measures, so that the next batch gets its own."""
        if not self.signed:
            return
        scores = 1
        if self.scorer.labels == "expected":
            with torch.no_grad():
                scores = len(self.scorer.scores(self.scorer.predictions(batch), batch, uniforms, index))
        for _ in range(self.num_draws):
            _bits((scores, len(uniforms)), sign_draws)

    def per_example(self, batch: Mapping[str, Tensor], uniforms: Tensor, index: int, rows: int) -> Tensor:
        """Squared norms (B, G) of the tapped and of the looped parameters."""
        table = self.measured.zeros(rows)
        if self.plan is not None and self.plan.covered:
            table += self._tapped(self.plan, batch, uniforms, index, rows)
        if self.looped:
            with requires_grad_set(self.everything, self.looped):
                table += self.measured.add_up(loop_norms(self.scorer, batch, uniforms, self.looped, index), rows)
        return table

    def _tapped(self, plan: Plan, batch: Mapping[str, Tensor], uniforms: Tensor, index: int, rows: int) -> Tensor:
        unused = {name: self.measured.parameters[name] for name in plan.unused}
        table = self.measured.zeros(rows)
        # What the first example did not use keeps its flag, so that the graph tells whether another one does.
        with requires_grad_set(self.everything, unused):
            with Taps(self.scorer.model, self.measured.parameters, plan, rows, num_sequences(batch)) as taps:
                log_probs = self.scorer.predictions(batch)
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
        self, batch: Mapping[str, Tensor], uniforms: Tensor, index: int, sign_draws: torch.Generator
    ) -> Tensor:
        """Estimates (1, G) of the sum over examples, for the signed parameters: E_s ||sum_i s_i g_i||^2."""
        table = self.measured.zeros(1)
        with requires_grad_set(self.everything, self.signed):
            log_probs = self.scorer.predictions(batch)
            scores = torch.stack(self.scorer.scores(log_probs, batch, uniforms, index))
            for draw in range(1, self.num_draws + 1):
                signs = _bits(scores.shape, sign_draws).to(scores) * 2 - 1
                gradients = torch.autograd.grad(
                    (signs * scores).sum(),
                    list(self.signed.values()),
                    retain_graph=draw < self.num_draws,
                    allow_unused=True,
                )
                norms = {
                    name: gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square().sum()[None]
                    for name, gradient in zip(self.signed, gradients, strict=True)
                    if gradient is not None
                }
                table += self.measured.add_up(norms, 1) / self.num_draws
        return table


def _bits(shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=draws, device="cpu")
