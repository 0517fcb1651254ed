"""From an order, an initial set and names as a person writes them to the groups that each stage releases."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from hf_early_ood.checks import check_choice
from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.schedules.base import checked_names

EMBEDDINGS = "embeddings"

FIXED_ORDERS = ("top_down", "bottom_up", "random")
SELECTIONS = ("fisher_trace", "fisher_trace_batch_mean", "relative_gradient_norm")
ORDERS = (*FIXED_ORDERS, *SELECTIONS)
EMBEDDINGS_POLICIES = ("in_order", "last", "with_block_0", "never")

Units = tuple[tuple[str, ...], ...]
"""Sets of groups, each released at once."""


def named_groups(pattern: str, groups: Sequence[str]) -> tuple[str, ...]:
    r"""The groups that a name, a name counted from the top, or a regular expression between slashes stands for.

    Args:
        pattern: "block.3"; "block.-1", the top one of the groups named "block.<n>"; or "/block\.[0-3]/", all groups
            in whose name the expression is found.
        groups: All names, bottom to top.

    Raises:
        ConfigurationError: No group is meant.

    Example:
        >>> named_groups("block.-1", ["embeddings", "block.0", "block.1", "head"])
        ('block.1',)
        >>> named_groups("/^block/", ["embeddings", "block.0", "block.1", "head"])
        ('block.0', 'block.1')
    """
    found = _meant(pattern, groups)
    if not found:
        raise ConfigurationError(
            "Unknown layer group.",
            got=pattern,
            allowed=f"{', '.join(groups)}, a regular expression between slashes, or block.-1 for the top block",
            fix=did_you_mean(pattern, groups),
        )
    return found


def _meant(pattern: str, groups: Sequence[str]) -> tuple[str, ...]:
    """The groups that a pattern stands for; none where it stands for nothing."""
    if pattern in groups:
        return (pattern,)
    if len(pattern) > 2 and pattern.startswith("/") and pattern.endswith("/"):
        try:
            expression = re.compile(pattern[1:-1])
        except re.error as error:
            raise ConfigurationError("Not a regular expression.", got=f"{pattern} ({error})") from error
        return tuple(name for name in groups if expression.search(name))
    if counted := re.fullmatch(r"(.*\.)-(\d+)", pattern):
        stack = [name for name in groups if re.fullmatch(re.escape(counted[1]) + r"\d+", name)]
        place = int(counted[2])
        return (stack[-place],) if 1 <= place <= len(stack) else ()
    return ()


def all_named(patterns: Sequence[str], groups: Sequence[str], what: str) -> tuple[str, ...]:
    """The groups that several patterns stand for, in their order, each once; ``what`` they are is for messages."""
    names = checked_names(patterns, what)
    return tuple(dict.fromkeys(name for pattern in names for name in named_groups(pattern, groups)))


def initial_groups(initial: Sequence[str], groups: Sequence[str]) -> tuple[str, ...]:
    """The groups that train from the start.

    Raises:
        ConfigurationError: Not a list, or a group that is not there.
    """
    for pattern in checked_names(initial, "initial"):
        if not _meant(pattern, groups):
            raise ConfigurationError(
                "A group of the initial set has nothing to train in this model.",
                got=pattern,
                allowed=", ".join(groups),
                fix=f"Set initial to groups of this model, for example [{groups[-1]!r}].",
            )
    return all_named(initial, groups, "initial")


def release_units(
    groups: tuple[str, ...], order: str | Sequence[str], initial: Sequence[str], embeddings: str, seed: int
) -> Units:
    """The groups that are released after the initial ones, in the order of their release.

    For an order that selects during training, the order of the units means nothing.

    Raises:
        ConfigurationError: An unknown order, group or way of treating the embeddings.
    """
    check_choice("way of treating the embeddings", embeddings, EMBEDDINGS_POLICIES)
    if isinstance(order, str):
        if order not in ORDERS:
            raise ConfigurationError(
                "Unknown order of release.",
                got=order,
                allowed=f"{', '.join(ORDERS)}, or a list of group names",
                fix=did_you_mean(order, ORDERS),
            )
        names = list(groups[::-1] if order == "top_down" else groups)
        if order == "random":
            random.Random(f"unfreezing {seed}").shuffle(names)  # the same on every machine and rank
    else:
        names = [name for pattern in checked_names(order, "order") for name in named_groups(pattern, groups)]
    units: list[tuple[str, ...]] = [(name,) for name in names if name not in initial]
    return _with_embeddings(units, groups, embeddings)


def _with_embeddings(units: list[tuple[str, ...]], groups: tuple[str, ...], policy: str) -> Units:
    if (EMBEDDINGS,) not in units or policy == "in_order":
        return tuple(units)
    rest = [unit for unit in units if unit != (EMBEDDINGS,)]
    if policy == "never":
        return tuple(rest)
    if policy == "last":
        return (*rest, (EMBEDDINGS,))
    waiting = {unit[0] for unit in rest}
    lowest = next((name for name in groups if name in waiting), None)
    if lowest is None:
        return tuple(units)  # there is no block to go with
    return tuple((EMBEDDINGS, *unit) if unit[0] == lowest else unit for unit in rest)
