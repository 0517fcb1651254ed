"""FSDP2 in a process group of one: what several processes do with it is in tests/distributed/test_fsdp2.py."""

from __future__ import annotations

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from hf_early_ood.callbacks import setups
from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import UnsupportedModelError, UnsupportedSetupError
from hf_early_ood.freezing import Freezer
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.measures import MEASURES, reads_examples
from hf_early_ood.probes.trajectory import trajectory
from hf_early_ood.sharding import begin, gathered, is_split_otherwise, reshard, sharded_modules
from tests import families
from tests.training import make_trainer

# Distributed type of accelerate, why it is refused, and what to do.
SPLIT_OTHERWISE = {
    "FSDP version 1": (
        "FSDP",
        "FSDP1 joins the parameters of a module into one, which is frozen or trained as a whole from the start",
        '"fsdp_version: 2" in the accelerate',
    ),
    "Megatron-LM, tensor parallelism": (
        "MEGATRON_LM",
        "Layer groups cannot be told apart in parameters that tensor parallelism has split",
        "without tensor parallelism",
    ),
}
INPUTS = torch.tensor([[1.0, -2.0, 0.5, 3.0]])


@pytest.fixture
def mesh(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


class Tower(nn.Module):
    """Two blocks that share a parameter, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 2)
        self.head_copy = nn.Linear(4, 2, bias=False)
        self.head_copy.weight = self.head.weight

    def forward(self, x):
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x) + self.head_copy(x)


def shard(mesh, **policy):
    model = Tower()
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(**policy))
    return model


def test_a_gathered_model_is_an_ordinary_one_and_nothing_of_it_stays(mesh):
    model, ordinary = shard(mesh), Tower()
    model.blocks[0].requires_grad_(False)
    model(INPUTS)  # the head stays gathered after a forward pass
    model.blocks[0].requires_grad_(True)
    reshard(model)
    before = dict(model.named_parameters())
    hooks = [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()]
    with gathered(model):
        inside = dict(model.named_parameters())
        assert not any(isinstance(parameter, DTensor) for parameter in inside.values())
        assert model.head_copy.weight is model.head.weight
        assert {n: p.requires_grad for n, p in inside.items()} == {n: p.requires_grad for n, p in before.items()}
        assert torch.equal(model(INPUTS), ordinary(INPUTS))
        model(INPUTS).sum().backward()
    assert all(parameter is before[name] and parameter.grad is None for name, parameter in model.named_parameters())
    assert [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()] == hooks
    assert "forward" not in model.__dict__
    assert torch.equal(model(INPUTS), ordinary(INPUTS))


def test_a_gathered_model_is_put_back_after_an_error(mesh):
    model = shard(mesh)
    model.forward = forward = model.forward  # as others wrap it
    before = dict(model.named_parameters())
    with pytest.raises(ZeroDivisionError), gathered(model):  # noqa: PT012
        loss = model(INPUTS).sum()
        loss.register_hook(lambda gradient: 1 / 0)
        loss.backward()
    assert model.__dict__["forward"] is forward
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    model(INPUTS).sum().backward()  # FSDP2 knows nothing of the backward pass that failed
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_that_is_not_sharded_is_left_alone(mesh):
    model = Tower()
    before = dict(model.named_parameters())
    begin(model)
    with gathered(model):
        assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert not sharded_modules(model)


def movement(model, batches):
    """The trajectory: all weights are where they were."""
    start = {name: torch.zeros_like(p) for name, p in families.build("bert").named_parameters()}
    return trajectory(model, start=start, groups=find_layer_groups(families.build("bert")))


@pytest.mark.parametrize("measure", [*(MEASURES[name] for name in MEASURES if reads_examples(name)), movement])
def test_measures_tell_how_to_measure_a_sharded_model(mesh, measure):
    model = families.build("bert")
    batches = [families.inputs("bert", model)]
    expected = measure(model, batches)
    fully_shard(model, mesh=mesh)
    with pytest.raises(UnsupportedModelError, match=r"with hf_early_ood\.sharding\.gathered\(model\)"):
        measure(model, batches)
    with gathered(model):
        assert measure(model, batches) == expected


@pytest.mark.parametrize("begun", [True, False])
def test_a_layer_frozen_from_the_start_can_be_released_in_mixed_precision(mesh, begun):
    """Without `begin`, torch 2.13 cannot; when this fails, `begin` is no longer needed."""
    model = shard(mesh, param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    if begun:
        begin(model)
    groups = {name: dict(module.named_parameters()) for name, module in (("0", model.blocks[0]), ("1", model.head))}
    freezer = Freezer(groups, model)
    freezer.train_only(["1"])
    model(INPUTS).sum().backward()
    assert model.blocks[0].weight.grad is None
    freezer.train_only(["0", "1"])
    if begun:
        model(INPUTS).sum().backward()
        assert model.blocks[0].weight.grad.dtype == torch.float32
    else:
        with pytest.raises(RuntimeError, match="dtype"):
            model(INPUTS).sum().backward()


def test_flags_reach_parameters_that_an_evaluation_left_gathered(mesh):
    model = shard(mesh)
    freezer = Freezer(
        {"body": dict(model.blocks.named_parameters()), "head": dict(model.head.named_parameters())}, model
    )
    freezer.train_only(["body"])
    with torch.no_grad():
        model(INPUTS)
    assert not isinstance(model.head.weight, DTensor)
    freezer.train_only(["body", "head"])
    model(INPUTS).sum().backward()
    assert model.head.weight.grad is not None


def test_other_ways_to_split_are_told_apart(mesh):
    model = Tower()
    assert not is_split_otherwise(model)
    model.head.bias = nn.Parameter(distribute_tensor(model.head.bias.detach(), mesh, [Shard(0)]))
    assert is_split_otherwise(model)
    assert not is_split_otherwise(shard(mesh))


@pytest.mark.parametrize("callback", [GradualUnfreezingCallback(interval=2), EarlyDynamicsCallback()])
@pytest.mark.parametrize("what", SPLIT_OTHERWISE)
def test_what_accelerate_splits_otherwise_is_refused(tmp_path, monkeypatch, callback, what):
    """accelerate launch sets the environment, and leaves TrainingArguments as they were."""
    kind, why, fix = SPLIT_OTHERWISE[what]
    monkeypatch.setattr(setups, "_distributed_type", lambda: DistributedType[kind])
    with pytest.raises(UnsupportedSetupError, match=f"{why}.*{fix}"):
        make_trainer(tmp_path, [callback]).train()


def test_tensor_parallelism_is_refused(tmp_path, mesh):
    callback = GradualUnfreezingCallback(interval=2)
    trainer = make_trainer(tmp_path, [callback])
    model = Tower()
    model.head.bias = nn.Parameter(distribute_tensor(model.head.bias.detach(), mesh, [Shard(0)]))
    with pytest.raises(UnsupportedSetupError, match="tensor parallelism has split"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=model, train_dataloader=None)


def test_a_compiled_model_under_fsdp2_is_refused(tmp_path, mesh):
    trainer = make_trainer(tmp_path, [])
    model = torch.compile(Tower(), backend="eager")
    fully_shard(model, mesh=mesh)
    with pytest.raises(UnsupportedSetupError, match="Set torch_compile=False"):
        setups.check_launcher(trainer.args, model)
