"""The command ``depth``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_early_ood import names
from hf_early_ood.cli_study import OVERRIDES


def add_depth(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``depth``."""
    depth = commands.add_parser(
        "depth",
        help="at which layer a model makes its predictions, in distribution and out of it",
        description="At which layer a model makes its predictions (prediction depth, Baldock et al. 2021): from which"
        " layer on the nearest training examples say what the model says in the end. On the training set and every test"
        " set of a recipe.",
        epilog=OVERRIDES + ". Those of depth are evaluation.prediction_depth.k, .support and .pooling.",
    )
    depth.add_argument(
        "source", metavar="CHECKPOINT_OR_RUN", help="folder of a run, of a saved model or adapter, or a Hub name"
    )
    depth.add_argument("--suite", type=Path, metavar="YAML", help="any recipe, run or study (that of the run)")
    depth.add_argument("--output", type=Path, metavar="FOLDER", help="write depth.json and depth.parquet")
    depth.add_argument("--revision", help="revision of a model on the Hub")
    depth.add_argument("--tokenizer", metavar="NAME", help="name or folder, where none is beside the model")
    depth.add_argument(
        "--label-names", nargs="+", metavar="NAME", help="label of each class, where the model has only LABEL_0, ..."
    )
    depth.add_argument("--dry-run", action="store_true", help="check everything and say what would be measured")
    depth.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    depth.set_defaults(command=_depth, takes_overrides=True)


def _depth(options: argparse.Namespace) -> int:
    from hf_early_ood.atomic import dumps
    from hf_early_ood.deepness import FILES, depth_suite, labels_of_run, measure_depth
    from hf_early_ood.folders import check_replaceable

    suite = depth_suite(options.source, options.suite, revision=options.revision, overrides=options.overrides)
    label_names = labels_of_run(options.source) if options.label_names is None else options.label_names
    if options.output is not None:
        check_replaceable(options.output, names.DEPTH_FILE, "prediction depth")
    if options.dry_run:
        from hf_early_ood.evaluating import material

        for split, dataset in material(suite, label_names, with_train=True).datasets.items():
            print(f"{split}: {len(dataset):,}")
        return 0
    report = measure_depth(suite, label_names=label_names, tokenizer=options.tokenizer, command=options.command_line)
    if options.output is not None:
        report.write(options.output)
    if options.json:
        print(dumps(report.to_dict(), indent=2))
        return 0
    print("\n\n".join(table.text() for table in report.tables()))
    if options.output is not None:
        print(f"Everything is in {options.output}: {', '.join(FILES)}.")
    return 0
