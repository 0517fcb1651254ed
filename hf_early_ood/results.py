"""The one typed record that everything downstream reads. It knows nothing of torch.

A number that could not be computed is None, never 0: NaN and infinity become null on disk.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from hf_early_ood.atomic import plain, write_json
from hf_early_ood.decoding import decode
from hf_early_ood.errors import ResumeError
from hf_early_ood.names import LAST_UPDATE

SCHEMA_VERSION = 1

Covers = Literal["examples", "examples and seeds"]
R = TypeVar("R", bound="_Record")


@dataclass(frozen=True)
class _Record:
    def to_dict(self) -> dict[str, Any]:
        """The record in types that JSON has."""
        return typing.cast("dict[str, Any]", plain(self))

    @classmethod
    def from_dict(cls: type[R], data: Any) -> R:
        """Read what `to_dict` gave.

        Raises:
            ResumeError: If a key is missing, unknown or of the wrong type.
        """
        return typing.cast(R, decode(cls, data))


@dataclass(frozen=True)
class EnvironmentRecord(_Record):
    """Where a result was made; `hf_early_ood.environment.capture_environment` fills it in."""

    python: str
    platform: str
    cpu: str
    cores: int
    device: str
    packages: dict[str, str | None]
    """Versions of torch, transformers, datasets, accelerate, peft and hf_early_ood; None: not installed."""
    git_commit: str | None = None
    git_dirty: bool | None = None
    """Whether files differed from the commit; None outside of a repository."""


@dataclass(frozen=True)
class SplitRecord(_Record):
    """One set of examples: its size, a hash of its content, and what was noticed. None: not looked for."""

    n: int
    fingerprint: str
    near_duplicates: int | None = None
    """Examples that nearly repeat a training text."""
    duplicates: int | None = None
    """Examples that repeat an earlier one of the set exactly."""
    truncated: int | None = None
    """Examples that are longer than the model was given to see."""
    findings: dict[str, int] | None = None
    """What else was noticed, such as examples that are left out, and how often."""
    language: str | None = None
    """ISO 639-1 code, where the configuration says it."""
    is_local: bool | None = None
    """Whether it came from files of that machine; None: not noted."""


@dataclass(frozen=True)
class ModelRecord(_Record):
    """The pretrained model."""

    name: str
    num_parameters: int
    revision: str | None = None
    weights_sha256: str | None = None
    is_local: bool | None = None
    """Whether the name is that of a folder of that machine; None: not noted."""


@dataclass(frozen=True)
class TrainingRecord(_Record):
    """How training went. ``loss_curve`` holds (update, loss) pairs, ``learning_rate_curve`` what the scheduler says."""

    updates: int
    epochs: float
    seconds: float
    train_loss: float | None
    seconds_per_stage: dict[str, float] = field(default_factory=dict)
    loss_curve: tuple[tuple[int, float | None], ...] | None = None
    learning_rate_curve: tuple[tuple[int, float | None], ...] | None = None
    """(update, the rate that it was made with, before factors of layer groups); None: not recorded."""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """What the Trainer worked with, defaults too: optimizer, learning rate, batch size and so on."""


@dataclass(frozen=True)
class StageRecord(_Record):
    """One change of the trainable layers: from update ``step + 1`` on ``released`` train and ``frozen`` do not."""

    stage: int
    step: int
    released: tuple[str, ...]
    trainable_parameters: int
    frozen: tuple[str, ...] = ()
    """Groups that trained before."""


@dataclass(frozen=True)
class DecisionRecord(_Record):
    """The update after which the detector released layers, why, and with which settings."""

    step: int
    reason: Literal["stable", "fallback"]
    value: float | None = None
    """Moving average of the signal."""
    change: float | None = None
    """Its relative change since the measurement before."""
    num_measurements: int | None = None
    num_skipped: int = 0
    """Measurements that were NaN or infinite and did not count."""
    at_first_chance: bool = False
    """Whether the signal was stable at the first measurement that could decide."""
    signal: str | None = None
    """The signal whose vote decided, or (fallback) one that was waited for in vain."""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PerturbationRecord(_Record):
    """Weights of layer groups that were changed after ``step`` updates."""

    step: int
    kind: str
    effective_std: dict[str, float | None]
    """Layer group -> standard deviation of what was added to its weights."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What else was set, and not left at its default; empty in records that did not note it."""


@dataclass(frozen=True)
class InterventionRecord(_Record):
    """What was done to training. ``decision`` is None where no detector was asked."""

    method: str
    stages: tuple[StageRecord, ...] = ()
    decision: DecisionRecord | None = None
    also: tuple[str, ...] = ()
    """What else was done, by the names of its sections: learning_rates, generations, ..."""
    never_trained: tuple[str, ...] = ()
    """Layer groups that no stage released."""
    perturbation: PerturbationRecord | None = None


