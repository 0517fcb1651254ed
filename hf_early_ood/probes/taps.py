r"""Tap the uses of parameters during a forward pass, and reduce their output gradients as they flow by.

First, on one and two examples, `survey` learns which uses there are and which dimension of each holds the
examples: shapes alone would not say so where T = B. Then `Taps` measures: no parameter requires a gradient, so
that autograd only moves activation gradients; where an output carries no graph yet, one is started there, and
nothing below the lowest measured layer is differentiated.

Notation: B examples, T positions, D width.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ProbeError
from ..freezing import requires_grad_set
from .per_example import Factor, InnerProducts, squared_norms
from .uses import RULES, Use, elementwise_uses, is_elementwise, may_be_elementwise

# One call in a forward pass: the names of the measured parameters in it, and its number among such calls.
Site = tuple[tuple[str, ...], int]
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # between a batch of one and of two; 0.1 below float32


@dataclass(frozen=True)
class Layout:
    """Where the output of a site holds the examples.

    Attributes:
        dim: The dimension. It may hold more than the examples, (B * T), as long as the examples come first.
        broadcast: The output has one leading entry for all examples, and is expanded to B of them.
    """

    dim: int = 0
    broadcast: bool = False

    def split(self, rows: int, tensor: Tensor) -> Tensor:
        """Bring the examples to the front: (..., D) -> (B, T, D)."""
        if self.broadcast and tensor.shape[0] == 1:
            tensor = tensor.expand(rows, *tensor.shape[1:])
        return tensor.detach().movedim(self.dim, 0).reshape(rows, -1, tensor.shape[-1])


@dataclass(frozen=True)
class Plan:
    """What a survey found.

    Attributes:
        covered: Names of the parameters that the taps measure exactly.
        unused: Names of the parameters that the outcome does not depend on: their gradient is zero.
        layouts: Layout of each site.
        calls: Parameter name to its number of uses.
        elementwise: Modules that are normalizations written out in Python.
    """

    covered: frozenset[str]
    unused: frozenset[str]
    layouts: dict[Site, Layout]
    calls: Counter[str]
    elementwise: frozenset[nn.Module]


class _Watch(TorchFunctionMode):
    """See every use of the given parameters in the block; `met` may replace the output."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._model = model
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._numbers: Counter[tuple[str, ...]] = Counter()
        self._handles: list[Any] = []
        self._inside = False

    def met(self, site: Site, uses: dict[str, Use], output: Tensor) -> Tensor:
        raise NotImplementedError

    def module_uses(self, module: nn.Module, x: Tensor, output: Tensor) -> list[Use]:
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        rule = RULES.get(func)
        if rule is None or self._inside:
            return output
        return self._report(rule(*args, **kwargs), output)

    def __enter__(self) -> Any:
        for module in self._model.modules():
            if may_be_elementwise(module) and any(id(p) in self._names for p in module.parameters()):
                self._handles.append(module.register_forward_hook(self._after_module))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _after_module(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._inside or len(args) != 1 or not (isinstance(args[0], Tensor) and isinstance(output, Tensor)):
            return output
        self._inside = True  # the module is called again to learn its derivative
        try:
            uses = self.module_uses(module, args[0], output)
        finally:
            self._inside = False
        return self._report(uses, output)

    def _report(self, uses: list[Use], output: Tensor) -> Tensor:
        mine = {self._names[id(use.parameter)]: use for use in uses if id(use.parameter) in self._names}
        if not mine:
            return output
        names = tuple(mine)
        self._numbers[names] += 1
        return self.met((names, self._numbers[names]), mine, output)


class _Census(_Watch):
    """Note every use in a forward pass of one example."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(model, parameters)
        self.outputs: dict[Site, Tensor] = {}
        self.kinds: dict[str, set[str]] = defaultdict(set)
        self.calls: Counter[str] = Counter()
        self.elementwise: set[nn.Module] = set()

    def met(self, site: Site, uses: dict[str, Use], output: Tensor) -> Tensor:
        self.outputs[site] = output.detach()
        for name, use in uses.items():
            self.kinds[name].add(use.kind)
            self.calls[name] += 1
        return output

    def module_uses(self, module: nn.Module, x: Tensor, output: Tensor) -> list[Use]:
        seen = any(self.calls[self._names[id(p)]] for p in module.parameters() if id(p) in self._names)
        if module not in self.elementwise:
            if seen or not is_elementwise(module, x, output):
                return []  # a rule saw its parameters inside, or there is no rule
            self.elementwise.add(module)
        return elementwise_uses(module, x)


class Taps(_Watch):
    """Measure per-example squared gradient norms in a forward pass and the backward passes that follow.

    Args:
        model: The model.
        parameters: The measured parameters by name: those of the survey.
        plan: What the survey found.
        rows: B, number of examples in the batch.

    Attributes:
        anchors: The tensors to differentiate with respect to, after the forward pass.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], plan: Plan, rows: int) -> None:
        super().__init__(model, parameters)
        self.anchors: list[Tensor] = []
        self._plan = plan
        self._rows = rows
        self._cache = InnerProducts()
        self._pending: dict[str, list[Factor]] = defaultdict(list)
        self._norms: dict[str, Tensor] = {}

    def met(self, site: Site, uses: dict[str, Use], output: Tensor) -> Tensor:
        wanted = {name: use for name, use in uses.items() if name in self._plan.covered}
        if not wanted:
            return output
        layout = self._layout(site, output)
        if layout is None:
            return output
        if layout.broadcast:
            output = output.expand(self._rows, *output.shape[1:])
        if output.grad_fn is None or not self.anchors:
            # Also cuts off a graph that a hook of the user started below (enable_input_require_grads).
            anchor = output.detach().requires_grad_()
            self.anchors.append(anchor)
            output = anchor.clone()  # the model may write into its activations, but not into a leaf
        output.register_hook(partial(self._arrived, site, wanted, partial(layout.split, self._rows)))
        return output

    def module_uses(self, module: nn.Module, x: Tensor, output: Tensor) -> list[Use]:
        return elementwise_uses(module, x) if module in self._plan.elementwise else []

    def collect(self) -> dict[str, Tensor]:
        """Squared norms (B,) by parameter name of the backward pass that has ended. Starts over."""
        for name, factors in self._pending.items():  # uses that the outcome does not depend on did not arrive
            self._norms[name] = squared_norms(factors, self._cache)
        norms, self._norms = self._norms, {}
        self._pending.clear()
        self._cache.clear()
        return norms

    def _layout(self, site: Site, output: Tensor) -> Layout | None:
        layout = self._plan.layouts.get(site)
        if layout is not None:
            size = output.shape[layout.dim]
            if size == 1 if layout.broadcast else size % self._rows == 0:
                return layout
        raise ProbeError(
            "A layer was used in another way than on the first examples of the probe set.",
            got=f"{site[0][0]}, use {site[1]}, output {tuple(output.shape)} for {self._rows} examples",
            fix="Use estimator='rademacher' (fast, noisy) or 'loop' (slow, exact) for this model.",
        )

    def _arrived(self, site: Site, uses: dict[str, Use], split: Callable[[Tensor], Tensor], gradient: Tensor) -> None:
        gradient = split(gradient)
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        for name, use in uses.items():
            factors = self._pending[name]
            factors.append(use.factor(split, gradient))
            if len(factors) == self._plan.calls[name]:
                self._norms[name] = squared_norms(factors, self._cache)
                del self._pending[name]


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
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], plan: Plan, census: _Census, broadcast: bool
    ) -> None:
        super().__init__(model, parameters, plan, rows=2)
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

    def _arrived(self, site: Site, uses: dict[str, Use], split: Callable[[Tensor], Tensor], gradient: Tensor) -> None:
        if bool(split(gradient)[0].count_nonzero()):
            self.found.unfit.update(site[0])
        self.found.arrived.update(list(uses))


