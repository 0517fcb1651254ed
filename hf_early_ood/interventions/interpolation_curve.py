"""The curve of scores between the weights before and after fine-tuning (WiSE-FT), and the point that ID data chooses.

Source and use: `hf_early_ood.interventions.weight_interpolation`. Only scores on ID validation data choose; OOD scores
are in the record of the curve to be looked at. Cost: one evaluation for each alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from accelerate import PartialState
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_early_ood import names
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.interventions.weight_interpolation import check_alphas, interpolated
from hf_early_ood.results import InterpolationRecord

T = TypeVar("T")

ALPHAS = tuple(step / 10 for step in range(11))
"""Those of the source."""


def evaluated_at(
    model: nn.Module, start: Mapping[str, Tensor], evaluate: Callable[[nn.Module], T], alphas: Sequence[float] = ALPHAS
) -> dict[float, T]:
    """What ``evaluate`` says of the model at each alpha; the weights are back, bit for bit, afterwards.

    Args:
        model: The fine-tuned model.
        start: The weights at alpha = 0; see `interpolated`.
        evaluate: From the model to anything; it sets eval mode itself.
        alphas: Different numbers from 0 to 1.

    Returns:
        alpha, ascending, to what was said.

    Raises:
        ConfigurationError: See `interpolated`; or an alpha is not usable.
        UnsupportedModelError: See `interpolated`.

    Example:
        >>> from hf_early_ood.interventions.weight_interpolation import copied_weights
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = layer.weight.data.fill_(1.0)
        >>> start = copied_weights(layer)
        >>> _ = layer.weight.data.fill_(3.0)
        >>> evaluated_at(layer, start, lambda model: model.weight.item(), [0.0, 0.5, 1.0])
        {0.0: 1.0, 0.5: 2.0, 1.0: 3.0}
    """
    check_alphas(alphas)
    outcomes = {}
    quiet = None if PartialState().is_main_process else True  # None: where nobody watches
    for alpha in tqdm(sorted(alphas), desc="Interpolating", unit="alpha", disable=quiet, leave=False):
        with interpolated(model, start, alpha):
            outcomes[alpha] = evaluate(model)
    return outcomes


def choose_alpha(scores: Mapping[float, float]) -> float:
    """The alpha with the highest score; of several, the smallest, which is the nearest to the pretrained weights.

    A score that is not finite is never the highest.

    Args:
        scores: alpha to a score on ID validation data, the higher the better. Not on OOD data: what is then reported
            for that data would have been chosen with it.

    Raises:
        ConfigurationError: There is no finite score.

    Example:
        >>> choose_alpha({0.0: 0.7, 0.5: 0.9, 1.0: 0.9})
        0.5
    """
    finite = {alpha: score for alpha, score in scores.items() if math.isfinite(score)}
    if not finite:
        raise ConfigurationError(
            "There is no score to choose alpha by.",
            got=dict(scores),
            allowed="at least one finite number",
            fix="Look at the evaluation on ID validation data.",
        )
    return min(finite, key=lambda alpha: (-finite[alpha], alpha))


def record_of(metric: str, head: str, outcomes: Mapping[float, Mapping[str, float]]) -> InterpolationRecord:
    """The record of a curve, with the alpha that `choose_alpha` takes by ID validation.

    Args:
        metric: Name of the score, of which more is better.
        head: Where the head at alpha = 0 is from, such as "first_stage".
        outcomes: alpha to (split to score): from `evaluated_at` with such an ``evaluate``. "id_validation" must be
            there, and the splits be the same at every alpha.

    Raises:
        ConfigurationError: They are not, or there is no finite score on "id_validation".

    Example:
        >>> outcomes = {0.0: {"id_validation": 0.8, "ood/a": 0.9}, 1.0: {"id_validation": 0.9, "ood/a": 0.5}}
        >>> record = record_of("accuracy", "final", outcomes)
        >>> record.chosen, record.scores["ood/a"]
        (1.0, (0.9, 0.5))
    """
    check_alphas(list(outcomes))
    alphas = sorted(outcomes)
    splits = list(outcomes[alphas[0]])
    if names.ID_VALIDATION not in splits or any(set(outcomes[alpha]) != set(splits) for alpha in alphas):
        raise ConfigurationError(
            "The scores do not make a curve.",
            got={alpha: list(outcomes[alpha]) for alpha in alphas},
            allowed=f"the same splits at every alpha, {names.ID_VALIDATION} among them",
        )
    return InterpolationRecord(
        metric=metric,
        head=head,
        alphas=tuple(alphas),
        scores={split: tuple(_number(outcomes[alpha][split]) for alpha in alphas) for split in splits},
        chosen=choose_alpha({alpha: outcomes[alpha][names.ID_VALIDATION] for alpha in alphas}),
    )


def _number(score: float) -> float | None:
    return float(score) if math.isfinite(score) else None
