"""What is asked of a measurement of saved models, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_early_ood import names
from hf_early_ood.atomic import plain
from hf_early_ood.dynamics import Measurement
from hf_early_ood.errors import ConfigurationError, ResumeError
from hf_early_ood.probes.likelihood import check_choice
from hf_early_ood.probes.measures import check_measures
from hf_early_ood.probes.perturbation import PARAMETER_CHOICES
from hf_early_ood.sources import SplitSpec

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class ProbeRequest:
    """Everything that decides the numbers.

    Attributes:
        model: Folder of a saved model or of ``checkpoint-<step>`` folders, ``bundled:all-MiniLM-L6-v2``, or a name on
            the Hub.
        data: Where the probe examples are drawn from.
        measures: Names of `hf_early_ood.probes.measures.MEASURES`.
        settings: Further arguments by measure, e.g. ``{"average_sharpness": {"rho": 0.05}}``.
        text: Column of the text.
        text_pair: Column of the second text.
        label: Column of the label; None: ``label`` where a measure needs labels.
        label_names: Label of each class of the model, where its config does not say it (``LABEL_0``).
        size: Number of probe examples.
        batch_size: Examples per forward pass.
        max_length: Longest input in tokens; None: 128, as in recipes, or what the tokenizer takes if that is less.
        parameters: "trainable": what requires a gradient once loaded, so everything in a full model and the adapter
            in a PEFT one. "all": every parameter. What was frozen in training is not known to a saved model.
        seed: Seed of the choice of examples and of the measures' random numbers.
        dtype: Type of the weights, whatever they were saved in.
        revision: Revision of a model on the Hub.
        tokenizer: Name or folder of the tokenizer, where none is beside the model.
        allow_new_head: Classify texts with a new head, drawn with ``seed``, where the checkpoint has none: what the
            first update of fine-tuning starts from.

    Raises:
        ConfigurationError: An unknown measure or setting, or a value that is not usable.

    Example:
        >>> ProbeRequest("out", SplitSpec("bundled:vader-icwsm2014", split="nyt")).measures
        ('fisher_trace',)
    """

    model: str
    data: SplitSpec
    measures: tuple[str, ...] = (names.FISHER_TRACE,)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    text: str = names.TEXT
    text_pair: str | None = None
    label: str | None = None
    label_names: tuple[str, ...] | None = None
    size: int = 128
    batch_size: int = 32
    max_length: int | None = None
    parameters: str = "trainable"
    seed: int = 0
    dtype: str = "float32"
    revision: str | None = None
    tokenizer: str | None = None
    allow_new_head: bool = False

    def __post_init__(self) -> None:
        check_measures(self.measures, self.settings)
        twice = sorted({name for name in self.measures if self.measures.count(name) > 1})
        if twice:
            raise ConfigurationError("A measure is named twice.", got=", ".join(twice), fix="Name it once.")
        own = [name for name, values in self.settings.items() if "parameters" in values]
        if own:
            raise ConfigurationError(
                "parameters is one choice for all measures.",
                got=f"{own[0]}.parameters",
                fix="Use --parameters (in Python: parameters=).",
            )
        check_choice("parameters", self.parameters, PARAMETER_CHOICES)
        check_choice("dtype", self.dtype, DTYPES)
        for key in ("size", "batch_size", *([] if self.max_length is None else ["max_length"])):
            if getattr(self, key) < 1:
                raise ConfigurationError(f"{key} is not usable.", got=getattr(self, key), allowed="1 or more")
        if self.seed < 0:
            raise ConfigurationError("seed is not usable.", got=self.seed, allowed="0 or more")

    def to_dict(self) -> dict[str, Any]:
        """The request in types that JSON has."""
        return dict(plain(self))


@dataclass(frozen=True)
class ProbedModel:
    """One model of a series.

    Attributes:
        step: Completed updates; 0 where they are not known.
        name: ``checkpoint-20``, or what the user called it.
        path: Where it was loaded from.
        weights_sha256: Of its weight files; None on the Hub.
        error: Why it could not be measured, wholly or in part; None: it was.
    """

    step: int
    name: str
    path: str
    weights_sha256: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class ProbeReport:
    """What was measured.

    Attributes:
        request: What was asked for.
        models: In the order of their steps.
        measurements: In the order of their steps; None as value where one failed.
        probe_set: ``num_examples``, ``fingerprint`` (of all tensors) and ``indices`` in the data.
        environment: Where it was made.
        command: What the user typed.
        started: ISO 8601.
        finished: ISO 8601; None while measuring.
    """

    request: ProbeRequest
    models: tuple[ProbedModel, ...]
    measurements: tuple[Measurement, ...]
    probe_set: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str
    started: str
    finished: str | None = None

    @property
    def failures(self) -> dict[str, str]:
        """Name of a model -> why it has no measurement, or not all of them."""
        return {model.name: model.error for model in self.models if model.error is not None}

    def to_dict(self) -> dict[str, Any]:
        """The report in types that JSON has."""
        return dict(plain(self))


def read_probe_file(path: Path) -> dict[str, Any]:
    """What is in a ``probe.json``.

    Raises:
        ResumeError: It is not readable.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(record["request"], dict) and isinstance(record["models"], list)):
            raise TypeError("request and models have other types")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"{path} is not the record of a measurement ({type(error).__name__}: {error}).",
            fix="Give another output folder.",
        ) from error
    return dict(record)
