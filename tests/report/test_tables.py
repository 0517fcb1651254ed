from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hf_early_ood.names import GAP_TO_ID, OOD_MACRO_MEAN
from hf_early_ood.report import judge, run_table, study_markdown, study_report, verdict
from hf_early_ood.report.layout import Table, duration
from hf_early_ood.report.tables import first_release
from hf_early_ood.results import (
    ArmRun,
    InterventionRecord,
    MetricValue,
    SplitEvaluation,
    StageRecord,
    StudyRecord,
    WinRateRecord,
)
from tests.report import records


@pytest.mark.parametrize(
    ("difference", "half", "word"),
    [
        (0.02, 0.01, "better"),
        (-0.02, 0.01, "worse"),
        (0.02, 0.03, "no clear difference"),
        (0.02, 0.02, "no clear difference"),
        (-0.02, 0.02, "no clear difference"),
        (0.0, 0.0, "no clear difference"),
    ],
)
def test_word_follows_the_interval(difference: float, half: float, word: str) -> None:
    assert judge(records.comparison(OOD_MACRO_MEAN, difference, half)) == word


def test_word_without_an_interval() -> None:
    assert judge(None) == "not comparable"
    without = dataclasses.replace(records.comparison(OOD_MACRO_MEAN, 0.1, 0.0), low=None)
    assert judge(without) == "not comparable"


def joined(text: str) -> str:
    return " ".join(text.split())


def test_verdict_better_with_one_seed() -> None:
    text = joined(verdict(records.study()))
    assert (
        "gradual is better than standard in this one run, out of distribution: +2.3 points on the mean of 3 OOD sets "
        "(95% interval +0.8 to +3.8)." in text
    )
    assert "cover the choice of test examples only, not the training seed: one seed was run" in text
    assert "6 intervals are reported; they are corrected for nothing." in text  # recorded before there were p-values


def test_verdict_worse() -> None:
    assert "gradual is worse than standard" in joined(verdict(records.study(difference=-0.03)))


def test_verdict_unclear_with_three_seeds() -> None:
    text = joined(verdict(records.study((1, 2, 3), difference=0.01)))
    assert "gradual: no clear difference from standard out of distribution: +1.0 points" in text
    assert "better" not in text
    assert "test examples and the training seeds (3)." in text
    assert "rough" not in text
    assert "training seeds (2). Of two seeds it is rough" in joined(verdict(records.study((1, 2))))


def test_verdict_names_what_is_missing() -> None:
    study = records.study((1, 2))
    failed = ArmRun(1, "gradual/seed1", "failed", error="CUDA out of memory")
    study = dataclasses.replace(study, arms={**study.arms, "gradual": (failed,)}, comparisons=())
    text = joined(verdict(study))
    assert "gradual cannot be compared with standard out of distribution: no run of gradual is complete." in text
    assert "Failed and left out: gradual seed 1." in text
    assert "Not run yet: gradual seed 2." in text
    assert "failed: CUDA out of memory" in study_report(study)


def with_third_arm() -> StudyRecord:
    """Three seeds; of the third arm, one run is complete."""
    study = records.study((1, 2, 3))
    late = (records.arm_run(1, 0.01), ArmRun(2, "late/seed2", "failed", error="disk full"))
    comparisons = [records.comparison(split, 0.03, 0.01, arm="late") for split in (OOD_MACRO_MEAN, "id_test")]
    return dataclasses.replace(
        study, arms={**study.arms, "late": late}, comparisons=(*study.comparisons, *comparisons), margin=0.01
    )


def test_what_the_intervals_cover_is_said_of_each_arm() -> None:
    text = joined(verdict(with_third_arm()))
    assert "The intervals of gradual cover the choice of test examples and the training seeds (3)." in text
    assert (
        "The intervals of late cover the choice of test examples only, not the training seed: one seed was compared, "
        "and another could change the result." in text
    )
    assert "its own mean counts all of its seeds" in text
    assert "its own mean" not in verdict(records.study((1, 2, 3)))


def test_brackets_of_a_single_run_are_not_those_of_seeds() -> None:
    text = joined(study_report(with_third_arm()))
    assert "the lowest and the highest seed; of a single run, the 95% interval over test examples." in text
    study = records.study((1, 2))
    assert "of a single run" not in study_report(study)
    # Runs that were scored anew have intervals of another confidence than the comparison.
    alone = records.study()
    arms = {
        arm: tuple(
            dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, confidence=0.8)) for run in r
        )
        for arm, r in alone.arms.items()
    }
    assert "In brackets the 80% interval over test examples." in study_report(dataclasses.replace(alone, arms=arms))


