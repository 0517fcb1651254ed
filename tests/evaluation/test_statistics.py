from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.evaluation.classification import classification_scores
from hf_early_ood.evaluation.metrics import METRICS, IntArray, classification_metrics
from hf_early_ood.evaluation.statistics import (
    ArmComparison,
    Run,
    Summary,
    bootstrap_metrics,
    compare_arms,
    count_differing,
    paired_difference,
    summarize_runs,
)

Ids = Mapping[str, tuple[IntArray, IntArray]]
"""Split -> (labels, predictions)."""


def _scored(runs: Sequence[Ids], num_classes: int = 3) -> list[Run]:
    return [{split: classification_scores(*ids, num_classes=num_classes) for split, ids in run.items()} for run in runs]


def summarize(runs: Sequence[Ids], **settings: Any) -> Summary:
    return summarize_runs(_scored(runs), **settings)


def compare(baseline: Sequence[Ids], arm: Sequence[Ids], **settings: Any) -> ArmComparison:
    return compare_arms(_scored(baseline), _scored(arm), **settings)


def _predictions(rng: np.random.Generator, labels: IntArray, accuracy: float) -> IntArray:
    classes = labels.max() + 1
    return np.where(rng.random(len(labels)) < accuracy, labels, (labels + 1) % classes)


def _run(rng: np.random.Generator, labels: dict[str, IntArray], **accuracy: float) -> Ids:
    return {split: (ids, _predictions(rng, ids, accuracy[split.rpartition("/")[2]])) for split, ids in labels.items()}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def labels(rng: np.random.Generator) -> dict[str, IntArray]:
    sizes = {"id_test": 300, "ood/a": 200, "ood/b": 100}
    return {split: rng.integers(0, 2, size) for split, size in sizes.items()}


# One model on one set


def test_values_are_the_metrics(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 50)
    predictions = _predictions(rng, labels, 0.7)
    estimates = bootstrap_metrics(labels, predictions)
    assert {metric: estimate.value for metric, estimate in estimates.items()} == classification_metrics(
        labels, predictions
    )
    assert all(estimate.low < estimate.value < estimate.high and estimate.n == 50 for estimate in estimates.values())


def test_counts_resample_as_examples_do(rng: np.random.Generator) -> None:
    """The multinomial shortcut has the distribution of the plain bootstrap, drawn example by example."""
    labels = rng.choice(3, 80, p=[0.6, 0.3, 0.1])
    predictions = _predictions(rng, labels, 0.7)
    drawn = [rng.integers(0, 80, 80) for _ in range(4000)]
    plain = [classification_metrics(labels[indices], predictions[indices]) for indices in drawn]
    estimates = bootstrap_metrics(labels, predictions, num_resamples=20000)
    for metric in METRICS:
        low, high = np.quantile([values[metric] for values in plain], [0.025, 0.975])
        assert estimates[metric].low == pytest.approx(low, abs=0.015)
        assert estimates[metric].high == pytest.approx(high, abs=0.015)


