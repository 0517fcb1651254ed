"""The sections of a page that show how well arms do: sets, differences, ID against OOD, languages, groups, runs."""

from __future__ import annotations

from functools import partial

from hf_early_ood.report import alts, beside, tables
from hf_early_ood.report import replaceable as perturbed
from hf_early_ood.report.figures import arms as looks
from hf_early_ood.report.figures import dots, languages, replaceable, tradeoff
from hf_early_ood.report.making import MOST_SETS, Making, numbered
from hf_early_ood.report.page import Section, chunks
from hf_early_ood.report.reading import evaluations
from hf_early_ood.report.verdict import many_arms, ood_sets


def scores(at: Making) -> Section:
    """The metric on every set, and over the OOD sets."""
    section, study = at.section("scores", "In and out of distribution"), at.study
    if not any(evaluations(study, arm) for arm in study.arms):
        at.missing.append("Scores: no run is complete.")
        return section
    shown = dots.splits_shown(study, ood_sets(study))
    groups = [shown] if many_arms(study) else chunks(shown, MOST_SETS)
    for number, splits in enumerate(groups, 1):
        section.blocks.append(
            at.picture(
                f"scores{numbered(number, groups)}",
                alts.scores(study, splits),
                f"{dots.explained(study, sign=False)} {looks.colors_explained(study)}",
                partial(dots.draw_scores, study, splits),
            )
        )
    if at.single is not None and at.single.evaluation is not None:
        metrics = tables.run_metrics(at.single.evaluation)
        section.blocks.append(tables.run_scores(at.single.evaluation, metrics))
    else:
        section.blocks += [tables.summary_table(study), tables.set_table(study)]
    return section


def differences(at: Making) -> Section:
    """Differences from the baseline, and what tests say of them."""
    section, study = at.section("differences", f"Differences from {at.study.baseline}"), at.study
    shown = [split for split in dots.splits_shown(study, ood_sets(study)) if _compared(at, split)]
    if not shown:
        if at.single is None:
            at.missing.append("Differences: no two arms have been compared yet.")
        return section
    groups = [shown] if many_arms(study) else chunks(shown, MOST_SETS)
    for number, splits in enumerate(groups, 1):
        section.blocks.append(
            at.picture(
                f"differences{numbered(number, groups)}",
                alts.differences(study, splits),
                f"{dots.explained(study, sign=True)} {looks.colors_explained(study)}",
                partial(dots.draw_differences, study, splits),
            )
        )
    section.blocks += [tables.difference_table(study), *beside.tests(study)]
    return section


def _compared(at: Making, split: str) -> bool:
    return any(
        item.split == split and item.metric == at.study.metric and item.difference is not None
        for item in at.study.comparisons
    )


def pareto(at: Making) -> Section:
    """ID test against the mean of the OOD sets."""
    section, study = at.section("tradeoff", "ID against OOD"), at.study
    points = tradeoff.pairs(study)
    if at.single is None and points:
        caption = (
            "Large: mean of an arm. Small: its seeds. Dashed: the Pareto front, the arms that no other one beats "
            f"in one respect without losing in the other. {looks.colors_explained(study)}"
        )
        draw = partial(tradeoff.draw_tradeoff, study)
        section.blocks.append(at.picture("tradeoff", alts.tradeoff(study), caption, draw))
    elif at.single is None:
        at.missing.append("ID against OOD: no run has both.")
    return section


def perturbations(at: Making) -> Section:
    """What perturbing layer groups costs, by update, where arms do so."""
    section, study = at.section("perturbations", "When layers stop being replaceable"), at.study
    if at.single is None and perturbed.are_compared(study):
        caption = (
            f"Difference from {study.baseline}, with its {study.confidence:.0%} interval, of arms that perturb layer"
            " groups after so many updates and train on to the same end. Below 0: what those layers had learned by then"
            " was missed. Marks side by side are of one update."
        )
        draw = partial(replaceable.draw_replaceable, study)
        section.blocks.append(at.picture("perturbations", perturbed.in_words(study), caption, draw))
        section.blocks += [perturbed.replaceable_table(study, split) for split in perturbed.SPLITS]
    return section


def by_language(at: Making) -> Section:
    """The metric by language, where there are several."""
    section, study = at.section("languages", "By language"), at.study
    spoken = beside.spoken_languages(study)
    if len({language for _, language in spoken}) < 2:
        return section
    groups = chunks(spoken, MOST_SETS)
    for number, shown in enumerate(groups, 1):
        section.blocks.append(
            at.picture(
                f"languages{numbered(number, groups)}",
                alts.languages(study, shown),
                "" if many_arms(study) else dots.explained(study, sign=False),
                partial(languages.draw_languages, study, shown),
            )
        )
    if at.single is not None and at.single.evaluation is not None:
        metrics = tables.run_metrics(at.single.evaluation)
        section.blocks += beside.run_languages(at.single.evaluation, metrics)
    else:
        section.blocks += beside.languages(study)
    return section


def groups(at: Making) -> Section:
    """Worst group and 10th percentile, where there are groups."""
    section = at.section("groups", "Groups")
    if at.single is None:
        section.blocks += beside.study_groups(at.study)
    elif at.single.evaluation is not None:
        section.blocks += beside.run_groups(at.single.evaluation)
    return section


def single_runs(at: Making) -> Section:
    """A row for each run of a study."""
    section = at.section("runs", "The single runs")
    if at.single is None:
        section.blocks.append(tables.runs_table(at.study))
    return section
