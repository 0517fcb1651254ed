"""Probe sets are fixed, balanced in length, and leave the random state alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.probes.batches import ProbeSet, num_rows, num_sequences

LENGTHS = [3, 9, 2, 8, 4, 7, 5, 6, 3, 9]
ROWS = [{"input_ids": [index] * length, "labels": index % 2} for index, length in enumerate(LENGTHS)]


def collate(items: list[Any]) -> dict[str, torch.Tensor]:
    ids = [torch.as_tensor(item["input_ids"]) for item in items]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=-1),
        "labels": torch.tensor([int(item["labels"]) for item in items]),
    }


class Map(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": torch.tensor(ROWS[index]["input_ids"]), "labels": ROWS[index]["labels"]}


def test_choice_is_fixed_by_the_seed_and_the_same_for_every_kind_of_data_set() -> None:
    sets = [
        ProbeSet.from_dataset(data, collate, size=6, batch_size=4) for data in (ROWS, Map(), Dataset.from_list(ROWS))
    ]
    assert len({probe_set.fingerprint for probe_set in sets}) == 1
    assert sets[0].indices == sets[1].indices
    assert len(set(sets[0].indices)) == 6
    other = ProbeSet.from_dataset(ROWS, collate, size=6, batch_size=4, seed=1)
    assert (other.seed, other.num_examples, len(other)) == (1, 6, 2)
    assert set(other.indices) != set(sets[0].indices)
    assert other.fingerprint != sets[0].fingerprint


def test_batches_hold_the_chosen_examples_sorted_by_length() -> None:
    probe_set = ProbeSet.from_dataset(ROWS, collate, size=10, batch_size=4)
    assert sorted(probe_set.indices) == list(range(10))
    assert [LENGTHS[index] for index in probe_set.indices] == sorted(LENGTHS)
    assert [tuple(batch["input_ids"].shape) for batch in probe_set] == [(4, 4), (4, 8), (2, 9)]
    rows = torch.cat([batch["input_ids"][:, 0] for batch in probe_set])
    assert rows.tolist() == list(probe_set.indices)


def test_examples_without_tokens_keep_the_order_drawn() -> None:
    data = list(range(8))
    probe_set = ProbeSet.from_dataset(data, lambda items: {"x": torch.tensor(items)}, size=8, batch_size=8)
    assert probe_set.batches[0]["x"].tolist() == list(probe_set.indices)
    assert list(probe_set.indices) != sorted(probe_set.indices)


def test_random_states_are_left_alone_and_random_collators_are_fixed() -> None:
    def noisy(items: list[Any]) -> dict[str, torch.Tensor]:
        return {"x": torch.rand(len(items)) + random.random() + float(np.random.rand())}  # noqa: NPY002

    def states() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    for seeder in (random.seed, np.random.seed, torch.manual_seed):
        seeder(5)
    expected = states()
    for seeder in (random.seed, np.random.seed, torch.manual_seed):
        seeder(5)
    first = ProbeSet.from_dataset(ROWS, noisy, size=4, batch_size=2)
    assert states() == expected
    assert ProbeSet.from_dataset(ROWS, noisy, size=4, batch_size=2).fingerprint == first.fingerprint


def test_to_yields_copies_on_the_device_and_keeps_the_set_on_the_cpu() -> None:
    probe_set = ProbeSet.from_dataset(ROWS, collate, size=4, batch_size=2)
    moved = list(probe_set.to("meta"))
    assert all(value.device.type == "meta" for batch in moved for value in batch.values())
    assert all(value.device.type == "cpu" for batch in probe_set for value in batch.values())


def test_fingerprint_sees_values_shapes_and_types() -> None:
    def of(tensor: torch.Tensor) -> str:
        return ProbeSet.from_dataset([0], lambda items: {"x": tensor}, size=1, batch_size=1).fingerprint

    tensors = [
        torch.zeros(1, 4),
        torch.ones(1, 4),
        torch.zeros(1, 2, 2),
        torch.zeros(1, 4, dtype=torch.int32),
        torch.zeros(1, 4, dtype=torch.bfloat16),
        torch.zeros(4, 1).t()[:, ::2],
    ]
    assert len({of(tensor) for tensor in tensors}) == len(tensors)
    assert of(tensors[0]) == of(torch.zeros(4, 1).t())


def test_data_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match=r"no length or cannot be indexed\. Got: .*IterableDataset"):
        ProbeSet.from_dataset(Dataset.from_list(ROWS).to_iterable_dataset(), collate, size=4, batch_size=2)
    with pytest.raises(DataError, match=r"no length or cannot be indexed\. Got: generator"):
        ProbeSet.from_dataset((row for row in ROWS), collate, size=4, batch_size=2)
    with pytest.raises(DataError, match="data set is empty"):
        ProbeSet.from_dataset([], collate)
    with pytest.raises(
        DataError, match=r"larger than the data set\. Got: size=11, data set of 10\. To fix: .* probe set to 10 or less"
    ):
        ProbeSet.from_dataset(ROWS, collate, size=11, batch_size=2)


def test_sizes_that_cannot_be_used() -> None:
    with pytest.raises(ConfigurationError, match=r"smaller than a batch\. Got: size=3, batch_size=4"):
        ProbeSet.from_dataset(ROWS, collate, size=3, batch_size=4)
    with pytest.raises(ConfigurationError, match="batch size is not usable"):
        ProbeSet.from_dataset(ROWS, collate, size=3, batch_size=0)


@pytest.mark.parametrize("collated", [{"input_ids": [[1]]}, {}, [1]])
def test_collators_without_tensors(collated: Any) -> None:
    with pytest.raises(DataError, match="holds no tensors"):
        ProbeSet.from_dataset(ROWS, lambda items: collated, size=2, batch_size=2)


def test_num_sequences() -> None:
    ids = torch.zeros(4, 3, 7)
    assert num_sequences({"input_ids": ids, "labels": torch.zeros(4)}) == 3
    for batch in ({"input_ids": ids[0]}, {"inputs_embeds": ids}):
        assert num_sequences(batch) == 1


def test_num_rows() -> None:
    assert num_rows({"a": torch.zeros(2, 3), "b": torch.zeros(2)}, 0) == 2
    for wrong in ({}, {"a": [1]}, torch.zeros(2)):
        with pytest.raises(DataError, match="Batch 5 is not a dictionary of tensors"):
            num_rows(wrong, 5)
    for wrong in ({"a": torch.zeros(())}, {"a": torch.zeros(0)}, {"a": torch.zeros(2), "b": torch.zeros(3)}):
        with pytest.raises(DataError, match="Batch 5 has no common number of examples"):
            num_rows(wrong, 5)
