"""Gradual unfreezing timed by the Fisher trace, for the Hugging Face Trainer, judged out of distribution.

The names below are loaded when they are first used, so that importing the package, and ``hf-early-ood --help``,
take no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
    from hf_early_ood.callbacks.first_stage import FirstStageCallback
    from hf_early_ood.callbacks.fisher_penalty import FisherPenaltyCallback
    from hf_early_ood.callbacks.generations import GenerationsCallback
    from hf_early_ood.callbacks.learning_rates import LearningRatesCallback
    from hf_early_ood.callbacks.perturbing import PerturbationCallback
    from hf_early_ood.callbacks.pretext import PretextCallback
    from hf_early_ood.callbacks.refreezing import AutoFreezeCallback, LISACallback
    from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
    from hf_early_ood.callbacks.watching import watch
    from hf_early_ood.layers import LayerGroup, LayerGroups, check_layer_groups, find_layer_groups
    from hf_early_ood.probes.curvature import hessian_top_eigenvalue, hessian_trace
    from hf_early_ood.probes.fisher import FisherTrace, fisher_trace
    from hf_early_ood.probes.gradient_subspace import gradient_subspace_overlap
    from hf_early_ood.probes.gradients import fisher_trace_batch_mean, gradient_norm, relative_gradient_norm
    from hf_early_ood.probes.sharpness import average_sharpness, worst_case_sharpness
    from hf_early_ood.schedules import UnfreezingSchedule
    from hf_early_ood.stabilization import StabilizationDetector
    from hf_early_ood.trainer import EarlyOODArguments, EarlyOODTrainer

__version__ = "0.1.0"

_MODULES = {
    "AutoFreezeCallback": "callbacks.refreezing",
    "EarlyDynamicsCallback": "callbacks.dynamics",
    "EarlyOODArguments": "trainer",
    "EarlyOODTrainer": "trainer",
    "FirstStageCallback": "callbacks.first_stage",
    "FisherPenaltyCallback": "callbacks.fisher_penalty",
    "FisherTrace": "probes.fisher",
    "GenerationsCallback": "callbacks.generations",
    "GradualUnfreezingCallback": "callbacks.unfreezing",
    "LISACallback": "callbacks.refreezing",
    "LayerGroup": "layers",
    "LayerGroups": "layers",
    "LearningRatesCallback": "callbacks.learning_rates",
    "PerturbationCallback": "callbacks.perturbing",
    "PretextCallback": "callbacks.pretext",
    "StabilizationDetector": "stabilization",
    "UnfreezingSchedule": "schedules",
    "average_sharpness": "probes.sharpness",
    "check_layer_groups": "layers",
    "find_layer_groups": "layers",
    "fisher_trace": "probes.fisher",
    "fisher_trace_batch_mean": "probes.gradients",
    "gradient_norm": "probes.gradients",
    "gradient_subspace_overlap": "probes.gradient_subspace",
    "hessian_top_eigenvalue": "probes.curvature",
    "hessian_trace": "probes.curvature",
    "relative_gradient_norm": "probes.gradients",
    "watch": "callbacks.watching",
    "worst_case_sharpness": "probes.sharpness",
}

__all__ = [
    "AutoFreezeCallback",
    "EarlyDynamicsCallback",
    "EarlyOODArguments",
    "EarlyOODTrainer",
    "FirstStageCallback",
    "FisherPenaltyCallback",
    "FisherTrace",
    "GenerationsCallback",
    "GradualUnfreezingCallback",
    "LISACallback",
    "LayerGroup",
    "LayerGroups",
    "LearningRatesCallback",
    "PerturbationCallback",
    "PretextCallback",
    "StabilizationDetector",
    "UnfreezingSchedule",
    "average_sharpness",
    "check_layer_groups",
    "find_layer_groups",
    "fisher_trace",
    "fisher_trace_batch_mean",
    "gradient_norm",
    "gradient_subspace_overlap",
    "hessian_top_eigenvalue",
    "hessian_trace",
    "relative_gradient_norm",
    "watch",
    "worst_case_sharpness",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
