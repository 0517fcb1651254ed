"""What a study found, in plain words that claim no more than its intervals do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from hf_early_ood.evaluation.effects import Pareto, pareto
from hf_early_ood.names import ID_TEST, OOD_MACRO_MEAN, OOD_WORST, is_ood
from hf_early_ood.report.layout import metric_title, p_text, points, signed, wrapped
from hf_early_ood.results import Comparison, StudyRecord, WinRateRecord

CLEARLY_BETTER = "better"
CLEARLY_WORSE = "worse"
UNCLEAR = "no clear difference"
UNKNOWN = "not comparable"


def judge(comparison: Comparison | None, confidence: float = 0.95) -> str:
    """The only words a difference may be given: the interval decides, and p where it was adjusted for several tests.

    There is no rule for few examples: the interval knows how many they are (see ``evaluation.inference``).

    Args:
        comparison: The difference.
        confidence: Of its interval: 1 minus the level of the tests.

    Example:
        >>> judge(Comparison("gradual", "accuracy", "ood_macro_mean", 0.02, -0.01, 0.05, 900, 1, "examples"))
        'no clear difference'
    """
    if comparison is None or comparison.difference is None or comparison.low is None or comparison.high is None:
        return UNKNOWN
    if not withstands(comparison, confidence) or comparison.low <= 0 <= comparison.high:
        return UNCLEAR
    return CLEARLY_BETTER if (comparison.low > 0) == comparison.higher_is_better else CLEARLY_WORSE


def withstands(comparison: Comparison, confidence: float) -> bool:
    """Whether a difference withstands the correction for several tests, or has none."""
    return comparison.p_adjusted is None or comparison.p_adjusted < 1 - confidence


def find_comparison(study: StudyRecord, arm: str, split: str, metric: str | None = None) -> Comparison | None:
    """The comparison of ``arm`` with the baseline on ``split``, in the study's metric if none is given."""
    for comparison in study.comparisons:
        if (comparison.arm, comparison.split, comparison.metric) == (arm, split, metric or study.metric):
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


@dataclass(frozen=True)
class Findings:
    """What can be said of a study: what it is, a paragraph an arm or more, and what a reader must know to weigh it."""

    about: str
    paragraphs: tuple[str, ...]
    notes: tuple[str, ...]


def findings(study: StudyRecord) -> Findings:
    """The findings of ``study``, for whoever lays them out."""
    sets = ood_sets(study)
    names = ", ".join(split.partition("/")[2] for split in sets)
    count = f"{len(sets)} OOD {'set' if len(sets) == 1 else 'sets'}"
    about = (
        f"Study '{study.name}': {len(study.arms)} arms, {_seeds(len(study.seeds))}, {_metric(study)}, "
        f"{count}{f' ({names})' if names else ''}. Baseline: {study.baseline}."
    )
    others = [arm for arm in study.arms if arm != study.baseline]
    found = (
        _grouped_verdicts(study, others) if many_arms(study) else [_arm_verdict(study, a, len(sets)) for a in others]
    )
    wins = (win_rate_in_words(study, rate) for rate in study.win_rates)
    return Findings(about, (*found, *wins), tuple(_notes(study)))


def verdict(study: StudyRecord) -> str:
    """The findings of ``study`` in lines: one paragraph an arm, then what the reader must know to weigh them."""
    found = findings(study)
    lines = wrapped(found.about)
    for paragraph in found.paragraphs:
        lines += ["", *wrapped(paragraph)]
    if found.notes:
        lines += ["", *(line for note in found.notes for line in wrapped(f"* {note}"))]
    return "\n".join(lines)


def _metric(study: StudyRecord) -> str:
    shown = (item for item in study.comparisons if (item.metric, item.split) == (study.metric, OOD_MACRO_MEAN))
    lower = any(not item.higher_is_better for item in shown)
    return f"{metric_title(study.metric)}{' (lower is better)' if lower else ''}"


def many_arms(study: StudyRecord) -> bool:
    """Whether there are too many arms for a paragraph, or a column of a table, each."""
    return len(study.arms) > 4


def by_ood_mean(study: StudyRecord, arms: Iterable[str]) -> list[str]:
    """Arms from the best to the worst on the mean of the OOD sets; those that cannot be compared last."""

    def difference(arm: str) -> float:
        found = find_comparison(study, arm, OOD_MACRO_MEAN)
        if arm == study.baseline:
            return 0.0
        return -inf if found is None or found.difference is None else found.difference * _sign(found)

    return sorted(arms, key=difference, reverse=True)


