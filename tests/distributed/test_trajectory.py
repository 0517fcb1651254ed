"""The trajectory with two gloo processes under torchrun, with DDP and FSDP2, is that of one process."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch

from tests.distributed import trajectory_worker
from tests.distributed.test_two_processes import ENVIRONMENT, LAUNCHER, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [*LAUNCHER, "--module", "tests.distributed.trajectory_worker", str(folder)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def numbers(record: dict[str, Any]) -> dict[str, float]:
    found = {"": record["value"], **record["per_group"]}
    for name, item in record["details"]["quantities"].items():
        found |= {f"{name}/": item["value"], **{f"{name}/{group}": v for group, v in item["per_group"].items()}}
    return {name: -9.0 if value is None else value for name, value in found.items()}


@pytest.mark.parametrize("name", trajectory_worker.SCENARIOS)
def test_both_ranks_have_the_series_of_one_process(two, name, tmp_path):
    first, second = (rank[name] for rank in two)
    assert first["records"] == second["records"]
    assert (first["holds"], second["holds"]) == (True, False)
    one = trajectory_worker.train(tmp_path, name)
    assert [record["step"] for record in first["records"]] == list(range(6))
    for here, there in zip(one["records"], first["records"], strict=True):
        assert here["trainable"] == there["trainable"]
        for key, value in numbers(here).items():
            # Adam moves a bias that began at zero and whose gradient is nothing but rounding (of keys) up or down.
            least = 5e-3 if key.startswith("sign_changes") else 1e-6
            assert numbers(there)[key] == pytest.approx(value, rel=1e-3, abs=least), key
    assert first["records"][-1]["value"] > 0
