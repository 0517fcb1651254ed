"""Where a parameter of a Hugging Face model belongs: the rules behind `layers.find_layer_groups`.

Only names and the order of registration are read: no forward pass, no copy. The rules, in order:

1. *Blocks* are the members of the outermost ``nn.ModuleList`` objects that hold parameters (`find_stacks`).
2. What is outside the base model (``base_model_prefix``) is the head.
3. Inside it, exceptions by model type, then the words in a name, then the order of registration decide.

`layers.check_layer_groups` proves with a forward pass that the outcome is right for a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hf_early_ood.errors import ConfigurationError, UnsupportedModelError, did_you_mean

EMBEDDINGS = "embeddings"
HEAD = "head"
# Only in EXCEPTIONS: the lowest block, and what is above the last block of the parameter's own stack.
FIRST_BLOCK, TOP = "first block", "top"

# What is registered, or called, unlike what it does. Pattern on the name inside the base model -> group.
EXCEPTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    # Normalizes the relative position embeddings that every layer reads; added to the output of layer 0.
    "deberta-v2": ((r"\bencoder\.LayerNorm\.", EMBEDDINGS), (r"\bencoder\.conv\.", FIRST_BLOCK)),
    # Final norms, for all that they are called.
    "bigbird_pegasus": ((r"\blayernorm_embedding\.", TOP),),
    "esm": ((r"\bemb_layer_norm_after\.", TOP),),
}
# Read at the bottom, or by every layer, wherever they are registered (mpnet: after the layers).
_BOTTOM = re.compile(r"emb|\bwte\b|\bwpe\b|\brel_|relative|position|\bshared\b", re.IGNORECASE)
# Read on top of the layers, wherever they are registered (opt: before the layers).
_TOP = re.compile(r"pooler|project_out|\bfinal_|\blast_|\bln_f\b|\bnorm_f\b", re.IGNORECASE)
# A list counts when it, or one of its members on average, is at least this fraction of the biggest.
_MIN_SHARE = 0.25


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after the other.

    Attributes:
        path: Dotted path of the module list (of the first one, where several are zipped).
        blocks: For each block, bottom first, the dotted paths of its modules.
    """

    path: str
    blocks: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Assignment:
    """Group of every parameter name, aliases included, and the group names from bottom to top."""

    order: tuple[str, ...]
    group_of: dict[str, str]
    notes: tuple[str, ...]


def assign(model: nn.Module, blocks: Sequence[str] | None) -> Assignment:
    """Apply the rules to every name in ``model.named_parameters(remove_duplicate=False)``.

    Raises:
        UnsupportedModelError: No block list was found.
        ConfigurationError: ``blocks`` names what is not a list of blocks.
    """
    wrapped_path, wrapped = _pretrained(model)
    stacks = find_stacks(model) if blocks is None else _given_stacks(model, wrapped_path, blocks)
    stack_names = _stack_names(stacks)
    block_names = [
        [f"{name}block.{i}" for i in range(len(s.blocks))] for name, s in zip(stack_names, stacks, strict=True)
    ]
    group_of_module = {
        path: name
        for stack, names in zip(stacks, block_names, strict=True)
        for paths, name in zip(stack.blocks, names, strict=True)
        for path in paths
    }
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    in_block = {name: _containing(name, group_of_module) for name in names}
    started = _first_positions(names, stacks)
    base_path = _base_path(wrapped_path, wrapped, stacks)
    model_type = getattr(getattr(wrapped, "config", None), "model_type", "")
    tops = [names_of[-1] for names_of in block_names[:-1]] + [HEAD]

    def leftover(position: int, name: str) -> str:
        if not _is_under(name, base_path):
            # PEFT keeps soft prompts beside the model: they enter at the bottom.
            return EMBEDDINGS if "prompt_encoder" in name.split(".") else HEAD
        inner = name.removeprefix(base_path + ".") if base_path else name
        rules = EXCEPTIONS.get(model_type, ())
        place = next((group for pattern, group in rules if re.search(pattern, inner)), None)
        if place == FIRST_BLOCK:
            return block_names[0][0]
        if place == EMBEDDINGS or (place is None and _BOTTOM.search(inner)):
            return EMBEDDINGS
        shared = [_shared_components(name, stack.path) for stack in stacks]
        own = [i for i, depth in enumerate(shared) if depth == max(shared)]
        if place == TOP or _TOP.search(inner):
            return tops[own[-1]]
        below = [i for i in own if started[i] < position]
        return tops[below[-1]] if below else EMBEDDINGS

    group_of = {name: in_block[name] or leftover(position, name) for position, name in enumerate(names)}
    order = (EMBEDDINGS, *(name for names_of in block_names for name in names_of), HEAD)
    notes = (_note_on_single_block(wrapped),) if len(order) == 3 else ()
    return Assignment(order, group_of, notes)


