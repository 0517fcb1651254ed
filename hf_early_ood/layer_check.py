"""One stage of the proof in `layers.check_layer_groups`: what is frozen below takes no part in the backward."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hf_early_ood.errors import UnsupportedModelError
from hf_early_ood.layer_groups import LayerGroups

# These hold parameters for the module above them and never run themselves.
_CONTAINERS = (nn.ParameterList, nn.ParameterDict, nn.ModuleList, nn.ModuleDict)


def check_stage(
    model: nn.Module,
    inputs: Mapping[str, Any],
    groups: LayerGroups,
    observed: Mapping[nn.Module, tuple[str, int]],
    lowest: int,
) -> None:
    """One forward pass, with ``groups[lowest:]`` trainable now.

    Raises:
        UnsupportedModelError: See `layers.check_layer_groups`.
    """
    ran: set[int] = set()
    wrong: dict[str, torch.Tensor] = {}  # path of a frozen module that carries a graph, in order of execution

    def watch(module: nn.Module, _args: object, output: object) -> None:
        path, group = observed[module]
        ran.add(group)
        graphs = [tensor for tensor in _tensors(output) if tensor.requires_grad]
        if group < lowest and graphs:
            wrong.setdefault(path, graphs[0])

    handles = [module.register_forward_hook(watch) for module in observed]
    try:
        outputs = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    if wrong:
        raise _explain(wrong, groups, dict(observed.values()), lowest)
    to_see = {group for _, group in observed.values() if group < lowest}
    unseen = [groups[i].name for i in sorted(to_see - ran)]
    if unseen:
        raise UnsupportedModelError(
            f"The layer groups of {type(model).__name__} cannot be checked: no module of {', '.join(unseen)} ran.",
            fix="Pass inputs that run the whole model. If they do, the modules are not called in the usual way; "
            "train this model without layer-wise unfreezing.",
        )
    loss = getattr(outputs, "loss", None)
    if not any(tensor.requires_grad for tensor in _tensors(outputs if loss is None else loss)):
        raise UnsupportedModelError(
            f"Nothing would be trained: in {_stage(groups, lowest)}, the output of {type(model).__name__} depends "
            "on no trainable parameter.",
            got=f"{', '.join(list(groups[lowest].parameters)[:5])} in {groups[lowest].name!r}",
            fix="Move what the output needs into this group with overrides=.",
        )


def _explain(
    wrong: Mapping[str, torch.Tensor],
    groups: LayerGroups,
    rank_of: Mapping[str, int],
    lowest: int,
) -> UnsupportedModelError:
    """The error for frozen modules that carry a graph, with the parameters that cause it."""
    path, tensor = next(iter(wrong.items()))
    home = groups[rank_of[path]].name
    names = {id(p): name for group in groups for name, p in group.parameters.items()}
    causes = [names[id(leaf)] for leaf in _leaves(tensor) if id(leaf) in names]
    others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    what = (
        f"The layer groups do not fit this model: in {_stage(groups, lowest)}, "
        f"the frozen module {path} ({home}){others}"
    )
    if not causes:
        return UnsupportedModelError(
            f"{what} has an output that requires a gradient although no parameter below it does.",
            fix="If model.enable_input_require_grads() was called (activation checkpointing does), call "
            "model.disable_input_require_grads().",
        )
    # A few parameters of the head that are read below are in the wrong place; if blocks are, the module is.
    from_top = all(groups.group_of(name) == groups[-1].name for name in causes)
    pattern, group = (
        (f"^{re.escape(causes[0])}$", home) if from_top else (f"^{re.escape(path)}\\.", groups[lowest].name)
    )
    return UnsupportedModelError(
        f"{what} depends on trainable parameters.",
        got=", ".join(f"{name} ({groups.group_of(name)})" for name in causes[:5]) + (", ..." if causes[5:] else ""),
        allowed=f"only parameters of {home!r} and below as its inputs",
        fix=f"Pass overrides= to find_layer_groups to move them to {home!r} or lower, or {path} higher; perhaps "
        f"overrides={{r'{pattern}': {group!r}}}.",
    )


def _stage(groups: LayerGroups, lowest: int) -> str:
    return f"the stage whose lowest trainable group is {groups[lowest].name!r}"


def observed_modules(model: nn.Module, groups: LayerGroups) -> dict[nn.Module, tuple[str, int]]:
    """The modules that own parameters of the groups, to their path and their rank.

    The rank is the position of the highest group that has a parameter in the module or in its children. A module
    that uses a parameter of a lower group (an output layer tied to the embeddings) runs above that group, and is
    left out: the notes of the groups tell.
    """
    rank = {name: position for position, name in enumerate(groups.names)}
    held = {id(p): rank[group.name] for group in groups for p in group.parameters.values()}
    modules = dict(model.named_modules(remove_duplicate=False))
    highest: dict[str, int] = {}
    owners: list[str] = []
    tied: set[nn.Module] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in held:
            continue
        path = owner = _owner(name, modules)
        while True:
            highest[path] = max(highest.get(path, 0), held[id(parameter)])
            if not path:
                break
            path = path.rpartition(".")[0]
        owners.append(owner)
        if name in groups.tied_above:
            tied.add(modules[owner])
    # Reversed: of several paths to one module the first is kept.
    return {modules[path]: (path, highest[path]) for path in reversed(owners) if modules[path] not in tied}


def _owner(name: str, modules: Mapping[str, nn.Module]) -> str:
    """Path of the module that reads a parameter."""
    path = name.rpartition(".")[0]
    while isinstance(modules[path], _CONTAINERS):
        path = path.rpartition(".")[0]
    return path


def _leaves(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The leaf tensors that a tensor depends on, nearest first."""
    found: list[torch.Tensor] = []
    queue, seen = [tensor.grad_fn], {tensor.grad_fn}
    while queue:
        node = queue.pop(0)
        if node is None:
            continue
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.append(variable)
        for child, _ in node.next_functions:
            if child not in seen:
                seen.add(child)
                queue.append(child)
    return found


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, lists and mappings (a ``ModelOutput`` is one)."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
