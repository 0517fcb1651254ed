"""Tap the uses of parameters during a forward pass, and reduce their output gradients as they flow by.

No parameter requires a gradient meanwhile, so that autograd only moves activation gradients; where the output of
a tapped use carries no graph yet, one is started there, and nothing below the lowest measured layer is
differentiated.

Notation: B examples, T positions, D width.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_early_ood.errors import ProbeError
from hf_early_ood.probes.per_example import Factor, InnerProducts, squared_norms
from hf_early_ood.probes.uses import RULES, Split, Use, elementwise_uses, may_be_elementwise

# One call in a forward pass: the names of the measured parameters in it, and its number among such calls.
Site = tuple[tuple[str, ...], int]


@dataclass(frozen=True)
class Layout:
    """Where the output of a site holds the examples.

    Attributes:
        dim: The dimension. It may hold more than the examples, (B * T), as long as the examples come first.
        broadcast: The output has one leading entry for all sequences, and is expanded to one for each.
    """

    dim: int = 0
    broadcast: bool = False

    def split(self, rows: int, sequences: int, tensor: Tensor) -> Tensor:
        """Bring the examples to the front: (..., D) -> (B, T, D), the sequences of an example one after the other."""
        if self.broadcast and tensor.shape[0] == 1:
            tensor = tensor.expand(rows * sequences, *tensor.shape[1:])
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


class Watch(TorchFunctionMode):
    """See every use of the given parameters in the block.

    Args:
        model: The model whose forward pass runs in the block.
        parameters: The parameters to see, by name.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._model = model
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self._numbers: Counter[tuple[str, ...]] = Counter()
        self._handles: list[Any] = []
        self._inside = False

    def met(self, site: Site, uses: dict[str, Use], output: Tensor) -> Tensor:
        """Called for every use, by parameter name; what it returns replaces the output."""
        raise NotImplementedError

    def module_uses(self, module: nn.Module, x: Tensor, output: Tensor) -> list[Use]:
        """Called for every module that might be a normalization written out in Python: its uses, if it is one."""
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.requires_grad_ and not self._inside:
            return args[0]  # enable_input_require_grads would start a graph below everything that is measured
        output = func(*args, **kwargs)
        rule = RULES.get(func)
        if rule is None or self._inside:
            return output
        return self._report(rule(*args, **kwargs), output)

    def __enter__(self) -> Any:
        for module in self._model.modules():
            if may_be_elementwise(module) and any(id(p) in self.names for p in module.parameters()):
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
        mine = {self.names[id(use.parameter)]: use for use in uses if id(use.parameter) in self.names}
        if not mine:
            return output
        names = tuple(mine)
        self._numbers[names] += 1
        before, self._inside = self._inside, True  # what `met` does to start a graph is not the model's doing
        try:
            return self.met((names, self._numbers[names]), mine, output)
        finally:
            self._inside = before


class Taps(Watch):
    """Measure per-example squared gradient norms in a forward pass and the backward passes that follow.

    Args:
        model: The model.
        parameters: The measured parameters by name: those of the survey.
        plan: What the survey found.
        rows: B, number of examples in the batch.
        sequences: Sequences per example; more than one for multiple choice only.

    Attributes:
        anchors: The tensors to differentiate with respect to, after the forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        plan: Plan,
        rows: int,
        sequences: int = 1,
    ) -> None:
        super().__init__(model, parameters)
        self.anchors: list[Tensor] = []
        self._plan = plan
        self._rows = rows
        self._sequences = sequences
        self._cache = InnerProducts()
        self._pending: dict[str, list[Factor]] = defaultdict(list)
        self._norms: dict[str, Tensor] = {}

    def met(self, site: Site, uses: dict[str, Use], output: Tensor) -> Tensor:
        """Start a graph at the output where there is none, and wait for its gradient."""
        wanted = {name: use for name, use in uses.items() if name in self._plan.covered}
        if not wanted:
            return output
        layout = self._layout(site, output)
        if layout is None:
            return output
        if layout.broadcast:
            output = output.expand(self._rows * self._sequences, *output.shape[1:])
        if output.grad_fn is None:
            anchor = output.detach().requires_grad_()
            self.anchors.append(anchor)
            output = anchor.clone()  # the model may write into its activations, but not into a leaf
        output.register_hook(partial(self._arrived, site, wanted, partial(layout.split, self._rows, self._sequences)))
        return output

    def module_uses(self, module: nn.Module, x: Tensor, output: Tensor) -> list[Use]:
        """Uses of the vectors of a normalization written out in Python."""
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

    def _arrived(self, site: Site, uses: dict[str, Use], split: Split, gradient: Tensor) -> None:
        gradient = split(gradient)
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        for name, use in uses.items():
            factors = self._pending[name]
            factors.append(use.factor(split, gradient))
            if len(factors) == self._plan.calls[name]:
                self._norms[name] = squared_norms(factors, self._cache)
                del self._pending[name]
