"""What the series of bench_random_labels.py say, in numbers and in words. No model is seen here."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

STANDARD, UNFREEZING, HEAD_ONLY = ARMS = ("standard", "gradual_unfreezing", "head_only")
REAL, RANDOM = LABELS = ("real", "random")
WINDOW = 20  # updates: the first ones, before anything is released, and the last ones
WINDOWS = START, EARLY, LATE = ("update 0", f"updates 1 to {WINDOW}", f"last {WINDOW} updates")


@dataclass(frozen=True)
class Curve:
    """The series of one run.

    Attributes:
        steps: Completed updates at each measurement.
        trace: Layer group -> trace of its parameters at each measurement, whether they trained or not.
        trainable: Groups that trained in the update before each measurement (in the first update, at 0).
        parameters: Layer group -> number of its parameters.
    """

    labels: str
    arm: str
    seed: int
    steps: Sequence[int]
    trace: Mapping[str, Sequence[float]]
    trainable: Sequence[Sequence[str]]
    parameters: Mapping[str, int]
    releases: Mapping[str, int]

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> Curve:
        """From the record of a run."""
        return cls(**{key: run[key] for key in cls.__dataclass_fields__})

    def trains(self, step: int) -> Sequence[str]:
        """Groups that trained when ``step`` was measured; a release that is due at ``step`` comes after it."""
        return self.trainable[self.steps.index(step)]

    def total(self, step: int, groups: Sequence[str]) -> float:
        """Trace of the parameters of some groups."""
        index = self.steps.index(step)
        return math.fsum(self.trace[group][index] for group in groups)

    def per_parameter(self, step: int, groups: Sequence[str]) -> float:
        """The same, divided by their number."""
        return self.total(step, groups) / sum(self.parameters[group] for group in groups)

    def next(self, step: int) -> int:
        """The measurement after that of ``step``."""
        return self.steps[self.steps.index(step) + 1]


View = Callable[[Curve, int], float]
Value = Callable[[Curve, int, Sequence[str]], float]
PER_PARAMETER, ALL = "what trains, per parameter", "all parameters, total"
VIEWS: dict[str, View] = {
    PER_PARAMETER: lambda curve, step: curve.per_parameter(step, curve.trains(step)),
    "what trains, total": lambda curve, step: curve.total(step, curve.trains(step)),
    ALL: lambda curve, step: curve.total(step, list(curve.trace)),
    "head, total": lambda curve, step: curve.total(step, ["head"]),
}


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers behind the three questions; ratios are paired by seed."""
    curves = {(run["labels"], run["arm"], run["seed"]): Curve.of(run) for run in runs}
    seeds, steps = sorted({run["seed"] for run in runs}), runs[0]["steps"]
    windows = {
        START: [0],
        EARLY: [step for step in steps if 0 < step <= WINDOW],
        LATE: [step for step in steps if step > steps[-1] - WINDOW],
    }

    def compared(labels: str, arm: str, other_labels: str, other_arm: str) -> dict[str, Any]:
        def means(labels: str, arm: str, value: View, window: Sequence[int]) -> list[float]:
            return [fmean(value(curves[labels, arm, seed], step) for step in window) for seed in seeds]

        return {
            view: {
                name: paired(means(labels, arm, value, window), means(other_labels, other_arm, value, window))
                for name, window in windows.items()
            }
            for view, value in VIEWS.items()
        }

    return {
        "withheld": {
            labels: {arm: compared(labels, arm, labels, STANDARD) for arm in (UNFREEZING, HEAD_ONLY)}
            for labels in LABELS
        },
        "released": {
            labels: releases(*([curves[labels, arm, seed] for seed in seeds] for arm in ARMS)) for labels in LABELS
        },
        "random_against_real": {arm: compared(RANDOM, arm, REAL, arm) for arm in ARMS},
    }


