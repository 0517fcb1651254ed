"""Data and a model that work without a network: names that start with ``bundled:``."""

from hf_early_ood.bundled.models import BUNDLED_MODEL, BUNDLED_PREFIX, resolve_model
from hf_early_ood.bundled.vader import BUNDLED_DATASET, BundledData, BundledInfo, load_bundled, read_domain

__all__ = [
    "BUNDLED_DATASET",
    "BUNDLED_MODEL",
    "BUNDLED_PREFIX",
    "BundledData",
    "BundledInfo",
    "load_bundled",
    "read_domain",
    "resolve_model",
]
