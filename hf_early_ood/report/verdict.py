"""What a study found, in plain words that claim no more than its intervals do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from hf_early_ood.names import ID_TEST, OOD_MACRO_MEAN, OOD_WORST, is_ood
from hf_early_ood.report.layout import points, signed, wrapped
from hf_early_ood.results import Comparison, StudyRecord, WinRateRecord

CLEARLY_BETTER = "better"
CLEARLY_WORSE = "worse"
UNCLEAR = "no clear difference"
UNKNOWN = "not comparable"

# With fewer examples on which two arms differ, a bootstrap interval excludes 0 too easily: 5 of 5 in one direction
# have a two-sided sign test of 0.06, and an interval above 0.
FEWEST_DIFFERING = 10


def judge(comparison: Comparison | None) -> str:
    """The only words a difference may be given: the interval decides, never the difference alone.

    Example:
        >>> judge(Comparison("gradual", "accuracy", "ood_macro_mean", 0.02, -0.01, 0.05, 900, 1, "examples"))
        'no clear difference'
    """
    if comparison is None or comparison.difference is None or comparison.low is None or comparison.high is None:
        return UNKNOWN
    if comparison.n_differing is not None and comparison.n_differing < FEWEST_DIFFERING:
        return UNCLEAR
    if comparison.low > 0:
        return CLEARLY_BETTER
    if comparison.high < 0:
        return CLEARLY_WORSE
    return UNCLEAR


def find_comparison(study: StudyRecord, arm: str, split: str) -> Comparison | None:
    """The comparison of ``arm`` with the baseline on ``split`` in the study's metric."""
    for comparison in study.comparisons:
        if (comparison.arm, comparison.split, comparison.metric) == (arm, split, study.metric):
            return comparison
    return None


def ood_sets(study: StudyRecord) -> tuple[str, ...]:
    """The OOD splits of the study, in the order in which its runs list them."""
    sets: dict[str, None] = {}
    for runs in study.arms.values():
        for run in runs:
            if run.evaluation is not None:
                sets.update(dict.fromkeys(split for split in run.evaluation.splits if is_ood(split)))
    return tuple(sets)


def verdict(study: StudyRecord) -> str:
    """The findings of ``study``: one paragraph an arm, then what the reader must know to weigh them."""
    sets = ood_sets(study)
    names = ", ".join(split.partition("/")[2] for split in sets)
    count = f"{len(sets)} OOD {'set' if len(sets) == 1 else 'sets'}"
    lines = wrapped(
        f"Study '{study.name}': {len(study.arms)} arms, {_seeds(len(study.seeds))}, {study.metric}, "
        f"{count}{f' ({names})' if names else ''}. Baseline: {study.baseline}."
    )
    others = [arm for arm in study.arms if arm != study.baseline]
    findings = (
        _grouped_verdicts(study, others) if many_arms(study) else [_arm_verdict(study, a, len(sets)) for a in others]
    )
    for finding in [*findings, *(win_rate_in_words(study, rate) for rate in study.win_rates)]:
        lines += ["", *wrapped(finding)]
    notes = _notes(study)
    if notes:
        lines += ["", *(line for note in notes for line in wrapped(f"* {note}"))]
    return "\n".join(lines)


def many_arms(study: StudyRecord) -> bool:
    """Whether there are too many arms for a paragraph, or a column of a table, each."""
    return len(study.arms) > 4


def by_ood_mean(study: StudyRecord, arms: Iterable[str]) -> list[str]:
    """Arms from the best to the worst on the mean of the OOD sets; those that cannot be compared last."""

    def difference(arm: str) -> float:
        found = find_comparison(study, arm, OOD_MACRO_MEAN)
        return 0.0 if arm == study.baseline else -inf if found is None or found.difference is None else found.difference

    return sorted(arms, key=difference, reverse=True)


def _grouped_verdicts(study: StudyRecord, arms: Sequence[str]) -> list[str]:
    """One paragraph for all arms of which the same can be said."""
    heads = {
        CLEARLY_BETTER: f"Better than {study.baseline} out of distribution",
        CLEARLY_WORSE: f"Worse than {study.baseline} out of distribution",
        UNCLEAR: f"No clear difference from {study.baseline} out of distribution",
        UNKNOWN: f"Not comparable with {study.baseline} out of distribution",
    }
    found: dict[str, list[str]] = {word: [] for word in heads}
    for arm in by_ood_mean(study, arms):
        mean = find_comparison(study, arm, OOD_MACRO_MEAN)
        numbers = "" if mean is None else f" ({signed(mean.difference)}, {signed(mean.low)} to {signed(mean.high)})"
        found[judge(mean)].append(f"{arm}{numbers}")
    what = f"points on the mean of the OOD sets, {study.confidence:.0%} interval"
    return [f"{heads[word]}, {what}: {'; '.join(named)}." for word, named in found.items() if named]


