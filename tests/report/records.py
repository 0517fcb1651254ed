"""Records of made-up runs and studies for the tests of reports."""

from __future__ import annotations

from hf_early_ood.names import OOD_MACRO_MEAN, OOD_WORST
from hf_early_ood.results import (
    ArmRun,
    Comparison,
    Covers,
    DecisionRecord,
    EnvironmentRecord,
    EvaluationRecord,
    InterventionRecord,
    MetricValue,
    ModelRecord,
    OODSummary,
    ProbeRecord,
    RunRecord,
    SplitEvaluation,
    SplitRecord,
    StageRecord,
    StudyRecord,
    TrainingRecord,
    WorstSet,
)

SETS = ("ood/movie", "ood/amazon", "ood/nyt")


def value(number: float) -> MetricValue:
    return MetricValue(number, number - 0.02, number + 0.02)


def evaluation(shift: float = 0.0, sets: tuple[str, ...] = SETS) -> EvaluationRecord:
    scores = {"id_validation": 0.91, "id_test": 0.9}
    scores |= {name: 0.7 + 0.05 * number for number, name in enumerate(sets)}
    splits = {name: SplitEvaluation(500, {"accuracy": value(score + shift)}) for name, score in scores.items()}
    mean = sum(scores[name] for name in sets) / len(sets) + shift
    summary = OODSummary(value(mean), WorstSet(sets[0], 0.7 + shift), value(0.9 + shift - mean))
    return EvaluationRecord(splits, {"accuracy": summary})


def intervention(reason: str = "stable", step: int = 40, groups: int = 6) -> InterventionRecord:
    names = ["head", *(f"block.{i}" for i in reversed(range(groups))), "embeddings"]
    stages = tuple(StageRecord(i, i * step, (name,), 1000 * (i + 1)) for i, name in enumerate(names))
    decision = DecisionRecord(step, reason, 1.5, 0.01, 8, 0, settings={"window": 3})  # type: ignore[arg-type]
    return InterventionRecord("gradual_unfreezing", stages, decision)


def arm_run(seed: int, shift: float = 0.0, gradual: bool = False, sets: tuple[str, ...] = SETS) -> ArmRun:
    return ArmRun(
        seed=seed,
        path=f"x/seed{seed}",
        status="complete",
        evaluation=evaluation(shift, sets),
        intervention=intervention() if gradual else InterventionRecord("standard"),
        updates=400,
        seconds=125.0,
        probe_seconds=2.5 if gradual else 0.0,
    )


def comparison(split: str, difference: float, half: float, seeds: int = 1, arm: str = "gradual") -> Comparison:
    covers: Covers = "examples" if seeds == 1 else "examples and seeds"
    return Comparison(arm, "accuracy", split, difference, difference - half, difference + half, 1500, seeds, covers)


def study(seeds: tuple[int, ...] = (1,), difference: float = 0.023, half: float = 0.015) -> StudyRecord:
    arms = {
        "standard": tuple(arm_run(seed, 0.001 * seed) for seed in seeds),
        "gradual": tuple(arm_run(seed, difference + 0.002 * seed, gradual=True) for seed in seeds),
    }
    splits = (OOD_MACRO_MEAN, OOD_WORST, *SETS, "id_test")
    comparisons = tuple(comparison(split, difference, half, len(seeds)) for split in splits)
    return StudyRecord("sentiment", "standard", seeds, "accuracy", arms, comparisons)


def run() -> RunRecord:
    packages: dict[str, str | None] = {"torch": "2.13.0", "peft": None}
    return RunRecord(
        arm="gradual",
        seed=1,
        config={"name": "gradual"},
        config_fingerprint="abc",
        status="complete",
        environment=EnvironmentRecord("3.11.0", "Linux", "a cpu", 2, "cpu", packages),
        started="2025-01-01T10:00:00+00:00",
        finished="2025-01-01T10:05:00+00:00",
        command="hf-early-ood run x.yaml",
        data={"train": SplitRecord(1000, "f00"), "ood/movie": SplitRecord(500, "ba4", 3)},
        model=ModelRecord("bert-base-uncased", 109_000_000),
        training=TrainingRecord(400, 2.0, 125.0, 0.4, {"0": 10.0, "1": 115.0}, ((10, 0.6), (20, None))),
        intervention=intervention(),
        probes={"fisher_trace": ProbeRecord(8, 2.5, 0.02)},
        evaluation=evaluation(),
        timing={"load": 8.0, "train": 125.0, "evaluate": 30.0},
    )
