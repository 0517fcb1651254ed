"""Arms that perturb layer groups after k updates, ordered by group and k: when does a group stop being replaceable?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from hf_early_ood.names import ID_TEST, OOD_MACRO_MEAN
from hf_early_ood.report.layout import NO_VALUE, Table, metric_title, signed, with_interval
from hf_early_ood.report.reading import split_label
from hf_early_ood.report.verdict import UNCLEAR, UNKNOWN, find_comparison, judge
from hf_early_ood.results import Comparison, PerturbationRecord, StudyRecord

SPLITS = (ID_TEST, OOD_MACRO_MEAN)
_BLOCK = re.compile(r"(.*block\.)(\d+)")


@dataclass(frozen=True)
class Perturbed:
    """An arm that perturbs ``groups`` after ``step`` updates.

    ``kind`` says how, in words, as far as the record does; no two arms of a study agree in all three.
    """

    arm: str
    groups: tuple[str, ...]
    kind: str
    step: int


def perturbed_arms(study: StudyRecord) -> list[Perturbed]:
    """The arms that perturb something, in the order of the study."""
    found = []
    for arm, runs in study.arms.items():
        records = [run.intervention.perturbation for run in runs if run.intervention is not None]
        known = [record for record in records if record is not None]
        if known:
            found.append(Perturbed(arm, tuple(known[0].effective_std), _kind_in_words(known[0]), known[0].step))
    # Arms may differ in something else, such as the learning rate.
    counts = Counter((item.groups, item.kind, item.step) for item in found)
    return [
        replace(item, kind=f"{item.kind}, {item.arm}") if counts[item.groups, item.kind, item.step] > 1 else item
        for item in found
    ]


def _kind_in_words(record: PerturbationRecord) -> str:
    settings = [key if value is True else f"{key} {value}" for key, value in record.settings.items()]
    return (record.kind + (f" ({', '.join(settings)})" if settings else "")).replace("_", " ")


def are_compared(study: StudyRecord) -> bool:
    """Whether there are several arms that perturb something, with differences from the baseline."""
    arms = [item for item in perturbed_arms(study) if difference(study, item, OOD_MACRO_MEAN) is not None]
    return len(arms) > 1


def difference(study: StudyRecord, item: Perturbed, split: str) -> Comparison | None:
    """From the baseline, where there is a number."""
    found = find_comparison(study, item.arm, split)
    return None if found is None or found.difference is None else found


def updates(study: StudyRecord) -> int | None:
    """Updates of a run, where all made the same number."""
    counts = {run.updates for runs in study.arms.values() for run in runs if run.updates}
    return counts.pop() if len(counts) == 1 else None


def groups_in_words(groups: Sequence[str]) -> str:
    """Names of layer groups, with consecutive blocks as a range.

    Example:
        >>> groups_in_words(["embeddings", "block.0", "block.1", "block.2", "head"])
        'embeddings, block.0 to 2, head'
    """
    matches = [(name, _BLOCK.fullmatch(name)) for name in groups]
    keyed = [
        (name, (match[1], int(match[2]) - place) if match else (name, -1), match and match[2])
        for place, (name, match) in enumerate(matches)
    ]
    words = []
    for _, items in groupby(keyed, key=lambda item: item[1]):
        run = list(items)
        words.append(run[0][0] if len(run) == 1 else f"{run[0][0]} to {run[-1][2]}")
    return ", ".join(words)


def in_words(study: StudyRecord) -> str:
    """What the figure shows, for who cannot see it."""
    found = []
    for item in perturbed_arms(study):
        mean = difference(study, item, OOD_MACRO_MEAN)
        if mean is not None:
            found.append(f"{groups_in_words(item.groups)}, {item.kind} after {item.step}: {signed(mean.difference)}")
    first = f"{metric_title(study.metric)} on the mean of the OOD sets, points from {study.baseline}"
    return f"{first}, by layer groups and update. {'; '.join(found)}."


def replaceable_table(study: StudyRecord, split: str) -> Table:
    """Differences from the baseline on one split: a row for each groups and kind, a column for each k."""
    arms = perturbed_arms(study)
    steps = sorted({item.step for item in arms})
    cells = {(item.groups, item.kind, item.step): _cell(study, item, split) for item in arms}
    rows = [
        (groups_in_words(groups), kind, *(cells.get((groups, kind, k), NO_VALUE) for k in steps))
        for kind in dict.fromkeys(item.kind for item in arms)
        for groups in dict.fromkeys(item.groups for item in arms if item.kind == kind)
    ]
    seeds = "1 seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
    title = (
        f"{split_label(split)}: {metric_title(study.metric)}, points from {study.baseline} [{study.confidence:.0%}],"
        f" {seeds}"
    )
    note = f"Columns: updates before the perturbation{_of(study)}. * a clear difference{_adjusted(split)}."
    return Table(title, ("layer groups", "perturbation", *map(str, steps)), rows, note, left=("perturbation",))


def _of(study: StudyRecord) -> str:
    total = updates(study)
    return "" if total is None else f", of {total}"


def _adjusted(split: str) -> str:
    return ", after Holm over all arms" if split == OOD_MACRO_MEAN else "; not adjusted for the number of arms"


def _cell(study: StudyRecord, item: Perturbed, split: str) -> str:
    found = difference(study, item, split)
    if found is None:
        return NO_VALUE
    clear = judge(found, study.confidence) not in (UNCLEAR, UNKNOWN)
    return with_interval(found.difference, found.low, found.high, sign=True) + ("*" if clear else "")
