"""The page of a study, or of a single run, which is drawn as a study of one arm and one seed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hf_early_ood import names
from hf_early_ood.report import alts, course_sections, score_sections, tables
from hf_early_ood.report.appendix import appendix
from hf_early_ood.report.brief import run_findings, run_tiles, study_tiles, timing_in_words
from hf_early_ood.report.figures import arms as looks
from hf_early_ood.report.figures import sizes
from hf_early_ood.report.layout import metric_title
from hf_early_ood.report.making import MOST_SETS, Making
from hf_early_ood.report.material import Material
from hf_early_ood.report.page import Page, Part, Picture, Section
from hf_early_ood.report.reading import evaluations, set_name
from hf_early_ood.report.verdict import counted, findings, many_arms, ood_sets
from hf_early_ood.results import ArmRun, RunRecord, StudyRecord

_SECTIONS = (
    score_sections.scores,
    score_sections.differences,
    score_sections.perturbations,
    score_sections.pareto,
    score_sections.by_language,
    course_sections.early_period,
    course_sections.training,
    course_sections.calibration,
    course_sections.prediction_depth,
    score_sections.groups,
    course_sections.what_it_cost,
    score_sections.single_runs,
)
# The metric that a run is shown in: that of its task, or the first one there is.
_METRICS = (names.BALANCED_ACCURACY, names.F1, names.ACCURACY)


def make_page(material: Material) -> Page:
    """All of a report but its pictures, which are drawn when it is written."""
    record = material.record
    study = record if isinstance(record, StudyRecord) else as_study(record)
    single = None if isinstance(record, StudyRecord) else record
    studies = study.by_size()
    sizes_made = [
        Making(part, material, single, f"_size{_size_name(size)}" if study.sizes else "")
        for size, part in zip(study.sizes or (None,), studies, strict=True)
    ]
    parts = tuple(map(_part, sizes_made))
    runs = [run for at in sizes_made for run in at.found.values()]
    missing = [reason for at in sizes_made for reason in at.missing]
    before = (_sizes(study),) if len(study.sizes) > 1 else ()
    title = study.name if single is None else f"{single.arm}, seed {single.seed}"
    about = _about(study, runs) if single is None else run_findings(study, single).about
    gone = tuple(dict.fromkeys([*missing, *material.problems]))
    return Page(title, about, parts, before, tuple(appendix(material, runs, gone)), gone)


def as_study(record: RunRecord) -> StudyRecord:
    """A run as a study that has nothing to compare."""
    scored = record.evaluation
    known = dict.fromkeys(name for item in scored.splits.values() for name in item.metrics) if scored else {}
    metric = next((name for name in _METRICS if name in known), next(iter(known), names.ACCURACY))
    return StudyRecord(
        name=record.arm,
        baseline=record.arm,
        seeds=(record.seed,),
        metric=metric,
        arms={record.arm: (ArmRun.from_run(record, ""),)},
        confidence=scored.confidence if scored else 0.95,
        started=record.started,
        finished=record.finished,
        command=record.command,
    )


def _size_name(size: int | None) -> str:
    return "all" if size is None else str(size)


def _about(study: StudyRecord, runs: Sequence[RunRecord]) -> str:
    models = ", ".join(dict.fromkeys(run.model.name for run in runs if run.model is not None))
    sets = [set_name(split) for split in ood_sets(study)]
    named = f" ({', '.join(sets)})" if 0 < len(sets) <= MOST_SETS else ""
    text = (
        f"{counted(len(study.arms), 'arm')}, {counted(len(study.seeds), 'seed')}, {metric_title(study.metric)}, "
        f"{counted(len(sets), 'OOD set')}{named}. Baseline: {study.baseline}."
    )
    made = f" Made {study.started[:10]}." if study.started else ""
    return f"{text}{f' Model: {models}.' if models else ''}{made}"


def _sizes(study: StudyRecord) -> Section:
    section = Section("sizes", "Over the sizes of the training set")
    if any(evaluations(study, arm) for arm in study.arms):
        caption = "Points: mean over seeds, lines up and down: the lowest and the highest seed. "
        caption += looks.colors_explained(study)
        section.blocks.append(Picture("sizes", alts.sizes(study), caption, partial(sizes.draw_sizes, study)))
    section.blocks += tables.size_tables(study)
    return section


def _part(at: Making) -> Part:
    """All about one size."""
    if at.single is not None:
        found = run_findings(at.study, at.single)
        tiles = run_tiles(at.study, at.single)
        paragraphs: tuple[str, ...] = found.paragraphs
    else:
        found, tiles = findings(at.study), study_tiles(at.study)
        others = [] if many_arms(at.study) else [arm for arm in at.study.arms if arm != at.study.baseline]
        paragraphs = (*found.paragraphs, *filter(None, (timing_in_words(at.study, arm) for arm in others)))
    sections = [make(at) for make in _SECTIONS]
    title = at.study.name.rpartition(", ")[2] if at.suffix else ""  # see `StudyRecord.by_size`
    shown = tuple(section for section in sections if section.blocks)
    return Part(f"part{at.suffix}", title, paragraphs, found.notes, tiles, shown)
