"""Weights moved by delta for a measurement: which ones, how far, by what noise.

delta = c * u elementwise, with c = 1, or c = w (adaptive). The definitions say c = |w|, but signs make no difference:
balls around u = 0 and Gaussian noise are symmetric in every coordinate.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hf_early_ood.checks import PARAMETER_CHOICES, check_choice
from hf_early_ood.errors import ProbeError
from hf_early_ood.probes.isolation import weights_kept

# Share of a perturbation's norm that rounding to the precision of the weights may take before it is an error.
_LARGEST_ROUNDING = 0.2
# Norms of longer float32 vectors lose digits on the CPU: 1e-3 for 20 million elements.
_ROW = 512
_SAMPLE = 2**14  # elements of a tensor that are looked at for rounding


def measured_parameters(model: nn.Module, parameters: str) -> dict[str, nn.Parameter]:
    """The parameters that a measurement perturbs, by name; a shared parameter has one name.

    Args:
        model: The model.
        parameters: "trainable": what requires a gradient now; "all".

    Raises:
        ConfigurationError: ``parameters`` is neither.
        ProbeError: Nothing to perturb, weights that are not real numbers, or two parameters in one memory.
    """
    check_choice("parameters", parameters, PARAMETER_CHOICES)
    chosen = {n: p for n, p in model.named_parameters() if (parameters == "all" or p.requires_grad) and p.numel()}
    if not chosen:
        raise ProbeError(
            "There is no parameter to perturb.",
            got="requires_grad is False everywhere" if parameters == "trainable" else "a model without parameters",
            fix="Use parameters='all', or release a layer first.",
        )
    owners: dict[tuple[torch.device, int], str] = {}
    for name, parameter in chosen.items():
        if not parameter.is_floating_point():
            raise ProbeError(
                "A parameter cannot be perturbed.",
                got=f"{name} of type {parameter.dtype}",
                allowed="floating-point weights",
                fix="Use parameters='trainable', or measure the model before it is quantized.",
            )
        owner = owners.setdefault((parameter.device, parameter.data_ptr()), name)
        if owner != name:
            raise ProbeError(
                "Two parameters share their memory, so that they cannot be perturbed one by one.",
                got=f"{owner} and {name}",
                fix="Tie them by assigning the same nn.Parameter object, e.g. with model.tie_weights().",
            )
    return chosen


class PerturbedWeights:
    """Weights that can be moved to w + c * u and back to w; made by `perturbed`.

    A point u is one flat tensor per device, the weights on it in their order, in float32 or better.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], original: Mapping[str, Tensor], adaptive: bool) -> None:
        self._weights = [parameter.data for parameter in parameters.values()]
        self._original = [original[name] for name in parameters]
        self._adaptive = adaptive
        self._rounding_checked = False

    def zero(self) -> list[Tensor]:
        """The point u = 0."""
        sizes: dict[torch.device, int] = {}
        for weight in self._original:
            sizes[weight.device] = sizes.get(weight.device, 0) + weight.numel()
        dtype = functools.reduce(torch.promote_types, {_full(weight.dtype) for weight in self._original})
        return [torch.zeros(size, dtype=dtype, device=device) for device, size in sizes.items()]

    def by_parameter(self, point: Sequence[Tensor]) -> list[Tensor]:
        """The point as one view per parameter, of its shape."""
        begin = {flat.device: 0 for flat in point}
        flats = {flat.device: flat for flat in point}
        views = []
        for weight in self._original:
            at, device = begin[weight.device], weight.device
            views.append(flats[device][at : at + weight.numel()].view(weight.shape))
            begin[device] += weight.numel()
        return views

    def pull_back(self, gradient: Sequence[Tensor | None], into: Sequence[Tensor]) -> None:
        """Gradient with respect to u from that with respect to the weights: times c; zero where there is none.

        Args:
            gradient: One tensor per parameter, or None.
            into: A point, written over.
        """
        for g, original, view in zip(gradient, self._original, self.by_parameter(into), strict=True):
            if g is None:
                view.zero_()
            elif self._adaptive:
                torch.mul(g.to(view.dtype), original, out=view)
            else:
                view.copy_(g)

    def move_to(self, point: Iterable[Tensor]) -> None:
        """Set the weights to w + c * u.

        Args:
            point: u; an iterator is used up one tensor at a time, so that no more than one need exist.

        Raises:
            ProbeError: The weights are too coarse to hold the perturbation.
        """
        lost, wanted = 0.0, 0.0
        with torch.no_grad():
            for weight, original, u in zip(self._weights, self._original, point, strict=True):
                # One rounding, of w + delta, also where the weights are in half precision.
                if self._adaptive:
                    torch.addcmul(original, original, u, out=weight)
                else:
                    torch.add(original, u, out=weight)
                if not self._rounding_checked:
                    now, before, delta = (t.reshape(-1)[:_SAMPLE].to(u.dtype) for t in (weight, original, u))
                    delta = delta * before if self._adaptive else delta
                    lost += squared_norm([now - before - delta])
                    wanted += squared_norm([delta])
        torch.clear_autocast_cache()
        if not self._rounding_checked and wanted > 0:
            self._rounding_checked = True
            if lost > _LARGEST_ROUNDING**2 * wanted:
                raise ProbeError(
                    "The perturbation is smaller than the precision of the weights.",
                    got=f"{math.sqrt(lost / wanted):.0%} of it lost to rounding in {self._weights[0].dtype}",
                    allowed=f"up to {_LARGEST_ROUNDING:.0%}",
                    fix="Measure a float32 copy of the model, model.float(), or use a larger rho.",
                )

    def mirror(self) -> None:
        """Move the weights from w + delta to w - delta."""
        with torch.no_grad():
            for weight, original in zip(self._weights, self._original, strict=True):
                weight.neg_().add_(original, alpha=2)
        torch.clear_autocast_cache()


