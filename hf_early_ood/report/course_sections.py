"""The sections of a page that show how training went: the early period, loss and rates, calibration, costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean

from matplotlib.figure import Figure

from hf_early_ood.dynamics import Dynamics, Measurement
from hf_early_ood.names import TRAJECTORY
from hf_early_ood.report import alts, beside, tables
from hf_early_ood.report.calibration import Reliability, reliability
from hf_early_ood.report.figures import arms as looks
from hf_early_ood.report.figures import costs, early, progress
from hf_early_ood.report.figures.reliability import LEAST, draw_reliability
from hf_early_ood.report.figures.signal import draw_signal
from hf_early_ood.report.figures.style import Look
from hf_early_ood.report.making import MOST_PANELS, Making, numbered
from hf_early_ood.report.page import Section, chunks
from hf_early_ood.report.verdict import many_arms
from hf_early_ood.results import ArmRun

_TRAJECTORY = {
    "": "How far the weights of each layer group have gone",
    "/sign_changes": "How many weights of each layer group have changed their sign",
}
"""Quantity of the trajectory that is shown -> title of its figure."""


def early_period(at: Making) -> Section:
    """What was watched, when was decided, what each layer group had."""
    section = at.section("early", "The early period")
    dynamics = {arm: found for arm in at.runs if (found := _dynamics(at, arm))}
    if not dynamics:
        at.missing.append("Signals and layer groups over the updates: there is no dynamics.jsonl beside the record.")
        return section
    signals = {arm: item for arm, seeds in dynamics.items() if (item := early.watched(seeds)) is not None}
    if at.single is not None and signals:
        _signal_of_run(at, section, next(iter(dynamics.values())))
    elif signals:
        groups = chunks(list(signals), MOST_PANELS)
        for number, arms in enumerate(groups, 1):
            shown = {arm: signals[arm] for arm in arms}
            section.blocks.append(
                at.picture(
                    f"signals{numbered(number, groups)}",
                    alts.signals(shown),
                    "One line a seed. Line up: the update after which the signal was stable, or waiting ended. "
                    "Triangles below: further layers are released (first seed).",
                    partial(_draw_signals, at, shown),
                )
            )
    else:
        at.missing.append("Signals: no arm has measured one.")
    _totals(at, section, dynamics, {arm: item.measure for arm, item in signals.items()})
    _group_maps(at, section, dynamics)
    _trajectory_maps(at, section, dynamics)
    if at.single is not None and at.single.intervention is not None:
        section.blocks.append(tables.layers_table(at.single.intervention))
    return section


def _draw_signals(at: Making, shown: Mapping[str, early.Watched], look: Look) -> Figure:
    return early.draw_signals(shown, looks.marks(at.study, look), look)


def _dynamics(at: Making, arm: str) -> dict[int, Dynamics]:
    found = {run.seed: at.material.dynamics(run.path) for run in at.runs[arm]}
    return {seed: dynamics for seed, dynamics in found.items() if dynamics is not None}


def _signal_of_run(at: Making, section: Section, seeds: Mapping[int, Dynamics]) -> None:
    (dynamics,) = seeds.values()
    series = early.signal_of(dynamics)
    updates = at.single.training.updates if at.single and at.single.training else None
    section.blocks.append(
        at.picture(
            "signal",
            alts.signal(series, dynamics.decision, dynamics.stages),
            "",
            lambda look: draw_signal(series, dynamics.decision, dynamics.stages, None, updates, 3, look),
        )
    )


def _totals(
    at: Making, section: Section, dynamics: Mapping[str, Mapping[int, Dynamics]], signals: Mapping[str, str]
) -> None:
    """What was measured beside the signals of the arms, which have a figure of their own."""
    found = {arm: early.totals(seeds[min(seeds)]) for arm, seeds in dynamics.items()}
    further = {m for arm, series in found.items() for m in series if m != signals.get(arm)}
    in_order = dict.fromkeys(m for series in found.values() for m in series if m in further)
    groups = chunks(list(in_order), MOST_PANELS)
    for number, measures in enumerate(groups, 1):
        shown = {m: {arm: series[m] for arm, series in found.items() if m in series} for m in measures}
        section.blocks.append(
            at.picture(
                f"measures{numbered(number, groups)}",
                alts.totals(shown),
                f"{_of_first_seed(at)} {looks.colors_explained(at.study)}".strip(),
                partial(_draw_totals, at, shown),
            )
        )


def _draw_totals(at: Making, shown: Mapping[str, Mapping[str, Sequence[Measurement]]], look: Look) -> Figure:
    return early.draw_totals(shown, looks.marks(at.study, look), look)


def _group_maps(at: Making, section: Section, dynamics: Mapping[str, Mapping[int, Dynamics]]) -> None:
    maps = {arm: series for arm, seeds in dynamics.items() if (series := early.grouped(seeds[min(seeds)]))}
    if not maps:
        at.missing.append("Measures of each layer group: nothing was measured of several groups at several updates.")
    groups = chunks(list(maps), MOST_PANELS)
    for number, arms in enumerate(groups, 1):
        section.blocks.append(
            at.picture(
                f"group_measures{numbered(number, groups)}",
                alts.group_maps({arm: maps[arm] for arm in arms}),
                "The more, the stronger the color; hatched: not measured." + _of_first_seed(at),
                partial(early.draw_group_maps, {arm: maps[arm] for arm in arms}),
            )
        )


def _trajectory_maps(at: Making, section: Section, dynamics: Mapping[str, Mapping[int, Dynamics]]) -> None:
    """How far the weights of each layer group have gone, and how many have changed their sign, if it was measured."""
    for quantity, title in _TRAJECTORY.items():
        found = {arm: early.of_groups(seeds[min(seeds)], f"{TRAJECTORY}{quantity}") for arm, seeds in dynamics.items()}
        maps = {arm: series for arm, series in found.items() if series}
        groups = chunks(list(maps), MOST_PANELS)
        for number, arms in enumerate(groups, 1):
            shown = {arm: maps[arm] for arm in arms}
            section.blocks.append(
                at.picture(
                    f"trajectory{quantity.replace('/', '_')}{numbered(number, groups)}",
                    alts.group_maps(shown),
                    "From the weights at the start of training. Hatched: not measured." + _of_first_seed(at),
                    partial(early.draw_group_maps, shown, title=title),
                )
            )


def _of_first_seed(at: Making) -> str:
    return "" if at.single is not None or len(at.study.seeds) < 2 else " First seed of each arm."


def training(at: Making) -> Section:
    """Loss, and the learning rate of each layer group."""
    section = at.section("training", "Training")
    curves = {}
    for arm, runs in at.runs.items():
        found = [at.found[arm, run.seed].training for run in runs if (arm, run.seed) in at.found]
        own = [training.loss_curve for training in found if training is not None and training.loss_curve]
        if own:
            curves[arm] = own
    if curves:
        caption = "" if len(curves) > progress.FEW or at.single is not None or len(at.study.seeds) < 2 else (
            "Mean over seeds; shaded from the lowest to the highest. "
        )  # fmt: skip
        if len(curves) > progress.FEW:
            caption += "A panel for each arm; gray: all others. Mean over seeds."
        caption += _pretexts(at)
        section.blocks.append(
            at.picture(
                "loss",
                alts.losses(curves),
                caption,
                lambda look: progress.draw_losses(curves, looks.marks(at.study, look), look),
            )
        )
    else:
        at.missing.append("Loss: no run has recorded one.")
    _rates(at, section)
    return section


def _pretexts(at: Making) -> str:
    """Arms whose first updates have the loss of something else than the task."""
    found = []
    for arm, runs in at.runs.items():
        record = at.found.get((arm, runs[0].seed)) if runs else None
        pretext = (record.config.get("intervention") or {}).get("pretext") if record is not None else None
        if pretext:
            updates = pretext["updates"]
            length = f"{updates:.0%} of the" if isinstance(updates, float) else f"{updates}"
            found.append(f"{arm} ({pretext['kind']} for {length} updates)")
    return f" The first loss is that of another task: {', '.join(found)}." if found else ""


def _rates(at: Making, section: Section) -> None:
    found: dict[str, progress.Rates] = {}
    firsts = {arm: runs[0] for arm, runs in at.runs.items() if runs}
    dynamics = {arm: at.material.dynamics(run.path) for arm, run in firsts.items()}
    named = {name for item in dynamics.values() if item for stage in item.stages for name in stage.released}
    for arm, run in firsts.items():
        record = at.found.get((arm, run.seed))
        training = record.training if record is not None else None
        settings = (record.config.get("intervention") or {}) if record is not None else {}
        warmup = bool((settings.get("learning_rates") or {}).get("release_warmup"))
        curve = training.learning_rate_curve if training is not None else None
        rates = progress.rates_of(dynamics[arm], curve, run.updates or 0, groups=tuple(named), warmup=warmup)
        if rates is not None:
            found[arm] = rates
    if not found:
        at.missing.append("Learning rate of each layer group: neither rates nor releases were recorded.")
        return
    known = {arm: rates for arm, rates in found.items() if rates.known}
    if known and len(known) < len(found):
        at.missing.append("Learning rates of some arms: they were not recorded.")
        found = known
    if not known:
        at.missing.append("Learning rates: they were not recorded; which layer groups train is shown.")
    note = ""
    if many_arms(at.study):
        plain = [arm for arm, rates in found.items() if rates.is_uniform() and arm != at.study.baseline]
        found = {arm: rates for arm, rates in found.items() if arm not in plain}
        note = f" As in {at.study.baseline}, all groups alike: {', '.join(plain)}." if plain else ""
    top = max((progress.highest(rates) for rates in known.values()), default=1.0)
    groups = chunks(list(found), 8)
    for number, arms in enumerate(groups, 1):
        shown = {arm: found[arm] for arm in arms}
        section.blocks.append(
            at.picture(
                f"learning_rates{numbered(number, groups)}",
                alts.rates(shown),
                ("The stronger the color, the higher the rate. " if known else "In color: it trains. ")
                + "Hatched: the group is frozen."
                + _of_first_seed(at)
                + (note if number == len(groups) else ""),
                partial(progress.draw_rates, shown, top=top),
            )
        )


def calibration(at: Making) -> Section:
    """Reliability diagrams, ECE and Brier score."""
    section = at.section("calibration", "Calibration")
    found: dict[str, list[Mapping[str, Reliability]]] = {}
    for arm, runs in at.runs.items():
        for run in runs:
            predictions = at.material.predictions(run.path)
            if predictions is not None and (bins := reliability(predictions)):
                found.setdefault(arm, []).append(bins)
    if not found and any(at.runs.values()):
        at.missing.append("Reliability: there are no predictions with probabilities beside the record.")
    groups = chunks(list(found), MOST_PANELS)
    for number, arms in enumerate(groups, 1):
        shown = {arm: found[arm] for arm in arms}
        several = any(len(seeds) > 1 for seeds in shown.values())
        lines = "Lines: lowest to highest seed." if several else "Lines: 95% interval."
        lines = f"Bins with fewer than {LEAST} predictions a run are left out. {lines} OOD sets count alike."
        section.blocks.append(
            at.picture(
                f"reliability{numbered(number, groups)}",
                alts.reliability(shown),
                "On the dashed line a model is as often right as it says; below it, it is too sure. The larger a "
                f"point, the more predictions. {lines}",
                partial(_draw_reliability, at, shown),
            )
        )
    if at.single is None:
        section.blocks += beside.study_calibration(at.study)
    elif at.single.evaluation is not None:
        section.blocks += beside.run_calibration(at.single.evaluation)
    return section


def prediction_depth(at: Making) -> Section:
    """At which layer predictions are made."""
    section = at.section("depth", "Prediction depth")
    if at.single is None:
        section.blocks += beside.study_depth(at.study)
    elif at.single.evaluation is not None:
        section.blocks += beside.run_depth(at.single.evaluation)
    return section


def _draw_reliability(at: Making, shown: Mapping[str, list[Mapping[str, Reliability]]], look: Look) -> Figure:
    return draw_reliability(shown, _colors(at, shown, look), look)


def what_it_cost(at: Making) -> Section:
    """Where the time went."""
    section = at.section("costs", "What it cost")
    if at.single is not None:
        probes = sum(item.seconds for item in at.single.probes.values())
        times = {name: (seconds, probes if name == "train" else 0.0) for name, seconds in at.single.timing.items()}
        seeds: dict[str, list[float]] = {}
        title, table = "Time of each phase", tables.run_costs(at.single)
    else:
        times, seeds = _times(at.runs)
        title, table = "Training time", tables.cost_table(at.study)
    if times:
        caption = (
            "Stronger, at the left, and in brackets: measuring." if any(part for _, part in times.values()) else ""
        )
        if any(len(found) > 1 for found in seeds.values()):
            caption = f"Mean over seeds, with a line for each. {caption}"
        section.blocks.append(
            at.picture(
                "costs",
                alts.costs(times),
                caption,
                lambda look: costs.draw_costs(times, seeds, _colors(at, times, look), look, title),
            )
        )
    else:
        at.missing.append("Costs: no times were recorded.")
    section.blocks.append(table)
    return section


def _colors(at: Making, shown: Iterable[str], look: Look) -> dict[str, str]:
    """Colors of arms, or of what else is in their place."""
    found = looks.marks(at.study, look)
    own = looks.told_apart(at.study)
    return {name: found[name].color if name in found and own else look.trainable for name in shown}


def _times(runs: Mapping[str, Sequence[ArmRun]]) -> tuple[dict[str, tuple[float, float]], dict[str, list[float]]]:
    times, seeds = {}, {}
    for arm, own in runs.items():
        found = [(run.seconds, run.probe_seconds or 0.0) for run in own if run.seconds is not None]
        if found:
            times[arm] = (fmean(seconds for seconds, _ in found), fmean(part for _, part in found))
            seeds[arm] = [seconds for seconds, _ in found]
    return times, seeds
