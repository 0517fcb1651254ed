"""``hf-early-ood``: run, validate, keys, probe, and the commands of other files. Heavy imports are in functions."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_early_ood import __version__, names
from hf_early_ood.cli_depth import add_depth
from hf_early_ood.cli_publish import add_publish
from hf_early_ood.cli_report import add_report
from hf_early_ood.cli_schedule import add_presets, add_schedule
from hf_early_ood.cli_similarity import add_similarity
from hf_early_ood.cli_study import OVERRIDES, add_scoring, add_study, is_main_process
from hf_early_ood.cli_trajectory import add_trajectory
from hf_early_ood.errors import ConfigurationError, EarlyOODError

USER_ERROR = 2
INTERRUPTED = 130
# Options of `probe` that are fields of the request.
_PROBE_KEYS = (
    "measures", "text", "text_pair", "label", "label_names", "size", "batch_size", "max_length", "parameters", "seed",
    "dtype", "revision", "tokenizer", "allow_new_head",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status: 0 done, 1 a run of a study failed, 2 an error of the user."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    for client in ("httpx", "httpx2"):  # they tell every request to the Hub
        logging.getLogger(client).setLevel(logging.WARNING)
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
        kept = getattr(options, "output", "") is not None
        what = "what was finished is kept, the same command goes on from there" if kept else "nothing was written"
        print(f"interrupted; {what}", file=sys.stderr)
        return INTERRUPTED


def leave() -> None:
    """End what the processes of a launcher share, as the last thing of a program; at the exit it may be too late."""
    distributed = sys.modules.get("torch.distributed")  # imported by whoever has joined
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


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
        ("validate", _validate, "check a file, its data and its model; train nothing"),
    ):
        sub = commands.add_parser(
            name,
            help=what,
            description=f"{what.capitalize()}.",
            epilog=OVERRIDES,
        )
        sub.add_argument("config", type=Path, help="YAML file")
        if name != "validate":
            sub.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")
        sub.set_defaults(command=command, takes_overrides=True)

    keys = commands.add_parser("keys", help="list every key of a configuration with its default")
    keys.set_defaults(command=_keys, takes_overrides=False)

    add_study(commands)
    add_scoring(commands)
    add_publish(commands)
    add_report(commands)
    add_presets(commands)
    add_schedule(commands)
    _add_probe(commands)
    add_depth(commands)
    add_similarity(commands)
    add_trajectory(commands)
    return parser


def _add_probe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = "measure a saved model, or every checkpoint of a training"
    probe = commands.add_parser(
        "probe",
        help=what,
        description=f"{what.capitalize()}, on the same examples with the same random numbers: Fisher trace, sharpness,"
        " curvature. Weights are measured in float32 and as a whole: what was frozen in training is not known to a"
        " saved model.",
        epilog="Rerun with the same --output to measure what is missing, such as further checkpoints or measures. Exit"
        " status 1: a model could not be measured.",
    )
    probe.add_argument(
        "path",
        metavar="PATH",
        help="folder of a saved model or adapter, or with checkpoint-<step> folders (a series); or a name on the Hub",
    )
    data = probe.add_argument_group("examples")
    data.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="a file, a save_to_disk folder, bundled:vader-icwsm2014, or a name on the Hub: texts, or tokenized"
        " (with a column input_ids) for any task",
    )
    data.add_argument("--split", help="split inside the source")
    data.add_argument("--data-name", metavar="NAME", help="configuration of a data set on the Hub")
    data.add_argument("--data-revision", metavar="REVISION", help="revision of a data set on the Hub")
    data.add_argument("--text", metavar="COLUMN", help="column of the text (text)")
    data.add_argument("--text-pair", metavar="COLUMN", help="column of the second text, for pairs")
    data.add_argument("--label", metavar="COLUMN", help="column of the label (label, where a measure needs labels)")
    data.add_argument(
        "--label-names", nargs="+", metavar="NAME", help="label of each class, where the model has only LABEL_0, ..."
    )
    data.add_argument("--size", type=int, help="number of examples (128)")
    data.add_argument("--batch-size", type=int, help="examples per forward pass (32, or fewer if --size is)")
    data.add_argument("--max-length", type=int, help="longest text in tokens (128, or what the tokenizer takes)")
    data.add_argument("--tokenizer", metavar="NAME", help="name or folder, where none is beside the model")

    measures = probe.add_argument_group("measures")
    measures.add_argument(
        "--measures",
        nargs="+",
        metavar="MEASURE",
        help="fisher_trace (the default), average_sharpness, worst_case_sharpness, hessian_trace, gauss_newton_trace,"
        " hessian_top_eigenvalue, gradient_subspace_overlap, gradient_norm, relative_gradient_norm,"
        " fisher_trace_batch_mean",
    )
    measures.add_argument(
        "--settings", nargs="+", default=[], metavar="MEASURE.KEY=VALUE", help="such as average_sharpness.rho=0.05"
    )
    measures.add_argument(
        "--parameters",
        help="trainable (the default): everything in a full model, the adapter in a PEFT one; or all",
    )
    measures.add_argument("--seed", type=int, help="of the choice of examples and of the measures (0)")

    model = probe.add_argument_group("model")
    model.add_argument("--dtype", help="float32 (the default), float64, bfloat16 or float16, whatever was saved")
    model.add_argument("--device", default="auto", help="auto, cpu or cuda")
    model.add_argument("--revision", help="revision of a model on the Hub")
    model.add_argument(
        "--allow-new-head",
        action="store_true",
        default=None,
        help="give an encoder without a head a random classification head: the start of fine-tuning",
    )
    output = probe.add_argument_group("output")
    output.add_argument("--output", type=Path, metavar="FOLDER", help="write dynamics.jsonl, probe.json and pictures")
    output.add_argument("--dry-run", action="store_true", help="check everything and say what would be measured")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    probe.set_defaults(command=_probe, takes_overrides=False)


def _run(options: argparse.Namespace) -> int:
    from hf_early_ood.config import load_run

    config = load_run(options.config, options.overrides)
    from hf_early_ood.experiment import check, run
    from hf_early_ood.report.tables import run_table

    if options.dry_run:
        print(config.to_yaml() + "\n" + check(config))
        return 0
    record = run(config, command=options.command_line)
    if is_main_process():
        print(run_table(record))
        print(f"Everything is in {config.output_dir}.")
    return 0


def _validate(options: argparse.Namespace) -> int:
    from hf_early_ood.config import StudyConfig, load_config

    config = load_config(options.config, options.overrides)
    from hf_early_ood.experiment import check

    if isinstance(config, StudyConfig):
        for title, run in config.one_each().items():
            print(f"{title}\n{check(run)}\n")
    else:
        print(check(config))
    print(f"{options.config} is valid.")
    return 0


def _keys(options: argparse.Namespace) -> int:
    from hf_early_ood.config import describe

    print(describe())
    return 0


def _probe(options: argparse.Namespace) -> int:
    from hf_early_ood.atomic import dumps
    from hf_early_ood.probing import ProbeRequest, check_probe, probe_checkpoints
    from hf_early_ood.report.measurements import draw_measurements, measurement_tables
    from hf_early_ood.sources import SplitSpec

    data = SplitSpec(options.data, split=options.split, name=options.data_name, revision=options.data_revision)
    given: dict[str, Any] = {key: getattr(options, key) for key in _PROBE_KEYS}
    given |= {key: tuple(given[key]) for key in ("measures", "label_names") if given[key] is not None}
    known = {key: value for key, value in given.items() if value is not None}
    request = ProbeRequest(options.path, data, settings=_settings(options.settings), **known)
    where: dict[str, Any] = {"output": options.output, "device": options.device}
    if options.dry_run:
        plan = check_probe(request, **where)
        print(dumps(plan, indent=2) if options.json else plan.text())
        return 1 if plan.failures else 0
    report = probe_checkpoints(request, command=options.command_line, **where)
    model_names = {model.step: model.name for model in report.models}
    pictures = []
    if options.output is not None:
        subtitles = {measure: report.request.on_what(measure) for measure in report.request.measures}
        pictures = draw_measurements(report.measurements, options.output, subtitles)
    if options.json:
        print(dumps(report, indent=2))
    else:
        for table in measurement_tables(report.measurements, model_names):
            print(table.text() + "\n")
    for name, error in report.failures.items():
        print(f"{name} could not be measured: {error}", file=sys.stderr if options.json else sys.stdout)
    if options.output is not None and not options.json:
        files = ", ".join([names.DYNAMICS_FILE, names.PROBE_FILE, *(path.name for path in pictures)])
        print(f"Everything is in {options.output}: {files}.")
    return 1 if report.failures else 0


def _settings(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``measure.key=value`` words as nested settings.

    Example:
        >>> _settings(["average_sharpness.rho=0.05", "average_sharpness.adaptive=true"])
        {'average_sharpness': {'rho': 0.05, 'adaptive': True}}
    """
    import yaml

    from hf_early_ood.schedules import parse_number

    settings: dict[str, dict[str, Any]] = {}
    for word in words:
        path, equals, text = word.partition("=")
        measure, dot, key = path.partition(".")
        if not (equals and dot and measure and key and text):
            raise ConfigurationError(
                "A setting is not usable.", got=word, allowed="MEASURE.KEY=VALUE, such as average_sharpness.rho=0.05"
            )
        if key in settings.setdefault(measure, {}):
            raise ConfigurationError("A setting is given twice.", got=path)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigurationError("The value of a setting is not YAML.", got=word) from error
        # YAML takes 1e-3 for a word.
        settings[measure][key] = parse_number(value) if isinstance(value, str) else value
    return settings