def paired(values: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Ratios and differences, seed by seed; the mean ratio is the geometric one.

    Example:
        >>> paired([2.0, 8.0], [1.0, 1.0])
        {'values': [2.0, 8.0], 'baseline': [1.0, 1.0], 'ratios': [2.0, 8.0], 'ratio': 4.0, 'difference': 4.0}
    """
    ratios = [value / base for value, base in zip(values, baseline, strict=True)]
    return {
        "values": list(values),
        "baseline": list(baseline),
        "ratios": ratios,
        "ratio": math.exp(fmean(map(math.log, ratios))),
        "difference": fmean(values) - fmean(baseline),
    }


def releases(
    standard: Sequence[Curve], unfreezing: Sequence[Curve], head_only: Sequence[Curve]
) -> list[dict[str, Any]]:
    """Every release, after / before: what is bookkeeping (the weights are the same) and what training did.

    Before is the last measurement without the group, after is the next one, later is `WINDOW` updates after that of
    before.
    """

    def change(
        curves: Sequence[Curve], value: Value, to: tuple[int, Sequence[str]], since: tuple[int, Sequence[str]]
    ) -> dict[str, Any]:
        return paired([value(curve, *to) for curve in curves], [value(curve, *since) for curve in curves])

    some, found = unfreezing[0], []
    for group, step in some.releases.items():
        if step == 0 or step + WINDOW > some.steps[-1]:
            continue
        after, later = some.next(step), step + WINDOW
        old, new, every = some.trains(step), some.trains(after), list(some.trace)

        found.append(
            {
                "group": group,
                "step": step,
                "after": after,
                "later": later,
                # As the paper counts, and how much of it is there without any update in between.
                "per_parameter": change(unfreezing, Curve.per_parameter, (after, new), (step, old)),
                "per_parameter_same_weights": change(unfreezing, Curve.per_parameter, (step, new), (step, old)),
                "total": change(unfreezing, Curve.total, (after, new), (step, old)),
                "total_same_weights": change(unfreezing, Curve.total, (step, new), (step, old)),
                # On equal terms: the same parameters before and after.
                "same_parameters": change(unfreezing, Curve.total, (after, old), (step, old)),
                "all": change(unfreezing, Curve.total, (after, every), (step, every)),
                "all_later": change(unfreezing, Curve.total, (later, every), (step, every)),
                # Without a release.
                "all_standard": change(standard, Curve.total, (after, every), (step, every)),
                "all_standard_later": change(standard, Curve.total, (later, every), (step, every)),
                "all_head_only": change(head_only, Curve.total, (after, every), (step, every)),
                "all_head_only_later": change(head_only, Curve.total, (later, every), (step, every)),
            }
        )
    return found


def headline(found: Mapping[str, Any]) -> str:
    """What the runs have in common, in a line for each question."""

    def direction(values: Iterable[Mapping[str, Any]], up: str, down: str) -> str:
        ratios = [ratio for each in values for ratio in each["ratios"]]
        return up if min(ratios) > 1 else down if max(ratios) < 1 else "mixed (by run)"

    level = {
        view: direction((found["withheld"][labels][UNFREEZING][view][EARLY] for labels in LABELS), "higher", "lower")
        for view in (PER_PARAMETER, ALL)
    }
    release = {
        column: direction((each for labels in LABELS for each in first(found, labels, column)), "rises", "falls")
        for column in ("per_parameter", "all")
        if first(found, REAL, column)
    }
    text = f"Layers withheld: trace {level[PER_PARAMETER]} per trainable parameter, {level[ALL]} over the whole model."
    if release:
        text += (
            f"\nFirst release: it {release['per_parameter']} per trainable parameter, {release['all']} over the model."
        )
    end = direction([found["random_against_real"][STANDARD][ALL][LATE]], "higher", "lower")
    return f"{text}\nRandom labels, end of standard fine-tuning: trace {end} over the whole model."


def note(found: Mapping[str, Any], view: str, labels: str) -> str:
    """The numbers of one panel, in two lines."""
    level = {name: rounded(values["ratio"]) for name, values in found["withheld"][labels][UNFREEZING][view].items()}
    text = f"{EARLY}: {level[EARLY]} x standard (at 0: {level[START]} x)"
    column, other, what = {
        PER_PARAMETER: ("per_parameter", "per_parameter_same_weights", "same weights"),
        ALL: ("all", "all_head_only", "head only instead"),
    }[view]
    for after, before in zip(first(found, labels, column), first(found, labels, other), strict=True):
        text += f"\nfirst release: x {rounded(after['ratio'])} ({what}: x {rounded(before['ratio'])})"
    return text


def first(found: Mapping[str, Any], labels: str, column: str) -> list[dict[str, Any]]:
    """One number about the first release; none if the runs were too short for it."""
    return [release[column] for release in found["released"][labels][:1]]


def rounded(value: float) -> str:
    """Two digits, and no exponent.

    Example:
        >>> rounded(137.2), rounded(1.04), rounded(0.7062)
        ('137', '1.0', '0.71')
    """
    return f"{value:.0f}" if value >= 9.95 else f"{value:.{max(1, 1 - math.floor(math.log10(value)))}f}"


def markdown(record: Mapping[str, Any]) -> str:
    """The numbers of the record as the README.md next to it."""
    runs, found, setting = record["runs"], record["summary"], record["setting"]
    first = next(run for run in runs if run["arm"] == UNFREEZING)
    interval = min(step for step in first["releases"].values() if step)
    lines = [
        "# The Fisher trace while layers are withheld and released, with true and with random labels",
        "",
        "![Fisher trace by arm, real labels and random labels](random_labels.png)",
        "",
        f"`{record['environment']['command']}`, [record](random_labels.json) with every series. {len(setting['seeds'])}"
        f" seeds; {first['updates']} updates with the model, the data and the training of `{setting['recipe']}`; random"
        " labels are the training labels permuted, so that there are as many of each as before"
        f" ({fmean(run['labels_changed'] for run in runs if run['labels'] == RANDOM):.0%} of the examples get another"
        " one). Gradual unfreezing is that of the recipe: the head, then one more group every"
        f" {interval} updates; the interval is the recipe's and was not chosen here.",
        "",
        "tr F = E_x E_{y~p(.|x)} ||grad log p(y|x)||^2, the expectation over both classes, in eval mode, on the same"
        f" {setting['probe_examples']} training texts in every run, every {setting['every']} updates. Liu & Gurevych"
        " 2024 (arXiv 2403.15210) divide the trace of what trains by the"
        " number of parameters that train. That number changes at a release and differs between arms, so that this"
        " quantity moves without any training; the trace of all parameters does not. Both are given, and at"
        ' "update 0" and "same weights" what is bookkeeping. Ratios are paired by seed: geometric mean [lowest, highest'
        " seed].",
        "",
        "Two settings were changed after the first curves had been seen (real labels, seed 1), to lower noise and time:"
        " the expectation over labels instead of one drawn label (last section), and a measurement every 10 updates"
        " instead of 5.",
        "",
        "## Withheld layers against standard fine-tuning",
        "",
        f"| labels | arm | trace of | {' | '.join(WINDOWS)} |",
        "|---|---|---|" + "---|" * len(WINDOWS),
    ]
    for labels in LABELS:
        for arm in (UNFREEZING, HEAD_ONLY):
            for view, values in found["withheld"][labels][arm].items():
                cells = " | ".join(spread(values[window]) for window in WINDOWS)
                lines.append(f"| {labels} | {words(arm)} | {view} | {cells} |")
    lines += [
        "",
        "## Released layers: after the release / before it",
        "",
        f"{setting['every']} updates apart, or none (same weights). The last two columns are the"
        " same updates without a release: standard fine-tuning, and training of the head only (the same run up to the"
        " first release).",
        "",
        "| labels | released | after update | what trains, per parameter | same weights | what trained before |"
        " all parameters | standard: all | head only: all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    columns = ("per_parameter", "per_parameter_same_weights", "same_parameters", "all", "all_standard", "all_head_only")
    for labels in LABELS:
        for release in found["released"][labels]:
            cells = " | ".join(spread(release[column]) for column in columns)
            lines.append(f"| {labels} | {release['group']} | {release['step']} | {cells} |")
    lines += [
        "",
        "## Random labels against real ones",
        "",
        f"| arm | trace of | {' | '.join(WINDOWS)} |",
        "|---|---|" + "---|" * len(WINDOWS),
    ]
    for arm in ARMS:
        for view in (PER_PARAMETER, ALL):
            values = found["random_against_real"][arm][view]
            cells = " | ".join(spread(values[window]) for window in WINDOWS)
            lines.append(f"| {words(arm)} | {view} | {cells} |")
    lines += [
        "",
        "## What was learned",
        "",
        "Knowing only how frequent each label is gives a loss of"
        f" {entropy(setting['training_labels'].values()):.3f} and a balanced accuracy of 50 %.",
        "",
        "| labels | arm | training loss, last updates | balanced accuracy on the ID test set |",
        "|---|---|---|---|",
    ]
    for labels in LABELS:
        for arm in ARMS:
            mine = [run for run in runs if (run["labels"], run["arm"]) == (labels, arm)]
            loss, accuracy = (
                fmean(run["loss"][-1][1] for run in mine),
                fmean(run["id_test_balanced_accuracy"] for run in mine),
            )
            lines.append(f"| {labels} | {words(arm)} | {loss:.3f} | {accuracy:.1%} |")
    lines += [
        "",
        "## One drawn label instead of the expectation",
        "",
        "The paper draws one label per example, of 2048. Below, what that gives on"
        f" {setting['probe_examples']} examples and the same weights (real labels, standard, seed"
        f" {record['one_drawn_label']['seed']}): once the model is sure, the few examples decide whose drawn label is"
        " the unlikely one. All parameters, +- standard error over examples.",
        "",
        "| after update | expectation over labels | one drawn label |",
        "|---|---|---|",
    ]
    expected, drawn = (Curve.of(record["runs"][0]), Curve.of(record["one_drawn_label"]))
    errors = record["runs"][0]["standard_error"], record["one_drawn_label"]["standard_error"]
    for index in range(0, len(expected.steps), 2):
        step = expected.steps[index]
        cells = " | ".join(
            f"{VIEWS[ALL](curve, step):.3g} +- {error[index]:.2g}"
            for curve, error in zip((expected, drawn), errors, strict=True)
        )
        lines.append(f"| {step} | {cells} |")
    return "\n".join([*lines, ""])


def entropy(counts: Collection[int]) -> float:
    """In nats, of labels that occur so often.

    Example:
        >>> round(entropy([10, 10]), 3)
        0.693
    """
    return -math.fsum(count / sum(counts) * math.log(count / sum(counts)) for count in counts)


def spread(values: Mapping[str, Any]) -> str:
    """Ratio with its range over seeds."""
    return f"{values['ratio']:.3g} [{min(values['ratios']):.3g}, {max(values['ratios']):.3g}]"


def words(arm: str) -> str:
    """An arm's name in a text."""
    return arm.replace("_", " ")
