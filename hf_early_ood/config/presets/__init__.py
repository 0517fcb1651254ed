"""Published settings by name: one YAML file each, with what the source says and what it leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from hf_early_ood.config.merging import merge
from hf_early_ood.config.parsing import Problems
from hf_early_ood.errors import did_you_mean

KEY = "preset"


@cache
def preset_names() -> tuple[str, ...]:
    """Names of all presets, in alphabetical order."""
    here = files("hf_early_ood.config.presets")
    return tuple(sorted(item.name.removesuffix(".yaml") for item in here.iterdir() if item.name.endswith(".yaml")))


def preset_text(name: str) -> str:
    """The file of a preset, with its comments."""
    return files("hf_early_ood.config.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def with_preset(data: Mapping[str, Any], problems: Problems) -> Mapping[str, Any]:
    """The keys of a run over those of the preset that it names: what is written wins.

    Example:
        >>> data = with_preset({"preset": "kumar2022_lpft", "training": {"learning_rate": 1e-4}}, Problems())
        >>> data["intervention"]["release"], data["training"]
        ('all_at_once', {'learning_rate': 0.0001})
    """
    name = data.get(KEY) if isinstance(data, Mapping) else None
    if name is None:
        return data
    if name not in preset_names():
        problems.add(
            KEY, f"is none. {did_you_mean(str(name), preset_names())}", got=name, allowed=", ".join(preset_names())
        )
        return data
    return merge(yaml.safe_load(preset_text(name)), data)
