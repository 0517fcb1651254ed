"""Tables of recorded studies of many arms, the best on the mean of the OOD sets first."""

from __future__ import annotations

from statistics import fmean

from hf_early_ood.names import ID_TEST, OOD_MACRO_MEAN
from hf_early_ood.report.layout import Table, metric_title, points, with_interval
from hf_early_ood.report.tables import first_release
from hf_early_ood.report.verdict import by_ood_mean, find_comparison, judge, win_rate_in_words
from hf_early_ood.results import ArmRun, StudyRecord


def many_arms(study: StudyRecord, folder: str) -> str:
    """Scores and paired differences from the baseline, win rates, and where the record is."""
    rows = []
    for arm in by_ood_mean(study, study.arms):
        runs = study.arms[arm]
        mean = find_comparison(study, arm, OOD_MACRO_MEAN)
        rows.append(
            (
                f"{arm} (baseline)" if arm == study.baseline else arm,
                points(fmean(value for run in runs if (value := ood_mean(run, study.metric)) is not None)),
                "" if mean is None else with_interval(mean.difference, mean.low, mean.high, sign=True),
                "" if mean is None else judge(mean, study.confidence),
                "" if mean is None or mean.p_adjusted is None else f"{max(mean.p_adjusted, 0.001):.2g}",
                points(fmean(value for run in runs if (value := id_test(run, study.metric)) is not None)),
                ", ".join(dict.fromkeys(str(first_release(run.intervention) or "-") for run in runs)),
            )
        )
    headers = ("arm", "OOD mean", f"difference [{study.confidence:.0%}]", "", "p (Holm)", "ID test", "first release")
    sets = {c.n_examples for c in study.comparisons if c.split == OOD_MACRO_MEAN}
    title = f"{metric_title(study.metric)}, percent; {len(study.seeds)} seeds, {max(sets):,} OOD examples"
    failed = [f"{arm} seed {run.seed}" for arm, runs in study.arms.items() for run in runs if run.status != "complete"]
    words = [win_rate_in_words(study, rate) for rate in study.win_rates]
    words += [f"Failed: {', '.join(failed)}."] if failed else []
    link = f"`{study.command}`, [record](benchmarks/results/{folder}/study.json)."
    return "\n\n".join([Table(title, headers, rows).markdown(), *words, link])


def ood_mean(run: ArmRun, metric: str) -> float | None:
    return run.evaluation.ood[metric].macro_mean.value if run.evaluation else None


def id_test(run: ArmRun, metric: str) -> float | None:
    return run.evaluation.splits[ID_TEST].metrics[metric].value if run.evaluation else None
