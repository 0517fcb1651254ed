"""Splits of a run, for every task: columns by role, labels by name, checked before anything is trained."""

from hf_early_ood.data.loading import load_split
from hf_early_ood.data.reports import DataReport, SplitReport
from hf_early_ood.data.splits import SplitInfo, Splits, load_splits, load_test_splits
from hf_early_ood.sources import SplitSpec

__all__ = [
    "DataReport",
    "SplitInfo",
    "SplitReport",
    "SplitSpec",
    "Splits",
    "load_split",
    "load_splits",
    "load_test_splits",
]
