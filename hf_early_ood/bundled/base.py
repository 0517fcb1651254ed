"""What every bundled data set is: splits by name, and a description of what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset

from hf_early_ood.errors import DataError, did_you_mean


@dataclass(frozen=True)
class BundledInfo:
    """What is in a bundled data set.

    Attributes:
        name: Name for ``load_bundled``.
        license: License of the texts.
        citation: What to cite.
        label_counts: Split -> label -> number of examples.
    """

    name: str
    license: str
    citation: str
    label_counts: dict[str, dict[str, int]]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class BundledData(Mapping[str, Dataset]):
    """Splits by name, and ``info`` about them."""

    splits: dict[str, Dataset]
    info: BundledInfo

    def __getitem__(self, split: str) -> Dataset:
        if split not in self.splits:
            raise DataError(
                f"{self.info.name} has no such split.",
                got=split,
                allowed=", ".join(self.splits),
                fix=did_you_mean(split, self.splits),
            )
        return self.splits[split]

    def __contains__(self, split: object) -> bool:
        return split in self.splits

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __len__(self) -> int:
        return len(self.splits)
