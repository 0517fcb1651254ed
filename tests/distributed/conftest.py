"""One launcher at a time: on two cores, processes that wait for each other are not to wait for others as well."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from hf_early_ood.claiming import holding

_TURN = Path(tempfile.gettempdir()) / f"launchers-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """The workers of pytest-xdist take turns; waiting is no part of a test's time."""
    if item.path.parent != Path(__file__).parent:  # this hook gets the tests of all folders
        return (yield)
    with holding(_TURN, wait=True):
        return (yield)
