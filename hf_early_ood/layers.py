"""Layer groups: the parameters of any Hugging Face model, in order from the bottom to the top.

A group is what a schedule releases and what a measurement is reported for: the embeddings, one block, the head.
The rules are in `layer_rules`; the proof that they hold for a model is `layer_check.check_layer_groups`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import overload

from torch import nn

from .errors import ConfigurationError, UnsupportedModelError, did_you_mean
from .layer_rules import EMBEDDINGS, HEAD, assign


@dataclass(frozen=True, eq=False)
class LayerGroup:
    """Parameters that are frozen and released together.

    Attributes:
        name: ``embeddings``, ``block.0``, ``encoder.block.0``, ``head``, ...
        parameters: Name, as in ``model.named_parameters()``, to parameter. The model's own, not copies.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    @property
    def num_parameters(self) -> int:
        """Number of scalar parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def __repr__(self) -> str:
        return f"LayerGroup({self.name!r}, {len(self.parameters)} tensors, {self.num_parameters:,} parameters)"


class LayerGroups(Sequence[LayerGroup]):
    """Ordered, named, disjoint groups of parameters, from the bottom of the model to its top; immutable.

    Args:
        groups: The groups, bottom first. No name and no parameter may occur twice.
        aliases: Further names of shared parameters, to the name in ``groups``.
        tied_above: Those of the aliases that are used in a higher group than the one that holds them.
        notes: See `notes`.

    Raises:
        ConfigurationError: Two groups have one name, or one parameter.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> groups = LayerGroups([LayerGroup("head", dict(layer.named_parameters()))])
        >>> groups.names, groups["head"].num_parameters, groups.group_of("bias")
        (('head',), 9, 'head')
    """

    def __init__(
        self,
        groups: Iterable[LayerGroup],
        *,
        aliases: Mapping[str, str] | None = None,
        tied_above: Iterable[str] = (),
        notes: Iterable[str] = (),
    ) -> None:
        self._groups = tuple(groups)
        self._by_name = {group.name: group for group in self._groups}
        self._group_of = {name: group.name for group in self._groups for name in group.parameters}
        parameters = [p for group in self._groups for p in group.parameters.values()]
        if len(self._by_name) < len(self._groups) or len({id(p) for p in parameters}) < len(parameters):
            raise ConfigurationError(
                "Layer groups must not share a name or a parameter.",
                got=", ".join(group.name for group in self._groups),
                fix="Give each group its own name, and put each parameter in one group.",
            )
        self._aliases = dict(aliases or {})
        self._tied_above = frozenset(tied_above)
        self._notes = tuple(notes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups, bottom first."""
        return tuple(self._by_name)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what a user should know about this model: tied weights, shared layers, ..."""
        return self._notes

    @property
    def tied_above(self) -> frozenset[str]:
        """Names under which a higher group uses a parameter that a lower group holds."""
        return self._tied_above

    @overload
    def __getitem__(self, key: int | str) -> LayerGroup: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[LayerGroup, ...]: ...
    def __getitem__(self, key: int | str | slice) -> LayerGroup | tuple[LayerGroup, ...]:
        if not isinstance(key, str):
            return self._groups[key]
        if key not in self._by_name:
            raise ConfigurationError("Unknown layer group.", got=repr(key), fix=did_you_mean(key, self.names))
        return self._by_name[key]

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[LayerGroup]:
        return iter(self._groups)

    def __contains__(self, item: object) -> bool:
        return item in self._by_name if isinstance(item, str) else item in self._groups

    def __repr__(self) -> str:
        return f"LayerGroups({', '.join(self.names)})"

    def group_of(self, parameter_name: str) -> str:
        """Name of the group that holds a parameter, by any of its names.

        Raises:
            ConfigurationError: No group holds a parameter of that name.
        """
        name = self._aliases.get(parameter_name, parameter_name)
        if name not in self._group_of:
            raise ConfigurationError(
                "No layer group holds this parameter.",
                got=repr(parameter_name),
                fix=did_you_mean(parameter_name, self._group_of) if self._group_of else None,
            )
        return self._group_of[name]

    def trainable(self) -> LayerGroups:
        """The same groups with only the parameters that require a gradient now; empty groups are dropped.

        Raises:
            ConfigurationError: Nothing requires a gradient.
        """
        kept = [
            LayerGroup(group.name, {n: p for n, p in group.parameters.items() if p.requires_grad}) for group in self
        ]
        return self._restricted(kept)

    def table(self) -> str:
        """Aligned text table: group, number of tensors and of parameters, share of all, a module path.

        Example:
            >>> model = nn.Linear(2, 3)
            >>> print(LayerGroups([LayerGroup("head", {f"out.{n}": p for n, p in model.named_parameters()})]).table())
            group  tensors  parameters   share  module
            head         2           9  100.0%  out
            total        2           9  100.0%
        """
        total = sum(group.num_parameters for group in self)
        rows = [("group", "tensors", "parameters", "share", "module")]
        for name, members, path in [(g.name, [g], _module_path(g)) for g in self] + [("total", list(self), "")]:
            tensors, scalars = sum(len(g.parameters) for g in members), sum(g.num_parameters for g in members)
            rows.append((name, f"{tensors:,}", f"{scalars:,}", f"{scalars / max(total, 1):.1%}", path))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in (1, 2, 3)), row[4]]
            ).rstrip()
            for row in rows
        )

    def _restricted(self, kept: Sequence[LayerGroup]) -> LayerGroups:
        filled = [group for group in kept if group.parameters]
        if not filled:
            raise ConfigurationError(
                "The model has no trainable parameter.",
                got="requires_grad is False everywhere",
                fix="Set requires_grad=True on what should be trained. With PEFT: load the adapter with "
                "is_trainable=True, and choose targets that exist in the model.",
            )
        held = {name for group in filled for name in group.parameters}
        aliases = {alias: name for alias, name in self._aliases.items() if name in held}
        return LayerGroups(
            filled, aliases=aliases, tied_above=self._tied_above & set(aliases) | self._tied_above & held,
            notes=self._notes,
        )


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
    notes = [*plan.notes, *_notes_on_ties(tied_above, aliases, group_of, members)]
    return LayerGroups(
        [LayerGroup(name, parameters) for name, parameters in members.items()],
        aliases=aliases,
        tied_above=tied_above,
        notes=notes,
    )._restricted(...)
