"""Promises 4 and 8: killed with SIGKILL at any moment and started again, training ends as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_early_ood.names import DYNAMICS_FILE
from tests.integration.kill_worker import SCENARIOS, UPDATES, train
from tests.training import differences

KILLS = 6  # of each scenario
# Imports once, in a server that every attempt is forked from before anything has run.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.integration.kill_worker"])


def attempt(scenario: str, folder: Path, seconds: float | None = None) -> bool:
    """Train in a process of its own, killed after ``seconds``; whether it came to its end."""
    result, begun = folder / "result.pt", PROCESSES.Event()
    process = PROCESSES.Process(target=train, args=(scenario, folder / "out", result, begun))
    process.start()
    if seconds is not None:
        assert begun.wait(120)
        process.join(seconds)
        process.kill()
    process.join()
    assert process.exitcode in (0, -9), process.exitcode
    return result.is_file()


def by_source(lines: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The records of each callback, without times: two callbacks take turns anew after a resume."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in map(json.loads, lines):
        kept = {key: value for key, value in record.items() if not key.startswith(("seconds", "share"))}
        found.setdefault(record["source"], []).append(kept)
    return found


@pytest.mark.sweep(keep=3)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_any_moment_the_end_is_the_same(scenario: str, tmp_path: Path) -> None:
    assert attempt(scenario, tmp_path / "whole")
    expected = torch.load(tmp_path / "whole" / "result.pt", weights_only=False)
    assert expected["updates"] == UPDATES

    chance, kills, finished = random.Random(scenario), 0, 0
    while kills < KILLS:
        # Every attempt goes on where the one before was killed, until one comes to its end.
        folder = tmp_path / f"killed{finished}"
        if attempt(scenario, folder, chance.uniform(0.05, 1.0) * expected["seconds"]):
            check(folder, tmp_path / "whole", expected)
            finished += 1
        else:
            kills += 1
    if not (folder / "result.pt").is_file():
        assert attempt(scenario, folder)
        check(folder, tmp_path / "whole", expected)


def check(folder: Path, whole: Path, expected: dict[str, Any]) -> None:
    """Weights, optimizer, random numbers and series are those of the training that was not killed."""
    result = torch.load(folder / "result.pt", weights_only=False)
    assert result["updates"] == expected["updates"]
    both = {name: expected["outcome"][name] for name in result["outcome"]}
    assert not differences(result["outcome"], both)
    lines, theirs = ((place / "out" / DYNAMICS_FILE).read_text().splitlines() for place in (folder, whole))
    assert by_source(lines) == by_source(theirs)
