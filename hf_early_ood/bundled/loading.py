"""Bundled data sets by name."""

from __future__ import annotations

from hf_early_ood.bundled.base import BundledData
from hf_early_ood.bundled.intents import INTENTS_DATASET, load_intents
from hf_early_ood.bundled.models import BUNDLED_PREFIX
from hf_early_ood.bundled.vader import VADER_DATASET, load_vader
from hf_early_ood.errors import DataError, did_you_mean

_LOADERS = {VADER_DATASET: load_vader, INTENTS_DATASET: load_intents}


def load_bundled(name: str) -> BundledData:
    """Load a bundled data set: no network, the same examples everywhere.

    Args:
        name: ``vader-icwsm2014`` or ``home-assistant-intents``, with or without ``bundled:``.

    Returns:
        Mapping from split to ``Dataset``, with columns text and label among others, and ``info``.

    Raises:
        DataError: If there is no such data set, or one needs a package that is not installed.

    Example:
        >>> list(load_bundled("vader-icwsm2014"))
        ['tweets/train', 'tweets/id_validation', 'tweets/id_test', 'movie', 'amazon', 'nyt']
    """
    full_name = name if name.startswith(BUNDLED_PREFIX) else BUNDLED_PREFIX + name
    if full_name not in _LOADERS:
        raise DataError(
            "There is no such bundled data set.",
            got=name,
            allowed=", ".join(_LOADERS),
            fix=did_you_mean(full_name, _LOADERS),
        )
    return _LOADERS[full_name]()
