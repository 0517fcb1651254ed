"""Fixed probe sets: the same examples at every measurement. Notation: B examples, T positions."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.probes.isolation import random_state_kept

Batch = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """The fixed examples that measurements use, collated once and kept on the CPU.

    Iterating over it yields its batches. Examples are sorted by length, so that a batch has little padding.

    Attributes:
        batches: Batches of tensors, each with the examples (B) as leading dimension.
        indices: Positions of the examples in the data set, in the order of the batches.
        seed: Seed of the choice.
        fingerprint: SHA-256 of all tensors: two probe sets with the same one hold the same numbers.

    Example:
        >>> data = [{"input_ids": [1] * n} for n in (3, 2, 5, 4)]
        >>> def collate(items):
        ...     rows = [torch.tensor(item["input_ids"]) for item in items]
        ...     return {"input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}
        >>> probe_set = ProbeSet.from_dataset(data, collate, size=4, batch_size=2)
        >>> [tuple(batch["input_ids"].shape) for batch in probe_set]
        [(2, 3), (2, 5)]
    """

    batches: tuple[Batch, ...]
    indices: tuple[int, ...]
    seed: int
    fingerprint: str

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Mapping[str, Any]],
        *,
        size: int = 128,
        batch_size: int = 32,
        seed: int = 0,
    ) -> ProbeSet:
        """Choose ``size`` examples at random and collate them, without touching the global random state.

        Args:
            dataset: Anything with ``len()`` and indexing: a torch ``Dataset``, a ``datasets.Dataset``, a list.
            collate_fn: Turns a list of examples into a mapping of tensors, as for a ``DataLoader``.
            size: Number of examples.
            batch_size: Examples per batch; the last batch may be smaller.
            seed: Seed of the choice, and of whatever the data set and ``collate_fn`` draw.

        Raises:
            ConfigurationError: ``batch_size`` below 1, or ``size`` smaller than a batch.
            DataError: The data set cannot be indexed, is empty or too small, or its batches hold no tensors.
        """
        if batch_size < 1:
            raise ConfigurationError("The batch size is not usable.", got=batch_size, allowed="1 or more")
        if size < batch_size:
            raise ConfigurationError(
                "The probe set is smaller than a batch.",
                got=f"size={size}, batch_size={batch_size}",
                allowed="size >= batch_size",
                fix="Raise the size of the probe set or lower the batch size.",
            )
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DataError(
                "The probe data set has no length or cannot be indexed.",
                got=type(dataset).__name__,
                allowed="a map-style data set: len(dataset) and dataset[i]",
                fix="Take some examples of the stream into a list, and pass the list.",
            )
        if len(dataset) == 0:
            raise DataError("The probe data set is empty.", fix="Pass a data set with examples.")
        if size > len(dataset):
            raise DataError(
                "The probe set is larger than the data set.",
                got=f"size={size}, data set of {len(dataset)}",
                fix=f"Lower the size of the probe set to {len(dataset)} or less.",
            )
        with random_state_kept():
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)
            # randperm of a 64-bit range does not depend on what was drawn before: it has its own generator.
            chosen = torch.randperm(len(dataset), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")[
                :size
            ].tolist()
            items = {index: dataset[index] for index in chosen}
            chosen.sort(key=lambda index: _length(items[index]))  # stable: ties stay in the order drawn
            starts = range(0, size, batch_size)
            batches = tuple(_tensors(collate_fn([items[i] for i in chosen[s : s + batch_size]])) for s in starts)
        return cls(batches=batches, indices=tuple(chosen), seed=seed, fingerprint=_fingerprint(batches))

    @classmethod
    def nothing(cls, seed: int = 0) -> ProbeSet:
        """No example at all, for measures that read none.

        Example:
            >>> ProbeSet.nothing().num_examples
            0
        """
        return cls(batches=(), indices=(), seed=seed, fingerprint=_fingerprint(()))

    def without(self, keys: Iterable[str]) -> ProbeSet:
        """The same examples without some of their tensors.

        Args:
            keys: Names of tensors; those that are not there are no matter.
        """
        left = tuple({key: value for key, value in batch.items() if key not in {*keys}} for batch in self.batches)
        return replace(self, batches=left, fingerprint=_fingerprint(left))

    @property
    def num_examples(self) -> int:
        """Number of examples in all batches."""
        return len(self.indices)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, on the CPU."""
        return iter(self.batches)

    def to(self, device: torch.device | str) -> Iterator[Batch]:
        """Yield the batches on ``device``, one at a time: the set itself stays on the CPU."""
        for batch in self.batches:
            yield {key: value.to(device) for key, value in batch.items()}


def check_some(batches: Sized) -> None:
    """Refuse to measure on nothing.

    Args:
        batches: One item a batch.

    Raises:
        ConfigurationError: There is none.
    """
    if not len(batches):
        raise ConfigurationError("There is no batch to measure on.", got="an empty iterable", fix="Pass a ProbeSet.")


def num_rows(batch: Mapping[str, Tensor], index: int) -> int:
    """Number of examples B in a batch: the leading dimension, the same for every tensor.

    Args:
        batch: Tensors by name.
        index: Position of the batch, for the message.

    Raises:
        DataError: Not a mapping of tensors, or the tensors disagree, or there is no example.

    Example:
        >>> num_rows({"input_ids": torch.zeros(4, 7), "labels": torch.zeros(4)}, 0)
        4
    """
    if not isinstance(batch, Mapping) or not batch or not all(isinstance(v, Tensor) for v in batch.values()):
        raise DataError(
            f"Batch {index} is not a dictionary of tensors.",
            got=type(batch).__name__ if not isinstance(batch, Mapping) else sorted(batch),
            allowed="what the model takes as keyword arguments, as tensors",
        )
    sizes = {key: value.shape[0] if value.dim() else None for key, value in batch.items()}
    rows = next(iter(sizes.values()))
    if not rows or set(sizes.values()) != {rows}:
        raise DataError(
            f"Batch {index} has no common number of examples.",
            got=sizes,
            allowed="the same leading dimension, 1 or more, for every tensor",
        )
    return rows


def num_sequences(batch: Mapping[str, Tensor]) -> int:
    """Number of sequences per example: the choices of multiple choice, ``input_ids`` (B, choices, T), else 1.

    Models flatten them to (B * choices, T), one example after the other.

    Example:
        >>> num_sequences({"input_ids": torch.zeros(4, 2, 7)}), num_sequences({"input_ids": torch.zeros(4, 7)})
        (2, 1)
    """
    ids = batch.get("input_ids")
    return ids.shape[1] if ids is not None and ids.dim() == 3 else 1


def _length(item: Any) -> int:
    """Number of tokens of an example, or 0 where it does not say."""
    ids = item.get("input_ids") if isinstance(item, Mapping) else None
    return len(ids) if isinstance(ids, Sequence | Tensor | np.ndarray) else 0


def _tensors(collated: Any) -> Batch:
    """The tensors of a collated batch, on the CPU."""
    items = collated.items() if isinstance(collated, Mapping) else ()
    tensors = {key: value.detach().cpu() for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise DataError(
            "The collated probe batch holds no tensors.",
            got=type(collated).__name__,
            allowed="a mapping from names to tensors",
            fix="Pass the data collator that the Trainer uses, with tokenized examples.",
        )
    return tensors


def _fingerprint(batches: Sequence[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for key, value in sorted(batch.items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