def test_worst_set_of_an_arm_is_that_of_its_mean() -> None:
    """Seed 1 is worst on movie, seed 2 on amazon; over both, nyt is."""
    study = records.study((1, 2))
    runs = []
    for seed, scores in ((1, (0.5, 0.9, 0.6)), (2, (0.9, 0.5, 0.6))):
        run = records.arm_run(seed)
        splits = dict(run.evaluation.splits)
        for split, score in zip(records.SETS, scores, strict=True):
            splits[split] = SplitEvaluation(500, {"accuracy": records.value(score)})
        runs.append(dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, splits=splits)))
    text = study_report(dataclasses.replace(study, arms={**study.arms, "standard": tuple(runs)}))
    assert "60.0 (nyt)" in row(text, "accuracy, percent", "standard (baseline)")


def test_a_mean_does_not_leave_out_a_seed_in_silence() -> None:
    study = records.study((1, 2))
    first, second = study.arms["standard"]
    ood = dataclasses.replace(first.evaluation.ood["accuracy"], gap_to_id=MetricValue(None))
    first = dataclasses.replace(first, evaluation=dataclasses.replace(first.evaluation, ood={"accuracy": ood}))
    text = study_report(dataclasses.replace(study, arms={**study.arms, "standard": (first, second)}))
    assert row(text, "accuracy, percent", "standard (baseline)").split()[-2:] == ["-", "-"]


def row(text: str, title: str, start: str) -> str:
    table = text[text.index(title) :]
    return next(" ".join(line.split()) for line in table.splitlines() if line.startswith(start))


def test_study_tables_have_the_numbers() -> None:
    text = study_report(records.study())
    assert row(text, "accuracy, percent", "standard (baseline)") == (
        "standard (baseline) 1 75.1 [73.1, 77.1] 70.1 (movie) 90.1 [88.1, 92.1] +15.0 -"
    )
    assert row(text, "Difference from", "OOD mean") == "OOD mean 1500 1 +2.3 [+0.8, +3.8] better"
    assert row(text, "Each set", "OOD nyt") == "OOD nyt 500 80.1 [78.1, 82.1] 82.5 [80.5, 84.5]"
    assert row(text, "Layers and time", "gradual") == "gradual 40 signal stable 400 2 min 05 s 2.5 s 2.0%"
    assert row(text, "Layers and time", "standard") == "standard - - 400 2 min 05 s 0.0 s 0.0%"
    assert "interval over test examples" in text


def test_study_tables_over_seeds() -> None:
    text = study_report(records.study((1, 2, 3)))
    assert row(text, "Each set", "OOD movie") == "OOD movie 500 70.2 [70.1, 70.3] 72.7 [72.5, 72.9]"
    assert "lowest and the highest seed" in text
    assert row(text, "Layers and time", "gradual").startswith("gradual 40, 40, 40 signal stable")
    assert row(text, "Runs", "gradual seed 3").startswith("gradual seed 3 77.9 72.9 92.9")


def test_first_release_is_explained() -> None:
    study = records.study()
    run = study.arms["gradual"][0]
    by_hand = InterventionRecord("gradual_unfreezing", records.intervention().stages)
    for intervention, why in ((records.intervention("fallback"), "fallback: not stable in time"), (by_hand, "set in")):
        arms = {**study.arms, "gradual": (dataclasses.replace(run, intervention=intervention),)}
        assert why in row(study_report(dataclasses.replace(study, arms=arms)), "Layers and time", "gradual")


def test_scores_of_an_interpolated_model_are_named() -> None:
    study = records.study((1, 2))
    assert "Weights of" not in study_report(study)
    runs = [
        dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, selected_by=f"last update, alpha={a}"))
        for run, a in zip(study.arms["gradual"], (0.3, 0.5), strict=True)
        if run.evaluation is not None
    ]
    text = joined(study_report(dataclasses.replace(study, arms={**study.arms, "gradual": tuple(runs)})))
    assert "Weights of gradual chosen by: last update, alpha=0.3; last update, alpha=0.5." in text
    assert "Weights of standard" not in text


def test_number_that_does_not_exist_is_not_zero() -> None:
    study = records.study()
    run = study.arms["gradual"][0]
    assert run.evaluation is not None
    splits = {**run.evaluation.splits, "id_test": SplitEvaluation(500, {"accuracy": MetricValue(None)})}
    run = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, splits=splits))
    text = study_report(dataclasses.replace(study, arms={**study.arms, "gradual": (run,)}))
    assert row(text, "Each set", "ID test") == "ID test 500 90.1 [88.1, 92.1] -"


