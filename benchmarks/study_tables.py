"""Tables of recorded studies: of two arms set by set, of many with the best on the mean of the OOD sets first."""

from __future__ import annotations

from statistics import fmean

from hf_early_ood.names import ID_TEST, OOD_MACRO_MEAN, OOD_WORST
from hf_early_ood.report.beside import study_depth
from hf_early_ood.report.layout import Table, metric_title, points, signed, with_interval
from hf_early_ood.report.reading import split_label
from hf_early_ood.report.replaceable import SPLITS, replaceable_table
from hf_early_ood.report.tables import first_release
from hf_early_ood.report.verdict import by_ood_mean, find_comparison, judge, ood_sets, win_rate_in_words
from hf_early_ood.results import ArmRun, StudyRecord


def many_arms(study: StudyRecord, folder: str) -> str:
    """Scores and paired differences from the baseline, win rates, and where the record is."""
    rows, releases = [], False
    for arm in by_ood_mean(study, study.arms):
        runs = study.arms[arm]
        mean = find_comparison(study, arm, OOD_MACRO_MEAN)
        first = [first_release(run.intervention) for run in runs]
        releases |= any(first)
        rows.append(
            (
                f"{arm} (baseline)" if arm == study.baseline else arm,
                points(
                    fmean(value for run in runs if (value := _score(run, study.metric, OOD_MACRO_MEAN)) is not None)
                ),
                "" if mean is None else with_interval(mean.difference, mean.low, mean.high, sign=True),
                "" if mean is None else judge(mean, study.confidence),
                "" if mean is None or mean.p_adjusted is None else f"{max(mean.p_adjusted, 0.001):.2g}",
                points(_mean(study, arm, ID_TEST)),
                ", ".join(dict.fromkeys(str(step or "-") for step in first)),
            )
        )
    headers = ("arm", "OOD mean", f"difference [{study.confidence:.0%}]", "", "p (Holm)", "ID test", "first release")
    if not releases:
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    sets = {c.n_examples for c in study.comparisons if c.split == OOD_MACRO_MEAN}
    seeds = "1 seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
    title = f"{metric_title(study.metric)}, percent; {seeds}, {max(sets):,} OOD examples"
    failed = [f"{arm} seed {run.seed}" for arm, runs in study.arms.items() for run in runs if run.status != "complete"]
    words = [win_rate_in_words(study, rate) for rate in study.win_rates]
    words += [f"Failed: {', '.join(failed)}."] if failed else []
    link = f"`{study.command}`, [record](benchmarks/results/{folder}/study.json)."
    return "\n\n".join([Table(title, headers, rows).markdown(), *words, link])


def depths(study: StudyRecord, folder: str) -> str:
    """Prediction depth of every arm, beside its scores out of distribution in one sentence."""
    scores = ", ".join(f"{arm} {points(_mean(study, arm, OOD_MACRO_MEAN))}" for arm in study.arms)
    words = f"{metric_title(study.metric)} on the mean of the OOD sets, percent: {scores}. {len(study.seeds)} seeds."
    (table,) = study_depth(study)
    link = f"`{study.command}`, [record](benchmarks/results/{folder}/study.json)."
    return "\n\n".join([table.markdown(), words, link])


def replaceable(study: StudyRecord, folder: str) -> str:
    """What perturbing layer groups costs, by update, in distribution and out of it."""
    tables = [replaceable_table(study, split).markdown() for split in SPLITS]
    examples = {item.n_examples for item in study.comparisons if item.split == OOD_MACRO_MEAN}
    link = f"`{study.command}`, [record](benchmarks/results/{folder}/study.json); {max(examples)} OOD examples."
    return "\n\n".join([*tables, link])


