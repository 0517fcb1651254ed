"""The weights with which a training began: those, or an error."""

from __future__ import annotations

import pytest
import torch

from hf_early_ood.errors import ResumeError
from hf_early_ood.folders import sha256
from hf_early_ood.start_weights import check_start_weights, read_start_weights, write_start_weights

WEIGHTS = {"a": torch.randn(3, 2).T, "b": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "start.safetensors"
    digest = write_start_weights(path, WEIGHTS)
    assert digest == sha256(path)
    found = read_start_weights(path, digest)
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert torch.equal(found[name], value)
        assert (found[name].dtype, found[name].requires_grad) == (value.dtype, False)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_writing_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "start.safetensors"
    digest = write_start_weights(path, WEIGHTS)
    with pytest.raises(RuntimeError, match="share memory"):
        write_start_weights(path, {"a": WEIGHTS["b"], "again": WEIGHTS["b"]})
    check_start_weights(path, digest)


@pytest.mark.parametrize("work", [check_start_weights, read_start_weights])
def test_another_file_is_refused(tmp_path, work):
    path = tmp_path / "start.safetensors"
    with pytest.raises(ResumeError, match="began are gone"):
        work(path, "")
    digest = write_start_weights(path, WEIGHTS)
    write_start_weights(path, {**WEIGHTS, "a": WEIGHTS["a"] + 1})
    with pytest.raises(ResumeError, match="not those of this checkpoint"):
        work(path, digest)


def test_what_cannot_be_read_is_said(tmp_path):
    path = tmp_path / "start.safetensors"
    path.write_bytes(b"none")
    with pytest.raises(ResumeError, match="is not readable"):
        read_start_weights(path, sha256(path))
