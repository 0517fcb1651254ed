from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig
from transformers.trainer_pt_utils import LabelSmoother

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.tasks.losses import LabelLoss, loss_for
from tests import families


def _case(problem: str) -> tuple[dict[str, Any], torch.Tensor]:
    """Fields of a config, and labels for six examples."""
    if problem.startswith("regression"):
        count = int(problem[-1])
        return {"num_labels": count}, torch.randn(6) if count == 1 else torch.randn(6, count)
    if problem == "multi":
        return {"num_labels": 3}, torch.randint(0, 2, (6, 3)).float()
    return {"num_labels": 3}, torch.tensor([0, 2, 1, 1, -100, 0])


CASES = ["single", "multi", "regression1", "regression3"]
TYPES = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression1": "regression",
    "regression3": "regression",
}


# transformers takes several outputs with float labels for multi-label: regression3 has to be stated.
@pytest.mark.parametrize(
    ("problem", "stated"), [*((case, True) for case in CASES), *((case, False) for case in CASES[:3])]
)
def test_value_is_the_models_own(problem: str, stated: bool) -> None:
    fields, labels = _case(problem)
    model = families.build("bert", **fields, problem_type=TYPES[problem] if stated else None)
    inputs = families.inputs("bert", model, batch=6)
    inputs.pop("labels", None)
    ours = SequenceClassificationLoss(model.config)(model(**inputs), labels)
    assert model.config.problem_type == (TYPES[problem] if stated else None)
    own = model(**inputs, labels=labels)
    torch.testing.assert_close(ours, own.loss, rtol=0, atol=0)
    torch.testing.assert_close(SequenceClassificationLoss(model.config)(tuple(own.values())[1:], labels), own.loss)


@pytest.mark.parametrize("problem", CASES)
@pytest.mark.parametrize("cuts", [[2], [1, 5], [1, 2, 3]])
def test_uneven_parts_add_up_to_the_whole(problem: str, cuts: list[int]) -> None:
    fields, labels = _case(problem)
    loss = SequenceClassificationLoss(PretrainedConfig(**fields, problem_type=TYPES[problem]))
    logits = torch.randn(6, fields["num_labels"], dtype=torch.float64, requires_grad=True)
    whole = torch.autograd.grad(loss({"logits": logits}, labels), logits)[0]
    for count in (int(labels.ne(-100).sum()), labels.ne(-100).sum()):
        parts = zip(logits.tensor_split(cuts), labels.tensor_split(cuts), strict=True)
        total = sum(loss({"logits": part}, label, num_items_in_batch=count) for part, label in parts)
        assert isinstance(total, torch.Tensor)
        torch.testing.assert_close(torch.autograd.grad(total, logits)[0], whole)


@pytest.mark.parametrize("count", [None, 7])
def test_label_smoothing_is_that_of_transformers(count: int | None) -> None:
    logits, labels = torch.randn(6, 3), _case("single")[1]
    ours = SequenceClassificationLoss(PretrainedConfig(num_labels=3), label_smoothing=0.2)(
        {"logits": logits}, labels, count
    )
    theirs = LabelSmoother(epsilon=0.2)({"logits": logits.clone()}, labels, num_items_in_batch=count)
    torch.testing.assert_close(ours, theirs)


def test_loss_of_a_part_without_labels() -> None:
    loss = SequenceClassificationLoss(PretrainedConfig(num_labels=3))
    ignored = torch.full((2,), -100)
    assert loss({"logits": torch.randn(2, 3)}, ignored, 4) == 0
    assert loss({"logits": torch.randn(2, 3)}, ignored).isnan()


def test_loss_errors() -> None:
    def config(**fields: Any) -> PretrainedConfig:
        return PretrainedConfig(**{"num_labels": 3, **fields})

    with pytest.raises(DataError, match="has no labels"):
        SequenceClassificationLoss(config())({"logits": torch.zeros(2, 3)}, None)
    with pytest.raises(DataError, match=r"do not fit the logits.*\(2,\).*\(2, 3\)"):
        SequenceClassificationLoss(config(problem_type="regression"))({"logits": torch.zeros(2, 3)}, torch.zeros(2))
    with pytest.raises(ConfigurationError, match="Label smoothing is out of range"):
        SequenceClassificationLoss(config(), label_smoothing=1.0)
    with pytest.raises(ConfigurationError, match="only for single-label"):
        SequenceClassificationLoss(config(num_labels=1), label_smoothing=0.1)
    with pytest.raises(DataError, match="needs integer labels"):
        SequenceClassificationLoss(config(), label_smoothing=0.1)({"logits": torch.zeros(2, 3)}, torch.zeros(2, 3))


def test_unknown_problem_type() -> None:
    config = PretrainedConfig(num_labels=3)
    config.__dict__["problem_type"] = "ranking"
    with pytest.raises(ConfigurationError, match=r"Unknown problem type.*ranking"):
        SequenceClassificationLoss(config)


