"""The parts of a run's record that say what was trained on what, and what happened during training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from hf_early_ood import names
from hf_early_ood.bundled.models import BUNDLED_MODEL, WEIGHTS_SHA256
from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.making import record_of
from hf_early_ood.config import RunConfig, is_local
from hf_early_ood.data import Splits
from hf_early_ood.dynamics import Dynamics, read_dynamics
from hf_early_ood.report.figures import signal_figure
from hf_early_ood.results import InterventionRecord, ModelRecord, ProbeRecord, SplitRecord
from hf_early_ood.trainer import EarlyOODTrainer


def data_record(config: RunConfig, splits: Splits) -> dict[str, SplitRecord]:
    """What each set holds, by its name."""
    sources = config.data.sources()
    return {
        name: SplitRecord(
            report.num_examples,
            report.fingerprint,
            report.near_duplicates,
            duplicates=report.duplicates,
            truncated=report.truncated,
            findings=report.findings,
            language=splits.info[name].language,
            is_local=is_local(sources[name].source),
        )
        for name, report in splits.report.splits.items()
    }


def model_record(config: RunConfig, model: nn.Module) -> ModelRecord:
    """Where the model is from, and its size."""
    return ModelRecord(
        name=config.model.name,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        revision=config.model.revision,
        weights_sha256=WEIGHTS_SHA256 if config.model.name == BUNDLED_MODEL else None,
        is_local=is_local(config.model.name),
    )


def intervention_record(
    config: RunConfig, trainer: EarlyOODTrainer, groups: Sequence[str], folder: Path
) -> InterventionRecord:
    """What was released when, and why; the figure of the signal is drawn beside the series.

    Args:
        config: Of the run.
        trainer: After training.
        groups: Names of the layer groups.
        folder: Of the run. Must be called on every rank.
    """
    callbacks, unfreezing = trainer.callback_handler.callbacks, trainer.unfreezing
    if unfreezing is None:
        return record_of(config.intervention, callbacks)
    PartialState().wait_for_everyone()
    series = read_dynamics(folder / names.DYNAMICS_FILE)
    watched = [kind for kind in _kinds(unfreezing.records) if not kind.startswith(names.SELECTION)]
    if watched and PartialState().is_main_process:
        _draw_signal(series, watched[0], folder, groups, trainer.state.global_step)
    trained = {name for stage in series.stages for name in stage.released}
    return record_of(
        config.intervention,
        callbacks,
        stages=series.stages,
        decision=series.decision,
        never_trained=tuple(name for name in groups if name not in trained),
    )


def probe_records(trainer: EarlyOODTrainer, total: float, *, resumed: bool) -> dict[str, ProbeRecord]:
    """What measuring has cost, by what was measured; one entry for each callback that measures.

    Args:
        trainer: After training.
        total: Seconds of training in this process.
        resumed: Whether training went on from a checkpoint: it may have trained before without this process, so that
            times do not add up, and shares are not known.
    """
    measuring = [(one.records, one.probe_seconds) for one in _measuring(trainer)]
    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for records, spent in measuring:
        found = _kinds(records)
        if found:
            kinds = " + ".join(found)
            seconds[kinds] += spent
            counts[kinds] += sum(found.values())
    # What all else takes.
    plain = total - sum(seconds.values())
    known = not resumed and plain > 0
    return {
        kinds: ProbeRecord(counts[kinds], spent, None if resumed else spent / total, spent / plain if known else None)
        for kinds, spent in seconds.items()
    }


def _measuring(trainer: EarlyOODTrainer) -> list[Any]:
    dynamics = [one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyDynamicsCallback)]
    return [*([] if trainer.unfreezing is None else [trainer.unfreezing]), *dynamics]


def _kinds(records: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How often each thing was measured, in the order of the first times."""
    return Counter(record["measure"] for record in records if "measure" in record and record.get("seconds") is not None)


def _draw_signal(series: Dynamics, watched: str, folder: Path, groups: Sequence[str], num_updates: int) -> None:
    signal_figure(
        series.of((series.decision and series.decision.signal) or watched),
        series.decision,
        series.stages,
        folder / names.SIGNAL_FIGURE,
        groups=groups,
        num_updates=num_updates,
    )
