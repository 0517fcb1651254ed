"""The section ``intervention.perturbation``: weights of layer groups changed at one update, and its rules."""

# `option` makes a dataclasses.field.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from hf_early_ood.checks import LARGEST_SEED
from hf_early_ood.config.parsing import option, usable

RESET_TO_START, RESET_TO_RANDOM = "reset_to_start", "reset_to_random"
REDRAW_MAGNITUDES, REDRAW_SIGNS = "redraw_magnitudes", "redraw_signs"
SHUFFLE, NOISE = "shuffle", "noise"
KINDS = (RESET_TO_START, RESET_TO_RANDOM, REDRAW_MAGNITUDES, REDRAW_SIGNS, SHUFFLE, NOISE)
START, START_SHUFFLED, INITIALIZER, RANDOM = "start", "start_shuffled", "initializer", "random"
MOVEMENT, ABSOLUTE = "movement", "absolute"
TENSOR, ROW, GROUP = WITHIN = ("tensor", "row", "group")
ALL, WITHOUT_NORMS, MATRICES = PARAMETERS = ("all", "without_norms", "matrices")
SOURCES = {REDRAW_MAGNITUDES: (START_SHUFFLED, START, INITIALIZER), REDRAW_SIGNS: (RANDOM, START)}
"""Kind -> where it may take magnitudes or signs from, the default first."""
UNITS = (START, INITIALIZER, MOVEMENT, ABSOLUTE)

_OWN = {"source": tuple(SOURCES), "within": (SHUFFLE,), "keep_signs": (SHUFFLE,), "std": (NOISE,), "unit": (NOISE,)}
"""Setting -> the kinds that it is for; the others are for all."""


@dataclass(frozen=True)
class PerturbationConfig:
    """Weights of layer groups changed once, at one update; training goes on from there."""

    at: int | float = option(
        "Completed updates after which it happens; 1.0: after the last one.",
        allowed="a whole number of updates >= 0, or a fraction of training above 0 and at most 1.0",
    )
    kind: Literal["reset_to_start", "reset_to_random", "redraw_magnitudes", "redraw_signs", "shuffle", "noise"] = (
        option("What becomes of the weights.")
    )
    groups: tuple[str, ...] | None = option(
        "Layer groups that are perturbed, with block.-1 and /regular expressions/; null: all.", None
    )
    parameters: Literal["all", "without_norms", "matrices"] = option(
        "Which of their tensors; matrices: those of two dimensions or more, so neither norms nor biases.", "all"
    )
    source: Literal["start", "start_shuffled", "initializer", "random"] | None = option(
        "Where redraw_magnitudes (start_shuffled) and redraw_signs (random) take them from; null: that in brackets.",
        None,
    )
    within: Literal["tensor", "row", "group"] = option("Where shuffle moves weights; row: an output unit.", "tensor")
    keep_signs: bool = option("Let shuffle move magnitudes only: every sign stays where it is.", False)
    std: float = option("Standard deviation of noise, in units.", 1.0, above=0)
    unit: Literal["start", "initializer", "movement", "absolute"] = option(
        "Unit of std: the tensor's own standard deviation at the start or as initialized, that of its movement since"
        " the start, or 1.",
        "start",
    )
    seed: int | None = option("Of what is drawn; null: that of the training.", None, at_least=0, below=LARGEST_SEED)
    optimizer_state: Literal["reset", "keep"] = option("Moments of the weights that were perturbed.", "reset")

    @property
    def taken_from(self) -> str | None:
        """``source``, or the default of the kind; None for a kind that has none."""
        return self.source or SOURCES.get(self.kind, (None,))[0]

    @property
    def needs_start(self) -> bool:
        """Whether the weights with which training began must be known."""
        if self.kind == NOISE:
            return self.unit in (START, MOVEMENT)
        return self.kind == RESET_TO_START or self.taken_from in (START, START_SHUFFLED)

    @property
    def needs_initializer(self) -> bool:
        """Whether weights are drawn by the model's initializer."""
        if self.kind == NOISE:
            return self.unit == INITIALIZER
        return self.kind == RESET_TO_RANDOM or self.taken_from == INITIALIZER

    @property
    def compares_with_start(self) -> bool:
        """Whether it changes nothing before the first update."""
        if self.kind == NOISE:
            return self.unit == MOVEMENT
        return self.kind == RESET_TO_START or self.taken_from == START

    @property
    def further(self) -> dict[str, Any]:
        """What else is set, and not left at its default, beside moment, kind and groups.

        Example:
            >>> PerturbationConfig(at=5, kind="shuffle", within="row").further
            {'within': 'row'}
        """
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {
            key: own for key, (own, default) in values.items() if key not in ("at", "kind", "groups") and own != default
        }


def faults(settings: PerturbationConfig) -> Iterator[tuple[str, str, Any, str]]:
    """What is wrong between the settings of one perturbation: key, what, got and what is allowed.

    Example:
        >>> [key for key, *_ in faults(PerturbationConfig(at=5, kind="reset_to_start"))]
        []
        >>> list(faults(PerturbationConfig(at=5, kind="noise", within="row")))
        [('within', 'has no effect with kind noise', 'row', 'leave it out, or kind: shuffle')]
    """
    at, kind = settings.at, settings.kind
    if usable(at):
        whole = isinstance(at, int) and not isinstance(at, bool)
        if not (at >= 0 if whole else isinstance(at, float) and 0 < at <= 1):
            allowed = "a whole number of updates >= 0, or a fraction of training above 0 and at most 1.0"
            yield "at", "is out of range", at, allowed
    groups = settings.groups
    if usable(groups) and groups is not None:
        if not groups:
            yield "groups", "names no layer group", list(groups), "null (all), or one name or more, as in [head]"
        for name in sorted({name for name in groups if groups.count(name) > 1}):
            yield "groups", "names a layer group twice", name, "each once"
    if not usable(kind):
        return
    for item in fields(settings):
        value, kinds = getattr(settings, item.name), _OWN.get(item.name)
        if kinds is not None and kind not in kinds and usable(value) and value != item.default:
            yield item.name, f"has no effect with kind {kind}", value, f"leave it out, or kind: {' or '.join(kinds)}"
    source = settings.source
    if kind in SOURCES and usable(source) and source is not None and source not in SOURCES[kind]:
        yield "source", f"is not one of kind {kind}", source, ", ".join(SOURCES[kind])
    if usable(at, source, settings.unit) and at == 0 and isinstance(at, int) and settings.compares_with_start:
        yield "at", "comes before anything has moved from the start: nothing would change", at, "1 or more"
