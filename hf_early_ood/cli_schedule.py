"""The commands ``schedule`` and ``presets``: what an intervention would do to a model, without training it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_early_ood import names
from hf_early_ood.config.checks import SCHEDULE_KEYS
from hf_early_ood.errors import ConfigurationError

if TYPE_CHECKING:
    from hf_early_ood.config import InterventionConfig
    from hf_early_ood.schedules import Schedule


def add_schedule(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``schedule``."""
    schedule = commands.add_parser(
        "schedule",
        help="print the stage table of a model, or write it as a file to edit",
        description="Print the layer groups and the stage table of a model, or write it as a file to edit and to pass"
        " as intervention.schedule. Only the model's config is read, not its weights.",
    )
    schedule.add_argument("--model", required=True, help="name on the Hub, folder, or bundled:all-MiniLM-L6-v2")
    schedule.add_argument(
        "--preset", metavar="NAME", help="a preset, or a YAML file with a section intervention; options below win"
    )
    schedule.add_argument("--interval", help="updates per stage, fraction of training, or auto (the default)")
    schedule.add_argument(
        "--order",
        nargs="+",
        help="top_down (the default), bottom_up, random, fisher_trace (FUN), fisher_trace_batch_mean,"
        " relative_gradient_norm, or the names of the groups in their order",
    )
    schedule.add_argument("--initial", nargs="+", metavar="GROUP", help="groups that train first (head)")
    schedule.add_argument(
        "--release",
        metavar="N",
        help="interval (the default), all_at_once, or the updates or fraction of training from first to last release",
    )
    schedule.add_argument("--first", type=int, metavar="N", help="intervals before the first release (1)")
    schedule.add_argument("--start", metavar="N", help="updates, or fraction, of standard training before (0)")
    schedule.add_argument("--embeddings", help="in_order (the default), last, with_block_0 or never")
    schedule.add_argument("--order-seed", type=int, metavar="SEED", help="of the random order (0)")
    schedule.add_argument("--updates", type=int, help="length of training, to resolve a fraction and check the end")
    schedule.add_argument("--file", type=Path, help="show this schedule file instead")
    schedule.add_argument("--output", type=Path, help="write the schedule here")
    schedule.set_defaults(command=_schedule, takes_overrides=False)


def add_presets(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``presets``."""
    presets = commands.add_parser(
        "presets",
        help="list published settings, or print one",
        description="List the presets, each with its source, or print the file of one: settings, what the source leaves"
        " open, when it is known to help and to hurt. Use one as 'preset: NAME' in a recipe or in an arm of a study"
        " (what is written there wins), or as EarlyOODArguments(intervention=NAME).",
    )
    presets.add_argument("name", nargs="?", metavar="NAME", help="print this one")
    presets.set_defaults(command=_presets, takes_overrides=False)


def _presets(options: argparse.Namespace) -> int:
    from hf_early_ood.config.presets import preset_names, preset_text, preset_title

    if options.name is not None:
        print(preset_text(options.name), end="")
        return 0
    width = max(map(len, preset_names()))
    for name in preset_names():
        print(f"{name:<{width}}  {preset_title(name)}")
    return 0


def _schedule(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from hf_early_ood.callbacks.making import make_staged
    from hf_early_ood.callbacks.previewing import beside
    from hf_early_ood.layers import find_layer_groups
    from hf_early_ood.tasks.sequence_classification import SequenceClassification

    model = SequenceClassification().empty(options.model)
    groups, staged = find_layer_groups(model), make_staged(settings)
    schedule = None if staged is None else staged.make_schedule(groups.names, options.updates)
    warning = None
    if options.updates is not None and schedule is not None:
        warning = schedule.check_length(options.updates)
    print(groups.table())
    for note in groups.notes:
        print(f"Note: {note}")
    print("\n" + ("All layers train from the start.\n" if schedule is None else schedule.to_yaml()), end="")
    for line in beside(settings, model, options.updates):
        print(line)
    if warning:
        print(f"Warning: {warning}", file=sys.stderr)
    if options.output is not None:
        _write(schedule, options.output)
    return 0


def _settings(options: argparse.Namespace) -> InterventionConfig:
    """The intervention that the options describe.

    Raises:
        ConfigurationError: Naming every problem.
    """
    from dataclasses import replace

    from hf_early_ood.config import InterventionConfig, load_intervention
    from hf_early_ood.schedules import parse_number

    given = {key: getattr(options, key) for key in SCHEDULE_KEYS if getattr(options, key) is not None}
    if options.file is not None and (given or options.preset is not None):
        raise ConfigurationError(
            "A schedule file says everything by itself.",
            got=f"--file together with {', '.join(_as_options([*given, *(['preset'] if options.preset else [])]))}",
            fix="Leave one of them out.",
        )
    values: dict[str, Any] = {key: parse_number(value) for key, value in given.items() if isinstance(value, str)}
    values = {**given, **values}
    if "initial" in values:
        values["initial"] = tuple(values["initial"])
    if "order" in values:
        words = values["order"]
        values["order"] = words[0] if len(words) == 1 else tuple(words)
    if options.file is not None:
        return InterventionConfig(method="gradual_unfreezing", schedule=str(options.file))
    if options.preset is None:
        return InterventionConfig(method="gradual_unfreezing", **values)
    settings = load_intervention(options.preset)
    if values and settings.method != names.GRADUAL_UNFREEZING:
        raise ConfigurationError(
            "These options belong to gradual unfreezing.",
            got=f"{', '.join(_as_options(values))} with --preset {options.preset}, whose method is {settings.method}",
            fix="Leave them out.",
        )
    if values and settings.schedule is not None:
        raise ConfigurationError(
            "A schedule file says everything by itself.",
            got=f"{', '.join(_as_options(values))} with --preset {options.preset}, which names {settings.schedule}",
            fix="Leave the options out, or take intervention.schedule out of the preset.",
        )
    return replace(settings, **values)


def _as_options(keys: Any) -> list[str]:
    return [f"--{key.replace('_', '-')}" for key in keys]


def _write(schedule: Schedule | None, output: Path) -> None:
    from hf_early_ood.atomic import write_text
    from hf_early_ood.schedules import UnfreezingSchedule

    if not isinstance(schedule, UnfreezingSchedule):
        raise ConfigurationError(
            "Only a schedule of gradual unfreezing can be edited as a file.", got=output, fix="Leave --output out."
        )
    if output.exists() and output.read_text(encoding="utf-8") != schedule.to_yaml():
        raise ConfigurationError("The file exists and may have been edited.", got=output, fix="Give another --output.")
    write_text(output, schedule.to_yaml())
    print(f"Written to {output}", file=sys.stderr)