def test_empty_study_has_a_report() -> None:
    study = dataclasses.replace(records.study(), arms={"standard": (), "gradual": ()}, comparisons=())
    text = study_report(study)
    assert "no run of standard is complete" in text
    assert "There is no comparison yet." in text


def test_reports_are_ascii_and_narrow() -> None:
    sets = tuple(f"ood/{'domain' * 4}-{number}" for number in range(12))
    study = records.study((1, 2))
    names = [f"gradual-unfreezing-with-a-long-name-{number}" for number in range(7)]
    arms = {name: (records.arm_run(1, gradual=True, sets=sets),) for name in ("standard", *names)}
    failed = ArmRun(2, "x", "failed", error="nö — " + "long " * 60)
    arms["standard"] = (*arms["standard"], failed)
    comparisons = tuple(records.comparison(split, 0.01, 0.02, arm=arm) for arm in names for split in sets)
    text = study_report(dataclasses.replace(study, arms=arms, comparisons=comparisons))
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 100
    for name in names:
        assert name in text


def test_markdown_has_the_same_cells() -> None:
    text = study_markdown(records.study())
    assert "| OOD mean | 1500 | 1 | +2.3 [+0.8, +3.8] better |" in text
    assert "| --- | ---: | ---: | ---: |" in text


def test_run_table() -> None:
    text = run_table(records.run())
    assert text.startswith("Run 'gradual', seed 1: complete. bert-base-uncased, 109,000,000 parameters.")
    assert row(text, "Scores", "OOD movie") == "OOD movie 500 70.0 [68.0, 72.0]"
    assert row(text, "Scores", "OOD worst set") == "OOD worst set 70.0 (movie)"
    assert row(text, "Scores", "ID test - OOD mean") == "ID test - OOD mean +15.0 [+13.0, +17.0]"
    assert row(text, "Layers", "1") == "1 40 2,000 block.5"
    assert "First release decided after update 40: signal stable." in text
    assert row(text, "Time", "fisher_trace") == "fisher_trace (8 measurements) 2.5 s 2.0%"
    assert "| OOD movie | 500 | 70.0 [68.0, 72.0] |" in run_table(records.run(), markdown=True)


def test_groups_that_were_frozen_again_are_named() -> None:
    stages = (StageRecord(0, 0, ("block.0", "head"), 20), StageRecord(1, 5, (), 10, ("block.0",)))
    run = dataclasses.replace(records.run(), intervention=InterventionRecord("auto_freeze", stages))
    assert row(run_table(run), "Layers", "0") == "0 0 20 block.0, head"
    assert row(run_table(run), "Layers", "1") == "1 5 10 block.0"
    assert first_release(run.intervention) is None


def test_run_table_of_a_failed_run() -> None:
    record = dataclasses.replace(
        records.run(), status="failed", error="no memory", evaluation=None, training=None, intervention=None, timing={}
    )
    text = run_table(record)
    assert "seed 1: failed." in text
    assert "Error: no memory" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0, "0.0 s"), (59.96, "1 min 00 s"), (3599.7, "1 h 00 min"), (3600.0, "1 h 00 min")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_columns_that_do_not_fit_follow_below() -> None:
    text = Table("t", ("set", "a" * 20, "b" * 20, "c" * 20), (("x", "1", "2", "3"),)).text(width=50)
    blocks = text.split("\n\n")
    assert len(blocks) == 2
    assert blocks[1].splitlines()[1].split() == ["x", "3"]


def test_what_does_not_withstand_the_correction_is_not_clear() -> None:
    found = dataclasses.replace(records.comparison(OOD_MACRO_MEAN, 0.02, 0.01), p_value=0.03)
    assert judge(dataclasses.replace(found, p_adjusted=0.04)) == "better"
    assert judge(dataclasses.replace(found, p_adjusted=0.06)) == "no clear difference"
    assert judge(dataclasses.replace(found, p_adjusted=0.06), confidence=0.9) == "better"


def test_of_errors_less_is_better() -> None:
    for difference, word in ((0.02, "worse"), (-0.02, "better")):
        found = records.comparison(OOD_MACRO_MEAN, difference, 0.01)
        assert judge(dataclasses.replace(found, higher_is_better=False)) == word


