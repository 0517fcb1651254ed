from __future__ import annotations

import pytest

from hf_early_ood.bundled import load_bundled
from hf_early_ood.errors import DataError


@pytest.mark.parametrize("name", ["vader-icwsm2014", "home-assistant-intents"])
def test_names_with_and_without_prefix(name: str) -> None:
    full = load_bundled(f"bundled:{name}")
    assert full.info.name == f"bundled:{name}"
    assert load_bundled(name).info == full.info
    assert full.info.to_dict()["label_counts"].keys() == set(full)


def test_unknown_names() -> None:
    with pytest.raises(DataError, match=r"no such bundled data set.*Did you mean 'bundled:vader-icwsm2014'"):
        load_bundled("vader-icwsm2015")
    with pytest.raises(DataError, match=r"Did you mean 'bundled:home-assistant-intents'"):
        load_bundled("home-assistant-intent")
