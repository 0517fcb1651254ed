"""Learn, from one and from two examples, what the taps can measure and how.

Shapes alone would not say which dimension of a tensor holds the examples: T may equal B. And a tap may miss a use
of a parameter, or a model may let examples influence each other. All of this is found out before measuring.

Notation: B examples, T positions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_early_ood.errors import ProbeError
from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.probes.batches import num_sequences
from hf_early_ood.probes.taps import Layout, Plan, Site, Taps, Watch
from hf_early_ood.probes.uses import Split, Use, can_be_joined, elementwise_uses, is_elementwise

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # between a batch of one and of two; 0.1 below float32
_FEW = 16  # positions


class _Census(Watch):
    """Note every use in a forward pass of one example."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(model, parameters)
        self.outputs: dict[Site, Tensor] = {}
        self.kinds: dict[str, set[str]] = defaultdict(set)
        self.calls: Counter[str] = Counter()
        self.elementwise: set[nn.Module] = set()

    def met(self, site: Site, uses: dict[str, Use], output: Tensor) -> Tensor:
        self.outputs[site] = output.detach().clone()  # the model may write into it
        for name, use in uses.items():
            self.kinds[name].add(use.kind)
            self.calls[name] += 1
        return output

    def module_uses(self, module: nn.Module, x: Tensor, output: Tensor) -> list[Use]:
        seen = any(self.calls[self.names[id(p)]] for p in module.parameters() if id(p) in self.names)
        if module not in self.elementwise:
            if seen or not is_elementwise(module, x, output):
                return []  # a rule saw its parameters inside, or there is no rule
            self.elementwise.add(module)
        return elementwise_uses(module, x)


@dataclass
class _Rehearsal:
    """What two examples showed."""

    layouts: dict[Site, Layout] = field(default_factory=dict)
    unfit: set[str] = field(default_factory=set)
    arrived: Counter[str] = field(default_factory=Counter)
    broadcast: bool = False


class _Rehearse(Taps):
    """Learn the layouts on two examples; check that the gradient of one leaves the other's entries at zero."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        plan: Plan,
        census: _Census,
        sequences: int,
        broadcast: bool,
    ) -> None:
        super().__init__(model, parameters, plan, rows=2, sequences=sequences)
        self.found = _Rehearsal()
        self._single = census.outputs
        self._may_broadcast = broadcast

    def _layout(self, site: Site, output: Tensor) -> Layout | None:
        layout = _compared(self._single.get(site), output, self._may_broadcast)
        if layout is None:
            self.found.unfit.update(site[0])
        else:
            self.found.layouts[site] = layout
            self.found.broadcast |= layout.broadcast
        return layout

    def _arrived(self, site: Site, uses: dict[str, Use], split: Split, gradient: Tensor) -> None:
        if bool(split(gradient)[0].count_nonzero()):
            self.found.unfit.update(site[0])
        self.found.arrived.update(list(uses))


def survey(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batch: Mapping[str, Tensor],
    predictions: Callable[[Mapping[str, Tensor]], Tensor],
) -> Plan:
    """Learn which of the parameters the taps can measure, from one and from two examples.

    Three things are checked rather than assumed: that every place where the autograd graph reads a parameter was
    seen as a use; which dimension of each output is the batch; that examples do not influence each other.

    Args:
        model: The model, in eval mode.
        parameters: Parameters to measure, by name.
        batch: The first probe batch; its two shortest examples are used.
        predictions: Forward pass: batch -> (B, ...).

    Raises:
        ProbeError: The outcome for one example changes with the others in its batch.
    """
    every = dict(model.named_parameters())
    two = _two_short_examples(batch)
    one = {key: value[:1] for key, value in two.items()}
    census = _Census(model, parameters)
    with requires_grad_set(every, parameters), census:
        alone = predictions(one)
    reads = graph_reads(alone, parameters)
    alone = alone.detach()
    seen = {name for name in parameters if reads[name] and can_be_joined(census.kinds[name])}
    plan = Plan(
        covered=frozenset(seen),
        unused=frozenset(name for name in parameters if not reads[name]),
        layouts={},
        calls=census.calls,
        elementwise=frozenset(census.elementwise),
    )
    found = _rehearse(model, parameters, plan, census, two, predictions, alone)
    # Fewer gradients than reads: a use was not seen, or its tap fell out of the graph.
    covered = frozenset(n for n in seen - found.unfit if found.arrived[n] >= reads[n])
    return Plan(covered, plan.unused, found.layouts, plan.calls, plan.elementwise)


def _two_short_examples(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The two shortest examples (one of them twice, if there is one), without positions that neither has.

    A survey is about structure, so it can be had for little; a few positions are kept for models that need them.
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() not in (2, 3):
        rows, columns, shape = [0, 1], slice(None), None
    else:
        shape = mask.shape[1:]
        mask = mask.bool() if mask.dim() == 2 else mask.bool().any(1)
        length = mask.shape[1]
        rows = mask.sum(1).argsort(stable=True)[:2].tolist()
        used = mask[rows].any(0).nonzero().flatten().tolist() or [0]
        start = max(0, min(used[0], length - _FEW))
        columns = slice(start, max(used[-1] + 1, start + _FEW))
    if len(next(iter(batch.values()))) == 1:
        rows = [0, 0]
    chosen = {key: value[rows] for key, value in batch.items()}
    return {k: v[..., columns] if v.shape[1:] == shape else v for k, v in chosen.items()}


def graph_reads(outcome: Tensor, parameters: Mapping[str, nn.Parameter]) -> Counter[str]:
    """How often the autograd graph of ``outcome`` reads each parameter.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> outcome = layer(layer(torch.ones(1, 2)))
        >>> graph_reads(outcome, dict(layer.named_parameters()))["weight"]
        2
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    reads: Counter[str] = Counter()
    todo = [outcome.grad_fn] if outcome.grad_fn is not None else []
    done = set(todo)
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is None:
                continue
            name = names.get(id(getattr(node, "variable", None)))
            if name is not None:
                reads[name] += 1
            elif node not in done:
                done.add(node)
                todo.append(node)
    return reads


