"""The share of the gradient in the top directions equals that of the whole matrix."""

from __future__ import annotations

import json

import pytest
import torch

from hf_early_ood.errors import ConfigurationError, ProbeError
from hf_early_ood.probes.curvature import hessian_top_eigenvalue
from hf_early_ood.probes.gradient_subspace import gradient_subspace_overlap
from hf_early_ood.probes.gradients import gradient_norm
from hf_early_ood.probes.reference_curvature import gradient_in_top_directions
from tests import families
from tests.probes.test_curvature import SMALL, bert, bert_batches, trainable


@pytest.mark.parametrize("count", [None, 1, 5])
def test_equals_the_whole_matrix(count: int | None) -> None:
    model = bert(SMALL)
    batches = bert_batches(model)
    found = gradient_subspace_overlap(model, batches, num_directions=count, num_products=60, tolerance=1e-9)
    assert found.num_directions == (count or families.NUM_LABELS)
    values, share = gradient_in_top_directions(model, batches, trainable(model), found.num_directions)
    assert found.converged
    assert found.value == pytest.approx(share, rel=1e-8)
    assert 0 < share < 1
    assert list(found.eigenvalues) == pytest.approx(values, rel=1e-8)
    assert sum(found.shares) == pytest.approx(found.value)
    assert found.gradient_norm == pytest.approx(gradient_norm(model, batches).total, rel=1e-9)
    assert found.eigenvalues[0] == pytest.approx(hessian_top_eigenvalue(model, batches).value, rel=1e-5)
    assert found.expected == found.num_directions / found.num_parameters
    assert json.loads(json.dumps(found.to_dict()))["shares"] == list(found.shares)


def test_all_directions_hold_the_whole_gradient() -> None:
    model = bert(("classifier",))
    batches = bert_batches(model)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = gradient_subspace_overlap(model, batches, num_directions=size, num_products=size)
    assert found.value == pytest.approx(1, abs=1e-9)


def test_in_float32_it_is_near() -> None:
    model = bert(SMALL)
    batches = bert_batches(model)
    _, share = gradient_in_top_directions(model, batches, trainable(model), 3)
    assert gradient_subspace_overlap(model.float(), batches).value == pytest.approx(share, rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_directions": 0}, "num_directions is not usable"),
        ({"num_directions": 31}, "num_directions is larger than num_products"),
        ({"num_products": 0}, "num_products is not usable"),
        ({"tolerance": -1.0}, "tolerance is not usable"),
        ({"parameters": "some"}, "parameters"),
    ],
)
def test_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        gradient_subspace_overlap(bert(), [], **settings)  # type: ignore[arg-type]


def test_more_directions_than_there_are() -> None:
    model = bert(("classifier.bias",))
    with pytest.raises(ProbeError, match=r"too many directions\. Got: 4, with num_products=30 and 3 parameters"):
        gradient_subspace_overlap(model, bert_batches(model), num_directions=4)


def test_a_gradient_of_zero_has_no_direction() -> None:
    model = bert(("classifier.bias",))
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)
    batch = families.inputs("bert", model, 3, 5)
    batch["labels"] = torch.arange(3)
    with pytest.raises(ProbeError, match="gradient is zero"):
        gradient_subspace_overlap(model, [batch], num_directions=1)


@pytest.mark.parametrize("task", ["question_answering", "causal_lm", "multiple_choice"])
def test_a_task_without_classes_needs_their_number(task: str) -> None:
    model = families.build("bert" if task != "causal_lm" else "gpt2", task=task)
    batch = families.inputs("bert" if task != "causal_lm" else "gpt2", model, 2, 5)
    with pytest.raises(ProbeError, match="Set num_directions"):
        gradient_subspace_overlap(model, [batch])
    assert gradient_subspace_overlap(model, [batch], num_directions=2, num_products=4).num_directions == 2
