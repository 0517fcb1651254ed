"""The command ``study``."""

from __future__ import annotations

import argparse
from pathlib import Path

OVERRIDES = (
    "Any key of the file can be given on the command line and wins over it, for example --training.learning_rate 2e-5."
    " All keys: hf-early-ood keys"
)


def add_study(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``study``."""
    study = commands.add_parser(
        "study",
        help="train every arm with every seed and compare them",
        description="Train every arm with every seed and every size of the training set, and compare them. Finished"
        " runs are kept, failed ones tried again. Give the same command in several shells or on several machines with a"
        " shared folder: each takes runs that are free, and the last one writes the comparison.",
        epilog=OVERRIDES + ". Exit status 1: a run has failed.",
    )
    study.add_argument("config", type=Path, help="YAML file")
    study.add_argument(
        "--shard", metavar="I/N", help="make only the I-th of N parts of the runs, where files cannot be locked"
    )
    study.add_argument(
        "--no-wait", action="store_true", help="at the end, do not wait for runs that other processes are making"
    )
    study.add_argument(
        "--retries", type=int, default=0, metavar="N", help="try a failed run again so often, after the others (0)"
    )
    study.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")
    study.set_defaults(command=_study, takes_overrides=True)


def _study(options: argparse.Namespace) -> int:
    from hf_early_ood.config import load_study

    config = load_study(options.config, options.overrides)
    from hf_early_ood.config.study import shard_of
    from hf_early_ood.experiment import check, claim
    from hf_early_ood.report.tables import study_report
    from hf_early_ood.study import run_study

    if options.dry_run:
        runs = list(config.runs())
        for run in runs if options.shard is None else shard_of(runs, options.shard):
            done = ", finished" if claim(Path(run.output_dir), run) is not None else ""
            print(f"{run.name}, seed {run.seed} -> {run.output_dir}{done}")
        for title, run in config.one_each().items():
            print(f"\n{title}\n{check(run)}")
        return 0
    record = run_study(
        config,
        command=options.command_line,
        shard=options.shard,
        wait=not options.no_wait,
        retries=options.retries,
    )
    if is_main_process():
        print(study_report(record))
        print(
            f"Everything is in {config.output_dir}: verdict.txt, study.json, comparison.png, and a folder for each run."
        )
    return 1 if any(run.status == "failed" for runs in record.arms.values() for run in runs) else 0


def is_main_process() -> bool:
    """Whether this process is the one that prints."""
    from accelerate import PartialState

    return PartialState().is_main_process
