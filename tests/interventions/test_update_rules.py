"""One step of an optimizer under rules, against the formula; and what is left behind, which is nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.interventions.update_rules import LAYER_GROUP, UpdateRule, in_force, split_by_layer_group
from hf_early_ood.layers import find_layer_groups
from tests import families

RATE, DECAY, FACTOR = 0.1, 0.5, 0.01
RULES = {"early": UpdateRule(FACTOR, ascends=True)}


def two_groups(kind, **settings):
    """An optimizer with an early and a later tensor, and their gradients."""
    generator = torch.Generator().manual_seed(2)
    early, later = (nn.Parameter(torch.randn(5, generator=generator)) for _ in range(2))
    optimizer = kind([{"params": [early], LAYER_GROUP: "early"}, {"params": [later], LAYER_GROUP: "later"}], **settings)
    for parameter in (early, later):
        parameter.grad = torch.randn(5, generator=generator)
    return optimizer, early, later


def step_under_rules(optimizer, rules=None):
    with in_force(optimizer, RULES if rules is None else rules):
        optimizer.step()


def test_sgd_goes_up_without_decay_and_down_with_it():
    optimizer, early, later = two_groups(torch.optim.SGD, lr=RATE, weight_decay=DECAY)
    up = early.detach() + FACTOR * RATE * early.grad
    down = later.detach() - RATE * (later.grad + DECAY * later.detach())
    step_under_rules(optimizer)
    torch.testing.assert_close(early.detach(), up, rtol=1e-6, atol=0)
    torch.testing.assert_close(later.detach(), down, rtol=1e-6, atol=0)


def test_momentum_takes_the_turned_gradient_in():
    optimizer, early, _ = two_groups(torch.optim.SGD, lr=RATE, weight_decay=DECAY, momentum=0.9)
    first, start = early.grad.clone(), early.detach().clone()
    step_under_rules(optimizer)
    second = torch.full_like(first, 0.5)
    early.grad = second.clone()
    step_under_rules(optimizer)
    up = start + FACTOR * RATE * (first + (0.9 * first + second))
    torch.testing.assert_close(early.detach(), up, rtol=1e-6, atol=0)
    # And keeps it: the descent that follows starts with it, at the whole learning rate.
    early.grad = torch.zeros_like(first)
    optimizer.step()
    buffer = -(0.9 * (0.9 * first + second)) + DECAY * up
    torch.testing.assert_close(early.detach(), up - RATE * buffer, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}, {"fused": True}])
def test_adamw_goes_up_without_decay(how):
    optimizer, early, later = two_groups(torch.optim.AdamW, lr=RATE, weight_decay=DECAY, eps=1e-8, **how)
    # In its first step, Adam goes as far as the learning rate, whatever the gradient.
    up = early.detach() + FACTOR * RATE * early.grad / (early.grad.abs() + 1e-8)
    down = later.detach() * (1 - RATE * DECAY) - RATE * later.grad / (later.grad.abs() + 1e-8)
    step_under_rules(optimizer)
    torch.testing.assert_close(early.detach(), up, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(later.detach(), down, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(optimizer.state[early]["exp_avg"], -0.1 * early.grad)


def test_a_learning_rate_in_a_tensor():
    optimizer, early, _ = two_groups(torch.optim.AdamW, lr=torch.tensor(RATE), weight_decay=DECAY)
    held = optimizer.param_groups[0]["lr"]
    up = early.detach() + FACTOR * RATE * early.grad.sign()
    step_under_rules(optimizer)
    torch.testing.assert_close(early.detach(), up, rtol=1e-4, atol=1e-6)
    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(RATE)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Rprop, torch.optim.Adagrad])
def test_everything_but_the_weights_is_put_back(kind):
    optimizer, early, later = two_groups(kind, lr=RATE)  # Rprop has no weight decay at all
    before = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    gradients = early.grad.clone(), later.grad.clone()
    step_under_rules(optimizer)
    after = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    assert after == before
    assert torch.equal(early.grad, gradients[0])
    assert torch.equal(later.grad, gradients[1])


def test_also_after_an_error():
    optimizer, early, _ = two_groups(torch.optim.SGD, lr=RATE, weight_decay=DECAY)
    gradient = early.grad.clone()
    with pytest.raises(RuntimeError, match="out of memory"), in_force(optimizer, RULES):
        raise RuntimeError("out of memory")
    assert torch.equal(early.grad, gradient)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(RATE, DECAY)] * 2


def test_a_gradient_may_be_missing_or_dropped():
    optimizer, early, later = two_groups(torch.optim.SGD, lr=RATE)
    early.grad, before = None, early.detach().clone()
    step_under_rules(optimizer)
    assert torch.equal(early, before)
    early.grad = torch.ones(5)
    with in_force(optimizer, RULES):
        optimizer.step()
        optimizer.zero_grad()
    assert early.grad is None
    assert later.grad is None


def test_gradient_scaler_that_unscales_inside_the_step():
    """As under fp16 without clipping: gradients are still scaled when they are turned."""
    optimizer, early, _ = two_groups(torch.optim.SGD, lr=RATE, weight_decay=DECAY)
    up = early.detach() + FACTOR * RATE * early.grad
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # the scaler wants to have seen a loss
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad.mul_(1024.0)
    with in_force(optimizer, RULES):
        scaler.step(optimizer)
    torch.testing.assert_close(early.detach(), up, rtol=1e-6, atol=0)


def test_gradient_scaler_that_skips_the_step():
    optimizer, early, later = two_groups(torch.optim.SGD, lr=RATE, weight_decay=DECAY)
    before = early.detach().clone(), later.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    later.grad[0] = torch.inf
    with in_force(optimizer, RULES):
        scaler.step(optimizer)
    assert torch.equal(early, before[0])
    assert torch.equal(later, before[1])
    assert [group["lr"] for group in optimizer.param_groups] == [RATE] * 2


def test_rules_together():
    both = UpdateRule(0.5) & UpdateRule(0.01, ascends=True)
    assert both == UpdateRule(0.005, ascends=True)
    assert UpdateRule() & UpdateRule(0.5) == UpdateRule(0.5)
    optimizer, early, _ = two_groups(torch.optim.SGD, lr=RATE, weight_decay=DECAY)
    up = early.detach() + 0.005 * RATE * early.grad
    step_under_rules(optimizer, {"early": both})
    torch.testing.assert_close(early.detach(), up, rtol=1e-6, atol=0)


def test_splitting_keeps_every_parameter_and_its_settings():
    model = families.build("bert")
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1]
    plain = [p for n, p in model.named_parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.3}, {"params": plain, "lr": 0.7}], lr=RATE)
    groups = find_layer_groups(model)
    for _ in range(2):  # twice changes nothing
        split_by_layer_group(optimizer, groups)
        names = [group[LAYER_GROUP] for group in optimizer.param_groups]
        assert names == [*groups.names, *groups.names]
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert any(parameter is p for p in groups[group[LAYER_GROUP]].parameters.values())
                assert (group["weight_decay"], group["lr"]) == ((0.3, RATE) if parameter.dim() > 1 else (1e-2, 0.7))
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decayed) + len(plain)


def test_a_parameter_of_another_model_is_refused():
    optimizer = torch.optim.SGD([*families.build("bert").parameters(), nn.Parameter(torch.zeros(2, 3))], lr=RATE)
    with pytest.raises(ConfigurationError, match="in no layer group of the model"):
        split_by_layer_group(optimizer, find_layer_groups(families.build("bert")))