def with_p_values(study: StudyRecord, p: float = 0.012, p_adjusted: float = 0.024, **rest: Any) -> StudyRecord:
    """With p-values, of which those over the OOD sets are adjusted."""
    adjusted = (OOD_MACRO_MEAN, *records.SETS)
    comparisons = tuple(
        dataclasses.replace(item, p_value=p, p_adjusted=p_adjusted if item.split in adjusted else None, **rest)
        for item in study.comparisons
    )
    return dataclasses.replace(study, comparisons=comparisons, margin=0.01)


def test_verdict_gives_p_and_what_it_was_corrected_for() -> None:
    text = joined(verdict(with_p_values(study_of_many())))
    assert "95% interval, p after Holm's correction: good (+5.0, +3.0 to +7.0, p = 0.024)." in text
    assert "of the OOD mean over 4 tests (one an arm), of single OOD sets over 0 tests" in text
    assert "95% interval +0.8 to +3.8, p = 0.012). Worst" in joined(verdict(with_p_values(records.study())))


def test_verdict_states_pareto_at_the_margin() -> None:
    text = joined(verdict(with_p_values(records.study())))
    one = "Pareto improvement in this one run: better out of distribution, and at most 1 point worse in distribution"
    assert f"{one}." in text
    of_seeds = joined(verdict(with_p_values(records.study((1, 2, 3)))))
    assert "Pareto improvement: better out of distribution, and at most 1 point worse in distribution." in of_seeds
    lost = joined(verdict(with_p_values(records.study(), p_adjusted=0.2)))
    assert "gradual: no clear difference from standard" in lost
    assert "No Pareto improvement is shown: whether it is better out of distribution is open, and at most" in lost
    errors = joined(verdict(with_p_values(records.study(), higher_is_better=False)))
    assert "accuracy (lower is better)" in errors
    assert "gradual is worse than standard" in errors
    assert "No Pareto improvement is shown: worse out of distribution, and worse in distribution." in errors
    assert "Pareto" not in verdict(dataclasses.replace(with_p_values(records.study()), margin=None))
    of_many = joined(verdict(with_p_values(study_of_many())))
    assert f"{one}: good." in of_many


def test_gaps_get_no_word() -> None:
    study = records.study()
    gap = records.comparison(GAP_TO_ID, -0.02, 0.01)
    text = study_report(dataclasses.replace(study, comparisons=(*study.comparisons, gap)))
    assert row(text, "Difference from", "ID test - OOD") == "ID test - OOD mean 1500 1 -2.0 [-3.0, -1.0]"


def test_sizes_side_by_side() -> None:
    study = records.study()
    arms = {
        arm: tuple(dataclasses.replace(run, size=size) for run in runs for size in (500, None))
        for arm, runs in study.arms.items()
    }
    comparisons = tuple(dataclasses.replace(item, size=size) for item in study.comparisons for size in (500, None))
    study = dataclasses.replace(study, sizes=(500, None), arms=arms, comparisons=comparisons)
    text = study_report(study)
    assert row(text, "OOD mean by training examples", "arm") == "arm 500 all"
    assert row(text, "OOD mean by training examples", "gradual") == "gradual +2.3 [+0.8, +3.8] +2.3 [+0.8, +3.8]"
    assert "Study 'sentiment, 500 training examples'" in joined(text)
    assert study_markdown(study).startswith("**OOD mean by training examples")


def test_metrics_have_names_for_readers() -> None:
    study = records.study()
    for metric, title in (("f1", "F1"), ("exact_match", "exact match")):
        renamed = dataclasses.replace(
            study,
            metric=metric,
            comparisons=tuple(dataclasses.replace(item, metric=metric) for item in study.comparisons),
        )
        text = study_report(renamed)
        assert f"1 seed, {title}, 3 OOD sets" in text
        assert f"\n{title}, percent\n" in text


def test_decision_at_the_first_chance_is_told() -> None:
    study = records.study()
    (run,) = study.arms["gradual"]
    decision = dataclasses.replace(run.intervention.decision, at_first_chance=True)
    run = dataclasses.replace(run, intervention=dataclasses.replace(run.intervention, decision=decision))
    study = dataclasses.replace(study, arms={**study.arms, "gradual": (run,)})
    text = joined(study_report(study))
    assert "may not have begun to move: gradual seed 1." in text
    assert "signal stable at first chance" in text


def with_run(study: StudyRecord, arm: str, run: ArmRun) -> StudyRecord:
    return dataclasses.replace(study, arms={**study.arms, arm: (run,)})


