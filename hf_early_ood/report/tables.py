"""Tables of a run and of a study. They read records and never see a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from hf_early_ood.names import AUTOFREEZE, ID_TEST, ID_VALIDATION, LAST_UPDATE, LISA, OOD_MACRO_MEAN, OOD_WORST, is_ood
from hf_early_ood.report.layout import NO_VALUE, Table, duration, points, share, signed, with_interval
from hf_early_ood.report.verdict import by_ood_mean, find_comparison, judge, many_arms, verdict
from hf_early_ood.results import (
    ArmRun,
    Comparison,
    EvaluationRecord,
    InterventionRecord,
    MetricValue,
    RunRecord,
    StudyRecord,
)

_LABELS = {
    ID_VALIDATION: "ID validation",
    ID_TEST: "ID test",
    OOD_MACRO_MEAN: "OOD mean",
    OOD_WORST: "OOD worst set",
}


def split_label(split: str) -> str:
    """What a reader calls a split or a summary.

    Example:
        >>> split_label("ood/movie"), split_label("id_test")
        ('OOD movie', 'ID test')
    """
    return f"OOD {_set_name(split)}" if is_ood(split) else _LABELS.get(split, split)


def _set_name(split: str) -> str:
    return split.partition("/")[2] if is_ood(split) else split


def study_report(study: StudyRecord) -> str:
    """The verdict in words, then the tables, for each size; as plain text of at most 100 columns."""
    parts = [[verdict(part), *(table.text() for table in study_tables(part))] for part in study.by_size()]
    return "\n\n\n".join("\n\n".join(part) for part in parts) + "\n"


def study_markdown(study: StudyRecord) -> str:
    """The same for a README or a model card."""
    parts = [[verdict(part), *(table.markdown() for table in study_tables(part))] for part in study.by_size()]
    return "\n\n".join("\n\n".join(part) for part in parts) + "\n"


def run_table(record: RunRecord, *, markdown: bool = False) -> str:
    """Scores, layers and costs of one run.

    Args:
        record: The run.
        markdown: Markdown in place of plain text.
    """
    head = f"Run '{record.arm}', seed {record.seed}: {record.status}."
    if record.model is not None:
        head += f" {record.model.name}, {record.model.num_parameters:,} parameters."
    if record.error is not None:
        head += f"\nError: {record.error}"
    tables = []
    if record.evaluation is not None:
        tables.append(_run_scores(record.evaluation))
    if record.intervention is not None:
        tables.append(_run_layers(record.intervention))
    tables.append(_run_costs(record))
    return "\n\n".join([head, *(table.markdown() if markdown else table.text() for table in tables)]) + "\n"


def study_tables(study: StudyRecord) -> list[Table]:
    """Scores, differences from the baseline, sets, layers and costs, and the single runs."""
    return [_summary(study), _differences(study), _sets(study), _layers_and_costs(study), _runs(study)]


def why(intervention: InterventionRecord | None) -> str:
    """Why layers were released when they were."""
    if intervention is None or intervention.method == "standard":
        return NO_VALUE
    if intervention.method in (LISA, AUTOFREEZE):
        return "drawn" if intervention.method == LISA else "gradients settled"
    if intervention.decision is None:
        return "set in the configuration"
    if intervention.decision.reason != "stable":
        return "fallback: not stable in time"
    return "signal stable" + (" at first chance" if intervention.decision.at_first_chance else "")


def first_release(intervention: InterventionRecord | None) -> int | None:
    """Completed updates at the first release; None where there was none."""
    steps = [s.step for s in intervention.stages if s.stage > 0 and s.released] if intervention else []
    return min(steps) if steps else None


def _complete(study: StudyRecord, arm: str) -> list[ArmRun]:
    return [run for run in study.arms[arm] if run.status == "complete" and run.evaluation is not None]


def _evaluations(study: StudyRecord, arm: str) -> list[EvaluationRecord]:
    return [run.evaluation for run in _complete(study, arm) if run.evaluation is not None]


def _over_seeds(values: Sequence[MetricValue]) -> str:
    """Mean with the lowest and highest seed; for a single seed the number with its own interval."""
    numbers = [value.value for value in values if value.value is not None]
    if not numbers or len(numbers) < len(values):
        return NO_VALUE
    if len(values) == 1:
        return with_interval(values[0].value, values[0].low, values[0].high)
    return with_interval(fmean(numbers), min(numbers), max(numbers))


def _brackets(study: StudyRecord) -> str:
    if any(len(_complete(study, arm)) > 1 for arm in study.arms):
        return "Mean over seeds; in brackets the lowest and the highest seed."
    return f"In brackets the {study.confidence:.0%} interval over test examples."


def _split_values(study: StudyRecord, arm: str, split: str) -> list[MetricValue]:
    evaluations = [evaluation.splits.get(split) for evaluation in _evaluations(study, arm)]
    return [item.metrics[study.metric] for item in evaluations if item is not None and study.metric in item.metrics]


def _summary(study: StudyRecord) -> Table:
    rows = []
    for arm in _in_order(study):
        summaries = [item.ood[study.metric] for item in _evaluations(study, arm) if study.metric in item.ood]
        means = _over_seeds([summary.macro_mean for summary in summaries])
        worst = [summary.worst.value for summary in summaries if summary.worst.value is not None]
        sets = sorted({_set_name(summary.worst.set) for summary in summaries})
        gaps = [gap.value for summary in summaries if (gap := summary.gap_to_id) and gap.value is not None]
        rows.append(
            (
                f"{arm} (baseline)" if arm == study.baseline else arm,
                str(len(_complete(study, arm))),
                means,
                f"{points(fmean(worst))} ({', '.join(sets)})" if worst else NO_VALUE,
                _over_seeds(_split_values(study, arm, ID_TEST)),
                signed(fmean(gaps)) if gaps else NO_VALUE,
            )
        )
    return Table(
        f"{study.metric}, percent",
        ("arm", "seeds", "OOD mean", "OOD worst set", "ID test", "ID - OOD mean"),
        rows,
        _brackets(study),
    )


def _in_order(study: StudyRecord) -> list[str]:
    """As in the configuration; where they are many, the best first."""
    return by_ood_mean(study, study.arms) if many_arms(study) else list(study.arms)


def _differences(study: StudyRecord) -> Table:
    others = [arm for arm in _in_order(study) if arm != study.baseline]
    splits = list(dict.fromkeys(item.split for item in study.comparisons if item.metric == study.metric))
    order = {OOD_MACRO_MEAN: 0, OOD_WORST: 1, ID_TEST: 3, ID_VALIDATION: 4}
    splits.sort(key=lambda split: order.get(split, 2))
    title = f"Difference from {study.baseline}, percent points [{study.confidence:.0%} interval, paired]"
    note = None if splits else "There is no comparison yet."
    if many_arms(study):
        sizes = {item.split: item.n_examples for item in study.comparisons if item.metric == study.metric}
        headers = [f"{split_label(split)} (n={sizes[split]})" for split in splits]
        rows = [(arm, *(_difference(find_comparison(study, arm, split)) for split in splits)) for arm in others]
        return Table(title, ("arm", *headers), rows, note)
    rows = []
    for split in splits:
        found = [find_comparison(study, arm, split) for arm in others]
        counts = {item.n_examples for item in found if item is not None}
        seeds = {item.n_seeds for item in found if item is not None}
        rows.append((split_label(split), _listed(counts), _listed(seeds), *map(_difference, found)))
    return Table(title, ("set", "examples", "seeds", *others), rows, note)


def _difference(item: Comparison | None) -> str:
    return (
        NO_VALUE if item is None else f"{with_interval(item.difference, item.low, item.high, sign=True)} {judge(item)}"
    )


def _sets(study: StudyRecord) -> Table:
    splits: dict[str, set[int]] = {}
    for arm in study.arms:
        for evaluation in _evaluations(study, arm):
            for split, item in evaluation.splits.items():
                splits.setdefault(split, set()).add(item.n)
    ordered = sorted(splits, key=lambda split: (is_ood(split), split != ID_TEST))
    title, arms = f"Each set: {study.metric}, percent", _in_order(study)
    scores = {arm: [_over_seeds(_split_values(study, arm, split)) for split in ordered] for arm in arms}
    if many_arms(study):
        headers = [f"{split_label(split)} (n={_listed(splits[split])})" for split in ordered]
        return Table(title, ("arm", *headers), [(arm, *scores[arm]) for arm in arms], _brackets(study))
    rows = [
        (split_label(split), _listed(splits[split]), *(scores[arm][column] for arm in arms))
        for column, split in enumerate(ordered)
    ]
    return Table(title, ("set", "examples", *arms), rows, _brackets(study))


def _layers_and_costs(study: StudyRecord) -> Table:
    rows = []
    for arm in study.arms:
        runs = _complete(study, arm)
        seconds = [run.seconds for run in runs if run.seconds is not None]
        probes = [run.probe_seconds for run in runs if run.probe_seconds is not None]
        time, probe_time = fmean(seconds) if seconds else None, fmean(probes) if probes else None
        steps = [first_release(run.intervention) for run in runs]
        reasons = dict.fromkeys(why(run.intervention) for run in runs)
        rows.append(
            (
                arm,
                ", ".join(NO_VALUE if step is None else str(step) for step in steps) if any(steps) else NO_VALUE,
                "; ".join(reasons) or NO_VALUE,
                _listed({run.updates for run in runs if run.updates is not None}),
                duration(time),
                duration(probe_time),
                share(probe_time, time),
            )
        )
    return Table(
        "Layers and time",
        ("arm", "first release", "why", "updates", "training", "probes", "of training"),
        rows,
        "First release: completed updates, one number a seed; - where all layers train from the start. Times: "
        "mean over seeds, probes included in training." + _chosen_weights(study),
        left=("why",),
    )


def _chosen_weights(study: StudyRecord) -> str:
    """Which weights the scores belong to, for the arms where they are not those of the last update."""
    notes = ""
    for arm in study.arms:
        ways = dict.fromkeys(evaluation.selected_by for evaluation in _evaluations(study, arm))
        if set(ways) - {LAST_UPDATE}:
            notes += f" Weights of {arm} chosen by: {'; '.join(ways)}."
    return notes


def _runs(study: StudyRecord) -> Table:
    rows = []
    for arm, runs in study.arms.items():
        for run in runs:
            evaluation = run.evaluation
            summary = evaluation.ood.get(study.metric) if evaluation else None
            id_test = evaluation.splits.get(ID_TEST) if evaluation else None
            id_value = id_test.metrics.get(study.metric) if id_test else None
            rows.append(
                (
                    f"{arm} seed {run.seed}",
                    points(summary.macro_mean.value if summary else None),
                    points(summary.worst.value if summary else None),
                    points(id_value.value if id_value else None),
                    duration(run.seconds),
                    run.status if run.error is None else f"{run.status}: {run.error}",
                )
            )
    return Table("Runs", ("run", "OOD mean", "OOD worst set", "ID test", "training", "status"), rows, left=("status",))


def _run_scores(evaluation: EvaluationRecord) -> Table:
    metrics = list(dict.fromkeys(name for item in evaluation.splits.values() for name in item.metrics))

    def cells(value: Callable[[str], MetricValue | None]) -> list[str]:
        found = [value(metric) for metric in metrics]
        return [NO_VALUE if item is None else with_interval(item.value, item.low, item.high) for item in found]

    rows = [(split_label(split), str(item.n), *cells(item.metrics.get)) for split, item in evaluation.splits.items()]
    if evaluation.ood:
        ood = evaluation.ood
        worst = [
            f"{points(ood[metric].worst.value)} ({_set_name(ood[metric].worst.set)})" if metric in ood else NO_VALUE
            for metric in metrics
        ]
        found_gaps = [ood[metric].gap_to_id if metric in ood else None for metric in metrics]
        gaps = [NO_VALUE if gap is None else signed(gap.value) for gap in found_gaps]
        rows.append(("OOD mean", "", *cells(lambda metric: ood[metric].macro_mean if metric in ood else None)))
        rows.append(("OOD worst set", "", *worst))
        rows.append(("ID test - OOD mean", "", *gaps))
    notes = [f"{split_label(split)}: {note}" for split, item in evaluation.splits.items() for note in item.notes]
    return Table(
        "Scores, percent",
        ("set", "examples", *metrics),
        rows,
        " ".join(
            [
                f"In brackets the {evaluation.confidence:.0%} interval over test examples. Weights chosen by: "
                f"{evaluation.selected_by}.",
                *notes,
            ]
        ),
    )


def _run_layers(intervention: InterventionRecord) -> Table:
    columns, stages = ["stage", "from update", "trainable parameters", "released"], intervention.stages
    rows = [[str(s.stage), str(s.step), f"{s.trainable_parameters:,}", ", ".join(s.released)] for s in stages]
    if any(stage.frozen for stage in stages):
        columns.append("frozen")
        rows = [[*row, ", ".join(stage.frozen)] for row, stage in zip(rows, stages, strict=True)]
    note = f"Method: {' + '.join([intervention.method, *intervention.also])}."
    if intervention.decision is not None:
        note += f" First release decided after update {intervention.decision.step}: {why(intervention)}."
    return Table("Layers", columns, rows, note, ("released", "frozen"))


def _run_costs(record: RunRecord) -> Table:
    whole = record.training.seconds if record.training else None
    rows = [(phase, duration(seconds), "") for phase, seconds in record.timing.items()]
    for measure, probe in record.probes.items():
        rows.append((f"{measure} ({probe.count} measurements)", duration(probe.seconds), share(probe.seconds, whole)))
    return Table("Time", ("what", "time", "of training"), rows, None if rows else "No times were recorded.")


def _listed(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or NO_VALUE
