"""Layer groups: the parameters of any Hugging Face model, in order from the bottom to the top.

A group is what a schedule releases and what a measurement is reported for: the embeddings, one block, the head.
`find_layer_groups` makes them by the rules in `layer_rules`; `check_layer_groups` proves them for one model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hf_early_ood.errors import ConfigurationError, UnsupportedModelError, did_you_mean
from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.layer_check import check_stage, observed_modules
from hf_early_ood.layer_groups import LayerGroup, LayerGroups, filled
from hf_early_ood.layer_rules import HEAD, assign
from hf_early_ood.probes.isolation import eval_mode

__all__ = ["LayerGroup", "LayerGroups", "check_layer_groups", "find_layer_groups"]


def find_layer_groups(
    model: nn.Module,
    *,
    blocks: str | Sequence[str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> LayerGroups:
    """Put every parameter of a model into one of ``embeddings``, ``block.0``, ..., ``block.L-1``, ``head``.

    Models with several stacks have ``encoder.block.0``, ..., ``decoder.block.0``, ... between the two. A shared
    parameter is held once, by the lowest group that uses it. With PEFT the groups hold only what is trainable at
    the time of the call, so that what the user froze is never thawed; for other models they hold everything,
    whatever its flags are (see `LayerGroups.trainable`). Groups without a parameter are left out. Takes
    milliseconds: nothing is run and nothing is copied.

    Args:
        model: A Hugging Face model of any task, a PEFT model, or a module that contains one.
        blocks: Dotted path of the ``nn.ModuleList`` or ``nn.Sequential`` that holds the blocks, or several
            paths from bottom to top, for architectures that are not recognized. Lists with one parent and
            one length are taken as parts of the same blocks.
        overrides: Regular expression (``re.search`` on the parameter's name) to the name of an existing group,
            ``embeddings`` or ``head``. The first pattern that matches decides, before every other rule.

    Returns:
        The groups, bottom first.

    Raises:
        UnsupportedModelError: The model has no parameters, or no list of blocks was found in it.
        ConfigurationError: ``blocks`` or ``overrides`` do not fit the model, or a PEFT model is all frozen.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        ...                     intermediate_size=8, max_position_embeddings=8)
        >>> groups = find_layer_groups(BertForSequenceClassification(config))
        >>> groups.names
        ('embeddings', 'block.0', 'block.1', 'head')
        >>> sorted(groups["head"].parameters)
        ['bert.pooler.dense.bias', 'bert.pooler.dense.weight', 'classifier.bias', 'classifier.weight']
    """
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(parameter, []).append(name)
    if not names_of:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no parameters.", fix="Pass a model that can be trained."
        )
    plan = assign(model, [blocks] if isinstance(blocks, str) else blocks)
    overridden = _overridden(plan.group_of, plan.order, overrides or {})
    group_of = {**plan.group_of, **overridden}
    rank = {name: i for i, name in enumerate(plan.order)}
    members: dict[str, dict[str, nn.Parameter]] = {name: {} for name in plan.order}
    aliases: dict[str, str] = {}
    tied_above: set[str] = set()
    only_trainable = _has_peft(model)
    for parameter, names in names_of.items():
        if only_trainable and not parameter.requires_grad:
            continue
        # What the user said about any of the names decides, else the lowest use.
        deciding = [name for name in names if name in overridden] or names
        group = min((group_of[name] for name in deciding), key=rank.__getitem__)
        members[group][names[0]] = parameter
        aliases.update(dict.fromkeys(names[1:], names[0]))
        tied_above.update(name for name in names if rank[group_of[name]] > rank[group])
    groups = filled([LayerGroup(name, parameters) for name, parameters in members.items()])
    notes = [*plan.notes, *_notes_on_ties(names_of.values(), group_of, members)]
    if only_trainable:
        count = sum(len(group.parameters) for group in groups)
        notes.append(f"PEFT model: the groups hold the {count} tensors that are trainable; the rest stays frozen.")
    if HEAD not in {group.name for group in groups}:
        notes.append(f"There is no {HEAD!r} group: the top group is {groups[-1].name!r}.")
    return LayerGroups(groups, aliases=aliases, tied_above=tied_above, notes=notes)


def _overridden(group_of: Mapping[str, str], order: Sequence[str], overrides: Mapping[str, str]) -> dict[str, str]:
    """Parameter name to group, for the names that the user's patterns decide."""
    patterns = {}
    for text, group in overrides.items():
        if group not in order:
            raise ConfigurationError(
                "overrides= names an unknown layer group.", got=f"{text!r}: {group!r}", fix=did_you_mean(group, order)
            )
        try:
            patterns[text] = re.compile(text)
        except re.error as error:
            raise ConfigurationError(
                "overrides= has a pattern that is not a regular expression.",
                got=f"{text!r} ({error})",
                fix="Escape special characters, as in r'encoder\\.rel_embeddings'.",
            ) from error
    deciding = {name: next((t for t, p in patterns.items() if p.search(name)), None) for name in group_of}
    idle = [text for text in patterns if text not in deciding.values()]
    if idle:
        raise ConfigurationError(
            "A pattern in overrides= matches no parameter that an earlier one did not take.",
            got=repr(idle[0]),
            allowed="a regular expression that is found in a name of model.named_parameters()",
            fix="Correct the pattern or leave it out.",
        )
    return {name: overrides[text] for name, text in deciding.items() if text is not None}