def test_accuracy_interval_is_that_of_the_binomial() -> None:
    labels = np.zeros(400, dtype=int)
    predictions = np.where(np.arange(400) < 300, 0, 1)
    estimate = bootstrap_metrics(labels, predictions, num_resamples=20000)["accuracy"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (estimate.low, estimate.high) == (
        pytest.approx(0.75 - half, abs=0.004),
        pytest.approx(0.75 + half, abs=0.004),
    )


def test_coverage(rng: np.random.Generator) -> None:
    """95 % intervals hold the truth about 95 % of the time."""
    truth = {"accuracy": 0.6 * 0.9 + 0.4 * 0.7, "balanced_accuracy": 0.8}
    hits = dict.fromkeys(truth, 0)
    trials = 300
    for trial in range(trials):
        labels = (rng.random(200) < 0.4).astype(int)
        right = rng.random(200) < np.where(labels == 0, 0.9, 0.7)
        estimates = bootstrap_metrics(labels, np.where(right, labels, 1 - labels), num_resamples=400, seed=trial)
        for metric, value in truth.items():
            hits[metric] += estimates[metric].low <= value <= estimates[metric].high
    for metric, count in hits.items():
        assert 0.91 <= count / trials <= 0.985, metric


def test_same_seed_same_interval(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 2, 90)
    predictions = _predictions(rng, labels, 0.8)
    assert bootstrap_metrics(labels, predictions) == bootstrap_metrics(labels, predictions)
    assert bootstrap_metrics(labels, predictions) != bootstrap_metrics(labels, predictions, seed=1)


def test_confidence_widens(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 2, 90)
    predictions = _predictions(rng, labels, 0.8)
    narrow, wide = (bootstrap_metrics(labels, predictions, confidence=c)["accuracy"] for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_everything_right_is_not_certainty() -> None:
    labels = np.array([0, 1] * 10)
    estimate = bootstrap_metrics(labels, labels)["accuracy"]
    critical = stats.t.ppf(0.975, 19)
    assert estimate.low == pytest.approx(20 / (20 + critical**2))
    assert (estimate.value, estimate.high, estimate.n, estimate.p_value) == (1, 1, 20, None)


def test_one_example_and_one_class() -> None:
    estimate = bootstrap_metrics(np.array([1]), np.array([0]))["balanced_accuracy"]
    assert (estimate.low, estimate.value) == (0, 0)
    assert 0.95 < estimate.high <= 1


def test_ten_thousand_examples_take_seconds(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 20, 10_000)
    start = time.perf_counter()
    bootstrap_metrics(labels, _predictions(rng, labels, 0.8), num_resamples=2000)
    assert time.perf_counter() - start < 5


# Two models on one set


def test_paired_interval_is_narrower_than_unpaired(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 2, 500)
    baseline = _predictions(rng, labels, 0.8)
    arm = np.where(rng.random(500) < 0.05, labels, baseline)  # 5 % better, otherwise the same
    paired = paired_difference(labels, baseline, arm, metric="accuracy")
    one, other = (bootstrap_metrics(labels, p)["accuracy"] for p in (baseline, arm))
    unpaired = np.hypot(one.high - one.low, other.high - other.low)
    assert paired.value == pytest.approx(other.value - one.value)
    assert paired.high - paired.low < unpaired / 2
    assert paired.low >= 0


def test_no_difference_between_equal_predictions(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 60)
    predictions = _predictions(rng, labels, 0.5)
    difference = paired_difference(labels, predictions, predictions)
    assert (difference.value, difference.p_value) == (0, 1)
    assert -0.05 < difference.low < 0 < difference.high < 0.05  # about two examples of 60


@pytest.mark.parametrize(("count", "decided"), [(1, False), (4, False), (6, True)])
def test_few_differing_examples_decide_as_a_sign_test_does(count: int, decided: bool) -> None:
    """All of them speak for the arm; 2 / 2^4 > 0.05 > 2 / 2^6."""
    labels = np.array([0, 1] * 750)
    worse = np.where(np.arange(1500) < count, 1 - labels, labels)
    difference = paired_difference(labels, worse, labels, metric="accuracy")
    assert difference.p_value is not None
    assert (difference.low > 0) == (difference.p_value < 0.05) == decided


def test_difference_is_antisymmetric(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 200)
    first, second = _predictions(rng, labels, 0.8), _predictions(rng, labels, 0.6)
    there, back = paired_difference(labels, first, second), paired_difference(labels, second, first)
    assert there.value == -back.value
    assert there.low == pytest.approx(-back.high, abs=0.01)


def test_paired_coverage_when_nothing_differs(rng: np.random.Generator) -> None:
    """Two equally good models: the interval leaves out zero about 5 % of the time."""
    wrong = 0
    for trial in range(300):
        labels = rng.integers(0, 2, 150)
        hard = rng.random(150) < 0.4
        arms = [np.where(hard & (rng.random(150) < 0.5), 1 - labels, labels) for _ in range(2)]
        difference = paired_difference(labels, *arms, metric="accuracy", num_resamples=400, seed=trial)
        wrong += not difference.low <= 0 <= difference.high
    assert 0.01 <= wrong / 300 <= 0.09


# Several sets and seeds


def test_summary_of_one_run(rng: np.random.Generator, labels: dict[str, IntArray]) -> None:
    run = _run(rng, labels, id_test=0.9, a=0.8, b=0.6)
    summary = summarize([run], metric="accuracy")
    values = {split: classification_metrics(*run[split])["accuracy"] for split in run}
    assert {split: estimate.value for split, estimate in summary.splits.items()} == pytest.approx(values)
    assert summary.ood_mean is not None
    assert summary.ood_worst is not None
    assert summary.gap is not None
    assert summary.ood_mean.value == pytest.approx((values["ood/a"] + values["ood/b"]) / 2)
    assert (summary.worst_set, summary.ood_worst.value) == ("ood/b", pytest.approx(values["ood/b"]))
    assert summary.gap.value == pytest.approx(values["id_test"] - summary.ood_mean.value)
    assert [summary.ood_mean.n, summary.gap.n, summary.splits["id_test"].n] == [300, 600, 300]
    # Sets are independent: the variance of their mean is the sum of variances over the squared number.
    widths = [summary.splits[split].high - summary.splits[split].low for split in ("ood/a", "ood/b")]
    assert summary.ood_mean.high - summary.ood_mean.low == pytest.approx(np.hypot(*widths) / 2, rel=0.1)
    assert json.loads(json.dumps(summary.to_dict()))["worst_set"] == "ood/b"


def test_a_set_is_resampled_the_same_whatever_other_sets_there_are(
    rng: np.random.Generator, labels: dict[str, IntArray]
) -> None:
    run = _run(rng, labels, id_test=0.9, a=0.8, b=0.6)
    alone = summarize([{"ood/b": run["ood/b"]}])
    assert alone.splits["ood/b"] == summarize([run]).splits["ood/b"]
    assert alone.gap is None


def test_without_ood_sets_there_is_no_summary_of_them() -> None:
    ids = np.array([0, 1, 1])
    summary = summarize([{"id_test": (ids, ids), "id_validation": (ids, ids)}])
    assert (summary.ood_mean, summary.ood_worst, summary.worst_set, summary.gap) == (None, None, None, None)


def test_ties_for_the_worst_set_go_by_name() -> None:
    ids = np.array([0, 1])
    assert summarize([{"ood/z": (ids, ids), "ood/b": (ids, ids)}]).worst_set == "ood/b"


def test_difference_is_arm_minus_baseline(rng: np.random.Generator, labels: dict[str, IntArray]) -> None:
    baseline = [_run(rng, labels, id_test=0.9, a=0.7, b=0.6) for _ in range(3)]
    arm = [_run(rng, labels, id_test=0.9, a=0.8, b=0.9) for _ in range(3)]
    comparison = compare(baseline, arm, metric="accuracy")
    for name in ("ood_mean", "ood_worst", "gap"):
        parts = [getattr(part, name).value for part in (comparison.baseline, comparison.arm, comparison.difference)]
        assert parts[2] == pytest.approx(parts[1] - parts[0]), name
    mean = np.mean([classification_metrics(*run["ood/a"])["accuracy"] for run in arm])
    assert comparison.arm.splits["ood/a"].value == pytest.approx(mean)
    assert (comparison.baseline.worst_set, comparison.arm.worst_set) == ("ood/b", "ood/a")
    assert comparison.difference.worst_set is None
    assert comparison.difference.ood_mean is not None
    assert comparison.difference.ood_mean.low > 0
    assert comparison.num_seeds == (3, 3)
    assert comparison.covers == "examples and seeds"
    json.dumps(comparison.to_dict())


def test_arms_are_summarized_as_they_are_alone(rng: np.random.Generator, labels: dict[str, IntArray]) -> None:
    runs = [_run(rng, labels, id_test=0.9, a=0.7, b=0.6) for _ in range(2)]
    comparison = compare(runs, runs)
    alone = summarize(runs)
    assert comparison.baseline.ood_mean is not None
    assert alone.ood_mean is not None
    assert comparison.baseline.ood_mean.value == pytest.approx(alone.ood_mean.value)
    assert comparison.baseline.ood_mean.low == pytest.approx(alone.ood_mean.low, abs=0.01)


def test_one_seed_covers_examples_only(rng: np.random.Generator, labels: dict[str, IntArray]) -> None:
    run = _run(rng, labels, id_test=0.9, a=0.7, b=0.6)
    assert compare([run], [run]).covers == "examples"


def test_seeds_that_disagree_widen_the_interval() -> None:
    labels = np.array([0, 1] * 500)
    wrong = [np.where(np.arange(1000) < count, 1 - labels, labels) for count in (100, 200, 300, 400)]
    agree = [{"id_test": (labels, wrong[1])} for _ in range(4)]
    differ = [{"id_test": (labels, predictions)} for predictions in wrong]
    narrow, wide = (summarize(runs, metric="accuracy").splits["id_test"] for runs in (agree, differ))
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * np.sqrt(0.2 * 0.8 / 1000), rel=0.1)
    # Standard error of the mean of four seeds, with the unbiased standard deviation; the sides of a share are cut.
    spread = np.std([0.9, 0.8, 0.7, 0.6], ddof=1) / 2
    assert wide.high - wide.low == pytest.approx(2 * stats.t.ppf(0.975, 3) * spread, rel=0.15)


def test_intervals_stay_in_the_range_of_the_metric() -> None:
    labels = np.array([0, 1] * 50)
    runs = [{"id_test": (labels, np.where(np.arange(100) < wrong, 1 - labels, labels))} for wrong in (0, 0, 40)]
    estimate = summarize(runs, metric="accuracy").splits["id_test"]
    assert estimate.value == pytest.approx(1 - 0.4 / 3)
    assert 0.9 < estimate.high < 1.0


def test_paired_seeds_cancel_what_a_seed_does_to_both_arms(rng: np.random.Generator) -> None:
    labels = np.array([0, 1] * 500)

    def arm(extra: int) -> list[Ids]:
        return [
            {"id_test": (labels, np.where(np.arange(1000) < count + extra, 1 - labels, labels))}
            for count in (100, 200, 300, 400, 500)
        ]

    better, worse = arm(0), arm(30)
    paired = compare(worse, better, metric="accuracy").difference.splits["id_test"]
    unpaired = compare(worse, better, metric="accuracy", paired_seeds=False).difference.splits["id_test"]
    assert [paired.value, unpaired.value] == pytest.approx([0.03, 0.03])
    assert paired.low > 0 > unpaired.low


def test_coverage_over_seeds(rng: np.random.Generator) -> None:
    """With five seeds that differ, the interval holds the difference that all seeds would have on all examples."""
    hits, trials = 0, 200
    for trial in range(trials):
        labels = rng.integers(0, 2, 300)
        difficulty = rng.normal(size=300)

        def arm(shift: float, labels: IntArray = labels, difficulty: Any = difficulty) -> list[Ids]:
            skills = difficulty + shift + 0.15 * rng.normal(size=(5, 1)) + 0.3 * rng.normal(size=(5, 300))
            return [{"id_test": (labels, np.where(skill > -1, labels, 1 - labels))} for skill in skills]

        comparison = compare(arm(0), arm(0), metric="accuracy", num_resamples=400, seed=trial)
        difference = comparison.difference.splits["id_test"]
        hits += difference.low <= 0 <= difference.high
    assert 0.87 <= hits / trials <= 0.99


def test_unequal_numbers_of_seeds(rng: np.random.Generator, labels: dict[str, IntArray]) -> None:
    runs = [_run(rng, labels, id_test=0.9, a=0.7, b=0.6) for _ in range(3)]
    with pytest.raises(DataError, match=r"Paired arms need the same number of runs.*2 and 3.*paired_seeds=False"):
        compare(runs[:2], runs)
    comparison = compare(runs[:2], runs, paired_seeds=False)
    assert comparison.num_seeds == (2, 3)
    assert compare(runs[:1], runs, paired_seeds=False).covers == "examples"


def test_runs_on_other_examples_are_refused(rng: np.random.Generator, labels: dict[str, IntArray]) -> None:
    run = _run(rng, labels, id_test=0.9, a=0.7, b=0.6)
    other = {**run, "ood/a": (1 - run["ood/a"][0], run["ood/a"][1])}
    with pytest.raises(DataError, match=r"Run 1 was not evaluated on the same examples of ood/a"):
        compare([run], [other])
    shorter = {**run, "ood/a": (run["ood/a"][0][:-1], run["ood/a"][1][:-1])}
    with pytest.raises(DataError, match="not evaluated on the same examples of ood/a"):
        compare([run], [shorter])
    with pytest.raises(DataError, match=r"Run 1 was not evaluated on the same sets.*Got: id_test"):
        compare([run], [{"id_test": run["id_test"]}])


def test_nothing_to_compare() -> None:
    ids = np.array([0, 1])
    with pytest.raises(DataError, match="no runs to summarize"):
        summarize([])
    with pytest.raises(DataError, match="A run has no splits"):
        summarize([{}])
    with pytest.raises(DataError, match="An arm has no runs"):
        compare([], [])
    with pytest.raises(DataError, match="There are no examples"):
        summarize([{"id_test": (ids[:0], ids[:0])}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_resamples": 10}, "too few resamples"),
        ({"confidence": 1.0}, "confidence is out of range"),
        ({"confidence": 95}, "confidence is out of range"),
        ({"metric": "auc"}, "Unknown metric"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    ids = np.array([0, 1])
    for call in (
        lambda: paired_difference(ids, ids, ids, **settings),
        lambda: summarize([{"x": (ids, ids)}], **settings),
    ):
        with pytest.raises(ConfigurationError, match=message):
            call()


# Errors, and what is made of the sets


def _with_errors(rng: np.random.Generator, sizes: dict[str, float]) -> Run:
    """Scores of right predictions with the probability that each set is given."""
    labels = np.zeros(60, dtype=int)
    return {
        split: classification_scores(
            labels, labels, np.clip(p + 0.01 * rng.normal(size=(60, 1)), 0, 1) * [1, -1] + [0, 1]
        )
        for split, p in sizes.items()
    }


def test_of_errors_the_worst_set_has_the_largest(rng: np.random.Generator) -> None:
    run = _with_errors(rng, {"id_test": 0.9, "ood/a": 0.8, "ood/b": 0.6, "ood/c": 0.7})
    summary = summarize_runs([run], metric="brier")
    assert summary.worst_set == "ood/b"
    assert summary.ood_worst is not None
    assert summary.gap is not None
    assert summary.ood_worst.value == summary.splits["ood/b"].value == pytest.approx(2 * 0.4**2, abs=0.02)
    assert summary.ood_worst.low >= summary.splits["ood/b"].low
    assert summary.gap.value < 0
    assert summary.relative_robustness is None


def test_brier_scores_may_be_above_one() -> None:
    labels = np.zeros(30, dtype=int)
    wrong = classification_scores(labels, 1 - labels, np.tile([0.05, 0.95], (30, 1)))
    estimate = summarize_runs([{"id_test": wrong}], metric="brier").splits["id_test"]
    assert estimate.value == pytest.approx(2 * 0.95**2)
    assert 1 < estimate.low < estimate.value < estimate.high <= 2


def test_relative_robustness_and_transfer(rng: np.random.Generator, labels: dict[str, IntArray]) -> None:
    run = _run(rng, labels, id_test=0.9, a=0.8, b=0.6)
    summary = summarize([run], metric="accuracy")
    assert summary.relative_robustness is not None
    assert summary.ood_mean is not None
    at_home = summary.splits["id_test"].value
    assert summary.relative_robustness.value == pytest.approx(summary.ood_mean.value / at_home)
    assert summary.relative_robustness.low < summary.relative_robustness.value < summary.relative_robustness.high
    assert summary.relative_robustness.n == 600
    assert set(summary.transfer_gaps) == {"ood/a", "ood/b"}
    for split, gap in summary.transfer_gaps.items():
        assert gap.value == pytest.approx(at_home - summary.splits[split].value)
        # Sets are independent: variances add up.
        widths = [summary.splits[name].high - summary.splits[name].low for name in ("id_test", split)]
        assert gap.high - gap.low == pytest.approx(np.hypot(*widths), rel=0.12)


def test_differences_of_ratios_and_of_gaps(rng: np.random.Generator, labels: dict[str, IntArray]) -> None:
    baseline, arm = (_run(rng, labels, id_test=0.9, a=a, b=0.6) for a in (0.7, 0.9))
    comparison = compare([baseline], [arm], metric="accuracy")
    parts = (comparison.baseline, comparison.arm, comparison.difference)
    ratios = [part.relative_robustness.value for part in parts if part.relative_robustness is not None]
    assert ratios[2] == pytest.approx(ratios[1] - ratios[0])
    gaps = [part.transfer_gaps["ood/a"].value for part in parts]
    assert gaps[2] == pytest.approx(gaps[1] - gaps[0])


def test_every_difference_has_a_p_value_that_agrees_with_its_interval(
    rng: np.random.Generator, labels: dict[str, IntArray]
) -> None:
    baseline, arm = ([_run(rng, labels, id_test=0.9, a=a, b=0.6) for _ in range(3)] for a in (0.6, 0.9))
    for paired in (True, False):
        difference = compare(baseline, arm, metric="accuracy", paired_seeds=paired).difference
        found = difference.named() | difference.transfer_gaps
        assert set(difference.named()) == {*labels, "ood_macro_mean", "ood_worst", "gap_to_id", "relative_robustness"}
        for name, estimate in found.items():
            assert estimate.p_value is not None, name
            assert (estimate.p_value < 0.05) == (estimate.low > 0 or estimate.high < 0), name
        assert difference.splits["ood/a"].p_value < 0.05 < difference.splits["id_test"].p_value  # type: ignore[operator]
    alone = summarize(arm, metric="accuracy").named()
    assert {name for name, estimate in alone.items() if estimate.p_value is not None} == {"gap_to_id"}


def test_the_worst_set_is_that_of_the_mean_over_the_runs(rng: np.random.Generator, labels: dict[str, IntArray]) -> None:
    """On their own, two of the runs would have another."""
    runs = [_run(rng, labels, id_test=0.9, a=a, b=0.7) for a in (0.2, 0.8, 0.8)]
    summary = summarize(runs, metric="accuracy")
    assert (summary.worst_set, summary.ood_worst) == ("ood/a", summary.splits["ood/a"])
    other = [_run(rng, labels, id_test=0.9, a=0.9, b=0.5) for _ in range(3)]
    difference = compare(runs, other, metric="accuracy").difference.ood_worst
    assert difference is not None
    assert difference.n == 300  # both sets
    expected = summarize(other, metric="accuracy").splits["ood/b"].value - summary.splits["ood/a"].value
    assert difference.value == pytest.approx(expected)


def test_relative_robustness_is_that_of_the_delta_method(rng: np.random.Generator) -> None:
    labels = np.zeros(2000, dtype=int)
    run = {
        split: (labels, (np.arange(2000) >= right).astype(int)) for split, right in (("id_test", 1800), ("ood/a", 1200))
    }
    found = summarize([run], metric="accuracy", num_resamples=20000).relative_robustness
    assert found is not None
    error = (0.6 / 0.9) * np.sqrt(0.4 / 0.6 / 2000 + 0.1 / 0.9 / 2000)
    assert (found.low, found.value, found.high) == pytest.approx(
        (0.6 / 0.9 - 1.96 * error, 0.6 / 0.9, 0.6 / 0.9 + 1.96 * error), abs=0.002
    )


def test_effect_sizes_are_those_of_the_runs(rng: np.random.Generator, labels: dict[str, IntArray]) -> None:
    baseline, arm = ([_run(rng, labels, id_test=0.9, a=a, b=0.6) for _ in range(3)] for a in (0.6, 0.9))
    comparison = compare(baseline, arm, metric="accuracy")
    assert set(comparison.effects) == {*labels, "ood_macro_mean", "ood_worst"}
    values = [[classification_metrics(*run["ood/a"])["accuracy"] for run in runs] for runs in (baseline, arm)]
    size = comparison.effects["ood/a"]
    assert size.points == pytest.approx(100 * comparison.difference.splits["ood/a"].value)
    assert size.in_seed_sds == pytest.approx((np.mean(values[1]) - np.mean(values[0])) / np.std(values[0], ddof=1))


def test_a_model_that_knows_nothing_keeps_no_share() -> None:
    labels = np.array([0, 1] * 10)
    summary = summarize([{"id_test": (labels, 1 - labels), "ood/a": (labels, labels)}], metric="accuracy")
    assert summary.relative_robustness is None
    assert summary.gap is not None
    rare = np.where(np.arange(20) == 0, labels, 1 - labels)  # right once: in many resamples never
    summary = summarize([{"id_test": (labels, rare), "ood/a": (labels, labels)}], metric="accuracy")
    assert summary.relative_robustness is not None
    assert summary.relative_robustness.value == pytest.approx(20)
    assert np.isnan(summary.relative_robustness.high)


def test_differing_examples_are_those_that_count_differently_for_the_metric() -> None:
    labels, first, second = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]), np.array([0, 0, 0, 1])
    surer = np.full((4, 2), 0.5), np.array([[0.5, 0.5], [0.4, 0.6], [0.5, 0.5], [0.5, 0.5]])
    runs = [{"x": classification_scores(labels, p, q)} for p, q in zip((first, second), surer, strict=True)]
    assert count_differing(*runs, "accuracy") == count_differing(*runs, "macro_f1") == {"x": 2}
    assert count_differing(*runs, "brier") == {"x": 1}
    assert count_differing(runs[0], runs[0], "brier") == {"x": 0}


def test_two_arms_of_five_seeds_take_seconds(rng: np.random.Generator) -> None:
    """10,000 examples, 20 classes, three metrics: about 4 s of one core, so that a loaded machine passes too."""
    labels = rng.integers(0, 20, 10_000)
    runs = _scored([{"id_test": (labels, _predictions(rng, labels, 0.8))} for _ in range(10)], num_classes=20)
    start = time.process_time()
    for metric in METRICS:
        compare_arms(runs[:5], runs[5:], metric=metric, num_resamples=2000)
    assert time.process_time() - start < 15