@dataclass(frozen=True)
class ProbeRecord(_Record):
    """What the measurements of one kind cost."""

    count: int
    seconds: float
    share_of_training_time: float | None = None
    """Fraction in [0, 1] of the seconds of training."""
    extra_time: float | None = None
    """Seconds over those of the same training without measurements."""


@dataclass(frozen=True)
class MetricValue(_Record):
    """A number with its interval; None where it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class SplitEvaluation(_Record):
    """Metrics of one set over ``n`` examples."""

    n: int
    metrics: dict[str, MetricValue]
    notes: tuple[str, ...] = ()
    """What a reader must know about these numbers, e.g. that the set has a single class."""
    language: str | None = None
    """ISO 639-1 code, where the data says it."""
    only_prediction: str | None = None
    """The label that is predicted for every example, where it is one, and not right for all."""


@dataclass(frozen=True)
class WorstSet(_Record):
    """The OOD set with the lowest value, of errors the highest."""

    set: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class OODSummary(_Record):
    """One metric over all OOD sets. ``gap_to_id`` is ID test minus macro mean."""

    macro_mean: MetricValue
    worst: WorstSet
    gap_to_id: MetricValue | None
    relative_robustness: MetricValue | None = None
    """Macro mean / ID test."""
    transfer_gaps: dict[str, MetricValue] = field(default_factory=dict)
    """OOD split -> ID test minus its value."""
    higher_is_better: bool = True
    """False for errors such as ECE."""


@dataclass(frozen=True)
class EvaluationRecord(_Record):
    """Metrics per split, and per metric over the OOD splits."""

    splits: dict[str, SplitEvaluation]
    ood: dict[str, OODSummary]
    confidence: float = 0.95
    selected_by: str = LAST_UPDATE
    """What chose the weights that were judged. Never OOD data."""
    temperature: float | None = None
    """That of the calibrated metrics, fitted on ID validation; None: there are none."""
    notes: tuple[str, ...] = ()
    """What a reader must know about all sets."""


@dataclass(frozen=True)
class InterpolationRecord(_Record):
    """Scores of weights between those before and those after fine-tuning, and which ID validation chooses (WiSE-FT)."""

    metric: str
    """What the scores are; the higher the better."""
    head: str
    """Where the head at alpha = 0 is from."""
    alphas: tuple[float, ...]
    """Ascending; 0: before fine-tuning, 1: after it."""
    scores: dict[str, tuple[float | None, ...]]
    """Split to one score for each alpha."""
    chosen: float
    """The alpha with the highest score on ID validation; of several, the smallest."""


@dataclass(frozen=True)
class RunRecord(_Record):
    """Everything about one run. Parts that a failed run did not reach are None."""

    arm: str
    seed: int
    config: dict[str, Any]
    config_fingerprint: str
    status: Literal["complete", "failed"]
    environment: EnvironmentRecord
    started: str
    """ISO 8601 with time zone."""
    finished: str
    command: str
    error: str | None = None
    data: dict[str, SplitRecord] = field(default_factory=dict)
    model: ModelRecord | None = None
    training: TrainingRecord | None = None
    intervention: InterventionRecord | None = None
    interpolation: InterpolationRecord | None = None
    probes: dict[str, ProbeRecord] = field(default_factory=dict)
    evaluation: EvaluationRecord | None = None
    timing: dict[str, float] = field(default_factory=dict)
    """Seconds per phase: load, train, evaluate."""
    weights: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file of the trained model that was saved: weights, configuration, tokenizer; empty: none was, or
    it was not noted. Records of earlier versions have those of the weights."""
    label_names: tuple[str, ...] = ()
    """What the model tells apart, in the order of its outputs; empty: nothing, or it was not noted."""
    rescored: str | None = None
    """The command that scored the predictions anew, if that was done."""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class ArmRun(_Record):
    """One run inside a study: where its record is, and the numbers that reports show."""

    seed: int
    path: str
    """Folder of the run, relative to the study's."""
    status: Literal["complete", "failed"]
    error: str | None = None
    evaluation: EvaluationRecord | None = None
    intervention: InterventionRecord | None = None
    updates: int | None = None
    seconds: float | None = None
    """Seconds of training, measurements included."""
    probe_seconds: float | None = None
    size: int | None = None
    """Training examples that it was given; None: all."""

    @classmethod
    def from_run(cls, record: RunRecord, path: str, size: int | None = None) -> ArmRun:
        """The numbers of ``record``, whose folder is ``path`` as seen from the study's."""
        return cls(
            size=size,
            seed=record.seed,
            path=path,
            status=record.status,
            error=record.error,
            evaluation=record.evaluation,
            intervention=record.intervention,
            updates=record.training.updates if record.training else None,
            seconds=record.training.seconds if record.training else None,
            probe_seconds=sum(probe.seconds for probe in record.probes.values()) if record.training else None,
        )


