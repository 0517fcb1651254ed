"""What is asked of a measurement of saved models, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from hf_early_ood import names
from hf_early_ood.atomic import plain
from hf_early_ood.checks import PARAMETER_CHOICES, check_choice, check_count, check_seed
from hf_early_ood.dynamics import Measurement
from hf_early_ood.errors import ConfigurationError, ResumeError
from hf_early_ood.probes.measures import check_measures, labels_of
from hf_early_ood.sources import SplitSpec

DTYPES = ("float32", "float64", "bfloat16", "float16")
_BATCH = 32
_LABELS = {"empirical": "the labels of the data", "argmax": "the most likely labels"}


@dataclass(frozen=True)
class ProbeRequest:
    """Everything that decides the numbers.

    Attributes:
        model: Folder of a saved model or of ``checkpoint-<step>`` folders, ``bundled:all-MiniLM-L6-v2``, or a name on
            the Hub. A path becomes a string.
        data: Where the probe examples are drawn from.
        measures: Names of `hf_early_ood.probes.measures.MEASURES`.
        settings: Further arguments by measure, e.g. ``{"average_sharpness": {"rho": 0.05}}``.
        text: Column of the text; None: ``text``.
        text_pair: Column of the second text.
        label: Column of the label; None: ``label`` where a measure needs labels.
        label_names: Label of each class of the model, where its config does not say it (``LABEL_0``).
        size: Number of probe examples.
        batch_size: Examples per forward pass; None: 32, or ``size`` if that is less.
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

    model: str | PathLike[str]
    data: SplitSpec
    measures: tuple[str, ...] = (names.FISHER_TRACE,)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    label_names: tuple[str, ...] | None = None
    size: int = 128
    batch_size: int = None  # type: ignore[assignment]  # a number from __post_init__ on
    max_length: int | None = None
    parameters: str = "trainable"
    seed: int = 0
    dtype: str = "float32"
    revision: str | None = None
    tokenizer: str | PathLike[str] | None = None
    allow_new_head: bool = False

    def __post_init__(self) -> None:
        self._convert()
        self._check_types()
        check_measures(self.measures, self.settings)
        own = [name for name, values in self.settings.items() if "parameters" in values]
        if own:
            raise ConfigurationError(
                "parameters is one choice for all measures.",
                got=f"{own[0]}.parameters",
                fix="Use --parameters (in Python: parameters=).",
            )
        check_choice("parameters", self.parameters, PARAMETER_CHOICES)
        check_choice("dtype", self.dtype, DTYPES)
        check_count("size", self.size)
        object.__setattr__(self, "batch_size", min(_BATCH, self.size) if self.batch_size is None else self.batch_size)
        check_count("batch_size", self.batch_size)
        if self.max_length is not None:
            check_count("max_length", self.max_length)
        check_seed(self.seed)

    def _convert(self) -> None:
        """Paths become strings, one measure and lists become tuples."""
        for key in ("model", "tokenizer"):
            if isinstance(getattr(self, key), PathLike):
                object.__setattr__(self, key, fspath(getattr(self, key)))
        for key in ("measures", "label_names"):
            value = getattr(self, key)
            if isinstance(value, list):
                object.__setattr__(self, key, tuple(value))
        if isinstance(self.measures, str):
            object.__setattr__(self, "measures", (self.measures,))

    def _check_types(self) -> None:
        """Words and names; numbers are checked with their ranges."""
        expected: dict[str, tuple[Any, str]] = {
            "model": (str, "a folder or a name"),
            "data": (SplitSpec, "a SplitSpec, such as SplitSpec('data/train.jsonl')"),
            "measures": (tuple, "a tuple of names"),
            "text": (str | None, "the name of a column"),
            "text_pair": (str | None, "the name of a column"),
            "label": (str | None, "the name of a column"),
            "label_names": (tuple | None, "a tuple of names"),
            "revision": (str | None, "a revision on the Hub"),
            "tokenizer": (str | None, "a folder or a name"),
            "allow_new_head": (bool, "True or False"),
        }
        for key, (kind, allowed) in expected.items():
            if not isinstance(getattr(self, key), kind):
                raise ConfigurationError(f"{key} is not usable.", got=repr(getattr(self, key)), allowed=allowed)
        strange = [name for name in self.label_names or () if not isinstance(name, str)]
        if strange:
            raise ConfigurationError(
                "label_names is not usable.", got=repr(strange[0]), allowed="names as the data writes them, as text"
            )

    def on_what(self, measure: str) -> str:
        """What a value of a measure is of, for the reader of a picture.

        Example:
            >>> ProbeRequest("out", SplitSpec("bundled:vader-icwsm2014", split="nyt")).on_what("fisher_trace")
            '128 examples of bundled:vader-icwsm2014 nyt, seed 0, sampled labels'
        """
        source = Path(self.data.source).name if Path(self.data.source).expanduser().exists() else self.data.source
        labels = labels_of(measure, self.settings.get(measure))
        words = _LABELS.get(labels, f"{labels} labels")
        return f"{self.size} examples of {replace(self.data, source=source)}, seed {self.seed}, {words}"

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
        weights_sha256: Of its weight files, of those of the adapter for an adapter; None on the Hub.
        error: Why it could not be measured, wholly or in part; None: it was.
        step_known: Whether ``step`` is known.
        base: Of an adapter, where the model is that it was put on.
        base_revision: Of an adapter, the revision of ``base`` that it asks for.
        base_sha256: Of the weight files of ``base``; None on the Hub.
    """

    step: int
    name: str
    path: str
    weights_sha256: str | None = None
    error: str | None = None
    step_known: bool = True
    base: str | None = None
    base_revision: str | None = None
    base_sha256: str | None = None

    @property
    def weights(self) -> tuple[str | None, ...]:
        """What tells two models apart: all that says which weights were measured."""
        return self.weights_sha256, self.base, self.base_revision, self.base_sha256

    @property
    def update(self) -> str:
        """The update as a reader says it.

        Example:
            >>> ProbedModel(20, "checkpoint-20", "").update, ProbedModel(0, "model", "", step_known=False).update
            ('update 20', 'update not known')
        """
        return f"update {self.step}" if self.step_known else "update not known"


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
    """What is in a ``probe.json``, with ``models`` as `ProbedModel`.

    Raises:
        ResumeError: It is not readable.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        asked, fingerprint = record["request"], record["probe_set"]["fingerprint"]
        if not (isinstance(asked["settings"], dict) and isinstance(asked["measures"], list)):
            raise TypeError("settings and measures have other types")
        if not (isinstance(fingerprint, str) and isinstance(record["started"], str)):
            raise TypeError("fingerprint and started have other types")
        record["models"] = [ProbedModel(**item) for item in record["models"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"{path} is not the record of a measurement ({type(error).__name__}: {error}).",
            fix="Give another output folder.",
        ) from error
    return dict(record)
