"""The command ``trajectory``: how far the weights have gone along the checkpoints of a training."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_early_ood import names


def add_trajectory(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``trajectory``."""
    command = commands.add_parser(
        "trajectory",
        help="how far the weights have gone, along the checkpoints of a training",
        description="Measure where the weights were at each checkpoint of a training, as seen from its start and from"
        " its end: distances, cosines, changed signs, in total and by layer group (after Frankle, Schwab & Morcos"
        " 2020). Needs no data. To measure while a model trains, use EarlyDynamicsCallback(['trajectory']).",
    )
    command.add_argument("folder", metavar="FOLDER", help="with checkpoint-<step> folders")
    command.add_argument(
        "--start",
        metavar="MODEL",
        help="model to measure from, such as the pretrained one; what it lacks of the head is not counted; by default"
        " the start weights that EarlyDynamicsCallback has written into"
        " the folder, or else the first checkpoint",
    )
    command.add_argument(
        "--adapters",
        default="merged",
        help="merged (the default): weights of layers with LoRA count as what the layer computes with; or raw: the"
        " parameters of adapters as they are",
    )
    command.add_argument("--output", type=Path, metavar="FOLDER", help="write trajectory.json and trajectory.png")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    command.set_defaults(command=_trajectory, takes_overrides=False)


def _trajectory(options: argparse.Namespace) -> int:
    from hf_early_ood.atomic import dumps
    from hf_early_ood.probing.trajectory import checkpoint_trajectory
    from hf_early_ood.report.figures.movement import movement_figure
    from hf_early_ood.report.movement import movement_tables

    found = checkpoint_trajectory(
        options.folder,
        start=options.start,
        adapters=options.adapters,
        output=options.output,
        command=options.command_line,
    )
    if options.output is not None:
        begin = "their start" if found.start.endswith(names.START_WEIGHTS_FILE) else Path(found.start).name
        subtitle = f"checkpoints of {Path(options.folder).resolve().name}, measured from {begin}"
        movement_figure(found.measurements, options.output / names.TRAJECTORY_FIGURE, subtitle)
    if options.json:
        print(dumps(found.to_dict(), indent=2))
        return 0
    for table in movement_tables(found.measurements, found.models):
        print(table.text() + "\n")
    print(f"Measured from {found.start}.")
    if options.output is not None:
        print(f"Everything is in {options.output}: {names.TRAJECTORY_FILE}, {names.TRAJECTORY_FIGURE}.")
    return 0
