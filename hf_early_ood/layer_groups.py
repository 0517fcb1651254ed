"""Ordered, named, disjoint groups of a model's parameters: what `layers.find_layer_groups` returns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import overload

from torch import nn

from hf_early_ood.errors import ConfigurationError, did_you_mean


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
            raise ConfigurationError(
                "Unknown layer group.", got=repr(key), allowed=", ".join(self.names), fix=did_you_mean(key, self.names)
            )
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
                allowed="a name in model.named_parameters(); with PEFT, of a trainable parameter",
            )
        return self._group_of[name]

    def trainable(self) -> LayerGroups:
        """The same groups with only the parameters that require a gradient now; empty groups are dropped.

        Raises:
            ConfigurationError: Nothing requires a gradient.
        """
        return self.only({name for group in self for name, p in group.parameters.items() if p.requires_grad})

    def only(self, names: Collection[str]) -> LayerGroups:
        """The same groups with only the parameters of these names; empty groups are dropped.

        Raises:
            ConfigurationError: Nothing is left.
        """
        kept = [LayerGroup(group.name, {n: p for n, p in group.parameters.items() if n in names}) for group in self]
        return LayerGroups(filled(kept), aliases=self._aliases, tied_above=self._tied_above, notes=self._notes)

    def table(self) -> str:
        """Aligned text table: group, number of tensors and of parameters, share of all, a module.

        Example:
            >>> model = nn.Linear(2, 3)
            >>> print(LayerGroups([LayerGroup("head", {f"out.{n}": p for n, p in model.named_parameters()})]).table())
            group  tensors  parameters   share  first module
            head         2           9  100.0%  out
            total        2           9  100.0%
        """
        total = sum(group.num_parameters for group in self)
        rows = [("group", "tensors", "parameters", "share", "first module")]
        for name, members, path in [(g.name, [g], _first_module(g)) for g in self] + [("total", list(self), "")]:
            tensors, scalars = sum(len(g.parameters) for g in members), sum(g.num_parameters for g in members)
            rows.append((name, f"{tensors:,}", f"{scalars:,}", f"{scalars / max(total, 1):.1%}", path))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in (1, 2, 3)), row[4]]).rstrip()
            for row in rows
        )


def filled(groups: Iterable[LayerGroup]) -> list[LayerGroup]:
    """The groups that hold something.

    Raises:
        ConfigurationError: None does.
    """
    kept = [group for group in groups if group.parameters]
    if not kept:
        raise ConfigurationError(
            "The model has no trainable parameter.",
            got="requires_grad=False everywhere",
            fix="Set requires_grad=True on what should be trained. With PEFT, load the adapter with is_trainable=True.",
        )
    return kept


def _first_module(group: LayerGroup) -> str:
    """Path of the module that owns the first parameter of a group."""
    return next(iter(group.parameters), "").rpartition(".")[0]
