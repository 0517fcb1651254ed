"""The record of bench_similarity.py as tables."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from bench_similarity import ZERO_SHOT
from cost_tables import command_of, table
from similarity_summary import chance

from hf_early_ood.bundled import INTENTS_DATASET, VADER_DATASET

_TITLES = {VADER_DATASET: "sentiment, four domains", INTENTS_DATASET: "intents, eight languages"}


def similarity(record: Mapping[str, Any], short: bool) -> str:
    """How well each measure ranks the sources of a target by the error after fine-tuning.

    Args:
        record: Of bench_similarity.py.
        short: Without the correlations of single targets and of all pairs.
    """
    results = {name: record["results"][name] for name in _TITLES if name in record["results"]}
    primary = record["setting"]["primary"]
    first = next(iter(results.values()))
    rows = []
    for measure in first["spearman"]:
        name = "source's linear teacher as it is" if measure == ZERO_SHOT else measure.replace("_", " ")
        cells = []
        for found in results.values():
            p = chance(found["pairs"], measure)
            cells += [interval(found["spearman"][measure]["within_targets"]), "" if p is None else f"{p:.3f}"]
        if not short:
            cells += [interval(found["spearman"][measure]["all_pairs"]) for found in results.values()]
        rows.append((f"**{name}**" if measure == primary else name, *cells))
    head = ["", *(cell for name in results for cell in (_TITLES[name], "p"))]
    if not short:
        head += [f"{_TITLES[name]}: all pairs" for name in results]
    title = (
        "Rank correlation (Spearman) over the sources of a target, of the score before training with the error measured"
        f" after fine-tuning on a few examples ({few(results)}); means over targets and 95 % intervals over them; 1 is"
        " the right order for every target. Targets share their sources, so that an interval can be too narrow; p is"
        " not misled: the share of all ways to exchange the names of the domains in what was predicted that have a mean"
        f" as high. Fixed beforehand as what counts: bold ({command_of(dict(record))})."
        + ("" if short else " Intervals of all pairs take these for independent, and are too narrow.")
    )
    parts = [title, table(head, rows), gains(results, primary)]
    if not short:
        parts.append(single(results, primary))
    return "\n\n".join(parts)


def few(results: Mapping[str, Any]) -> str:
    return " and ".join(f"{found['few']} in each of {len(found['pairs'])} pairs" for found in results.values())


def interval(found: Mapping[str, Any]) -> str:
    """A correlation with its interval."""
    if found["value"] is None:
        return ""
    text = f"{found['value']:+.2f}"
    return text if found["low"] is None else f"{text} [{found['low']:+.2f}, {found['high']:+.2f}]"


def gains(results: Mapping[str, Any], primary: str) -> str:
    """What there was to choose: means over targets of the errors from the worst, from any and from the best source."""
    rows = []
    for name, found in results.items():
        targets: dict[str, list[float]] = {}
        scratch: dict[str, float] = {}
        chosen: dict[str, tuple[float, float]] = {}
        for pair in found["pairs"]:
            measured = fmean(pair["measured"])
            targets.setdefault(pair["target"], []).append(measured)
            scratch[pair["target"]] = fmean(pair["from_scratch"])
            score = pair["predicted"][primary]
            chosen[pair["target"]] = min(chosen.get(pair["target"], (score, measured)), (score, measured))
        columns = (
            scratch.values(),
            map(max, targets.values()),
            map(fmean, targets.values()),
            (measured for _, measured in chosen.values()),
            map(min, targets.values()),
        )
        rows.append((_TITLES[name], *(f"{100 * fmean(column):.1f}" for column in columns)))
    head = ("error after fine-tuning, percent", "no source", "worst", "mean of all", "put first", "best")
    return table(head, rows)


def single(results: Mapping[str, Any], primary: str) -> str:
    """The correlation of every target."""
    parts = []
    for name, found in results.items():
        values = found["spearman"][primary]["targets"]
        shown = ", ".join(f"{target} {'-' if value is None else f'{value:+.2f}'}" for target, value in values.items())
        parts.append(f"{_TITLES[name]}, {primary.replace('_', ' ')}, by target: {shown}.")
    return "\n\n".join(parts)
