"""Leave no trace: a measurement changes nothing that training could notice."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from hf_early_ood.errors import ModelChangedError
from hf_early_ood.freezing import requires_grad_set


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the state of the global random generators (python, numpy, torch on CPU and CUDA) at the end.

    Example:
        >>> before = torch.get_rng_state()
        >>> with random_state_kept():
        ...     _ = torch.rand(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    # Asking for the CUDA states would start CUDA in a process that does not use it.
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode; the mode of every module and the global random generators are put back at the end.

    Example:
        >>> layer = nn.Sequential(nn.Dropout()).train()
        >>> with eval_mode(layer):
        ...     print(layer[0].training)
        False
        >>> layer[0].training
        True
    """
    training = {module: module.training for module in model.modules()}
    with random_state_kept():
        try:
            model.eval()
            yield
        finally:
            for module, mode in training.items():
                module.training = mode


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put values and identity of all buffers back at the end.

    Example:
        >>> norm = nn.BatchNorm1d(2).train()
        >>> with buffers_kept(norm):
        ...     _ = norm(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        ...     print(norm.num_batches_tracked.item())
        1
        >>> norm.num_batches_tracked.item()
        0
    """
    buffers = {module: dict(module._buffers) for module in model.modules()}
    values = {b: b.detach().clone() for owned in buffers.values() for b in owned.values() if b is not None}
    try:
        yield
    finally:
        for module, owned in buffers.items():
            module._buffers.clear()
            module._buffers.update(owned)
        with torch.no_grad():
            for buffer, value in values.items():
                if not torch.equal(buffer, value):  # batch norm writes without a new version number
                    buffer.copy_(value)


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode inside the block and restore everything else a measurement may touch.

    Restored, also after an exception: train/eval flag of every module, ``requires_grad`` and ``.grad`` (the same
    tensors) of every parameter, buffers (values and identity), random states of python, numpy and torch. The
    weights are not copied; that they were left alone is checked by their version counters, which see every
    in-place operation except those on ``.data``. A measurement that must move the weights does so inside
    `weights_kept`.

    Args:
        model: The model to be measured.

    Raises:
        ProbeError: The block changed a parameter or a gradient in place, or replaced a parameter.

    Example:
        >>> layer = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
        >>> with isolated(layer):
        ...     print(layer.training)
        False
        >>> layer.training
        True
    """
    parameters = dict(model.named_parameters())
    training = {module: module.training for module in model.modules()}
    versions = {name: parameter._version for name, parameter in parameters.items()}
    gradients = {name: (p.grad, None if p.grad is None else p.grad._version) for name, p in parameters.items()}
    trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
    changed = []
    with random_state_kept(), requires_grad_set(parameters, trainable), buffers_kept(model):
        try:
            model.eval()
            yield
        finally:
            for module, flag in training.items():
                module.training = flag
            for name, parameter in parameters.items():
                gradient, version = gradients[name]
                if gradient is not None and gradient._version != version:
                    changed.append(f"{name}.grad")
                parameter.grad = gradient
    # Reached only without an exception: one from the block must not be hidden behind this one.
    now = dict(model.named_parameters())
    changed += [n for n, p in parameters.items() if now.get(n) is not p or p._version != versions[n]]
    if changed:
        raise ModelChangedError(
            "A measurement changed the model it measured.",
            got=", ".join(changed[:3]),
            allowed="reading parameters, and torch.autograd.grad",
            fix="Do not call .backward() or write to parameters inside a measurement.",
        )


@contextmanager
def weights_kept(parameters: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Let a measurement overwrite weights inside the block, and put them back bit for bit after it.

    The copies are made on entry, on the devices of the parameters, and dropped at the end. Write to
    ``parameter.data`` only: its writes do not raise the version counter that `isolated` checks and that autograd
    keeps for a graph that training may still want to go back through; both stay right, because the values do.

    Args:
        parameters: Name to parameter (or buffer), of those that will be overwritten.

    Yields:
        Name to a copy of the weights, not to be changed.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before, version = layer.bias.tolist(), layer.bias._version
        >>> with weights_kept(dict(layer.named_parameters())) as original:
        ...     _ = layer.bias.data.copy_(original["bias"]).add_(1)
        ...     print(layer.bias.tolist() == before)
        False
        >>> layer.bias.tolist() == before, layer.bias._version == version
        (True, True)
    """
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield kept
    finally:
        for name, parameter in parameters.items():
            parameter.data.copy_(kept[name])
        # Inside autocast, low-precision copies of the weights are cached until its end.
        torch.clear_autocast_cache()
