"""The section ``intervention`` of a run: what is done to training, and when."""

# `option` makes a dataclasses.field.
# ruff: noqa: RUF009
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_early_ood.checks import LARGEST_SEED
from hf_early_ood.config.parsing import option
from hf_early_ood.config.perturbations import PerturbationConfig

_UPDATES = "a whole number of updates >= 1, or a fraction of training above 0 and less than 1"


@dataclass(frozen=True)
class DetectorConfig:
    """When a signal counts as stable (interval: auto)."""

    window: int = option("Measurements in the moving average (tau).", 3, at_least=1)
    tolerance: float = option("Relative change of the average that counts as stable (epsilon).", 0.02, at_least=0)
    transient: Literal["auto"] | int = option(
        "Updates at the start that are not judged.", "auto", allowed="auto, or a whole number of updates >= 0"
    )
    max_step: Literal["auto"] | int | float = option(
        "Update of the fallback, if the signal is not stable before; auto: all updates / number of layer groups.",
        "auto",
        allowed="auto, a whole number of updates >= 1, or a fraction of training above 0 and at most 1",
    )


@dataclass(frozen=True)
class ProbeSetConfig:
    """What measurements see."""

    size: int = option("Examples in the fixed probe set.", 128, at_least=1)
    batch_size: int = option("Probe examples at a time.", 32, at_least=1)
    seed: int = option("Draws the probe set and the labels.", 0, at_least=0, below=LARGEST_SEED)


@dataclass(frozen=True)
class ProbeConfig(ProbeSetConfig):
    """What the measurements see and how often they are made."""

    every: int = option("Updates between two measurements.", 10, at_least=1)
    labels: Literal["sampled", "expected", "empirical", "argmax"] = option("Labels in the Fisher trace.", "sampled")


@dataclass(frozen=True)
class LISAConfig:
    """Method lisa: a few blocks, drawn anew every few updates."""

    interval: int | float = option("Updates between two draws.", 20, allowed=_UPDATES)
    num_groups: int = option("Layer groups drawn at a time.", 2, at_least=1)
    always: tuple[str, ...] | None = option("Groups that always train; null: embeddings and head.", None)
    seed: int = option("Of the draws.", 0, at_least=0, below=LARGEST_SEED)
    optimizer_state: Literal["keep", "reset"] = option("Moments of a block that is frozen.", "keep")


@dataclass(frozen=True)
class AutoFreezeConfig:
    """Method autofreeze: groups frozen from the bottom as their gradients settle."""

    interval: int | float = option("Updates between two looks.", 0.1, allowed=_UPDATES)
    percentile: float = option(
        "Groups that change less than it are settled.",
        50.0,
        above=0,
        below=100.0001,
        allowed="a number above 0, at most 100",
    )


@dataclass(frozen=True)
class LearningRatesConfig:
    """Learning rates of their own for layer groups."""

    layer_decay: float = option(
        "Factor from one layer group to the one below.",
        1.0,
        above=0,
        below=1.0000001,
        allowed="a number above 0, at most 1",
    )
    factors: dict[str, float] = option("Factors by layer group or regular expression.", dict)
    release_warmup: int | float = option(
        "Warm-up of a group after its release.", 0, allowed="a whole number of updates >= 0, or a fraction of training"
    )
    release_state: Literal["keep", "reset"] = option("Optimizer state of a group that trains again.", "keep")
    switch_factor: float | None = option("Factor on all learning rates until switch_at.", None, above=0)
    switch_at: Literal["auto"] | int | float | None = option(
        "Update of the switch; auto: when the interval is decided.", None, allowed=f"auto, {_UPDATES}, or null"
    )


@dataclass(frozen=True)
class GenerationsConfig:
    """SEAL and later-layer forgetting: training cut into generations."""

    generations: int = option("Generations of equal length; the first is plain.", 3, at_least=2)
    ascent: int | float | None = option(
        "Part of each later generation in which the early layers ascend (SEAL); null: none.",
        0.25,
        allowed="a whole number of updates >= 1, a fraction of a generation above 0 and less than 1, or null",
    )
    ascent_rate: float = option("Learning rate of the ascent, times the scheduled one (S).", 0.01, above=0)
    forget: bool = option("Re-initialize the later layers at the start of each later generation (LLF).", False)
    boundary: str | None = option("First of the later layer groups; null: the upper half of the blocks.", None)
    forget_norms: bool = option("Re-initialize normalization layers too.", False)
    forget_seed: int = option("Draws the new weights.", 0, at_least=0, below=LARGEST_SEED)
    optimizer_state: Literal["reset", "keep"] = option("Moments at the start and the end of an ascent.", "reset")
    lr_restart: bool = option("Restart the learning-rate schedule in each generation.", True)