def _grouped_verdicts(study: StudyRecord, arms: Sequence[str]) -> list[str]:
    """One paragraph for all arms of which the same can be said."""
    heads = {
        CLEARLY_BETTER: f"Better than {study.baseline} out of distribution",
        CLEARLY_WORSE: f"Worse than {study.baseline} out of distribution",
        UNCLEAR: f"No clear difference from {study.baseline} out of distribution",
        UNKNOWN: f"Not comparable with {study.baseline} out of distribution",
    }
    found: dict[tuple[str, bool], list[str]] = {(word, one_run): [] for word in heads for one_run in (False, True)}
    for arm in by_ood_mean(study, arms):
        mean = find_comparison(study, arm, OOD_MACRO_MEAN)
        numbers = "" if mean is None else f" ({signed(mean.difference)}, {signed(mean.low)} to {signed(mean.high)}"
        if mean is not None and mean.p_adjusted is not None:
            numbers += f", {p_text(mean.p_adjusted)}"
        word = judge(mean, study.confidence)
        one_run = word in (CLEARLY_BETTER, CLEARLY_WORSE) and mean is not None and mean.covers == "examples"
        found[word, one_run].append(f"{arm}{numbers and numbers + ')'}")
    what = f"points on the mean of the OOD sets, {study.confidence:.0%} interval"
    if any(item.p_adjusted is not None for item in study.comparisons):
        what += ", p after Holm's correction"
    texts = [
        f"{heads[word]}{' in the one run of each' if one_run else ''}, {what}: {'; '.join(named)}."
        for (word, one_run), named in found.items()
        if named
    ]
    statements: dict[str, list[str]] = {}
    for arm in by_ood_mean(study, arms):
        outcome = pareto_of(study, arm)
        if outcome is not None:
            statements.setdefault(_pareto_text(study, arm, outcome)[:-1], []).append(arm)
    return texts + [f"{statement}: {', '.join(named)}." for statement, named in statements.items()]


def win_rate_in_words(study: StudyRecord, rate: WinRateRecord) -> str:
    """How often an arm wins, against how many others, and what the interval covers."""
    head = f"Win rate of {rate.arm} against {counted(len(rate.others), 'arm')} on the mean of the OOD sets"
    if rate.value is None:
        return f"{head}: there is no seed that all of them have finished."
    interval = "one pair says nothing of others"
    if len(rate.others) * rate.num_seeds > 1:
        interval = (
            f"{study.confidence:.0%} interval over {rate.covers.replace('controls', 'arms')} {points(rate.low)} to "
            f"{points(rate.high)}"
        )
    return (
        f"{head}: {points(rate.value)}% of {counted(len(rate.others) * rate.num_seeds, 'pair')} of runs with the same "
        f"seed ({interval}); it beats {rate.wins:g} of their means over {_seeds(rate.num_seeds)}."
    )


def _arm_verdict(study: StudyRecord, arm: str, num_sets: int) -> str:
    mean = find_comparison(study, arm, OOD_MACRO_MEAN)
    word = judge(mean, study.confidence)
    sets = "the OOD set" if num_sets == 1 else f"the mean of {num_sets} OOD sets"
    if mean is None or word == UNKNOWN:
        return f"{arm} cannot be compared with {study.baseline} out of distribution: {_missing(study, arm)}."
    size = (
        f"{signed(mean.difference)} points on {sets} ({study.confidence:.0%} interval "
        f"{signed(mean.low)} to {signed(mean.high)}{_tests(study, mean)})"
    )
    if word == UNCLEAR:
        text = f"{arm}: no clear difference from {study.baseline} out of distribution: {size}."
    else:
        where = "in this one run, out of distribution" if mean.covers == "examples" else "out of distribution"
        text = f"{arm} is {word} than {study.baseline} {where}: {size}."
    for split, label in ((OOD_WORST, "Worst OOD set"), (ID_TEST, "In distribution")):
        other = find_comparison(study, arm, split)
        if other is not None:
            word = judge(other, study.confidence)
            text += f" {label}: {word}"
            if word != UNKNOWN:
                text += f" ({signed(other.difference)}, {signed(other.low)} to {signed(other.high)})"
            text += "."
    outcome = pareto_of(study, arm)
    return text if outcome is None else f"{text} {_pareto_text(study, arm, outcome)}"


def _tests(study: StudyRecord, mean: Comparison) -> str:
    if mean.p_value is None:
        return ""
    text = f", {p_text(mean.p_value)}"
    tests = _tests_of(study, OOD_MACRO_MEAN)
    if tests > 1 and mean.p_adjusted is not None:
        text += f"; {p_text(mean.p_adjusted)} after Holm's correction for {tests} arms"
    return text


def _tests_of(study: StudyRecord, *splits: str) -> int:
    """How many tests a family has."""
    return sum(
        item.p_adjusted is not None and item.metric == study.metric and item.split in splits
        for item in study.comparisons
    )


def pareto_of(study: StudyRecord, arm: str) -> Pareto | None:
    """Whether an arm gains out of distribution without a loss in distribution; None where there is no interval."""
    at_home, mean = (find_comparison(study, arm, split) for split in (ID_TEST, OOD_MACRO_MEAN))
    if study.margin is None or at_home is None or mean is None or UNKNOWN in (judge(at_home), judge(mean)):
        return None
    return pareto(_upward(at_home), _upward(mean), margin=study.margin, significant=withstands(mean, study.confidence))


