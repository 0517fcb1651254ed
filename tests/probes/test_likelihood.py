"""log p(y|x), label choices, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_early_ood.errors import ConfigurationError, DataError, UnsupportedModelError
from hf_early_ood.probes.likelihood import (
    LABEL_CHOICES,
    ClassificationLikelihood,
    Scorer,
    check_choice,
    likelihood_for,
    sample_labels,
)
from tests import families

C = 3
LIKELIHOOD = ClassificationLikelihood(C)


def log_probs(rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, C, dtype=torch.float64).log_softmax(-1).requires_grad_()


def scores(given: torch.Tensor | None, labels: str = "empirical") -> list[torch.Tensor]:
    return LIKELIHOOD.scores(log_probs(), labels, given, torch.rand(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_log_probs(dtype: torch.dtype, expected: torch.dtype) -> None:
    logits = torch.randn(4, C, dtype=dtype)
    for outputs in (SimpleNamespace(logits=logits), (logits, "more")):
        result = LIKELIHOOD.log_probs(outputs)
        assert result.dtype == expected
        torch.testing.assert_close(result.exp().sum(-1), torch.ones(4, dtype=expected))
        torch.testing.assert_close(result, logits.to(expected).log_softmax(-1))


def test_sampled_labels_follow_the_probabilities() -> None:
    p = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64)
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = sample_labels(p.log().expand(1000, -1), uniforms)
    assert torch.bincount(drawn, minlength=4).tolist() == [200, 0, 500, 300]


def test_extreme_uniforms_give_classes_that_exist() -> None:
    # In float32 the probabilities add up to less than the largest uniform.
    p = torch.full((2, 7), 1 / 7).log()
    assert sample_labels(p, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [0, 6]
    assert sample_labels(torch.tensor([[-1e4, 0.0]]), torch.tensor([0.0])).tolist() == [1]


def test_the_scores_of_each_choice() -> None:
    values, uniforms, given = log_probs(), torch.rand(4, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    rows = torch.arange(4)
    (empirical,) = LIKELIHOOD.scores(values, "empirical", given, uniforms)
    torch.testing.assert_close(empirical, values[rows, given])
    (argmax,) = LIKELIHOOD.scores(values, "argmax", None, uniforms)
    torch.testing.assert_close(argmax, values.max(-1).values)
    (sampled,) = LIKELIHOOD.scores(values, "sampled", None, uniforms)
    torch.testing.assert_close(sampled, values[rows, sample_labels(values, uniforms)])
    expected = LIKELIHOOD.scores(values, "expected", None, uniforms)
    assert len(expected) == C
    (gradient,) = torch.autograd.grad(expected[1].sum(), values)
    torch.testing.assert_close(gradient[:, 1], values.exp().sqrt()[:, 1])  # the weight is held constant
    assert not gradient[:, [0, 2]].any()


def test_empirical_needs_labels() -> None:
    with pytest.raises(DataError, match=r"the batch has none.*labels='sampled'"):
        scores(None)


@pytest.mark.parametrize("wrong", [-100, -1, C])
def test_labels_outside_the_classes(wrong: int) -> None:
    with pytest.raises(DataError, match=rf"not a class of the model\. Got: {wrong}\. Allowed: .* 0 to {C - 1}"):
        scores(torch.tensor([0, 1, wrong, 0]))


@pytest.mark.parametrize("given", [torch.zeros(4), torch.zeros(4, C), torch.zeros(3, dtype=torch.long)])
def test_labels_that_are_not_indices(given: torch.Tensor) -> None:
    with pytest.raises(DataError, match="not class indices"):
        scores(given)


def test_models_that_are_supported(family: str) -> None:
    assert likelihood_for(families.build(family)).num_labels == families.NUM_LABELS


def test_peft_is_supported() -> None:
    model = get_peft_model(families.build("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    assert likelihood_for(model).num_labels == families.NUM_LABELS


@pytest.mark.parametrize(
    "settings",
    [{"num_labels": 1}, {"problem_type": "regression"}, {"problem_type": "multi_label_classification"}],
)
def test_regression_and_multi_label_are_refused(settings: dict) -> None:
    with pytest.raises(UnsupportedModelError, match="Regression and multi-label models are not supported"):
        likelihood_for(families.build("bert", **settings))


@pytest.mark.parametrize(
    "task", ["token_classification", "question_answering", "multiple_choice", "masked_lm", "encoder"]
)
def test_other_tasks_are_refused_and_the_supported_one_is_named(task: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"Allowed: \*ForSequenceClassification with num_labels >= 2"):
        likelihood_for(families.build("bert", task=task))


def test_the_model_never_sees_labels() -> None:
    model = families.build("bert")
    scorer = Scorer(model, likelihood_for(model), "empirical")
    batch = families.inputs("bert", model)
    scorer.scores(scorer.log_probs(batch), batch, torch.rand(4), 0)
    assert model.config.problem_type is None  # it would be set when the model computes a loss


def test_check_choice() -> None:
    for name in LABEL_CHOICES:
        check_choice("labels", name, LABEL_CHOICES)
    with pytest.raises(ConfigurationError, match=r"Unknown labels\. Got: mode\. Allowed: sampled, expected"):
        check_choice("labels", "mode", LABEL_CHOICES)
