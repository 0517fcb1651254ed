"""Factors on the scheduled learning rate of layer groups: by depth, by name, after a release, up to a switch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_early_ood.checks import check_number
from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.interventions.update_rules import LAYER_GROUP
from hf_early_ood.schedules.base import in_updates

LENGTHS = ("release_warmup", "switch_at")
"""Settings that are numbers of updates, or fractions of training."""


def check_factors(factors: Any) -> None:
    """Check what can be seen without a model: words or regular expressions, and finite numbers above 0.

    Raises:
        ConfigurationError: Naming the first entry that is something else.
    """
    if not isinstance(factors, Mapping):
        raise ConfigurationError(
            "factors is not usable.", got=repr(factors), allowed="a mapping of group names or patterns to numbers"
        )
    for pattern, factor in factors.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigurationError(
                "factors has a key that is neither a group name nor a regular expression.",
                got=f"{pattern!r} ({error})",
                fix="Write the name of a layer group, or a pattern such as 'block\\.[0-5]'.",
            ) from error
        check_number(f"factors[{pattern!r}]", factor)


def constant_factors(names: Sequence[str], layer_decay: float, factors: Mapping[str, float]) -> dict[str, float]:
    r"""Factor of each layer group that does not change during training.

    .. math:: f_g = d^{a_g} c_g

    Args:
        names: The layer groups that training has, bottom to top.
        layer_decay: d, in (0, 1]; the exponent is the number of groups above.
        factors: c, by name or by regular expression that is a whole name (``re.fullmatch``). A name goes before a
            pattern; groups that are matched by neither have 1.

    Raises:
        ConfigurationError: An entry of ``factors`` matches no group, or two patterns match the same one.

    Example:
        >>> constant_factors(["embeddings", "block.0", "block.1", "head"], 0.5, {r"block\.\d": 3.0})
        {'embeddings': 0.125, 'block.0': 0.75, 'block.1': 1.5, 'head': 1.0}
    """
    keys_of = {
        name: [name] if name in factors else [key for key in factors if re.fullmatch(key, name)] for name in names
    }
    for name, keys in keys_of.items():
        if len(keys) > 1:
            raise ConfigurationError(
                f"Two patterns in factors match the layer group {name}.",
                got=" and ".join(map(repr, keys)),
                fix=f"Make them differ, or give {name!r} a factor of its own: a name goes before a pattern.",
            )
    for key in factors:
        if not any(key == name or re.fullmatch(key, name) for name in names):
            raise ConfigurationError(
                "factors names a layer group that training does not have.",
                got=repr(key),
                allowed=", ".join(names),
                fix=did_you_mean(key, names),
            )
    above = len(names) - 1
    return {
        name: layer_decay ** (above - position) * (factors[keys[0]] if (keys := keys_of[name]) else 1.0)
        for position, name in enumerate(names)
    }


def checked_length(key: str, value: Any, total: int) -> Any:
    """A setting of `LENGTHS` as a number of updates; what is none ("auto", None) stays what it is.

    Args:
        key: Its name, for the message.
        value: Updates (int), or fraction of training (float).
        total: Updates of the training.

    Raises:
        ConfigurationError: Training ends before.

    Example:
        >>> checked_length("switch_at", 0.5, 10), checked_length("switch_at", "auto", 10)
        (5, 'auto')
    """
    updates = in_updates(value, total)
    if isinstance(updates, int) and updates >= total:
        raise ConfigurationError(
            f"{key} is as long as training.",
            got=f"{key}={updates}, training makes {total} updates",
            allowed=f"at most {total - 1} updates",
            fix=f"Lower {key}, give it as a fraction of training, or train longer.",
        )
    return updates


@dataclass
class Releases:
    """Since when which layer groups train, seen update by update.

    Example:
        >>> releases = Releases()
        >>> releases.notice(0, ["head"]), releases.notice(5, ["head", "block.0"]), releases.since
        ([], [], {'head': None, 'block.0': 5})
        >>> releases.notice(6, ["head"]), releases.notice(7, ["head", "block.0"]), releases.since
        ([], ['block.0'], {'head': None, 'block.0': 7})
    """

    since: dict[str, int | None] = field(default_factory=dict)
    """Groups that trained in the last update, to the number of updates before their first; None: from the start."""
    known: list[str] = field(default_factory=list)
    """Groups that have trained at any time."""

    def notice(self, step: int, training: Collection[str]) -> list[str]:
        """Take note of what trains in the update that follows ``step`` completed ones.

        Returns:
            The groups that train again: not in the last update, but before.
        """
        begin = step if self.known else None
        returned = [name for name in training if name in self.known and name not in self.since]
        self.since = {name: self.since.get(name, begin) for name in training}
        self.known += [name for name in training if name not in self.known]
        return returned


@dataclass(frozen=True)
class Rate:
    """The factor of one layer group in one update."""

    level: float
    """Where it stays, or will stay after the warm-up."""
    warmup: float
    """Share of the level, below 1 in the updates after a release."""

    @property
    def factor(self) -> float:
        """What the scheduled learning rate is multiplied by."""
        return self.level * self.warmup

    def continues(self, before: Rate | None) -> bool:
        """Whether this is the same level, and the same constant or ramp, as in the update before."""
        return before is not None and self.level == before.level and (self.warmup < 1) == (before.warmup < 1)


def rates(
    step: int,
    since: Mapping[str, int | None],
    constant: Mapping[str, float],
    *,
    release_warmup: int = 0,
    switch_factor: float = 1.0,
    switch_at: int | None = None,
) -> dict[str, Rate]:
    r"""Rates of the groups that train in the update that follows ``step`` completed ones.

    With t = ``step``, release r, n = ``release_warmup`` and the switch k = ``switch_at``:

    .. math:: f_g(t) = f_g \cdot \min(1, (t - r_g + 1) / (n + 1)) \cdot (s \text{ while } t < k)

    Args:
        step: t.
        since: r by group, see :class:`Releases`; None: no warm-up.
        constant: See :func:`constant_factors`.
        release_warmup: n, the number of updates that are made with less than the whole rate.
        switch_factor: s.
        switch_at: k; None: not known yet, so that the switch is still to come.

    Example:
        >>> for step in (4, 5, 6, 7):
        ...     print(rates(step, {"head": None, "block.0": 4}, {"head": 1.0, "block.0": 0.5}, release_warmup=1,
        ...                 switch_factor=0.1, switch_at=6)["block.0"].factor)
        0.025
        0.05
        0.5
        0.5
    """
    switch = switch_factor if switch_at is None or step < switch_at else 1.0
    return {
        name: Rate(
            constant[name] * switch, 1.0 if begin is None else min(1.0, (step - begin + 1) / (release_warmup + 1))
        )
        for name, begin in since.items()
    }


def training_groups(optimizer: torch.optim.Optimizer) -> list[str]:
    """Layer groups of which something requires a gradient, of an optimizer that was split by them."""
    training = [group[LAYER_GROUP] for group in optimizer.param_groups if any(p.requires_grad for p in group["params"])]
    return list(dict.fromkeys(training))


def forget_state(optimizer: torch.optim.Optimizer, names: Collection[str]) -> None:
    """Drop what the optimizer keeps for each parameter of these layer groups; it begins anew at their next update.

    Args:
        optimizer: Split by :func:`~hf_early_ood.interventions.update_rules.split_by_layer_group`.
        names: Of layer groups.
    """
    for group in optimizer.param_groups:
        if group[LAYER_GROUP] in names:
            for parameter in group["params"]:
                optimizer.state.pop(parameter, None)
