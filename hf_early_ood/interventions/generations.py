"""A run cut into generations: which update belongs to which and which of them ascend; restarts of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hf_early_ood.checks import check_count
from hf_early_ood.errors import ConfigurationError, UnsupportedSetupError
from hf_early_ood.layers import LayerGroups

Factor = Callable[[int], float]
"""Completed updates to the factor on the learning rate, as ``LambdaLR`` takes it."""


@dataclass(frozen=True)
class Generations:
    r"""N updates in G generations; the later ones may begin with an ascent.

    Generation g = 0, ..., G-1 begins after

    .. math:: s_g = \lfloor g N / G \rfloor

    completed updates. So a remainder is spread: the lengths differ by at most one update, and their sum is N. The first
    generation is plain; every other one ascends in its first a updates, with a = ``ascent`` if that is a number of
    updates, and max(1, floor(``ascent`` x length)) if it is a fraction.

    Args:
        total: N, updates of the run.
        count: G, at least 2.
        ascent: int (updates) or float in (0, 1) (fraction of a generation); None: no ascent.

    Raises:
        ConfigurationError: A setting is not usable, or a generation would have no update, or none that descends.

    Example:
        >>> plan = Generations(total=11, count=3, ascent=0.25)
        >>> [plan.start(g) for g in range(3)], [plan.generation(step) for step in (2, 3, 10)]
        ([0, 3, 7], [0, 1, 2])
        >>> [step for step in range(11) if plan.ascends(step)]
        [3, 7]
    """

    total: int
    count: int
    ascent: int | float | None = None

    def __post_init__(self) -> None:
        check_generations(self.count, self.ascent)
        if self.count > self.total:
            raise ConfigurationError(
                "There are more generations than updates.",
                got=f"generations={self.count}, training makes {self.total} updates",
                fix="Lower generations or train longer.",
            )
        shortest = min(range(1, self.count), key=self.length)
        if self.num_ascents(shortest) >= self.length(shortest):
            raise ConfigurationError(
                "The ascent is as long as a generation: nothing would be learned in it.",
                got=f"ascent={self.ascent}, {self.length(shortest)} update(s) in a generation of {self.total} updates"
                f" / {self.count} generations",
                fix="Lower ascent or generations, or train longer.",
            )

    def start(self, generation: int) -> int:
        """Completed updates at which a generation begins; with G, the end of the run."""
        return generation * self.total // self.count

    def length(self, generation: int) -> int:
        """Updates in a generation."""
        return self.start(generation + 1) - self.start(generation)

    def generation(self, step: int) -> int:
        """The generation of the update that follows ``step`` completed ones; at the end of the run, the last."""
        return min(((step + 1) * self.count - 1) // self.total, self.count - 1)

    def num_ascents(self, generation: int) -> int:
        """Updates of a generation that ascend: its first ones."""
        if generation == 0 or self.ascent is None:
            return 0
        if isinstance(self.ascent, int):
            return self.ascent
        return max(1, math.floor(self.ascent * self.length(generation) + 1e-9))  # 0.29 of 100 are 29

    def ascends(self, step: int) -> bool:
        """Whether the update that follows ``step`` completed ones ascends."""
        generation = self.generation(step)
        return step - self.start(generation) < self.num_ascents(generation)

    def begins(self, step: int) -> bool:
        """Whether a generation begins with the update that follows ``step`` completed ones."""
        return step == self.start(self.generation(step))

    def ends_ascent(self, step: int) -> bool:
        """Whether the update that follows ``step`` completed ones is the first to descend after an ascent."""
        return step > 0 and self.ascends(step - 1) and not self.ascends(step)


def check_generations(count: int, ascent: int | float | None) -> None:
    """Refuse what no run could be cut into.

    Raises:
        ConfigurationError: Naming the setting.
    """
    check_count("generations", count, least=2)
    if ascent is None:
        return
    is_number = isinstance(ascent, int | float) and not isinstance(ascent, bool)
    if not is_number or not (ascent >= 1 if isinstance(ascent, int) else 0.0 < ascent < 1.0):
        raise ConfigurationError(
            "ascent is not usable.",
            got=repr(ascent),
            allowed="an integer >= 1 (updates), a float in (0, 1) (fraction of a generation), or None (no ascent)",
        )


def split_at(
    groups: LayerGroups, boundary: str | None, *, ascends: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the early layer groups and of the later ones, each from bottom to top.

    Args:
        groups: The layer groups that train.
        boundary: The lowest of the later groups. None: the block in the middle, number L // 2 of blocks 0 to L - 1, so
            that the embeddings and the lower half of the blocks are early.
        ascends: Whether the early groups are to go up the gradient, so that there must be one.

    Raises:
        ConfigurationError: No group has that name, there are no blocks to find a middle of, or nothing could ascend.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_early_ood import find_layer_groups
        >>> config = BertConfig(
        ...     hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, vocab_size=9)
        >>> groups = find_layer_groups(BertForSequenceClassification(config))
        >>> split_at(groups, None)
        (('embeddings', 'block.0'), ('block.1', 'block.2', 'head'))
        >>> split_at(groups, "head")
        (('embeddings', 'block.0', 'block.1', 'block.2'), ('head',))
    """
    if boundary is None:
        blocks = [name for name in groups.names if "block." in name]
        if not blocks:
            raise ConfigurationError(
                "There is no block in the middle.",
                got=f"layer groups {', '.join(groups.names)}",
                fix="Set boundary to the lowest of the groups that are to be the later ones.",
            )
        boundary = blocks[len(blocks) // 2]
    index = groups.names.index(groups[boundary].name)
    if ascends and not index:
        raise ConfigurationError(
            "There is no layer group below the boundary that could ascend.",
            got=f"layer groups {', '.join(groups.names)}, of which the lowest later one is {groups.names[0]}",
            fix="Set boundary to a higher group, or ascent=None.",
        )
    return groups.names[:index], groups.names[index:]


def restarted(scheduler: LRScheduler, plan: Generations, factor_over: Callable[[int], Factor]) -> LambdaLR:
    """A scheduler that begins anew in every generation, on the optimizer of ``scheduler``, which it replaces.

    Args:
        scheduler: The one for the whole run, as ``transformers.get_scheduler`` makes it.
        plan: The generations.
        factor_over: Number of updates to the factor on the learning rate in a run of that length.

    Raises:
        UnsupportedSetupError: The scheduler is not a plain ``LambdaLR``: it remembers more than the number of updates.
    """
    if type(scheduler) is not LambdaLR:
        raise UnsupportedSetupError(
            "This learning-rate schedule cannot be restarted: its learning rate follows from more than the number of"
            " updates (from losses, or from a state that the optimizer keeps).",
            got=type(scheduler).__name__,
            allowed="linear, cosine, constant and the other schedules that transformers builds as LambdaLR",
            fix="Set lr_scheduler_type to one of these, or lr_restart=False.",
        )
    factors = {length: factor_over(length) for length in {plan.length(g) for g in range(plan.count)}}

    def factor(step: int) -> float:
        generation = plan.generation(step)
        return factors[plan.length(generation)](step - plan.start(generation))

    # A plain function: of other callables, LambdaLR would write the attributes into checkpoints.
    return LambdaLR(scheduler.optimizer, factor)
