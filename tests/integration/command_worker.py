"""One command of the command line that is killed the moment it is about to touch a certain file of its folder."""

from __future__ import annotations

import logging
import os
import signal
import sys
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch

from hf_early_ood import names
from hf_early_ood.cli import main

# What Python tells before it does it, with the path first.
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def run(
    arguments: list[str],
    folder: Path,
    kill_at: int | str | None,
    touched: Synchronized[int],
    completions: Path | None = None,
) -> None:
    """Run a command; killed before the ``kill_at``-th change of a file in ``folder``.

    Args:
        arguments: Of ``hf-early-ood``.
        folder: Where changes are counted.
        kill_at: Counted from 1, or the end of the name of a file that is about to get this name or to be removed; None:
            not killed.
        touched: Gets the number of changes.
        completions: Gets a line for each results file that is written.
    """
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def watch(event: str, values: tuple[Any, ...]) -> None:
        writes = event in CHANGES or (event == "open" and values[1] is not None and set(values[1]) & set("wax+"))
        if writes and isinstance(values[0], str | Path) and Path(values[0]).is_relative_to(folder):
            touched.value += 1
            target = str(values[1] if event == "os.rename" else values[0])
            if touched.value == kill_at or (isinstance(kill_at, str) and event != "open" and target.endswith(kill_at)):
                os.kill(os.getpid(), signal.SIGKILL)
            if completions is not None and event == "os.rename" and target.endswith("/" + names.RESULTS_FILE):
                with completions.open("a", encoding="utf-8") as log:
                    log.write(target + "\n")

    sys.addaudithook(watch)
    sys.exit(main(arguments))