@dataclass(frozen=True)
class FisherPenaltyConfig:
    """Explicit penalty on the Fisher trace of the batch."""

    alpha: float = option("Weight of the penalty.", above=0)
    every: int = option("Updates between two updates that have it.", 1, at_least=1)
    until: int | float | None = option(
        "Last update that has it; null: to the end.", None, allowed=f"{_UPDATES}, or null"
    )
    seed: int = option("Draws the labels.", 0, at_least=0, below=LARGEST_SEED)


@dataclass(frozen=True)
class PretextConfig:
    """What the first updates are trained on in place of the task."""

    kind: Literal["random_labels", "shuffled_tokens", "masked_lm"] = option(
        "Labels that have nothing to do with the text, tokens in another order, or masked language modeling."
    )
    updates: int | float = option("Updates of it, which are part of the run.", 0.1, allowed=_UPDATES)
    seed: int = option("Of everything random about it.", 0, at_least=0, below=LARGEST_SEED)
    mask_probability: float = option("Of a token to be masked, for masked_lm.", 0.15, above=0, below=1)
    optimizer_state: Literal["reset", "keep"] = option("Moments when the task begins.", "reset")


@dataclass(frozen=True)
class WeightInterpolationConfig:
    """WiSE-FT: between the weights before and after fine-tuning, once training is over."""

    alphas: tuple[float, ...] = option(
        "Points of the curve, from 0 (before) to 1 (after).",
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        allowed="a list of different numbers from 0 to 1",
    )
    alpha: Literal["id_validation"] | float = option(
        "The point that is evaluated and kept as the model of the run; id_validation: the best one there.",
        "id_validation",
        allowed="id_validation, or one of alphas",
    )
    head: Literal["first_stage", "final"] = option(
        "The head at alpha = 0: that of the end of the head-only stage, or the trained one at every alpha.", "final"
    )


@dataclass(frozen=True)
class InterventionConfig:
    """What is done to training, and when. The sections that are null by default are off, and combine with a method."""

    method: Literal["standard", "gradual_unfreezing", "lisa", "autofreeze"] = option(
        "Which layers are trained when.", "standard"
    )
    interval: Literal["auto"] | int | float = option(
        "Updates in each stage, or auto: read from the signal.",
        "auto",
        allowed="auto, a whole number of updates >= 1, or a fraction of training above 0 and less than 1",
    )
    order: (
        Literal["top_down", "bottom_up", "random", "fisher_trace", "fisher_trace_batch_mean", "relative_gradient_norm"]
        | tuple[str, ...]
    ) = option(
        "Order in which layer groups are released.",
        "top_down",
        allowed="top_down, bottom_up, random, fisher_trace (FUN), fisher_trace_batch_mean, relative_gradient_norm, or a"
        " list of group names",
    )
    initial: tuple[str, ...] = option("Layer groups that train from the start.", ("head",))
    release: Literal["interval", "all_at_once"] | int | float = option(
        "One group an interval, all after the first, or over so many updates (or that fraction of training).",
        "interval",
        allowed=f"interval, all_at_once, {_UPDATES}",
    )
    first: int = option("Intervals before the first release.", 1, at_least=1)
    start: int | float = option(
        "Updates of standard training before anything is frozen.",
        0,
        allowed="a whole number of updates >= 0, or a fraction of training above 0 and less than 1",
    )
    embeddings: Literal["in_order", "last", "with_block_0", "never"] = option(
        "When the embeddings are released.", "in_order"
    )
    order_seed: int = option("Draws the random order.", 0, at_least=0, below=LARGEST_SEED)
    schedule: str | None = option("A schedule file, edited by hand, in place of the eight keys above.", None)
    signal: str | tuple[str, ...] = option(
        "What decides the interval: a measure, log/<key> for a logged value, or a list of them.", "fisher_trace"
    )
    vote: Literal["all", "majority", "any"] = option("How many of several signals must be stable.", "all")
    signal_settings: dict[str, dict[str, bool | int | float | str | None]] = option(
        "Further arguments of the measures, by measure.", dict
    )
    detector: DetectorConfig = option("When the signal counts as stable.", DetectorConfig)
    probe: ProbeConfig = option("How the signal is measured.", ProbeConfig)
    lisa: LISAConfig | None = option("Settings of method lisa; null: its defaults.", None)
    autofreeze: AutoFreezeConfig | None = option("Settings of method autofreeze; null: its defaults.", None)
    learning_rates: LearningRatesConfig | None = option(
        "Learning rates of their own for layer groups; null: none.", None
    )
    generations: GenerationsConfig | None = option("SEAL and later-layer forgetting; null: off, {}: on.", None)
    fisher_penalty: FisherPenaltyConfig | None = option("Penalty on the Fisher trace; null: off.", None)
    perturbation: PerturbationConfig | None = option(
        "Weights of layer groups perturbed once, at one update; null: off.", None
    )
    pretext: PretextConfig | None = option("The first updates learn something else than the task; null: off.", None)
    weight_interpolation: WeightInterpolationConfig | None = option("WiSE-FT, after training; null: off, {}: on.", None)
