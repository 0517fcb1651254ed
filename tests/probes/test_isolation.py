"""A measurement leaves no trace, whether it ends well or not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_early_ood.errors import ProbeError
from hf_early_ood.probes.fisher import ESTIMATORS, fisher_trace
from hf_early_ood.probes.isolation import isolated, random_state_kept
from tests import families


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("nothing", None)
        self.train()
        self.dropout.eval()  # flags are per module, not one for all
        self(torch.randn(5, 3)).sum().backward()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.dropout(self.norm(x)))


def picture(model: nn.Module) -> dict[str, Any]:
    """Everything that must stay as it is; tensors by identity, version and value."""

    def tensor(t: torch.Tensor | None) -> Any:
        return None if t is None else (id(t), t.tolist())

    return {
        "modes": [module.training for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "parameters": [(*tensor(parameter), parameter._version) for parameter in model.parameters()],
        "gradients": [tensor(parameter.grad) for parameter in model.parameters()],
        "buffers": [(name, *tensor(buffer)) for name, buffer in model.named_buffers()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
    }


def meddle(model: Net) -> None:
    """Change all that may be changed."""
    model.train()
    model.frozen.eval()
    model(torch.randn(5, 3))
    model.norm.running_mean = torch.ones(3)
    model.register_buffer("late", torch.ones(1))
    model.frozen.requires_grad_(True)
    model.norm.weight.grad = None
    model.frozen.weight.grad = torch.ones(3, 3)
    random.random()
    np.random.rand()  # noqa: NPY002


def fail_after(act: Callable[..., Any], *args: Any) -> None:
    act(*args)
    raise KeyError("inside")


def test_eval_inside_and_everything_back_after() -> None:
    model = Net()
    before = picture(model)
    with isolated(model):
        assert not any(module.training for module in model.modules())
        meddle(model)
    assert picture(model) == before


def test_everything_back_after_an_exception() -> None:
    model = Net()
    before = picture(model)
    with pytest.raises(KeyError, match="inside"), isolated(model):
        fail_after(meddle, model)
    assert picture(model) == before


def step(model: Net) -> None:
    with torch.no_grad():
        model.norm.weight.add_(1)


def replace(model: Net) -> None:
    model.frozen.weight = nn.Parameter(torch.zeros(3, 3))


def accumulate(model: Net) -> None:
    model(torch.randn(5, 3)).sum().backward()


@pytest.mark.parametrize(
    ("act", "named"), [(step, "norm.weight"), (replace, "frozen.weight"), (accumulate, r"norm.weight.grad")]
)
def test_changes_that_cannot_be_undone_are_errors(act: Callable[[Net], None], named: str) -> None:
    model = Net()
    with pytest.raises(ProbeError, match=rf"changed the model it measured\. Got: {named}"), isolated(model):
        act(model)


def test_an_exception_inside_is_not_hidden_by_that_check() -> None:
    model = Net()
    with pytest.raises(KeyError, match="inside"), isolated(model):
        fail_after(step, model)


def test_the_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    owned = {parameter.data_ptr() for parameter in model.parameters()}
    copied = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda t, **kw: copied.append(t.data_ptr()) or clone(t, **kw))
    with isolated(model):
        pass
    assert copied
    assert not owned & set(copied)


def test_random_state_kept() -> None:
    before = torch.rand(2, generator=torch.default_generator.clone_state())
    with pytest.raises(KeyError, match="inside"), random_state_kept():
        fail_after(torch.rand, 3)
    torch.testing.assert_close(torch.rand(2), before)


@pytest.mark.gpu
def test_random_state_of_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.cuda.init()
    before = torch.cuda.get_rng_state()
    with random_state_kept():
        torch.rand(3, device="cuda")
    assert bool((torch.cuda.get_rng_state() == before).all())


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_the_fisher_trace_leaves_no_trace(family: str, estimator: str) -> None:
    model = families.build(family).train()
    batch = families.inputs(family, model)
    model(**batch).loss.backward()
    next(model.parameters()).requires_grad_(False)
    before, config = picture(model), model.config.to_dict()
    tensors = {key: value.clone() for key, value in batch.items()}
    fisher_trace(model, [batch], estimator=estimator, parameters="all")
    assert picture(model) == before
    assert model.config.to_dict() == config
    assert all(torch.equal(batch[key], tensors[key]) for key in tensors)


def test_training_with_measurements_is_bit_for_bit_the_same() -> None:
    def weights(measure: bool) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = families.build("bert").train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for seed in range(3):
            batch = families.inputs("bert", model, seed=seed)
            model(**batch).loss.backward()  # with dropout: depends on the random state
            if measure:
                fisher_trace(model, [families.inputs("bert", model, seed=9)], seed=seed)
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach() for parameter in model.parameters()]

    for plain, measured in zip(weights(False), weights(True), strict=True):
        assert torch.equal(plain, measured)