def win_rate_in_words(study: StudyRecord, rate: WinRateRecord) -> str:
    """How often an arm wins, against how many others, and what the interval covers."""
    return (
        f"Win rate of {rate.arm} against {len(rate.others)} arms on the mean of the OOD sets: {points(rate.value)}% of "
        f"{len(rate.others) * rate.num_seeds} pairs of runs with the same seed ({study.confidence:.0%} interval over "
        f"{rate.covers.replace('controls', 'arms')} {points(rate.low)} to {points(rate.high)}); it beats {rate.wins:g} "
        f"of their means over {_seeds(rate.num_seeds)}."
    )


def _arm_verdict(study: StudyRecord, arm: str, num_sets: int) -> str:
    mean = find_comparison(study, arm, OOD_MACRO_MEAN)
    word = judge(mean)
    sets = "the OOD set" if num_sets == 1 else f"the mean of {num_sets} OOD sets"
    if mean is None or word == UNKNOWN:
        return f"{arm} cannot be compared with {study.baseline} out of distribution: {_missing(study, arm)}."
    size = (
        f"{signed(mean.difference)} points on {sets} ({study.confidence:.0%} interval "
        f"{signed(mean.low)} to {signed(mean.high)})"
    )
    if word == UNCLEAR:
        text = f"{arm}: no clear difference from {study.baseline} out of distribution: {size}."
    else:
        where = "in this one run, out of distribution" if mean.covers == "examples" else "out of distribution"
        text = f"{arm} is {word} than {study.baseline} {where}: {size}."
    for split, label in ((OOD_WORST, "Worst OOD set"), (ID_TEST, "In distribution")):
        other = find_comparison(study, arm, split)
        if other is not None:
            text += f" {label}: {judge(other)}"
            if judge(other) != UNKNOWN:
                text += f" ({signed(other.difference)}, {signed(other.low)} to {signed(other.high)})"
            text += "."
    return text


def _missing(study: StudyRecord, arm: str) -> str:
    for name in (study.baseline, arm):
        runs = study.arms.get(name, ())
        if not any(run.status == "complete" for run in runs):
            return f"no run of {name} is complete"
    return "there is no interval for the difference"


def _notes(study: StudyRecord) -> list[str]:
    notes = []
    shown = [comparison for comparison in study.comparisons if comparison.metric == study.metric]
    if any(comparison.covers == "examples" for comparison in shown):
        seeds = min(comparison.n_seeds for comparison in shown if comparison.covers == "examples")
        text = "The intervals cover the choice of test examples only, not the training seed: "
        notes.append(
            text + ("one seed was run, and another could change the result." if seeds == 1 else "read them as such.")
        )
    if any(comparison.covers == "examples and seeds" for comparison in shown):
        seeds = min(comparison.n_seeds for comparison in shown if comparison.covers == "examples and seeds")
        few = " So few seeds make a rough interval." if seeds < 5 else ""
        notes.append(f"The intervals cover the choice of test examples and the training seeds ({seeds}).{few}")
    if len(shown) > 3:
        expected = len(shown) * (1 - study.confidence)
        notes.append(
            f"{len(shown)} intervals are reported; about {expected:.1f} of them would exclude 0 by chance alone."
        )
    early = [
        f"{arm} seed {run.seed}"
        for arm, runs in study.arms.items()
        for run in runs
        if run.intervention and run.intervention.decision and run.intervention.decision.at_first_chance
    ]
    if early:
        notes.append(
            "The signal was stable at the first measurement that could decide, and may not have begun to move: "
            f"{', '.join(early)}."
        )
    failed = [f"{arm} seed {run.seed}" for arm, runs in study.arms.items() for run in runs if run.status == "failed"]
    if failed:
        notes.append(f"Failed and left out: {', '.join(failed)}.")
    for arm, runs in study.arms.items():
        missing = [str(seed) for seed in study.seeds if seed not in {run.seed for run in runs}]
        if missing:
            notes.append(f"Not run yet: {arm} seed {', '.join(missing)}.")
    return notes


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
