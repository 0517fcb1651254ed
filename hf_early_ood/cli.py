"""``hf-early-ood``: run, study, validate, schedule. Heavy imports are inside the commands: ``--help`` is quick."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_early_ood import __version__
from hf_early_ood.errors import ConfigurationError, EarlyOODError

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status: 0 done, 1 a run of a study failed, 2 an error of the user."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    parser = build_parser()
    options, overrides = parser.parse_known_args(words)
    if overrides and not options.takes_overrides:
        parser.error(f"unknown arguments: {shlex.join(overrides)}")
    if not sys.stderr.isatty():
        # Log files keep our lines; the libraries below would fill them with bars.
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    options.overrides = overrides
    options.command_line = shlex.join(["hf-early-ood", *words])
    try:
        status = options.command(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EarlyOODError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="hf-early-ood",
        description="Gradual unfreezing timed by the Fisher trace, for the Hugging Face Trainer, judged out of"
        " distribution.",
    )
    parser.add_argument("--version", action="version", version=f"hf-early-ood {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    for name, command, what in (
        ("run", _run, "train one model and evaluate it on the ID and OOD sets"),
        ("study", _study, "train every arm with every seed and compare them"),
        ("validate", _validate, "check a file, its data and its model; train nothing"),
    ):
        sub = commands.add_parser(
            name,
            help=what,
            description=f"{what.capitalize()}.",
            epilog="Any key of the file can be given on the command line and wins over it, for example"
            " --training.learning_rate 2e-5. All keys: hf-early-ood keys",
        )
        sub.add_argument("config", type=Path, help="YAML file")
        if name != "validate":
            sub.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")
        sub.set_defaults(command=command, takes_overrides=True)

    keys = commands.add_parser("keys", help="list every key of a configuration with its default")
    keys.set_defaults(command=_keys, takes_overrides=False)

    schedule = commands.add_parser(
        "schedule",
        help="print the stage table of a model, or write it as a file to edit",
        description="Print the layer groups and the stage table of a model, or write it as a file to edit and to pass"
        " as intervention.schedule. Only the model's config is read, not its weights.",
    )
    schedule.add_argument("--model", required=True, help="name on the Hub, folder, or bundled:all-MiniLM-L6-v2")
    schedule.add_argument("--interval", default="auto", help="updates per stage, fraction of training, or auto")
    schedule.add_argument("--order", default="top_down", help="top_down or bottom_up")
    schedule.add_argument("--initial", nargs="+", default=["head"], metavar="GROUP", help="groups that train first")
    schedule.add_argument("--release", default="interval", help="interval or all_at_once")
    schedule.add_argument("--updates", type=int, help="length of training, to resolve a fraction and check the end")
    schedule.add_argument("--file", type=Path, help="show this schedule file instead")
    schedule.add_argument("--output", type=Path, help="write the schedule here")
    schedule.set_defaults(command=_schedule, takes_overrides=False)
    return parser


def _run(options: argparse.Namespace) -> int:
    from hf_early_ood.config import load_run

    config = load_run(options.config, options.overrides)
    from hf_early_ood.experiment import check, run
    from hf_early_ood.report.tables import run_table

    if options.dry_run:
        print(config.to_yaml() + "\n" + check(config))
        return 0
    record = run(config, command=options.command_line)
    if _is_main_process():
        print(run_table(record))
        print(f"Everything is in {config.output_dir}.")
    return 0


def _study(options: argparse.Namespace) -> int:
    from hf_early_ood.config import load_study

    config = load_study(options.config, options.overrides)
    from hf_early_ood.experiment import check
    from hf_early_ood.report.tables import study_report
    from hf_early_ood.study import run_study

    if options.dry_run:
        for run_config in config.runs():
            print(f"{run_config.name}, seed {run_config.seed} -> {run_config.output_dir}")
        for arm in config.arms:
            print(f"\n{arm}\n{check(config.run(arm, config.seeds[0]))}")
        return 0
    record = run_study(config, command=options.command_line)
    if _is_main_process():
        print(study_report(record))
        print(
            f"Everything is in {config.output_dir}: verdict.txt, study.json, comparison.png, and a folder for each run."
        )
    return 0 if all(run.status == "complete" for runs in record.arms.values() for run in runs) else 1


def _validate(options: argparse.Namespace) -> int:
    from hf_early_ood.config import StudyConfig, load_config

    config = load_config(options.config, options.overrides)
    from hf_early_ood.experiment import check

    if isinstance(config, StudyConfig):
        for arm in config.arms:
            print(f"{arm}\n{check(config.run(arm, config.seeds[0]))}\n")
    else:
        print(check(config))
    print(f"{options.config} is valid.")
    return 0


def _keys(options: argparse.Namespace) -> int:
    from hf_early_ood.config import describe

    print(describe())
    return 0


def _schedule(options: argparse.Namespace) -> int:
    from hf_early_ood.atomic import write_text
    from hf_early_ood.layers import find_layer_groups
    from hf_early_ood.schedules import UnfreezingSchedule, parse_number
    from hf_early_ood.tasks.sequence_classification import empty_classifier

    groups = find_layer_groups(empty_classifier(options.model))
    if options.file is not None:
        schedule = UnfreezingSchedule.load(options.file, groups.names)
    else:
        schedule = UnfreezingSchedule(
            groups.names,
            interval=parse_number(options.interval),
            order=options.order,
            initial=options.initial,
            release=options.release,
        )
    warning = None
    if options.updates is not None:
        schedule = schedule.resolve(total_updates=options.updates)
        warning = schedule.check_length(options.updates)
    print(groups.table())
    for note in groups.notes:
        print(f"Note: {note}")
    print("\n" + schedule.to_yaml(), end="")
    if warning:
        print(f"Warning: {warning}", file=sys.stderr)
    if options.output is not None:
        if options.output.exists() and options.output.read_text(encoding="utf-8") != schedule.to_yaml():
            raise ConfigurationError(
                "The file exists and may have been edited.", got=options.output, fix="Give another --output."
            )
        write_text(options.output, schedule.to_yaml())
        print(f"Written to {options.output}", file=sys.stderr)
    return 0


def _is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process
