"""Out of memory in a measurement: smaller batches, then a clear error."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from transformers.utils import logging

from hf_early_ood.errors import ProbeError

T = TypeVar("T")

logger = logging.get_logger(__name__)

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that there was no memory left; only CUDA has a class of its own for that.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("shapes"))
        (True, False)
    """
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)


def in_pieces(measure: Callable[[slice], T], rows: int, what: str) -> list[T]:
    """Measure B examples at once or, where there is no memory for that, in halves, down to single examples.

    Args:
        measure: Measures the examples in a slice; called again for each half after it ran out of memory.
        rows: B.
        what: What is measured, for the message.

    Returns:
        What ``measure`` returned for each piece, in the order of the examples: one piece if all went well.

    Raises:
        ProbeError: There is no memory for one example.

    Example:
        >>> def measure(piece):
        ...     if piece.stop - piece.start > 2:
        ...         raise RuntimeError("CUDA error: out of memory")
        ...     return list(range(piece.start, piece.stop))
        >>> in_pieces(measure, 5, "probe batch 0")
        [[0, 1], [2], [3, 4]]
    """
    todo, done = [slice(0, rows)], []
    while todo:
        piece = todo.pop(0)
        count = piece.stop - piece.start
        try:
            done.append(measure(piece))
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if count == 1:
                raise ProbeError(
                    f"There is no memory to measure {what}, even in the smallest pieces.",
                    got=str(error).splitlines()[0],
                    fix="Shorten the probe examples, measure fewer parameters, or make room on the device.",
                ) from error
        logger.warning_once(f"No memory to measure {what} with {count} examples at once: trying with half as many.")
        # Outside of the handler: its error holds on to the tensors of the attempt.
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        middle = piece.start + (count + 1) // 2
        todo[:0] = [slice(piece.start, middle), slice(middle, piece.stop)]
    return done
