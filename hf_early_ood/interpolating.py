"""WiSE-FT inside a run: the curve between the weights before and after training, and the model that it chooses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from datasets import Dataset
from torch import Tensor, nn

from hf_early_ood import names
from hf_early_ood.callbacks.first_stage import read_first_stage
from hf_early_ood.config.interventions import WeightInterpolationConfig
from hf_early_ood.evaluation.metrics import classification_metrics, predicted_classes
from hf_early_ood.evaluation.suites import Predict
from hf_early_ood.interventions.interpolation_curve import evaluated_at, record_of
from hf_early_ood.interventions.weight_interpolation import FIRST_STAGE, interpolated, starting_point
from hf_early_ood.results import InterpolationRecord


@contextmanager
def interpolated_run(
    settings: WeightInterpolationConfig,
    model: nn.Module,
    before: Mapping[str, Tensor],
    folder: Path,
    predict: Predict,
    held_out: Mapping[str, Dataset],
) -> Iterator[tuple[InterpolationRecord, float]]:
    """Draw the curve; inside the block the model has the weights of the alpha that is kept.

    Args:
        settings: Of the run.
        model: The fine-tuned model.
        before: Its weights before training, from `copied_weights`.
        folder: Of the run, with the head of the first stage if the settings ask for it.
        predict: Logits of the model as it is.
        held_out: id_validation, id_test and the OOD sets, by name.

    Yields:
        The curve, of accuracy, and alpha.
    """
    first_stage = read_first_stage(folder) if settings.head == FIRST_STAGE else None
    start = starting_point(model, before, head=settings.head, first_stage=first_stage)

    def scores(_: object) -> dict[str, float]:
        return {
            name: classification_metrics(np.asarray(dataset[names.LABELS]), predicted_classes(predict(dataset)))[
                names.ACCURACY
            ]
            for name, dataset in held_out.items()
        }

    curve = record_of(names.ACCURACY, settings.head, evaluated_at(model, start, scores, settings.alphas))
    alpha = curve.chosen if settings.alpha == names.ID_VALIDATION else float(settings.alpha)
    with interpolated(model, start, alpha):
        yield curve, alpha
