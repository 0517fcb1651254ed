"""The folder of a measurement: whose it is, what it holds, and its record as it grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hf_early_ood import names
from hf_early_ood.atomic import write_json
from hf_early_ood.dynamics import measurement_of, read_dynamics, read_records
from hf_early_ood.environment import capture_environment, timestamp
from hf_early_ood.errors import ResumeError
from hf_early_ood.folders import check_writable, differing_keys, is_free, writing
from hf_early_ood.probes.batches import ProbeSet
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
        fingerprint: Of the examples that they are of.
    """

    records: tuple[dict[str, Any], ...] = ()
    models: Mapping[int, ProbedModel] = field(default_factory=dict)
    started: str | None = None
    fingerprint: str | None = None


def read_held(folder: Path | None, request: ProbeRequest) -> tuple[ProbeRequest, Held]:
    """Make sure that a folder is free or belongs to this measurement, and read what it holds.

    A folder can be given further measures; in all else, the settings of the measures that it has included, it must
    have been made by the same request. Measurements of checkpoints that are gone by now stay.

    Args:
        folder: The output folder; None: nothing is written.
        request: What is asked for.

    Returns:
        The request with the measures that the folder has values of before those that are asked for, and these values.

    Raises:
        ConfigurationError: The folder cannot be written.
        ResumeError: It holds something else.
    """
    if folder is None:
        return request, Held()
    check_writable(folder)
    if is_free(folder):
        return request, Held()
    if not (folder / names.PROBE_FILE).is_file():
        raise ResumeError(
            "The output folder is not empty and holds no measurement of saved models.", got=folder, fix=_FIX
        )
    saved = read_probe_file(folder / names.PROBE_FILE)
    known: dict[int, ProbedModel] = {model.step: model for model in saved["models"]}
    records = tuple(item for item in _values(folder / names.DYNAMICS_FILE) if item["step"] in known)
    if not records:  # nothing is lost
        return request, Held()
    before = saved["request"]
    has = [measure for measure in before["measures"] if any(item["measure"] == measure for item in records)]
    again = [measure for measure in has if measure in request.measures]

    def in_common(asked: Mapping[str, Any]) -> dict[str, Any]:
        settings = {measure: asked["settings"].get(measure, {}) for measure in again}
        return {**asked, "measures": None, "settings": settings}

    differing = differing_keys(in_common(before), in_common(request.to_dict()))
    if differing:
        raise ResumeError(
            "The output folder belongs to another measurement.",
            got=f"{folder}, which differs in {', '.join(differing)}",
            allowed="the same request, or further measures",
            fix=_FIX,
        )
    settings = {measure: before["settings"][measure] for measure in has if measure in before["settings"]}
    whole = replace(
        request, measures=tuple(dict.fromkeys([*has, *request.measures])), settings={**settings, **request.settings}
    )
    measured = {step: known[step] for step in sorted({item["step"] for item in records})}
    return whole, Held(records, measured, saved["started"], saved["probe_set"]["fingerprint"])


def check_unchanged(folder: Path, held: Held, models: Sequence[ProbedModel], fingerprints: Sequence[str]) -> None:
    """Make sure that what a folder holds was measured on these examples and weights.

    Args:
        folder: The output folder.
        held: What it holds.
        models: As they are now; those that it holds nothing of are not looked at.
        fingerprints: Any of which the examples may have had.

    Raises:
        ResumeError: They have changed.
    """
    if held.fingerprint is not None and held.fingerprint not in fingerprints:
        raise ResumeError("The data has changed since the measurements in the output folder.", got=folder, fix=_FIX)
    for model in models:
        if model.step in held.models and held.models[model.step].weights != model.weights:
            raise ResumeError(f"{model.name} has other weights than when it was measured.", got=model.path, fix=_FIX)


def _values(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    read_dynamics(path)  # says which line is wrong
    # What a training has written into the same file is not ours.
    own = [record for record in read_records(path) if record["source"] == SOURCE]
    return [{key: record[key] for key in record if key != "source"} for record in own if record["value"] is not None]


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

    def note(self, model: ProbedModel) -> None:
        """Write that a model is about to be measured, or was, and why it could not be."""
        self.models[model.step] = model
        self.write()

    def finish(self, records: Sequence[Mapping[str, Any]]) -> ProbeReport:
        """Write and return the whole report."""
        fields = self.write(timestamp())
        return ProbeReport(measurements=tuple(map(measurement_of, records)), **fields)

    def write(self, finished: str | None = None) -> dict[str, Any]:
        """Write what is known so far, and return it.

        Raises:
            ConfigurationError: It cannot be written.
        """
        models = tuple(self.models[step] for step in sorted(self.models))
        fields = {**self.fields, "models": models, "finished": finished}
        if self.output is not None:
            with writing(self.output):
                write_json(self.output / names.PROBE_FILE, fields)
        return fields
