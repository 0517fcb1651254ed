"""Which modules count as normalizations written out in Python: a numerical check, not a list of names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mobilebert.modeling_mobilebert import NoNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from hf_early_ood.probes.per_example import InnerProducts, Vector, squared_norms
from hf_early_ood.probes.uses import RULES, elementwise_uses, is_elementwise, may_be_elementwise

B, T, D = 2, 3, 4


class Scaled(nn.Module):
    """x and a vector w, combined by any function."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(D) + 0.5)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(x, self.weight)


ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaRMSNorm(D),
    "gemma": lambda: Gemma2RMSNorm(D),
    "t5": lambda: T5LayerNorm(D),
    "mobilebert": lambda: NoNorm(D),
    "product": lambda: Scaled(lambda x, w: x * w),
}
REFUSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "curved": lambda x, w: x * w.square(),
    "normalized weights": lambda x, w: x * w.softmax(-1),
    "mixed along the width": lambda x, w: x * w.mean(-1, keepdim=True),
    "reversed": lambda x, w: x * w.flip(-1),
    "mixed along positions": lambda x, w: x * (w if w.dim() == 1 else w.roll(1, 1)),
    "a matrix product": lambda x, w: x * (x @ w)[..., None],
    "a shape that must be (D,)": lambda x, w: F.layer_norm(x, (D,), w),
    "unused": lambda x, w: x,
    "another shape": lambda x, w: (x * w).sum(-1),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_normalizations_are_recognized_and_differentiated(name: str) -> None:
    module = ACCEPTED[name]().double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
        parameter.data[0] = 0  # a weight of zero must not hide what it scales
    x, g = torch.randn(2, B, T, D, dtype=torch.float64)
    assert may_be_elementwise(module)
    assert is_elementwise(module, x, module(x))
    for use in elementwise_uses(module, x):
        factor = use.factor(lambda tensor: tensor, g)
        assert isinstance(factor, Vector)
        for b in range(B):
            (expected,) = torch.autograd.grad((module(x[b]) * g[b]).sum(), [use.parameter])
            torch.testing.assert_close(factor.value[b], expected)


@pytest.mark.parametrize("name", REFUSED)
def test_other_modules_are_refused(name: str) -> None:
    module, x = Scaled(REFUSED[name]), torch.randn(B, T, D)
    assert not is_elementwise(module, x, module(x))


@pytest.mark.parametrize(
    "module", [nn.LayerNorm(D), nn.Linear(D, D), nn.BatchNorm1d(D), nn.Sequential(LlamaRMSNorm(D))]
)
def test_modules_that_are_not_asked(module: nn.Module) -> None:
    assert not may_be_elementwise(module)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"dilation": (2,), "padding": (3,)}])
def test_convolutions(groups: int, settings: dict[str, Any]) -> None:
    """Also with two sequences per example, which ``split`` puts before the channels."""
    layer = nn.Conv1d(4, 8, 3, groups=groups, **settings).double()
    x = torch.randn(B * 2, 4, 9, dtype=torch.float64)
    output = layer(x)
    g = torch.randn_like(output)
    arguments = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": groups}
    for use in RULES[F.conv1d](x, layer.weight, layer.bias, **arguments):
        for rows in (2 * B, B):
            factor = use.factor(lambda t, n=rows: t.reshape(n, -1, t.shape[-1]), g.reshape(rows, -1, g.shape[-1]))
            norms = squared_norms([factor], InnerProducts())
            for own, slopes, norm in zip(x.chunk(rows), g.chunk(rows), norms, strict=True):
                (expected,) = torch.autograd.grad((layer(own) * slopes).sum(), [use.parameter])
                torch.testing.assert_close(norm, expected.square().sum())


def test_calls_whose_gradient_the_rules_do_not_give() -> None:
    table, bias, x = torch.zeros(5, D), torch.zeros(D), torch.zeros(B, D)
    ids = torch.zeros(B, T, dtype=torch.long)
    assert RULES[F.embedding](ids, table, scale_grad_by_freq=True) == []
    assert RULES[F.embedding](ids, table, max_norm=1.0) == []
    assert RULES[torch.addmm](bias, x, torch.zeros(D, D), alpha=2) == []
    assert RULES[torch.addmm](torch.zeros(B, D), x, torch.zeros(D, D)) == []
    assert RULES[F.conv1d](torch.zeros(B, D, T), torch.zeros(D, D, 1), padding="same") == []
    assert RULES[F.conv1d](torch.zeros(D, T), torch.zeros(D, D, 1)) == []
    assert RULES[F.layer_norm](torch.zeros(B, T, D), (T, D), torch.zeros(T, D)) == []
    assert RULES[F.rms_norm](torch.zeros(B, T, D), (T, D), torch.zeros(T, D)) == []
    assert RULES[F.rms_norm](torch.zeros(B, T, D), (D,)) == []


def test_negative_padding_index() -> None:
    ids, g = torch.tensor([[4, 1]]), torch.ones(1, 2, D)
    (use,) = RULES[F.embedding](ids, torch.zeros(5, D), padding_idx=-1)
    factor = use.factor(lambda tensor: tensor, g)
    assert factor.g[0, :, 0].tolist() == [0, 1]