def _rehearse(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    plan: Plan,
    census: _Census,
    two: Mapping[str, Tensor],
    predictions: Callable[[Mapping[str, Tensor]], Tensor],
    alone: Tensor,
) -> _Rehearsal:
    """Two examples, first with broadcast outputs expanded, then, where the model does not take that, without."""
    tolerance = max((_TOLERANCE.get(output.dtype, 0.1) for output in census.outputs.values()), default=1e-3)
    for broadcast in (True, False):
        taps = _Rehearse(model, parameters, plan, census, num_sequences(two), broadcast)
        try:
            with requires_grad_set(dict(model.named_parameters()), ()), taps:
                together = predictions(two)
        except RuntimeError:
            if not taps.found.broadcast:
                raise
            continue
        same = together.shape[1:] == alone.shape[1:] and torch.allclose(
            together[0], alone[0], rtol=tolerance, atol=tolerance, equal_nan=True
        )
        if same:
            if taps.anchors and together.requires_grad:
                second = together[1].square().sum()
                torch.autograd.grad(second, taps.anchors, allow_unused=True)
            return taps.found
        if not taps.found.broadcast:
            break
    raise ProbeError(
        "The outcome for an example depends on the other examples of its batch.",
        got=_difference(alone, together),
        fix="Use estimator='loop', which measures one example at a time.",
    )


def _difference(alone: Tensor, together: Tensor) -> str:
    if together.shape[1:] != alone.shape[1:]:
        return f"predictions of shape {tuple(alone.shape[1:])} alone, {tuple(together.shape[1:])} next to another one"
    change = float((together[0].detach() - alone[0]).abs().max())
    return f"predictions that change by {change:.3g} next to another example"


def _compared(single: Tensor | None, double: Tensor, may_broadcast: bool) -> Layout | None:
    """Layout of a site, from its outputs for one and for two examples; None where there is no batch dimension."""
    if single is None or single.dim() != double.dim() or double.dim() < 2:
        return None
    grown = [dim for dim, (a, b) in enumerate(zip(single.shape, double.shape, strict=True)) if a != b]
    if not grown:
        fits = may_broadcast and double.shape[0] == 1 and double.dim() > 2
        return Layout(broadcast=True) if fits else None
    dim, size = grown[0], single.shape[grown[0]]
    if len(grown) > 1 or double.shape[dim] != 2 * size or dim == double.dim() - 1:
        return None
    # (B * T): the examples must come one after the other.
    first = double.detach().narrow(dim, 0, size)
    tolerance = _TOLERANCE.get(single.dtype, 0.1)
    if size > 1 and not torch.allclose(first, single, rtol=tolerance, atol=tolerance):
        return None
    return Layout(dim)
