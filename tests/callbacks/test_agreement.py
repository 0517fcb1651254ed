from __future__ import annotations

import pytest
import torch

from hf_early_ood.callbacks import agreement
from hf_early_ood.callbacks.agreement import bit_checksums, check_ranks_agree

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.complex128]


def checksum(tensor):
    (value,) = bit_checksums([tensor]).tolist()
    return value


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_single_bit_counts(dtype):
    tensor = torch.arange(5).to(dtype)
    bits = tensor.view(torch.uint8)
    known = {checksum(tensor)}
    for byte in range(len(bits)):
        for bit in range(8):
            bits[byte] ^= 1 << bit
            known.add(checksum(tensor))
            bits[byte] ^= 1 << bit
    assert len(known) == 1 + 8 * len(bits)


def test_what_a_plain_sum_would_not_notice(monkeypatch):
    monkeypatch.setattr(agreement, "_CHUNK", 4)
    tensor = torch.randn(19, generator=torch.Generator().manual_seed(0))
    known = {checksum(tensor)}
    for first in range(19):
        for second in range(first):
            exchanged = tensor.clone()
            exchanged[[first, second]] = tensor[[second, first]]
            known.add(checksum(exchanged))
    known.add(checksum(torch.cat([tensor[4:8], tensor[:4], tensor[8:]])))
    assert len(known) == 2 + 19 * 18 // 2


def test_equal_bits_have_equal_checksums():
    nan, zero = torch.tensor([float("nan"), 0.0]), torch.tensor([float("nan"), -0.0])
    assert checksum(nan) == checksum(nan.clone())
    assert checksum(nan) != checksum(zero)
    matrix = torch.randn(7, 5)
    assert checksum(matrix.t()) == checksum(matrix.t().contiguous())
    assert bit_checksums([matrix, torch.empty(0), torch.tensor(1.0)]).shape == (3,)


def test_random_numbers_are_not_touched():
    before = torch.get_rng_state()
    checksum(torch.ones(10))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_process_has_nobody_to_disagree_with():
    check_ranks_agree({"head": {"weight": torch.nn.Parameter(torch.ones(2))}}, step=1)
