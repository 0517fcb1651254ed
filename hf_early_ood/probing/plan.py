"""What a measurement of saved models would do."""

from __future__ import annotations

from dataclasses import dataclass

from hf_early_ood.probing.request import ProbedModel, ProbeRequest


@dataclass(frozen=True)
class PlannedModel:
    """One model of a series, before it is measured.

    Attributes:
        model: With an ``error`` if it cannot be measured. Its weights were not hashed.
        missing: Measures that are to be taken of it; the others were taken before.
    """

    model: ProbedModel
    missing: tuple[str, ...]


@dataclass(frozen=True)
class ProbePlan:
    """What would be measured.

    Attributes:
        request: What is asked for, with the measures that the output folder holds.
        models: In the order of their steps.
        num_examples: Number of probe examples.
        device: Where.
    """

    request: ProbeRequest
    models: tuple[PlannedModel, ...]
    num_examples: int
    device: str

    @property
    def failures(self) -> dict[str, str]:
        """Name of a model -> why it cannot be measured."""
        return {item.model.name: item.model.error for item in self.models if item.model.error is not None}

    def text(self) -> str:
        """The plan in words, a line a model."""
        request = self.request
        lines = [
            f"{', '.join(request.measures)} of {len(self.models)} model(s) on {self.device},"
            f" {request.parameters} parameters in {request.dtype}",
            f"{self.num_examples} examples of {request.data}, {request.batch_size} at a time",
        ]
        for item in self.models:
            before = len(request.measures) - len(item.missing)
            if item.model.error is not None:
                what = f"cannot be measured: {item.model.error}"
            else:
                what = f"{before} of {len(request.measures)} measured before" if before else "can be measured"
            lines.append(f"{item.model.name} ({item.model.update}): {what}")
        return "\n".join(lines)