def test_verdict_says_who_predicts_one_label_for_all() -> None:
    study = records.study()
    (run,) = study.arms["gradual"]
    assert "One label is predicted" not in study_report(study)
    splits = dict(run.evaluation.splits)
    for split in ("id_test", "ood/nyt"):
        splits[split] = dataclasses.replace(splits[split], only_prediction="positive")
    some = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, splits=splits))
    text = joined(study_report(with_run(study, "gradual", some)))
    assert "as by a model that has not learned the task: gradual seed 1 (ID test, nyt)." in text
    splits = {split: dataclasses.replace(item, only_prediction="positive") for split, item in splits.items()}
    every = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, splits=splits))
    assert "gradual seed 1 (every set)." in joined(study_report(with_run(study, "gradual", every)))


def test_groups_that_were_never_released_are_told() -> None:
    study = records.study()
    (run,) = study.arms["gradual"]
    assert "never released" not in study_report(study)
    late = dataclasses.replace(run.intervention, never_trained=("block.0", "embeddings"))
    text = study_report(with_run(study, "gradual", dataclasses.replace(run, intervention=late)))
    assert "Training ended with layer groups never released: gradual seed 1 (2)." in joined(text)
    text = joined(run_table(dataclasses.replace(records.run(), intervention=late)))
    assert "Never released: block.0, embeddings." in text


def study_of_many() -> StudyRecord:
    """Five arms of different worth, listed in no order."""
    base = records.study()
    shifts = {"poor": -0.05, "good": 0.05, "same": 0.0, "fair": 0.01}
    arms = {name: (records.arm_run(1, shift, gradual=True),) for name, shift in shifts.items()}
    comparisons = [
        records.comparison(split, shift, 0.02, arm=name)
        for name, shift in shifts.items()
        for split in (OOD_MACRO_MEAN, "id_test")
    ]
    return dataclasses.replace(base, arms={"standard": base.arms["standard"], **arms}, comparisons=tuple(comparisons))


def test_many_arms_are_rows_from_the_best_to_the_worst() -> None:
    text = study_report(study_of_many())
    table = text.partition("Difference from standard")[2].partition("Each set")[0]
    rows = [line.split()[0] for line in table.splitlines()[3:] if line[:1].isalpha()]
    assert rows[:4] == ["good", "fair", "same", "poor"]
    assert "OOD mean (n=1500)" in table


def test_many_arms_share_a_paragraph_if_the_same_can_be_said_of_them() -> None:
    study = study_of_many()
    several = [dataclasses.replace(item, n_seeds=2, covers="examples and seeds") for item in study.comparisons]
    text = joined(verdict(dataclasses.replace(study, comparisons=tuple(several))))
    what = "out of distribution, points on the mean of the OOD sets, 95% interval:"
    assert f"Better than standard {what} good (+5.0, +3.0 to +7.0)." in text
    assert f"Worse than standard {what} poor (-5.0, -7.0 to -3.0)." in text
    assert f"No clear difference from standard {what} fair (+1.0, -1.0 to +3.0); same (+0.0, -2.0 to +2.0)." in text


def test_of_many_arms_with_one_seed_the_runs_are_judged_and_not_the_arms() -> None:
    text = joined(verdict(study_of_many()))
    what = "points on the mean of the OOD sets, 95% interval:"
    assert f"Better than standard out of distribution in the one run of each, {what} good (" in text
    assert f"Worse than standard out of distribution in the one run of each, {what} poor (" in text
    assert f"No clear difference from standard out of distribution, {what} fair (" in text


def test_win_rate_says_against_how_many_and_over_what() -> None:
    rate = WinRateRecord("good", ("poor", "same"), "accuracy", 0.75, 0.2, 1.0, "seeds and controls", 1.5, 2)
    text = joined(verdict(dataclasses.replace(records.study(), win_rates=(rate,))))
    assert (
        "Win rate of good against 2 arms on the mean of the OOD sets: 75.0% of 4 pairs of runs with the same seed (95% "
        "interval over seeds and arms 20.0 to 100.0); it beats 1.5 of their means over 2 seeds." in text
    )
    pair = WinRateRecord("good", ("poor",), "accuracy", 1.0, 0.025, 1.0, "this pair", 1.0, 1)
    text = joined(verdict(dataclasses.replace(records.study(), win_rates=(pair,))))
    assert "100.0% of 1 pair of runs with the same seed (one pair says nothing of others); it beats 1 of their" in text
    none = WinRateRecord("good", ("poor", "same"), "accuracy", None, None, None, "", 0.0, 0)
    text = joined(verdict(dataclasses.replace(records.study(), win_rates=(none,))))
    assert "Win rate of good against 2 arms on the mean of the OOD sets: there is no seed that all of them" in text