@contextmanager
def perturbed(parameters: Mapping[str, nn.Parameter], adaptive: bool) -> Iterator[PerturbedWeights]:
    """Let the weights be moved inside the block; they are back, bit for bit, after it.

    Args:
        parameters: Name to parameter, of those to be moved.
        adaptive: c = w instead of c = 1.

    Raises:
        ProbeError: ``adaptive``, and all weights are zero.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> before = layer.weight.tolist()
        >>> with perturbed(dict(layer.named_parameters()), adaptive=False) as weights:
        ...     weights.move_to([torch.tensor([[1.0, 2.0]])])
        ...     changed = layer.weight.tolist()
        >>> changed != before, layer.weight.tolist() == before
        (True, True)
    """
    if adaptive and not any(bool(parameter.detach().any()) for parameter in parameters.values()):
        raise ProbeError(
            "All measured weights are zero, so the adaptive radius rho * |w| is zero too.",
            got=", ".join(list(parameters)[:3]),
            fix="Use adaptive=False; or measure after the first updates (LoRA starts with B = 0).",
        )
    with weights_kept(parameters) as original:
        yield PerturbedWeights(parameters, original, adaptive)


def noise(name: str, like: Tensor, *, draw: int, seed: int) -> Tensor:
    """Standard normal noise for one parameter, the same at every measurement and on every device.

    The numbers depend on ``seed``, ``draw``, the name and the shape only. They are drawn on the CPU, in float32.

    Args:
        name: Of the parameter.
        like: Tensor of the shape and on the device that the noise is for.
        draw: Number of the draw.
        seed: Seed of the measurement.

    Example:
        >>> weight = torch.zeros(2, 3)
        >>> torch.equal(noise("w", weight, draw=0, seed=1), noise("w", weight, draw=0, seed=1))
        True
        >>> torch.equal(noise("w", weight, draw=0, seed=1), noise("w", weight, draw=1, seed=1))
        False
    """
    digest = hashlib.sha256(f"{seed} {draw} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
    values = torch.randn(like.shape, generator=generator, dtype=torch.float32)
    return values.to(like.device, _full(like.dtype))


def squared_norm(tensors: Sequence[Tensor]) -> float:
    """Sum of the squares of all elements.

    Example:
        >>> squared_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])
        25.0
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        flat = tensor.reshape(-1)
        whole = flat.numel() // _ROW * _ROW
        rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1).square().sum()
        by_device.setdefault(tensor.device, []).append(rows + flat[whole:].square().sum())
    # One transfer per device.
    return math.fsum(value for parts in by_device.values() for value in torch.stack(parts).tolist())


def _full(dtype: torch.dtype) -> torch.dtype:
    """The type itself, or float32 if that has more digits."""
    return torch.promote_types(dtype, torch.float32)
