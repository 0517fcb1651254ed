"""Measuring on several processes: each takes a share of the batches, and all learn what every batch gave.

What a batch gives is exchanged, not what a rank makes of its batches: every rank then computes the result from the
same numbers in the same order as one process would, whatever the measure makes of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from hf_early_ood.errors import EarlyOODError

T = TypeVar("T")


class Share:
    """The batches that this process measures: all of them, as there is no other.

    A measure looks at every batch, works on those whose index is ``in`` the share, and asks for the results of all
    with `gathered`, once. It draws its random numbers for the other batches too, so that they belong to the examples
    and not to the ranks.

    Example:
        >>> share = Share()
        >>> with share:
        ...     print(share.gathered({1: "b", 0: "a"}))
        ['a', 'b']
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def __contains__(self, index: object) -> bool:
        return True

    def gathered(self, results: Mapping[int, T]) -> list[T]:
        """Results of all batches, in their order, from those of the share by index."""
        return [results[index] for index in sorted(results)]

    @property
    def seconds(self) -> float:
        """Time since the share was made; on several ranks, what the slowest one needed."""
        return time.perf_counter() - self._begin

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to agree on."""


class RankShare(Share):
    """One rank's share. The ranks meet once: in `gathered`, or at the end of the block.

    Who fails before they have met comes to the meeting with the error, and all ranks leave the block with the error of
    the first rank that has one. So no rank waits for another that has gone, and all of them know the same.

    Args:
        batches: All batches, the same on every rank.
    """

    def __init__(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        self._rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._mine = set(balanced([_positions(batch) for batch in batches], world)[self._rank])
        self._longest: float | None = None

    def __contains__(self, index: object) -> bool:
        return index in self._mine

    def gathered(self, results: Mapping[int, T]) -> list[T]:
        """Results of all batches, in their order, on every rank.

        Raises:
            EarlyOODError: What another rank could not do, as that rank would have raised it.
            RuntimeError: Another rank stopped with an error that is not one of this package.
        """
        everyone: dict[int, T] = {}
        for results_of_rank in self._meet(results, None):
            everyone.update(results_of_rank)
        return super().gathered(everyone)

    @property
    def seconds(self) -> float:
        """Time from the making of the share to the meeting, on the slowest rank."""
        return super().seconds if self._longest is None else self._longest

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Whoever interrupts a process interrupts all of them: only errors are brought to the meeting.
        if self._longest is None and (error is None or isinstance(error, Exception)):
            self._meet({}, error)

    def _meet(self, results: Mapping[int, T], error: Exception | None) -> list[Mapping[int, T]]:
        mine = (dict(results), _portable(error), super().seconds)
        entries: list[Any] = [mine] * torch.distributed.get_world_size()
        self._longest = mine[2]
        torch.distributed.all_gather_object(entries, mine)
        self._longest = max(seconds for _, _, seconds in entries)
        for rank, (_, failure, _) in enumerate(entries):
            if failure is not None:
                if rank == self._rank and error is not None:
                    raise error
                raise failure from error
        return [of_rank for of_rank, _, _ in entries]


def balanced(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal out batches: the most expensive first, each to the rank with the least to do, the first of equals.

    Args:
        costs: Of each batch.
        ranks: How many there are; those that there is no batch for get none.

    Returns:
        The indices of the batches of each rank, in their order.

    Example:
        >>> balanced([2, 3, 4, 5], 2), balanced([1, 1, 1], 2), balanced([7], 2)
        ([[0, 3], [1, 2]], [[0, 2], [1]], [[0], []])
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    sums = [0] * ranks
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        rank = sums.index(min(sums))
        shares[rank].append(index)
        sums[rank] += costs[index]
    return [sorted(share) for share in shares]


def _positions(batch: Mapping[str, Tensor]) -> int:
    """What a batch costs: its positions, padding included."""
    return max(value.numel() for value in batch.values())


def _portable(error: Exception | None) -> Exception | None:
    """An error that another process can read and raise."""
    if error is None or isinstance(error, EarlyOODError):
        return error
    return RuntimeError(f"Another rank stopped with {type(error).__name__}: {error}")