def two_arms(study: StudyRecord, folder: str, title: str) -> str:
    """Mean over seeds with the range of seeds, and the paired difference, for every set.

    Args:
        study: The baseline and one other arm.
        folder: Where the record is.
        title: Data and model.
    """
    (arm,) = (name for name in study.arms if name != study.baseline)
    rows = []
    for split in (ID_TEST, *ood_sets(study), OOD_MACRO_MEAN, OOD_WORST):
        found = find_comparison(study, arm, split)
        if found is None:
            continue
        scores = [_over_seeds(study, name, split) for name in (study.baseline, arm)]
        difference = with_interval(found.difference, found.low, found.high, sign=True)
        tested = split != OOD_WORST and split != ID_TEST
        p = "" if not tested or found.p_adjusted is None else f"{max(found.p_adjusted, 0.001):.2g}"
        rows.append((split_label(split), *scores, difference, judge(found, study.confidence), p))
    headers = ("set", study.baseline, arm, f"difference [{study.confidence:.0%}]", "", "p (Holm)")
    mean = find_comparison(study, arm, OOD_MACRO_MEAN)
    size = "" if mean is None else f" ({signed(mean.difference)} points on the mean of the OOD sets)"
    words = (
        f"Means over {len(study.seeds)} seeds, with the lowest and the highest; intervals over test examples and"
        f" seeds. On this data set: **{judge(mean, study.confidence)}**{size}; {_by_seed(study, arm)}."
    )
    link = f"`{study.command}`, [record](benchmarks/results/{folder}/study.json)."
    table = Table(f"{title}; {metric_title(study.metric)}, percent", headers, rows, left=("",))
    return "\n\n".join([table.markdown(), f"{words} {_layers(study, arm)}", link])


def in_a_sentence(study: StudyRecord, folder: str, title: str) -> str:
    """What `two_arms` says, without its table: ID test, mean of the OOD sets, layers."""
    (arm,) = (name for name in study.arms if name != study.baseline)
    parts = []
    for split, words in ((ID_TEST, "ID test"), (OOD_MACRO_MEAN, "mean of the OOD sets")):
        found = find_comparison(study, arm, split)
        if found is None:
            continue
        change = with_interval(found.difference, found.low, found.high, sign=True)
        level = points(_mean(study, study.baseline, split))
        parts.append(
            f"{words} {level} with {study.baseline}, {change} with {arm} (**{judge(found, study.confidence)}**)"
        )
    return (
        f"{title}, {metric_title(study.metric)}, {len(study.seeds)} seeds: {'; '.join(parts)}; {_by_seed(study, arm)}."
        f" {_layers(study, arm)}\n\n`{study.command}`, [record](benchmarks/results/{folder}/study.json)."
    )


def _by_seed(study: StudyRecord, arm: str) -> str:
    """How far single seeds are apart."""
    pairs = zip(_scores(study, arm, OOD_MACRO_MEAN), _scores(study, study.baseline, OOD_MACRO_MEAN), strict=True)
    differences = [ours - theirs for ours, theirs in pairs]
    return f"of single seeds, {signed(min(differences))} to {signed(max(differences))}"


def _layers(study: StudyRecord, arm: str) -> str:
    runs = [run for run in study.arms[arm] if run.intervention]
    decisions = [run.intervention.decision for run in runs if run.intervention and run.intervention.decision]
    releases = sorted({first_release(run.intervention) or 0 for run in runs})
    at_first = sum(decision.at_first_chance for decision in decisions)
    words = (
        f"Layers were released from update {', '.join(map(str, releases))} of {runs[0].updates} on; the signal was"
        f" stable at the first measurement that could decide in {at_first} of {len(decisions)} runs."
    )
    probes = sum(run.probe_seconds or 0.0 for run in runs)
    rest = sum(run.seconds or 0.0 for run in runs) - probes
    return f"{words} Measuring took {probes / rest:.1%} of the rest of training."


def _over_seeds(study: StudyRecord, arm: str, split: str) -> str:
    values = _scores(study, arm, split)
    return with_interval(fmean(values), min(values), max(values))


def _mean(study: StudyRecord, arm: str, split: str) -> float:
    return fmean(_scores(study, arm, split))


def _scores(study: StudyRecord, arm: str, split: str) -> list[float]:
    values = [_score(run, study.metric, split) for run in study.arms[arm]]
    return [value for value in values if value is not None]


def _score(run: ArmRun, metric: str, split: str) -> float | None:
    if run.evaluation is None:
        return None
    if split == OOD_MACRO_MEAN:
        return run.evaluation.ood[metric].macro_mean.value
    if split == OOD_WORST:
        return run.evaluation.ood[metric].worst.value
    return run.evaluation.splits[split].metrics[metric].value
