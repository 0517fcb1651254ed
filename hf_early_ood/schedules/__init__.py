"""Which layer groups train after how many completed updates. Pure Python, no torch."""

from hf_early_ood.schedules.base import AUTO, Interval, Schedule, Stage, parse_number
from hf_early_ood.schedules.refreezing import SETTLED, LayerSampling, PrefixFreezing, settled_prefix
from hf_early_ood.schedules.unfreezing import EMBEDDINGS_POLICIES, ORDERS, RELEASES, SELECTIONS, UnfreezingSchedule

__all__ = [
    "AUTO",
    "EMBEDDINGS_POLICIES",
    "ORDERS",
    "RELEASES",
    "SELECTIONS",
    "SETTLED",
    "Interval",
    "LayerSampling",
    "PrefixFreezing",
    "Schedule",
    "Stage",
    "UnfreezingSchedule",
    "parse_number",
    "settled_prefix",
]
