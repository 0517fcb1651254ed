"""Measurement of saved models, apart from any training: what ``hf-early-ood probe`` does, as functions."""

from hf_early_ood.probing.loading import load_saved_model
from hf_early_ood.probing.measuring import probe_model
from hf_early_ood.probing.plan import ProbePlan
from hf_early_ood.probing.request import ProbeReport, ProbeRequest
from hf_early_ood.probing.series import check_probe, probe_checkpoints

__all__ = [
    "ProbePlan",
    "ProbeReport",
    "ProbeRequest",
    "check_probe",
    "load_saved_model",
    "probe_checkpoints",
    "probe_model",
]
