"""A study: arms x seeds -> one comparison, each arm paired with the baseline over the same examples and seeds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm

from hf_early_ood import names
from hf_early_ood.atomic import write_text
from hf_early_ood.config import RunConfig, StudyConfig
from hf_early_ood.environment import timestamp
from hf_early_ood.evaluation.metrics import METRICS
from hf_early_ood.evaluation.statistics import Estimate, Run, compare_arms
from hf_early_ood.evaluation.win_rate import win_rate
from hf_early_ood.experiment import check, claim, read_predictions, run
from hf_early_ood.names import OOD_MACRO_MEAN, OOD_WORST
from hf_early_ood.report.figures import comparison_figure
from hf_early_ood.report.tables import study_report
from hf_early_ood.results import ArmRun, Comparison, StudyRecord, WinRateRecord, write_record

logger = logging.getLogger(__name__)

VERDICT_METRIC = names.BALANCED_ACCURACY


def run_study(config: StudyConfig, *, command: str = "") -> StudyRecord:
    """Make every run that is missing, compare the arms and write the folder of the study.

    Everything is checked before the first run. A run that fails is recorded, and the others go on (with one process);
    the same command makes only what is missing.

    Args:
        config: The settings of the study.
        command: What the user typed, for the record.

    Returns:
        The record that was written to ``study.json``.

    Raises:
        EarlyOODError: If the settings, data or model of any arm are not usable, before anything is trained.
    """
    folder, runs = Path(config.output_dir), list(config.runs())
    for run_config in runs:
        claim(Path(run_config.output_dir), run_config)
    for arm in config.arms:
        check(config.run(arm, config.seeds[0]))
    PartialState().wait_for_everyone()  # nobody writes before all have looked
    started = timestamp()
    record = StudyRecord(
        name=config.name,
        baseline=config.baseline,
        seeds=config.seeds,
        metric=VERDICT_METRIC,
        arms=dict.fromkeys(config.arms, ()),
        started=started,
        command=command,
    )
    if PartialState().is_main_process:
        write_text(folder / names.CONFIG_FILE, config.to_yaml())
    # A failure of one process of several cannot be survived by the others: the launcher ends them all.
    alone = PartialState().num_processes == 1
    quiet = None if PartialState().is_main_process else True
    for run_config in tqdm(runs, desc=config.name, unit="run", disable=quiet):
        logger.info(
            "Run %d of %d: %s, seed %s", runs.index(run_config) + 1, len(runs), run_config.name, run_config.seed
        )
        result = run(run_config, command=command, keep_failure=alone)
        arm_run = ArmRun.from_run(result, str(Path(run_config.output_dir).relative_to(folder)))
        arms = {**record.arms, run_config.name: (*record.arms[run_config.name], arm_run)}
        record = replace(record, arms=arms, finished=timestamp())
        if PartialState().is_main_process:
            write_record(folder / names.STUDY_FILE, record)
    record = replace(
        record,
        comparisons=compare(record, folder, runs[0]),
        win_rates=count_wins(record, config.win_rates, runs[0].evaluation.confidence),
        confidence=runs[0].evaluation.confidence,
        finished=timestamp(),
    )
    if PartialState().is_main_process:
        write_record(folder / names.STUDY_FILE, record)
        write_text(folder / names.VERDICT_FILE, study_report(record))
        if any(arm_run.status == "complete" for arm_runs in record.arms.values() for arm_run in arm_runs):
            comparison_figure(record, folder / names.COMPARISON_FIGURE)
    return record


def compare(study: StudyRecord, folder: Path, settings: RunConfig) -> tuple[Comparison, ...]:
    """Every arm against the baseline, in every metric, on every split and over the OOD sets.

    Only seeds that both arms have finished are compared: the comparison is paired.
    """
    predictions = {
        arm: {
            arm_run.seed: read_predictions(folder / arm_run.path / names.PREDICTIONS_FILE)
            for arm_run in arm_runs
            if arm_run.status == "complete"
        }
        for arm, arm_runs in study.arms.items()
    }
    found: list[Comparison] = []
    for arm in study.arms:
        seeds = [seed for seed in study.seeds if seed in predictions[study.baseline] and seed in predictions[arm]]
        if arm == study.baseline or not seeds:
            continue
        for metric in METRICS:
            found += _compare_arm(
                arm,
                [predictions[study.baseline][seed] for seed in seeds],
                [predictions[arm][seed] for seed in seeds],
                metric,
                settings,
            )
    return tuple(found)


def count_wins(
    study: StudyRecord, held_against: Mapping[str, Sequence[str]], confidence: float
) -> tuple[WinRateRecord, ...]:
    """How often some arms do better than others on the mean of the OOD sets, over the seeds that all have finished."""
    scores: dict[str, dict[int, float]] = {arm: {} for arm in study.arms}
    for arm, arm_runs in study.arms.items():
        for arm_run in arm_runs:
            summary = arm_run.evaluation.ood.get(study.metric) if arm_run.evaluation else None
            if summary is not None and summary.macro_mean.value is not None:
                scores[arm][arm_run.seed] = summary.macro_mean.value
    found = []
    for arm, others in held_against.items():
        seeds = [seed for seed in study.seeds if all(seed in scores[name] for name in (arm, *others))]
        if not seeds:
            continue
        controls = np.array([[scores[other][seed] for other in others] for seed in seeds])
        rate = win_rate(np.array([scores[arm][seed] for seed in seeds]), controls, confidence=confidence)
        interval = (rate.value, rate.low, rate.high)
        found.append(WinRateRecord(arm, tuple(others), study.metric, *interval, rate.covers, rate.wins, len(seeds)))
    return tuple(found)


def _compare_arm(
    arm: str, baseline_runs: list[Run], arm_runs: list[Run], metric: str, settings: RunConfig
) -> list[Comparison]:
    result = compare_arms(
        baseline_runs,
        arm_runs,
        metric=metric,
        num_resamples=settings.evaluation.bootstrap_samples,
        confidence=settings.evaluation.confidence,
        seed=settings.evaluation.seed,
    )
    difference = result.difference
    differing = {
        split: sum(int((a[split][1] != b[split][1]).sum()) for a, b in zip(arm_runs, baseline_runs, strict=True))
        for split in difference.splits
    }
    ood = [split for split in differing if names.is_ood(split)]
    estimates: dict[str, Estimate | None] = {
        **difference.splits,
        OOD_MACRO_MEAN: difference.ood_mean,
        OOD_WORST: difference.ood_worst,
    }
    return [
        Comparison(
            arm=arm,
            metric=metric,
            split=split,
            difference=estimate.value,
            low=estimate.low,
            high=estimate.high,
            n_examples=estimate.n,
            n_seeds=len(arm_runs),
            covers="examples and seeds" if result.covers == "examples and seeds" else "examples",
            n_differing=sum(differing[part] for part in ([split] if split in differing else ood)),
        )
        for split, estimate in estimates.items()
        if estimate is not None
    ]
