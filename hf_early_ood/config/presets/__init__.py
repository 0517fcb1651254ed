"""Published settings by name: one YAML file each, with what the source says and what it leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from hf_early_ood.config.merging import merge
from hf_early_ood.config.parsing import Problems
from hf_early_ood.errors import ConfigurationError, did_you_mean

KEY = "preset"


@cache
def preset_names() -> tuple[str, ...]:
    """Names of all presets, in alphabetical order."""
    here = files("hf_early_ood.config.presets")
    return tuple(sorted(item.name.removesuffix(".yaml") for item in here.iterdir() if item.name.endswith(".yaml")))


def preset_text(name: str) -> str:
    """The file of a preset, with its comments.

    Raises:
        ConfigurationError: There is no such preset.
    """
    if name not in preset_names():
        raise ConfigurationError(
            "There is no such preset.",
            got=name,
            allowed=", ".join(preset_names()),
            fix=did_you_mean(name, preset_names()),
        )
    return files("hf_early_ood.config.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def preset_title(name: str) -> str:
    """What a preset is and where it is from: the first line of its file.

    Example:
        >>> preset_title("kumar2022_lpft")
        'LP-FT: linear probing, then fine-tuning. Kumar et al. 2022, arXiv 2202.10054.'
    """
    return preset_text(name).partition("\n")[0].removeprefix("# ")


def with_preset(data: Mapping[str, Any], problems: Problems) -> Mapping[str, Any]:
    """The keys of a run over those of the preset that it names: what is written wins.

    A section without keys counts as not written, as everywhere.

    Example:
        >>> data = with_preset({"preset": "kumar2022_lpft", "training": {"learning_rate": 1e-4}}, Problems())
        >>> data["intervention"]["release"], data["training"]
        ('all_at_once', {'learning_rate': 0.0001})
    """
    name = data.get(KEY) if isinstance(data, Mapping) else None
    if not isinstance(name, str):
        return data  # of another type: noted with all other types
    if name not in preset_names():
        problems.add(KEY, f"is none. {did_you_mean(name, preset_names())}", got=name, allowed=", ".join(preset_names()))
        return data
    preset = yaml.safe_load(preset_text(name))
    return merge(preset, {key: value for key, value in data.items() if value is not None or key not in preset})