def _has_peft(model: nn.Module) -> bool:
    """Whether adapters are in the model: as a PeftModel (wrapped or not), or by ``model.add_adapter``."""
    return any(isinstance(module, PeftModel | BaseTunerLayer) for module in model.modules())


def _notes_on_ties(
    all_names: Iterable[Sequence[str]], group_of: Mapping[str, str], members: Mapping[str, Mapping[str, object]]
) -> list[str]:
    """One sentence for each pair of groups that share parameters."""
    held = {name: group for group, parameters in members.items() for name in parameters}
    shared: dict[tuple[str, str], list[str]] = {}
    for names in all_names:
        holder = held.get(names[0])
        for name in names:
            if holder is not None and group_of[name] != holder:
                kept = next((other for other in names if group_of[other] == holder), names[0])
                shared.setdefault((holder, group_of[name]), []).append(f"{name} = {kept}")
    return [
        f"{len(pairs)} shared tensor(s) of {user!r} are held by {holder!r} and are trained only with it: "
        f"{', '.join(pairs[:3])}{', ...' if len(pairs) > 3 else ''}."
        for (holder, user), pairs in shared.items()
    ]


def check_layer_groups(model: nn.Module, inputs: Mapping[str, Any], groups: LayerGroups | None = None) -> None:
    """Prove on one batch that each stage of top-down unfreezing trains what it says and nothing below it.

    For every group g, only g and the groups above it are made trainable, and one forward pass is run in eval
    mode. Then the outputs must depend on a trainable parameter, and no module of a frozen group below g may have
    an output that does: it would cost a backward pass through layers that are frozen, as it happens when a
    position table that all layers read is taken for a part of the head. Costs one forward pass for each group;
    a batch of one or two examples is enough. Flags, modes and random numbers are put back.

    Args:
        model: The model, not wrapped in DDP.
        inputs: Keyword arguments of its ``forward``.
        groups: Layer groups of this model; found with `find_layer_groups` by default.

    Raises:
        UnsupportedModelError: The groups are not right for this model, or the pass cannot show it. Names the
            modules and what to write instead.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        ...                     intermediate_size=8, max_position_embeddings=8)
        >>> check_layer_groups(BertForSequenceClassification(config), {"input_ids": torch.tensor([[1, 2, 3]])})
    """
    groups = find_layer_groups(model) if groups is None else groups
    parameters = {name: p for group in groups for name, p in group.parameters.items()}
    observed = observed_modules(model, groups)
    with eval_mode(model), torch.enable_grad():
        for lowest in reversed(range(len(groups))):
            trainable = [name for group in groups[lowest:] for name in group.parameters]
            with requires_grad_set(parameters, trainable):
                check_stage(model, inputs, groups, observed, lowest)
