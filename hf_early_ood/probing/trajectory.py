"""Where the weights were at each checkpoint of a training, as seen from its start and from its end."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.trainer import TRAINER_STATE_NAME

from hf_early_ood import names
from hf_early_ood.atomic import plain, write_json
from hf_early_ood.checks import check_choice
from hf_early_ood.dynamics import EARLY_DYNAMICS, Measurement, measurement_of, quantities_of
from hf_early_ood.environment import capture_environment, timestamp
from hf_early_ood.errors import ConfigurationError, DataError, named
from hf_early_ood.folders import check_replaceable, sha256, writing
from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.probes.measures import measure
from hf_early_ood.probes.trajectory import ADAPTERS, MERGED, Trajectory, copied, trajectory
from hf_early_ood.probing.checkpoints import SavedModel, find_saved_models
from hf_early_ood.probing.loading import Blueprint, read_blueprint
from hf_early_ood.start_weights import mapped_weights

logger = logging.getLogger(__name__)

AT_START = "start"


@dataclass(frozen=True)
class CheckpointTrajectory:
    """The movement along the checkpoints of a training.

    Attributes:
        folder: Of the checkpoints.
        start: What the movement is measured from.
        adapters: "merged" or "raw".
        models: Update -> name of the model.
        records: One for each model, in the order of the updates, as `EarlyDynamicsCallback` writes them.
        environment: Where it was made.
        command: What the user typed.
        finished: ISO 8601.
    """

    folder: str
    start: str
    adapters: str
    models: Mapping[int, str]
    records: tuple[Mapping[str, Any], ...]
    environment: Mapping[str, Any]
    command: str
    finished: str

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """The records and their further quantities, as measurements."""
        return tuple(item for record in self.records for item in (measurement_of(record), *quantities_of(record)))

    def to_dict(self) -> dict[str, Any]:
        """The record in types that JSON has."""
        return dict(plain({**vars(self), "models": {str(step): name for step, name in self.models.items()}}))


def checkpoint_trajectory(
    folder: str | Path,
    *,
    start: str | Path | None = None,
    adapters: str = MERGED,
    output: str | Path | None = None,
    command: str = "",
) -> CheckpointTrajectory:
    r"""Distances and directions of a series of checkpoints: to the start, to the end, and from one to the next.

    What `hf_early_ood.probes.trajectory.trajectory` measures from the start, where an update u stands for everything
    between two checkpoints, v before it and w after it; and, with the end w_T,

        ||w - w_T||,   <w, w_T> / (||w|| ||w_T||),   <w, v> / (||w|| ||v||),   <u, w_T - v> / (||u|| ||w_T - v||)

    as ``distance_to_end``, ``cosine_with_end``, ``cosine_with_previous`` and ``update_cosine_to_end``. No data is
    needed and nothing is predicted. What is counted is everything in a full model, and the adapter, merged, of a PEFT
    one; with the start weights that a training has written, what it trained. Weights are compared in float32. Up to
    five copies of what is counted are in memory.

    Args:
        folder: With ``checkpoint-<step>`` folders.
        start: A saved model: the one that training began with, which may lack the head, that is not counted then, or
            for adapters one with the same adapter; None: what `EarlyDynamicsCallback` has written into the
            folder, if it is there, or else the first checkpoint.
        adapters: "merged" or "raw", as for `trajectory`.
        output: Folder for ``trajectory.json``; None writes nothing.
        command: What the user typed, for the record.

    Returns:
        A record for each model; the start is one where it is not a checkpoint.

    Raises:
        ConfigurationError: An unknown choice, or the models do not have the same weights, or not the same start.
        DataError: There are not two models.
        ResumeError: The output folder holds something else, or the start weights are not readable.
        UnsupportedModelError: A model cannot be read, or its adapters cannot be merged.
    """
    check_choice("adapters", adapters, ADAPTERS)
    if output is not None:
        check_replaceable(Path(output), names.TRAJECTORY_FILE, "trajectory")
    if not Path(folder).expanduser().is_dir():
        raise DataError("There is no such folder.", got=folder, fix="Check the path.")
    models = list(find_saved_models(folder))
    kept = Path(folder).expanduser() / names.START_WEIGHTS_FILE
    if len(models) < 2 and (models[0].step == 0 or not (start or kept.is_file())):
        raise DataError(
            "A trajectory has at least two points.",
            got=f"{len(models)} model in {folder}",
            fix="Train with save_strategy='steps' and save_total_limit=None to keep a series of checkpoints.",
        )
    begin = _Beginning.of(kept, start, models)
    last = _load(models[-1].path)
    groups = begin.groups(last)
    end = copied(last, groups)
    series = _Series(adapters, begin.weights, end)
    del last
    with tqdm(total=len(models), unit="model", disable=None, leave=False) as bar:
        for index, saved in enumerate(models):
            with named(saved.name):
                model = _load(saved.path)
                groups = begin.groups(model)
                if index == 0 and begin.step is not None:
                    series.add_start(model, groups, begin.step)
                series.add(model, groups, saved.step)
            bar.update()
    found = CheckpointTrajectory(
        folder=str(folder),
        start=begin.name,
        adapters=adapters,
        models={**({} if begin.step is None else {begin.step: AT_START}), **{m.step: m.name for m in models}},
        records=tuple(series.records),
        environment=plain(capture_environment(device="cpu")),
        command=command,
        finished=timestamp(),
    )
    if output is not None:
        with writing(Path(output)):
            write_json(Path(output) / names.TRAJECTORY_FILE, found.to_dict())
    return found


@dataclass(frozen=True)
class _Beginning:
    """What the movement is measured from.

    Attributes:
        name: What a reader calls it.
        weights: By name.
        step: Its place in the series; None: it is the first checkpoint.
        chosen: Whether its names say what is counted.
    """

    name: str
    weights: Mapping[str, Tensor]
    step: int | None
    chosen: bool = False

    @classmethod
    def of(cls, kept: Path, start: str | Path | None, models: list[SavedModel]) -> _Beginning:
        if start is not None:
            step = None if models[0].step == 0 else 0
            blueprint = read_blueprint(models[-1].path)
            if blueprint.adapter is None:
                return cls(str(start), _without_head(blueprint, str(start)), step, chosen=True)
            first = _load(str(start))
            return cls(str(start), copied(first, find_layer_groups(first).trainable()), step)
        if kept.is_file():
            digest = sha256(kept)
            others = [saved.name for saved in models if _start_of(saved.path) not in (None, digest)]
            if others:
                raise _other_start(f"{', '.join(others)} of another training in the folder")
            return cls(str(kept), mapped_weights(kept), None if models[0].step == 0 else 0, chosen=True)
        logger.info("There are no start weights: the movement is measured from %s.", models[0].name)
        first = _load(models[0].path)
        return cls(models[0].name, copied(first, find_layer_groups(first).trainable()), None)

    def groups(self, model: nn.Module) -> LayerGroups:
        """What is counted of a model."""
        groups = find_layer_groups(model).trainable()
        if not self.chosen:
            return groups
        unknown = sorted(set(self.weights) - {name for group in groups for name in group.parameters})
        if unknown:
            raise _other_start(f"{unknown[0]}, which the checkpoints do not have")
        return groups.only(set(self.weights))


def _without_head(blueprint: Blueprint, start: str) -> Mapping[str, Tensor]:
    weights = blueprint.weights_in(start)
    new = sorted(name for name, _ in blueprint.empty().named_parameters() if name not in weights)
    if new:
        logger.warning("The movement is measured without the head: %s has no %s.", start, ", ".join(new))
    return weights


def _start_of(checkpoint: str) -> str | None:
    """Hash of the start weights of the training that wrote a checkpoint, where `EarlyDynamicsCallback` noted it."""
    try:
        state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        digest = state["stateful_callbacks"][EARLY_DYNAMICS]["attributes"]["_restored"]["start"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) else None


def _other_start(got: str) -> ConfigurationError:
    return ConfigurationError(
        "The start weights in the folder are not those of the checkpoints.",
        got=got,
        fix="Remove the checkpoints of other trainings, or name a saved model to measure from: --start MODEL.",
    )


class _Series:
    """Records of one model after the other."""

    def __init__(self, adapters: str, start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> None:
        self.records: list[dict[str, Any]] = []
        self._adapters, self._start, self._end = adapters, start, end
        self._previous: Mapping[str, Tensor] | None = None
        self._to_end: Trajectory | None = None  # of the one before

    def add_start(self, model: nn.Module, groups: LayerGroups, step: int) -> None:
        """The start, with a model of the series, which is given its weights and then its own again."""
        own = copied(model, groups)
        self._write(model, self._start, own)
        self.add(model, groups, step)
        self._write(model, own, own)

    def add(self, model: nn.Module, groups: LayerGroups, step: int) -> None:
        """The next model."""
        settings: dict[str, Any] = {"adapters": self._adapters}
        record = measure("trajectory", model, [], groups, settings=settings, start=self._start, before=self._previous)
        to_end = trajectory(model, start=self._end, groups=groups, **settings)
        further = {"distance_to_end": _values(to_end, "distance"), "cosine_with_end": _values(to_end, "cosine")}
        if self._previous is not None and self._to_end is not None:
            back = trajectory(model, start=self._previous, groups=groups, **settings)
            further["cosine_with_previous"] = _values(back, "cosine")
            further["update_cosine_to_end"] = _toward(back, self._to_end, to_end)
        record["details"]["quantities"].update(further)
        self.records.append({"step": step, **record, "trainable": list(groups.names)})
        self._previous, self._to_end = copied(model, groups), to_end

    @staticmethod
    def _write(model: nn.Module, weights: Mapping[str, Tensor], those_of: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in those_of:
                if name not in weights or weights[name].shape != parameters[name].shape:
                    raise ConfigurationError(
                        "The start is another model than the checkpoints.",
                        got=f"no {name} of shape {tuple(parameters[name].shape)} in it",
                        fix="Give a saved model with the same head and the same adapters.",
                    )
                parameters[name].copy_(weights[name])


def _values(found: Trajectory, quantity: str) -> dict[str, Any]:
    """One quantity, in total and per group, as in a record."""
    per_group = {group: getattr(movement, quantity) for group, movement in found.groups.items()}
    return {"value": getattr(found.total, quantity), "per_group": per_group}


def _toward(step: Trajectory, before: Trajectory, after: Trajectory) -> dict[str, Any]:
    """Cosine of a step and the way to the end: an angle of the triangle of the two ends of the step and the end."""
    per_group = {
        group: _angle(movement.distance, before.groups[group].distance, after.groups[group].distance)
        for group, movement in step.groups.items()
    }
    total = _angle(step.total.distance, before.total.distance, after.total.distance)
    return {"value": total, "per_group": per_group}


def _angle(step: float, before: float, after: float) -> float | None:
    """By the law of cosines; None where there was no step, or no way to go.

    Example:
        >>> _angle(3.0, 5.0, 4.0), _angle(1.0, 1.0, 0.0), _angle(0.0, 1.0, 1.0)
        (0.6, 1.0, None)
    """
    if step * before == 0:
        return None
    return max(-1.0, min(1.0, (step**2 + before**2 - after**2) / (2 * step * before)))


def _load(path: str) -> nn.Module:
    return read_blueprint(path).load(dtype=torch.float32, device="cpu")
