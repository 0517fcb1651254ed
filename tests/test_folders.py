"""Output folders that cannot be written are noticed before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.folders import check_writable, is_free, writing


def test_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "new" / "below")
    assert list(tmp_path.iterdir()) == []
    assert is_free(tmp_path)


def test_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match=r"output folder cannot be written.*file is no folder"):
            check_writable(path)


def test_name_that_is_too_long(tmp_path):
    with pytest.raises(ConfigurationError, match="output folder cannot be written"):
        check_writable(tmp_path / ("x" * 300))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder in which nobody can write")
def test_folder_in_which_nobody_can_write():
    """Its flags allow the administrator to write."""
    with pytest.raises(ConfigurationError, match="output folder cannot be written"):
        check_writable(Path("/proc/self/new"))


def test_errors_of_writing_name_the_folder(tmp_path):
    with pytest.raises(ConfigurationError, match=r"Got: .*out: .*No space left"), writing(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyError, match="other"), writing(tmp_path):
        raise KeyError("other")
