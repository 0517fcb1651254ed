"""The command ``publish``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_early_ood.errors import ConfigurationError


def add_publish(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``publish``."""
    publish = commands.add_parser(
        "publish",
        help="put a run, or the best one of a study, on the Hub with its card and results",
        description="Put a run on the Hub: model or adapter, tokenizer, model card, figures, results, settings and"
        " series. Of a study, the arm and seed that are best on ID validation; OOD scores have no part in it, and"
        " those of all arms are in the card. Private unless --public is given. Paths of this machine are given by their"
        " last part.",
        epilog="The token is that of 'hf auth login' or HF_TOKEN. If it is interrupted, give the same command again:"
        " what was sent is not sent twice.",
    )
    publish.add_argument("folder", type=Path, metavar="RUN_OR_STUDY", help="folder of a run or of a study")
    publish.add_argument("--repo-id", required=True, metavar="OWNER/NAME", help="repository of the model")
    publish.add_argument(
        "--dry-run", action="store_true", help="check everything, say what would be sent, send nothing"
    )
    publish.add_argument(
        "--output", type=Path, metavar="FOLDER", help="with --dry-run: write the exact folders that would be sent"
    )
    publish.add_argument(
        "--results-dataset",
        metavar="OWNER/NAME",
        help="also add the results to this data set, a row for each model, arm, seed, set and metric",
    )
    publish.add_argument(
        "--eval-results",
        nargs="+",
        default=[],
        metavar="[SET=]OWNER/NAME[:TASK]",
        help="benchmarks of the Hub whose scores are written to .eval_results",
    )
    publish.add_argument("--public", action="store_true", help="create public repositories")
    publish.add_argument("--replace", action="store_true", help="write also over something else, or a changed card")
    publish.add_argument("--license", help="of the model, as the Hub writes it, such as apache-2.0")
    publish.add_argument("--language", nargs="+", default=[], metavar="CODE", help="ISO 639 codes (as the data says)")
    publish.add_argument("--tags", nargs="+", default=[], metavar="TAG", help="further tags")
    publish.set_defaults(command=_publish, takes_overrides=False)


def _publish(options: argparse.Namespace) -> int:
    from hf_early_ood.hub import CardOptions, publish

    if options.output is not None and not options.dry_run:
        raise ConfigurationError(
            "--output is for --dry-run.", got=options.output, fix="Add --dry-run, or leave it out."
        )
    card = CardOptions(license=options.license, language=tuple(options.language), tags=tuple(options.tags))
    why, uploads = publish(
        options.folder,
        options.repo_id,
        options=card,
        results_dataset=options.results_dataset,
        eval_results=options.eval_results,
        private=not options.public,
        replace_other=options.replace,
        dry_run=options.dry_run,
        output=options.output,
    )
    print(why)
    for item in uploads:
        private = "" if options.public else ", private if it is new"
        print(f"\n{item.repo_type} {item.repo_id}{private}: " + (item.url or "would get"))
        for path in item.publication.files:
            print(f"  {path} ({item.publication.size(path):,} bytes)")
        for note in item.publication.notes:
            print(f"  Note: {note}")
    if options.dry_run:
        print(f"\nNothing was sent.{f' The folders are in {options.output}.' if options.output is not None else ''}")
    return 0