@dataclass(frozen=True)
class Comparison(_Record):
    """One arm minus the baseline arm, paired over the same examples and seeds.

    Families of tests, within one metric and size: the OOD means of all arms, and the OOD sets of all arms. Within each,
    ``p_adjusted`` (Holm 1979) below 0.05 bounds the chance of any false finding. Nothing else is adjusted.
    """

    arm: str
    metric: str
    split: str
    """A split, `OOD_MACRO_MEAN`, `OOD_WORST`, `GAP_TO_ID` or `RELATIVE_ROBUSTNESS`."""
    difference: float | None
    low: float | None
    high: float | None
    n_examples: int
    n_seeds: int
    covers: Covers
    """What would have to be drawn anew for another result: the test examples, or the training seeds as well."""
    n_differing: int | None = None
    """Examples, times seeds, for which the two arms predict different classes; None: not counted."""
    size: int | None = None
    """Training examples of the runs that are compared; None: all."""
    p_value: float | None = None
    """Two-sided, of the same test as the interval: below 0.05 where a 95 % interval leaves out 0."""
    p_adjusted: float | None = None
    """The same over all tests of the family; None: there is none."""
    in_seed_sds: float | None = None
    """The difference in standard deviations of the baseline over its seeds."""
    cohens_h: float | None = None
    """Effect size of shares of examples (accuracy, exact match), whatever their level; 0.2 is called small."""
    higher_is_better: bool = True
    """Whether a positive difference speaks for the arm: not of errors, and not of the gap."""


@dataclass(frozen=True)
class WinRateRecord(_Record):
    """How often an arm does better than others, each pair of runs of one seed, on the mean of the OOD sets."""

    arm: str
    others: tuple[str, ...]
    metric: str
    value: float | None
    """Share of the pairs, one for each seed and other arm, that the arm wins; a tie is half a win. None: there is no
    seed that all of these arms have finished."""
    low: float | None
    high: float | None
    covers: str
    """What would have to be drawn anew for another result: the seeds, the other arms, or both."""
    wins: float
    """Of the others, how many have a lower mean over seeds; a tie is half a win."""
    num_seeds: int
    size: int | None = None
    """Training examples of the runs; None: all."""


@dataclass(frozen=True)
class StudyRecord(_Record):
    """All runs of a study and their comparisons with the baseline arm."""

    name: str
    baseline: str
    seeds: tuple[int, ...]
    metric: str
    """The metric that the verdict is about."""
    arms: dict[str, tuple[ArmRun, ...]]
    comparisons: tuple[Comparison, ...] = ()
    win_rates: tuple[WinRateRecord, ...] = ()
    confidence: float = 0.95
    margin: float | None = None
    """What an arm may lose in distribution and still be not worse: 0.01 is one point; None: not said."""
    started: str | None = None
    finished: str | None = None
    command: str | None = None
    sizes: tuple[int | None, ...] = ()
    """Sizes of the training set (None: all of it); empty: the study has one size."""
    schema_version: int = SCHEMA_VERSION

    def by_size(self) -> tuple[StudyRecord, ...]:
        """One study for each size, which is part of its name; a study of one size is its own."""
        return tuple(self._at(size) for size in self.sizes) or (self,)

    def _at(self, size: int | None) -> StudyRecord:
        return dataclasses.replace(
            self,
            name=f"{self.name}, {'all' if size is None else f'{size:,}'} training examples",
            arms={arm: tuple(run for run in runs if run.size == size) for arm, runs in self.arms.items()},
            comparisons=tuple(comparison for comparison in self.comparisons if comparison.size == size),
            win_rates=tuple(rate for rate in self.win_rates if rate.size == size),
            sizes=(),
        )


def write_record(path: str | PathLike[str], record: RunRecord | StudyRecord) -> None:
    """Write ``record`` to a JSON file, whole or not at all."""
    write_json(path, record.to_dict())


def read_run(path: str | PathLike[str]) -> RunRecord:
    """Read a run's results file.

    Raises:
        ResumeError: If it is missing, not readable, or of a newer version of this package.
    """
    return RunRecord.from_dict(_read(path))


def read_study(path: str | PathLike[str]) -> StudyRecord:
    """Read a study's file.

    Raises:
        ResumeError: If it is missing, not readable, of a newer version of this package, or without its baseline arm.
    """
    study = StudyRecord.from_dict(_read(path))
    if study.baseline not in study.arms:
        raise ResumeError(
            f"{path} has no runs of its baseline arm, with which all others are compared.",
            got=f"baseline {study.baseline!r}",
            allowed=", ".join(study.arms) or "an arm of the study",
            fix="Put the arm back, or delete the file and give the hf-early-ood study command again.",
        )
    return study


def _read(path: str | PathLike[str]) -> Any:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResumeError("There is no such results file.", got=path, fix="Let the run finish first.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResumeError(f"{path} is not JSON: {error}.", fix="Delete the file and run again.") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= SCHEMA_VERSION:
        raise ResumeError(
            f"{path} has a schema_version that this package cannot read.",
            got=repr(version),
            allowed=f"1 to {SCHEMA_VERSION}",
            fix="Upgrade hf_early_ood to the version that wrote the file, or run again in another folder.",
        )
    return data
