"""The section ``dynamics``: what is measured while the model trains, beside what an intervention measures."""

# `option` makes a dataclasses.field.
# ruff: noqa: RUF009
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_early_ood import names
from hf_early_ood.config.interventions import InterventionConfig, ProbeSetConfig
from hf_early_ood.config.parsing import Problems, option, usable


@dataclass(frozen=True)
class DynamicsConfig:
    """Settings of `EarlyDynamicsCallback`."""

    measures: tuple[str, ...] = option("Names of measures.", (names.FISHER_TRACE,))
    every: int = option("Updates between two measurements.", 10, at_least=1)
    until: Literal["decision"] | int | None = option(
        "Last update that is measured; decision: up to the automatic interval; null: to the end.",
        None,
        allowed="decision, a whole number of updates >= 1, or null",
    )
    budget: float | None = option(
        "Largest share of the time of training that measuring may take; null: no limit.", None, above=0, below=1
    )
    settings: dict[str, dict[str, bool | int | float | str | None]] = option(
        "Further arguments of the measures, by measure.", dict
    )
    probe: ProbeSetConfig = option("The examples that are measured.", ProbeSetConfig)
    start_on_disk: bool = option("For trajectory: read the weights at the start from the disk.", False)
    update_direction: bool = option("For trajectory: measure the last update, too.", False)


def check_dynamics(settings: DynamicsConfig, intervention: InterventionConfig, problems: Problems) -> None:
    """Note every problem between the keys of the section, and with those of the intervention."""
    if isinstance(settings.until, int) and settings.until < 1:
        problems.add("dynamics.until", "is out of range", got=settings.until, allowed="a whole number of updates >= 1")
    if settings.until == "decision" and usable(intervention.method) and not may_decide(intervention):
        problems.add(
            "dynamics.until",
            "nothing decides an interval",
            got="decision",
            allowed="a number of updates, null, or method: gradual_unfreezing with interval: auto",
        )
    if usable(settings.probe):
        check_probe_set(settings.probe, "dynamics.probe", problems)


def may_decide(intervention: InterventionConfig) -> bool:
    """Whether something may decide a moment: layers are released, and the interval is not written down."""
    interval = intervention.interval
    return intervention.method == names.GRADUAL_UNFREEZING and (
        interval == "auto" or intervention.schedule is not None or not usable(interval)
    )


def check_probe_set(probe: ProbeSetConfig, path: str, problems: Problems) -> None:
    """Note a problem if there are fewer examples than in a batch."""
    if usable(probe.size, probe.batch_size) and probe.size < probe.batch_size:
        problems.add(
            f"{path}.size",
            "the probe set is smaller than a batch",
            got=probe.size,
            allowed=f"at least {path}.batch_size={probe.batch_size}",
        )