def find_stacks(model: nn.Module) -> list[Stack]:
    """The block lists of a model, in the order of registration.

    The outermost ``nn.ModuleList`` objects that hold parameters are taken; nested lists are flattened (funnel);
    lists with one parent and one length are zipped (xlm: ``attentions[i]``, ``ffns[i]``, ... are one block).
    Small ones are left out, and so are lists of one member when there are longer ones.

    Raises:
        UnsupportedModelError: There is none.
    """
    paths: list[str] = []
    for path, module in model.named_modules():
        is_list = isinstance(module, nn.ModuleList) and _num_parameters(module) > 0
        # Tables of several features side by side are not layers.
        is_table = is_list and all(isinstance(member, nn.Embedding) for member in module)
        if is_list and not is_table and not any(_is_under(path, outer) for outer in paths):
            paths.append(path)
    stacks = _zipped([_stack(model, path) for path in paths])
    if not stacks:
        raise UnsupportedModelError(
            f"No list of blocks was found in {type(model).__name__}.",
            got="no nn.ModuleList that holds parameters",
            allowed="a model whose layers are in an nn.ModuleList or nn.Sequential",
            fix=f'Name it: find_layer_groups(model, blocks="{_likely_blocks(model)}").',
        )
    sizes = [sum(_num_parameters(model.get_submodule(p)) for paths in s.blocks for p in paths) for s in stacks]
    means = [size / len(stack.blocks) for size, stack in zip(sizes, stacks, strict=True)]
    long = any(len(stack.blocks) > 1 for stack in stacks)
    candidates = [i for i, stack in enumerate(stacks) if len(stack.blocks) > 1 or not long]
    biggest, widest = max(sizes[i] for i in candidates), max(means[i] for i in candidates)
    return [stacks[i] for i in candidates if sizes[i] >= _MIN_SHARE * biggest or means[i] >= _MIN_SHARE * widest]


def _given_stacks(model: nn.Module, wrapped_path: str, blocks: Sequence[str]) -> list[Stack]:
    """The stacks at the paths that the user wrote, from the top of the model or of what PEFT or DDP wraps."""
    modules = dict(model.named_modules())
    paths = [path if path in modules else _join(wrapped_path, path) for path in blocks]
    lists = [p for p, m in modules.items() if p and isinstance(m, nn.ModuleList | nn.Sequential) and len(m)]
    outer = [p for p in lists if not any(p != other and _is_under(p, other) for other in lists)]
    if not paths:
        raise ConfigurationError("blocks= is empty.", got=list(blocks), fix="Name a list, or leave blocks= out.")
    for given, path in zip(blocks, paths, strict=True):
        if path not in lists or _num_parameters(modules[path]) == 0:
            raise ConfigurationError(
                "blocks= must name the list that holds the blocks.",
                got=repr(given),
                allowed="the dotted path of an nn.ModuleList or nn.Sequential that holds parameters",
                fix=did_you_mean(given, outer) if outer else "Put the layers in an nn.ModuleList.",
            )
    for i, path in enumerate(paths):
        if any(_is_under(path, other) for j, other in enumerate(paths) if i != j):
            raise ConfigurationError(
                "The lists in blocks= overlap.", got=repr(blocks[i]), fix="Name each list once, the outer one only."
            )
    return _zipped([_stack(model, path) for path in paths])