def survey(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batch: Mapping[str, Tensor],
    log_probs: Callable[[Mapping[str, Tensor]], Tensor],
) -> Plan:
    """Learn which of the parameters the taps can measure, from one and from two examples.

    Three things are checked rather than assumed: that every place where the autograd graph reads a parameter was
    seen as a use; which dimension of each output is the batch; that examples do not influence each other.

    Args:
        model: The model, in eval mode.
        parameters: Parameters to measure, by name.
        batch: The first probe batch; its first two examples are used.
        log_probs: Forward pass: batch -> (B, C).

    Raises:
        ProbeError: The outcome for one example changes with the others in its batch.
    """
    every = dict(model.named_parameters())
    one = {key: value[:1] for key, value in batch.items()}
    two = {key: value[:2] if len(value) > 1 else value.repeat_interleave(2, 0) for key, value in batch.items()}
    census = _Census(model, parameters)
    with requires_grad_set(every, parameters), census:
        alone = log_probs(one)
    reads = graph_reads(alone, parameters)
    alone = alone.detach()
    seen = {name for name in parameters if 0 < reads[name] <= census.calls[name] and len(census.kinds[name]) == 1}
    plan = Plan(
        covered=frozenset(seen),
        unused=frozenset(name for name in parameters if not reads[name]),
        layouts={},
        calls=census.calls,
        elementwise=frozenset(census.elementwise),
    )
    found = _rehearse(model, parameters, plan, census, two, log_probs, alone)
    covered = frozenset(n for n in seen - found.unfit if found.arrived[n] >= reads[n])
    return Plan(covered, plan.unused, found.layouts, plan.calls, plan.elementwise)


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
    log_probs: Callable[[Mapping[str, Tensor]], Tensor],
    alone: Tensor,
) -> _Rehearsal:
    """Two examples, first with broadcast outputs expanded, then, where the model does not take that, without."""
    tolerance = max((_TOLERANCE.get(output.dtype, 0.1) for output in census.outputs.values()), default=1e-3)
    for broadcast in (True, False):
        taps = _Rehearse(model, parameters, plan, census, broadcast)
        try:
            with requires_grad_set(dict(model.named_parameters()), ()), taps:
                together = log_probs(two)
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
        got=f"log-probabilities {alone[0].tolist()} alone, {together[0].tolist()} next to another example",
        fix="Use estimator='loop', which measures one example at a time.",
    )


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
