from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import hf_early_ood
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.freezing import Freezer, frozen_by, requires_grad_set, thaw


def small():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    return model, {"body": dict(model[0].named_parameters()), "head": dict(model[1].named_parameters())}


def test_what_the_user_froze_stays_frozen():
    model, groups = small()
    model[0].bias.requires_grad_(False)
    freezer = Freezer(groups)
    freezer.train_only(["body", "head"])
    assert model[0].weight.requires_grad
    assert not model[0].bias.requires_grad
    freezer.restore()
    assert not model[0].bias.requires_grad


def test_frozen_parameters_lose_their_gradient():
    model, groups = small()
    freezer = Freezer(groups)
    model(torch.ones(1, 2)).sum().backward()
    freezer.train_only(["head"])
    assert model[0].weight.grad is None
    assert model[1].weight.grad is not None
    assert freezer.num_trainable == 8


def test_errors():
    model, groups = small()
    freezer = Freezer(groups)
    with pytest.raises(ConfigurationError, match=r"Unknown layer group.*Did you mean 'head'"):
        freezer.train_only(["heads"])
    with pytest.raises(ConfigurationError, match="must train something"):
        freezer.train_only([])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="no trainable parameter"):
        Freezer(groups)


def test_context_restores_after_an_exception():
    model, _ = small()
    model[0].weight.requires_grad_(False)
    parameters = dict(model.named_parameters())

    def fail():
        assert [p.requires_grad for p in model.parameters()] == [True, False, False, False]
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), requires_grad_set(parameters, ["0.weight"]):
        fail()
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    with pytest.raises(ConfigurationError, match="Unknown parameter name"), requires_grad_set(parameters, ["x"]):
        pass


def test_only_freezing_changes_flags_of_parameters():
    """The promise of the module docstring, read from the source."""
    package = Path(hf_early_ood.__file__).parent
    offenders = []
    for file in package.rglob("*.py"):
        if file.name == "freezing.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assigns = isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Attribute) and target.attr == "requires_grad" for target in node.targets
            )
            calls = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "requires_grad_"
            if calls and re.search(r"\.(detach|clone)\(\)", ast.unparse(node.func.value)):
                continue  # a new tensor, not a parameter
            if assigns or calls:
                offenders.append(f"{file.relative_to(package)}:{node.lineno}")
    assert not offenders


def test_an_interrupted_training_is_thawed():
    model, groups = small()
    freezer = Freezer(groups, model, owner="one")
    freezer.train_only(["head"])
    assert frozen_by(model) is freezer
    assert thaw(model) is freezer
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert thaw(model) is None
    freezer.train_only(["head"])
    freezer.restore()
    assert frozen_by(model) is None