def _stack(model: nn.Module, path: str) -> Stack:
    return Stack(path, tuple((block,) for block in _flattened(path, model.get_submodule(path))))


def _flattened(path: str, module: nn.Module) -> list[str]:
    """Paths of the members of a list, members that are lists themselves taken apart."""
    members = []
    # Unlike named_children, this names a layer that is in the list several times each time.
    for name, child in module.named_modules(remove_duplicate=False):
        if name and "." not in name:
            inner = _join(path, name)
            members += _flattened(inner, child) if isinstance(child, nn.ModuleList) else [inner]
    return members


def _zipped(stacks: Sequence[Stack]) -> list[Stack]:
    """Merge stacks with one parent and one length into one, block by block."""
    merged: dict[tuple[str, int], Stack] = {}
    for stack in stacks:
        key = (stack.path.rpartition(".")[0], len(stack.blocks))
        first = merged.get(key)
        if first is None:
            merged[key] = stack
        else:
            pairs = zip(first.blocks, stack.blocks, strict=True)
            merged[key] = Stack(first.path, tuple(below + paths for below, paths in pairs))
    return list(merged.values())


def _stack_names(stacks: Sequence[Stack]) -> list[str]:
    """Prefix of the block names of each stack: empty for one stack, else ``encoder.``, ``decoder.``, ..."""
    if len(stacks) == 1:
        return [""]
    parts = [stack.path.split(".") for stack in stacks]
    while all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    parents = [".".join(p[:-1]) for p in parts]
    distinct = all(parents) and len(set(parents)) == len(parents)
    return [f"{name}." for name in (parents if distinct else [".".join(p) for p in parts])]


def _pretrained(model: nn.Module) -> tuple[str, nn.Module]:
    """Path and module of the Hugging Face model inside PEFT, DDP or a user's own module; else the model."""
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            return path, module
    return "", model


def _base_path(wrapped_path: str, wrapped: nn.Module, stacks: Sequence[Stack]) -> str:
    """Path of the base model: what is not under it is the head."""
    prefix = getattr(wrapped, "base_model_prefix", "")
    has_base = bool(prefix) and isinstance(getattr(wrapped, prefix, None), nn.Module)
    candidates = [_join(wrapped_path, prefix), wrapped_path] if has_base else [wrapped_path]
    holds_all = (path for path in candidates if all(_is_under(stack.path, path) for stack in stacks))
    return next(holds_all, "")


def _first_positions(names: Sequence[str], stacks: Sequence[Stack]) -> list[int]:
    """For each stack, the position in ``names`` at which its blocks begin."""
    return [
        next(i for i, name in enumerate(names) if any(_is_under(name, p) for b in stack.blocks for p in b))
        for stack in stacks
    ]


def _note_on_single_block(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    is_shared = getattr(config, "num_hidden_groups", None) == 1  # albert
    why = f": all of its {config.num_hidden_layers} layers share it" if config is not None and is_shared else ""
    return (
        f"{type(model).__name__} has only one block{why}. Layer-wise unfreezing has just one step between the "
        "head and the embeddings here."
    )


def _likely_blocks(model: nn.Module) -> str:
    """Path of the biggest container of several modules with parameters, or a placeholder."""
    sizes = {
        path: _num_parameters(module)
        for path, module in model.named_modules()
        if path and isinstance(module, nn.Sequential) and len(module) > 1 and _num_parameters(module)
    }
    return max(sizes, key=lambda path: sizes[path]) if sizes else "path.to.the.layers"


def _containing(name: str, group_of_module: dict[str, str]) -> str | None:
    """Group of the block that contains the parameter."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        if path in group_of_module:
            return group_of_module[path]
    return None


def _is_under(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(path + ".")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _shared_components(name: str, path: str) -> int:
    """Number of leading components that two dotted paths share."""
    count = 0
    for mine, theirs in zip(name.split("."), path.split("."), strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
