"""What each figure shows, for who cannot see it; the tables of the page have all numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from hf_early_ood.dynamics import Measurement
from hf_early_ood.names import OOD_MACRO_MEAN
from hf_early_ood.report.calibration import Reliability, over_seeds
from hf_early_ood.report.figures.dots import score
from hf_early_ood.report.figures.early import Watched
from hf_early_ood.report.figures.progress import Curve, Rates
from hf_early_ood.report.figures.tradeoff import front, higher_is_better, means, pairs
from hf_early_ood.report.layout import duration, measure_title, metric_title, points, signed
from hf_early_ood.report.reading import in_order, split_label
from hf_early_ood.report.verdict import find_comparison
from hf_early_ood.results import DecisionRecord, StageRecord, StudyRecord

_MOST = 6  # of what is spelled out


def _listed(parts: Iterable[str], most: int = _MOST) -> str:
    found = list(parts)
    rest = f" and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(found[:most]) + rest + "."


def scores(study: StudyRecord, splits: Sequence[str]) -> str:
    """Of `dots.draw_scores`."""

    def of(split: str) -> str:
        values = ((arm, score(study, arm, split)) for arm in in_order(study))
        named = [f"{arm} {points(value[0])}" if value else f"{arm} no value" for arm, value in values]
        return f"{split_label(split)}: {', '.join(named[:_MOST])}{' and others' if len(named) > _MOST else ''}"

    return f"{metric_title(study.metric)} in percent, points with intervals. {_listed(map(of, splits))}"


def differences(study: StudyRecord, splits: Sequence[str]) -> str:
    """Of `dots.draw_differences`."""
    said = []
    for split in splits:
        for arm in in_order(study):
            found = find_comparison(study, arm, split)
            if found is not None and found.difference is not None:
                interval = "" if found.low is None else f" ({signed(found.low)} to {signed(found.high)})"
                said.append(f"{split_label(split)}, {arm}: {signed(found.difference)}{interval}")
    return f"Differences from {study.baseline} in points, with intervals around a line at 0. {_listed(said)}"


def tradeoff(study: StudyRecord) -> str:
    """Of `tradeoff.draw_tradeoff`."""
    centers = means(pairs(study))
    best = front(centers, higher=higher_is_better(study))
    said = (f"{arm} at {x:.1f} and {y:.1f}" for arm, (x, y) in centers.items())
    return (
        f"Scatter plot of ID test across and the mean of the OOD sets upward, in percent: {_listed(said)} "
        f"On the Pareto front: {', '.join(best)}."
    )


def sizes(study: StudyRecord) -> str:
    """Of `sizes.draw_sizes`."""
    said = []
    for arm in study.arms:
        values = ((part, score(part, arm, OOD_MACRO_MEAN)) for part in study.by_size())
        said.append(f"{arm} {', '.join(points(value[0]) if value else 'no value' for _, value in values)}")
    named = ", ".join("all" if size is None else f"{size:,}" for size in study.sizes)
    return f"Lines over the number of training examples ({named}), mean of the OOD sets in percent: {_listed(said)}"


def languages(study: StudyRecord, spoken: Sequence[tuple[str, str]]) -> str:
    """Of `languages.draw_languages`."""
    said = []
    for split, language in spoken:
        values = ((arm, score(study, arm, split)) for arm in in_order(study))
        named = [f"{arm} {points(value[0])}" for arm, value in values if value]
        said.append(f"{language}: {', '.join(named[:_MOST])}{' and others' if len(named) > _MOST else ''}")
    return f"{metric_title(study.metric)} in percent by language. {_listed(said, 12)}"


def signals(arms: Mapping[str, Watched]) -> str:
    """Of `early.draw_signals`."""
    said = []
    for arm, item in arms.items():
        steps = sorted(set(item.decisions.values()))
        decided = f"decided after update {', '.join(map(str, steps))}" if steps else "without a decision"
        said.append(f"{arm}, {measure_title(item.measure)}, {decided}")
    return f"Lines of the signal over the updates, one a seed. {_listed(said)}"


def signal(series: Sequence[Measurement], decision: DecisionRecord | None, stages: Sequence[StageRecord]) -> str:
    """Of `signal.draw_signal`."""
    values = [item.value for item in series if item.value is not None]
    went = f" from {values[0]:.3g} to {values[-1]:.3g}" if values else " without a finite value"
    text = f"{measure_title(series[0].measure)} over updates {series[0].step} to {series[-1].step}{went}."
    text += f" Decision after update {decision.step} ({decision.reason})." if decision else " No decision."
    released = [f"{', '.join(stage.released)} from {stage.step}" for stage in stages if stage.released]
    return f"{text} Below, which layer groups train: {_listed(released, 16)}" if released else text


def totals(measures: Mapping[str, Mapping[str, Sequence[Measurement]]]) -> str:
    """Of `early.draw_totals`."""
    said = [
        f"{measure_title(measure)}, {arm}: from {series[0].value:.3g} to {series[-1].value:.3g}"
        for measure, arms in measures.items()
        for arm, series in arms.items()
    ]
    return f"Lines of each measure over the updates, one an arm. {_listed(said)}"


def group_maps(arms: Mapping[str, Sequence[Measurement]]) -> str:
    """Of `early.draw_group_maps`."""
    said = []
    for arm, series in arms.items():
        last = {group: value for group, value in series[-1].per_group.items() if value is not None}
        most = f", at update {series[-1].step} most in {max(last, key=last.__getitem__)}" if last else ""
        said.append(f"{arm}, {series[0].measure.rpartition('/')[2].replace('_', ' ')}{most}")
    return f"Heat maps, layer groups by updates. {_listed(said)}"


def losses(curves: Mapping[str, Sequence[Curve]]) -> str:
    """Of `progress.draw_losses`."""
    said = []
    for arm, seeds in curves.items():
        known = [[loss for _, loss in curve if loss is not None] for curve in seeds]
        known = [curve for curve in known if curve]
        if known:
            said.append(f"{arm} from {fmean(c[0] for c in known):.3g} to {fmean(c[-1] for c in known):.3g}")
    return f"Lines of the training loss over the updates: {_listed(said)}"


def rates(arms: Mapping[str, Rates]) -> str:
    """Of `progress.draw_rates`."""
    said = []
    for arm, item in arms.items():
        at_once = int((item.values[:, 0] == item.values[:, 0]).sum())
        said.append(f"{arm}: {at_once} of {len(item.groups)} groups train from the first update")
    return f"Heat maps of the learning rate, layer groups by updates. {_listed(said)}"


def reliability(arms: Mapping[str, Sequence[Mapping[str, Reliability]]]) -> str:
    """Of `reliability.draw_reliability`."""
    said = []
    for arm, seeds in arms.items():
        for title in ("ID test", "OOD sets"):
            found = [seed[title] for seed in seeds if title in seed]
            if found:
                mean, _, _ = over_seeds(found)
                known = mean.count > 0
                sure = float((mean.confidence[known] * mean.count[known]).sum() / mean.count.sum())
                right = float((mean.accuracy[known] * mean.count[known]).sum() / mean.count.sum())
                said.append(f"{arm}, {title}: {points(sure)} sure, {points(right)} right")
    return f"Share of right predictions by their probability, in percent; overall {_listed(said)}"


def costs(times: Mapping[str, tuple[float, float]]) -> str:
    """Of `costs.draw_costs`."""
    said = (
        f"{name} {duration(seconds)}" + (f", measuring {duration(probes)}" if probes else "")
        for name, (seconds, probes) in times.items()
    )
    return f"Bars of time: {_listed(said)}"
