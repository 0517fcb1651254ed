"""Two gloo processes perturb the same weights alike, and as one process does; only one of them has the start."""

from __future__ import annotations

import subprocess

import pytest
import torch

from tests.distributed import perturbing_worker
from tests.distributed.test_two_processes import ENVIRONMENT, LAUNCHER, ROOT, assert_close, weights
from tests.training import differences

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [*LAUNCHER, "--module", "tests.distributed.perturbing_worker", str(folder)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", perturbing_worker.CASES)
def test_ranks_agree_and_equal_one_process(two, tmp_path, name):
    first, second = (rank[name] for rank in two)
    assert not [key for key in differences(first["outcome"], second["outcome"]) if key != "rng"]
    one = perturbing_worker.train(tmp_path, name)
    assert_close(weights(first["outcome"]), weights(one["outcome"]))
    (theirs,), (ours,) = first["records"], one["records"]
    assert {**theirs, "effective_std": None} == {**ours, "effective_std": None}
    assert theirs["effective_std"] == pytest.approx(ours["effective_std"], rel=1e-3)
    assert first["records"] == second["records"]
