"""The folder of a measurement: whose it is, what it holds, and its record as it grows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_early_ood import names
from hf_early_ood.atomic import write_json
from hf_early_ood.dynamics import measurement_of, read_dynamics
from hf_early_ood.environment import capture_environment, timestamp
from hf_early_ood.errors import ResumeError
from hf_early_ood.folders import check_writable, differing_keys, is_free
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probing.checkpoints import SavedModel
from hf_early_ood.probing.request import ProbedModel, ProbeReport, ProbeRequest, read_probe_file

SOURCE = "probe"  # who wrote a line of the series
_FIX = "Give another output folder, or delete this one."


@dataclass(frozen=True)
class Held:
    """What an output folder holds of a measurement.

    Attributes:
        records: Lines of the series that have a value; what failed is measured again.
        models: Step -> model that these are of.
        started: When the first of them was made; None: there are none.
    """

    records: tuple[dict[str, Any], ...] = ()
    models: Mapping[int, ProbedModel] = field(default_factory=dict)
    started: str | None = None


def claim(folder: Path, request: ProbeRequest, models: Sequence[SavedModel], probe_set: ProbeSet) -> Held:
    """Make sure that a folder is free or belongs to this very measurement, and read what it holds.

    Measurements of checkpoints that are gone by now stay.

    Raises:
        ResumeError: The folder holds something else, or was made from other examples or weights.
    """
    check_writable(folder)
    if is_free(folder):
        return Held()
    if not (folder / names.PROBE_FILE).is_file():
        raise ResumeError(
            "The output folder is not empty and holds no measurement of saved models.", got=folder, fix=_FIX
        )
    saved = read_probe_file(folder / names.PROBE_FILE)
    known = {item["step"]: ProbedModel(**item) for item in saved["models"]}
    records = tuple(item for item in _values(folder / names.DYNAMICS_FILE) if item["step"] in known)
    if not records:  # nothing is lost
        return Held()
    differing = differing_keys(saved["request"], request.to_dict())
    if differing:
        raise ResumeError(
            "The output folder belongs to another measurement.",
            got=f"{folder}, which differs in {', '.join(differing)}",
            fix=_FIX,
        )
    if saved["probe_set"]["fingerprint"] != probe_set.fingerprint:
        raise ResumeError("The data has changed since the measurements in the output folder.", got=folder, fix=_FIX)
    measured = {step: known[step] for step in sorted({item["step"] for item in records})}
    for model in models:
        if model.step in measured and measured[model.step].weights_sha256 != model.weights_sha256():
            raise ResumeError(f"{model.name} has other weights than when it was measured.", got=model.path, fix=_FIX)
    return Held(records, measured, saved["started"])


def _values(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    read_dynamics(path)  # says which line is wrong
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines]
    # What a training has written into the same file is not ours.
    own = [{key: record[key] for key in record if key != "source"} for record in records if record["source"] == SOURCE]
    return [record for record in own if record["value"] is not None]


class ReportFile:
    """The report of a measurement, written as it grows, so that a killed process can be gone on from.

    Args:
        request: What is measured.
        probe_set: What it is measured on.
        device: Where.
        command: What the user typed.
        output: Folder of the file; None writes nothing.
        held: What the folder holds.
    """

    def __init__(
        self,
        request: ProbeRequest,
        probe_set: ProbeSet,
        device: torch.device,
        command: str,
        output: Path | None,
        held: Held,
    ) -> None:
        self.output, self.models = output, dict(held.models)
        self.fields = {
            "request": request,
            "probe_set": {
                "num_examples": probe_set.num_examples,
                "fingerprint": probe_set.fingerprint,
                "indices": list(probe_set.indices),
            },
            "environment": capture_environment(
                device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
            ).to_dict(),
            "command": command,
            "started": held.started or timestamp(),
        }

    def note(self, model: SavedModel, error: str | None = None) -> None:
        """Write that a model is about to be measured, or was, and why it could not be."""
        before = self.models.get(model.step)
        weights = model.weights_sha256() if before is None else before.weights_sha256
        self.models[model.step] = ProbedModel(model.step, model.name, model.path, weights, error)
        self.write()

    def finish(self, records: Sequence[Mapping[str, Any]]) -> ProbeReport:
        """Write and return the whole report."""
        fields = self.write(timestamp())
        return ProbeReport(measurements=tuple(map(measurement_of, records)), **fields)

    def write(self, finished: str | None = None) -> dict[str, Any]:
        """Write what is known so far, and return it."""
        models = tuple(self.models[step] for step in sorted(self.models))
        fields = {**self.fields, "models": models, "finished": finished}
        if self.output is not None:
            write_json(self.output / names.PROBE_FILE, fields)
        return fields
