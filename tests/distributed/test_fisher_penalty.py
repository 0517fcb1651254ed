"""The Fisher penalty with two gloo processes under torchrun, compared with the same pieces on this one."""

from __future__ import annotations

import subprocess

import pytest
import torch

from tests.distributed import penalty_worker
from tests.distributed.test_two_processes import ENVIRONMENT, LAUNCHER, ROOT, assert_close, weights
from tests.training import differences

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [*LAUNCHER, "--module", "tests.distributed.penalty_worker", str(folder)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", penalty_worker.SCENARIOS)
def test_ranks_agree_and_equal_one_process_with_the_same_pieces(two, name, tmp_path):
    first, second = (rank[name] for rank in two)
    assert not [key for key in differences(first["outcome"], second["outcome"]) if key != "rng"]
    one = penalty_worker.train(tmp_path, name)
    for key, gradient in one["gradient"].items():
        torch.testing.assert_close(first["gradient"][key], gradient, rtol=1e-4, atol=1e-6)
    assert_close(weights(first["outcome"]), weights(one["outcome"]))
    assert first["logged"] == second["logged"] == pytest.approx(one["logged"], rel=1e-3)
    assert len(one["logged"]) == 3
