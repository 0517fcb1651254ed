"""The curve between the weights before and after fine-tuning, and the choice of a point on it."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_early_ood.atomic import dumps
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.interventions import interpolation_curve as module
from hf_early_ood.interventions.interpolation_curve import ALPHAS, choose_alpha, evaluated_at, record_of
from hf_early_ood.interventions.weight_interpolation import copied_weights
from hf_early_ood.results import InterpolationRecord


def line() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    layer = nn.Linear(1, 1, bias=False).double()
    layer.weight.data.fill_(1.0)
    start = copied_weights(layer)
    layer.weight.data.fill_(3.0)
    return layer, start


def test_every_alpha_is_evaluated_and_the_model_comes_back():
    layer, start = line()
    outcomes = evaluated_at(layer, start, lambda model: model.weight.item())
    assert list(outcomes) == list(ALPHAS)
    assert [outcomes[alpha] for alpha in ALPHAS] == pytest.approx([1 + 2 * alpha for alpha in ALPHAS])
    assert layer.weight.item() == 3.0
    assert list(evaluated_at(layer, start, lambda model: None, [1.0, 0.0])) == [0.0, 1.0]


@pytest.mark.parametrize(("main", "disable"), [(True, None), (False, True)])
def test_only_the_main_process_shows_how_far_it_is(monkeypatch, main, disable):
    shown = []
    monkeypatch.setattr(module, "PartialState", lambda: SimpleNamespace(is_main_process=main))
    monkeypatch.setattr(module, "tqdm", lambda alphas, **settings: shown.append(settings["disable"]) or alphas)
    layer, start = line()
    evaluated_at(layer, start, lambda model: None, [0.0])
    assert shown == [disable]


@pytest.mark.parametrize("alphas", [[], [0.5, 0.5], [0.0, 2.0], [math.nan], [0, False]])
def test_bad_alphas_are_refused(alphas):
    layer, start = line()
    with pytest.raises(ConfigurationError, match="alpha is not usable"):
        evaluated_at(layer, start, lambda model: None, alphas)


def test_ties_go_to_the_pretrained_weights_and_nan_never_wins():
    assert choose_alpha({1.0: 0.9, 0.3: 0.9, 0.0: 0.1}) == 0.3
    assert choose_alpha({0.0: math.nan, 0.5: 0.1, 1.0: math.inf}) == 0.5
    with pytest.raises(ConfigurationError, match="no score to choose alpha by"):
        choose_alpha({0.0: math.nan})
    with pytest.raises(ConfigurationError, match="no score to choose alpha by"):
        choose_alpha({})


def test_ood_scores_choose_nothing_and_the_record_survives_json():
    def outcomes(ood: list[float]) -> dict[float, dict[str, float]]:
        pairs = zip([0.0, 0.5, 1.0], [0.6, 0.8, 0.7], ood, strict=True)
        return {alpha: {"id_validation": score, "ood/a": other} for alpha, score, other in pairs}

    record = record_of("accuracy", "final", outcomes([0.9, 0.2, math.nan]))
    assert record.chosen == record_of("accuracy", "final", outcomes([0.1, 0.2, 0.9])).chosen == 0.5
    assert record.scores == {"id_validation": (0.6, 0.8, 0.7), "ood/a": (0.9, 0.2, None)}
    assert InterpolationRecord.from_dict(json.loads(dumps(record.to_dict()))) == record


def test_scores_that_make_no_curve_are_refused():
    with pytest.raises(ConfigurationError, match=r"do not make a curve.*id_validation among them"):
        record_of("accuracy", "final", {0.0: {"ood/a": 0.5}})
    with pytest.raises(ConfigurationError, match=r"do not make a curve"):
        record_of("accuracy", "final", {0.0: {"id_validation": 0.5}, 1.0: {"id_validation": 0.5, "ood/a": 0.1}})