def _pareto_text(study: StudyRecord, arm: str, outcome: Pareto) -> str:
    head = "No Pareto improvement is shown"
    if outcome.improves:
        mean = find_comparison(study, arm, OOD_MACRO_MEAN)
        one_run = mean is not None and mean.covers == "examples"
        head = f"Pareto improvement{' in this one run' if one_run else ''}"
    return f"{head}: {outcome.statement[:1].lower()}{outcome.statement[1:]}"


def _sign(comparison: Comparison) -> int:
    return 1 if comparison.higher_is_better else -1


def _upward(comparison: Comparison) -> tuple[float, float]:
    """The interval, turned so that up is better."""
    low, high = sorted(_sign(comparison) * (end or 0.0) for end in (comparison.low, comparison.high))
    return low, high


def _missing(study: StudyRecord, arm: str) -> str:
    for name in (study.baseline, arm):
        runs = study.arms.get(name, ())
        if not any(run.status == "complete" for run in runs):
            return f"no run of {name} is complete"
    return "there is no interval for the difference"


def _notes(study: StudyRecord) -> list[str]:
    notes = []
    shown = [comparison for comparison in study.comparisons if comparison.metric == study.metric]
    notes += _on_coverage(study, shown)
    notes += _on_tests(study, shown)
    notes += _on_training(study)
    failed = [f"{arm} seed {run.seed}" for arm, runs in study.arms.items() for run in runs if run.status == "failed"]
    if failed:
        notes.append(f"Failed and left out: {', '.join(failed)}.")
    for arm, runs in study.arms.items():
        missing = [str(seed) for seed in study.seeds if seed not in {run.seed for run in runs}]
        if missing:
            notes.append(f"Not run yet: {arm} seed {', '.join(missing)}.")
    return notes


def _on_training(study: StudyRecord) -> list[str]:
    """What makes a run a poor example of its arm."""
    notes, constant, unreleased = [], [], []
    for arm, runs in study.arms.items():
        for run in runs:
            sets = run.evaluation.splits if run.evaluation else {}
            found = [split for split, item in sets.items() if item.only_prediction is not None]
            if found:
                names = (split.partition("/")[2] or split.replace("id_", "ID ") for split in found)
                where = "every set" if len(found) == len(sets) else ", ".join(names)
                constant.append(f"{arm} seed {run.seed} ({where})")
            if run.intervention and run.intervention.never_trained:
                unreleased.append(f"{arm} seed {run.seed} ({len(run.intervention.never_trained)})")
    if constant:
        notes.append(
            "One label is predicted for all examples of a set, as by a model that has not learned the task: "
            f"{', '.join(constant)}."
        )
    if unreleased:
        notes.append(f"Training ended with layer groups never released: {', '.join(unreleased)}.")
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
    return notes


def _on_coverage(study: StudyRecord, shown: Sequence[Comparison]) -> list[str]:
    """What another draw of examples or seeds could change: arms can have different numbers of seeds."""
    arms: dict[int, list[str]] = {}
    for arm, seeds in dict.fromkeys((item.arm, item.n_seeds) for item in shown):
        arms.setdefault(seeds, []).append(arm)
    notes = []
    for seeds, named in sorted(arms.items(), reverse=True):
        text = "The intervals" if len(arms) == 1 else f"The intervals of {', '.join(named)}"
        if seeds == 1:
            run = "one seed was run" if len(study.seeds) == 1 else "one seed was compared"
            text += f" cover the choice of test examples only, not the training seed: {run}, and another could change"
            notes.append(f"{text} the result.")
            continue
        text += f" cover the choice of test examples and the training seeds ({seeds})."
        if seeds == 2:
            text += " Of two seeds it is rough: see benchmarks/README.md for how often it holds the truth."
        notes.append(text)
    finished = {arm: {run.seed for run in runs if run.status == "complete"} for arm, runs in study.arms.items()}
    if any(finished[arm] != finished[study.baseline] for named in arms.values() for arm in named):
        notes.append(
            "An arm is compared over the seeds that it and the baseline have finished, and is compared with nothing in "
            "the others; its own mean counts all of its seeds."
        )
    return notes


def _on_tests(study: StudyRecord, shown: Sequence[Comparison]) -> list[str]:
    tests, of_sets = _tests_of(study, OOD_MACRO_MEAN), _tests_of(study, *ood_sets(study))
    if not tests:
        return [f"{len(shown)} intervals are reported; they are corrected for nothing."] if len(shown) > 3 else []
    return [
        "'Better' and 'worse' are said where the interval leaves out 0 and, after Holm's correction, p is below "
        f"{1 - study.confidence:.2g}: of the OOD mean over {counted(tests, 'test')} (one an arm), of single OOD sets "
        f"over {counted(of_sets, 'test')} (one an arm and set). Other p-values are not corrected. The worst OOD set "
        "of an arm is taken as given."
    ]


def counted(count: int, what: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "seed"), counted(2, "seed")
        ('1 seed', '2 seeds')
    """
    return f"{count} {what}{'' if count == 1 else 's'}"


def _seeds(count: int) -> str:
    return counted(count, "seed")
