"""Two gloo processes initialize the later layers alike, and go up and down as one process does."""

from __future__ import annotations

import subprocess

import pytest
import torch

from tests.distributed import generations_worker
from tests.distributed.test_two_processes import ENVIRONMENT, LAUNCHER, ROOT, assert_close, weights
from tests.training import differences

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [*LAUNCHER, "--module", "tests.distributed.generations_worker", str(folder)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_ranks_agree_and_equal_one_process(two, tmp_path, accumulation):
    first, second = (rank[accumulation] for rank in two)
    assert not differences(first["anew"], second["anew"])
    assert not [key for key in differences(first["outcome"], second["outcome"]) if key != "rng"]
    one = generations_worker.train(tmp_path, accumulation)
    anew = "bert.encoder.layer.2.output.dense.weight"  # drawn, and not learned
    assert torch.equal(first["anew"][anew], one["anew"][anew])
    assert_close(weights(first["outcome"]), weights(one["outcome"]))
