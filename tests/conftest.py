"""Shared by all tests: no network, one thread, same random numbers."""

from __future__ import annotations

import os
import random
from collections import defaultdict

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start

import pytest
import torch

from tests import families

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test with ``@pytest.mark.sweep(keep=3)``, three cases, always the same, are run by default; all by CI."""
    sweeps = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sweep"):
            sweeps[item.nodeid.split("[")[0]].append(item)
    for name, cases in sweeps.items():
        keep = cases[0].get_closest_marker("sweep").kwargs["keep"]  # type: ignore[union-attr]
        cases.sort(key=lambda case: case.nodeid)
        for case in random.Random(name).sample(cases, max(0, len(cases) - keep)):
            case.add_marker("slow")


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
