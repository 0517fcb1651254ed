"""Shared by all tests: no network, one thread, same random numbers."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start

import pytest
import torch

from tests import families

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(params=sorted(families.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Name of an architecture family: a test that takes it runs once for each."""
    return request.param


@pytest.fixture
def tiny_bert() -> torch.nn.Module:
    """BERT with three blocks, width 16 and three classes; default dropout; in eval mode."""
    return families.build("bert")
