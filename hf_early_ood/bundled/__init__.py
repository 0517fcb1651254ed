"""Data and a model that work without a network: names that start with ``bundled:``."""

from hf_early_ood.bundled.base import BundledData, BundledInfo
from hf_early_ood.bundled.intents import INTENTS_DATASET, load_intents
from hf_early_ood.bundled.loading import load_bundled
from hf_early_ood.bundled.models import BUNDLED_MODEL, BUNDLED_PREFIX, resolve_model
from hf_early_ood.bundled.vader import VADER_DATASET, load_vader, read_domain

__all__ = [
    "BUNDLED_MODEL",
    "BUNDLED_PREFIX",
    "INTENTS_DATASET",
    "VADER_DATASET",
    "BundledData",
    "BundledInfo",
    "load_bundled",
    "load_intents",
    "load_vader",
    "read_domain",
    "resolve_model",
]
