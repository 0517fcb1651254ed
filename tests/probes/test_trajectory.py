"""Movement since the start equals a plain loop over parameters, in float64, for every kind of model."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_early_ood.errors import ConfigurationError, NonFiniteError, ProbeError, UnsupportedModelError
from hf_early_ood.layers import LayerGroup, LayerGroups, find_layer_groups
from hf_early_ood.probes import trajectory as module
from hf_early_ood.probes.adapters import adapted_weights
from hf_early_ood.probes.measures import measure
from hf_early_ood.probes.reference_trajectory import movement_of
from hf_early_ood.probes.trajectory import Trajectory, copied, trajectory
from hf_early_ood.start_weights import mapped_weights, write_start_weights
from tests import families


def moved(model: nn.Module, seed: int = 0, size: float = 0.1) -> None:
    """Change what trains, and flip some signs."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.add_((size * noise).to(parameter.dtype))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def check(found: Trajectory, expected: dict[str, dict[str, float | None]]) -> None:
    """Every quantity of every group and of all."""
    assert {"total", *found.groups} == set(expected)
    for group, movement in {"total": found.total, **found.groups}.items():
        for name, value in asdict(movement).items():
            if expected[group][name] is None:
                assert value is None, (group, name)
            else:
                assert value == pytest.approx(expected[group][name], rel=1e-11, abs=1e-15), (group, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "albert", "gpt2", "t5"])
@pytest.mark.parametrize("piece", [7, 2**16])
def test_equals_a_plain_loop(monkeypatch, family, dtype, piece):
    monkeypatch.setattr(module, "_ON_CPU", piece)
    task = "seq2seq_lm" if family == "t5" else "sequence_classification"  # with tied embeddings
    model = families.build(family, task=task).to(dtype)
    groups = find_layer_groups(model)
    start, whole = copied(model, groups), weights(model)
    moved(model)
    before, halfway = copied(model, groups), weights(model)
    moved(model, seed=1)
    group_of = {name: group.name for group in groups for name in group.parameters}
    found = trajectory(model, start=start, before=before, groups=groups)
    check(found, movement_of(weights(model), whole, halfway, group_of))
    assert found.total.num_parameters == sum(p.numel() for p in model.parameters())
    assert sum(m.share_of_movement for m in found.groups.values()) == pytest.approx(1)
    check(trajectory(model, start=start, groups=groups), movement_of(weights(model), whole, None, group_of))


def test_what_has_not_moved():
    model = families.build("bert")
    start = copied(model, find_layer_groups(model))
    found = trajectory(model, start=start, before=start)
    total = found.total
    assert (total.distance, total.sign_changes, total.relative_distance, total.update_length) == (0, 0, 0, 0)
    assert total.cosine == pytest.approx(1, abs=1e-15)
    assert total.share_of_movement is None
    assert total.update_cosine is None
    assert "share_of_movement" not in found.to_dict()["quantities"]


def test_first_update_goes_away_from_the_start():
    model = families.build("bert")
    start = copied(model, find_layer_groups(model))
    moved(model)
    found = trajectory(model, start=start, before=start)
    assert found.total.update_cosine == pytest.approx(1)
    assert found.total.update_length == pytest.approx(found.total.distance)


def one(*values: float) -> tuple[nn.Module, LayerGroups]:
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data.copy_(torch.tensor([values]))
    return layer, LayerGroups([LayerGroup("all", dict(layer.named_parameters()))])


def test_zero_has_a_sign_of_its_own():
    layer, groups = one(0.0, 0.0, 1.0, -1.0, 2.0, -0.0, -3.0, 1e-45)
    start = copied(layer, groups)
    layer.weight.data.copy_(torch.tensor([[0.0, 1e-45, 0.0, 1.0, 3.0, 0.0, 4.0, -1e-45]]))
    assert trajectory(layer, start=start, groups=groups).total.sign_changes == 5 / 8


def test_all_zero_at_the_start_has_nothing_to_be_relative_to():
    layer, groups = one(0.0, 0.0)
    start = copied(layer, groups)
    layer.weight.data.fill_(1)
    total = trajectory(layer, start=start, groups=groups).total
    assert (total.relative_distance, total.cosine, total.distance) == (None, None, pytest.approx(math.sqrt(2)))


def test_a_tensor_without_weights_and_one_without_dimensions():
    layer = nn.Module()
    layer.register_parameter("none", nn.Parameter(torch.empty(0, 3)))
    layer.register_parameter("one", nn.Parameter(torch.tensor(2.0)))
    groups = LayerGroups([LayerGroup(name, {name: p}) for name, p in layer.named_parameters()])
    start = copied(layer, groups)
    layer.one.data.fill_(-1)
    found = trajectory(layer, start=start, groups=groups)
    assert (found.total.distance, found.total.sign_changes, list(found.groups)) == (3, 1, ["one"])


def test_sums_of_many_float32_weights_are_exact():
    """A norm that is added up in float32 is off by 1e-3 there."""
    layer, groups = one(*([0.1] * 10))
    layer.weight = nn.Parameter(torch.full((1, 2**23), 0.1))
    groups = LayerGroups([LayerGroup("all", dict(layer.named_parameters()))])
    start = copied(layer, groups)
    layer.weight.data.mul_(2)
    total = trajectory(layer, start=start, groups=groups).total
    tenth = float(torch.tensor(0.1))
    assert total.distance == pytest.approx(tenth * 2**11.5, rel=1e-12)
    assert total.mean_magnitude == pytest.approx(2 * tenth, rel=1e-12)
    assert total.cosine == pytest.approx(1, abs=1e-12)


def test_frozen_parameters_of_the_groups_count():
    model = families.build("bert")
    groups = find_layer_groups(model)
    start = copied(model, groups)
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    moved(model)
    found = trajectory(model, start=start, groups=groups)
    assert found.groups["block.0"].distance == 0
    assert found.groups["head"].share_of_movement == 1
    assert found.total.num_parameters == sum(p.numel() for p in model.parameters())


def test_leaves_no_trace():
    model = families.build("bert").train()
    groups = find_layer_groups(model)
    start, versions = copied(model, groups), [p._version for p in model.parameters()]
    state, bits = torch.get_rng_state(), weights(model)
    trajectory(model, start=start, before=start, groups=groups)
    assert [p._version for p in model.parameters()] == versions
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, bits[name]) for name, value in weights(model).items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value):
    model = families.build("bert")
    start = copied(model, find_layer_groups(model))
    model.classifier.bias.data[0] = value
    with pytest.raises(NonFiniteError, match=r"A weight is not finite.*Got: groups head"):
        trajectory(model, start=start)


def test_start_weights_of_another_model():
    model = families.build("bert")
    groups = find_layer_groups(model)
    start = copied(model, groups)
    with pytest.raises(ConfigurationError, match=r"none for bert.pooler.dense.weight"):
        trajectory(model, start={k: v for k, v in start.items() if k != "bert.pooler.dense.weight"})
    with pytest.raises(ConfigurationError, match=r"classifier.bias of shape \(2,\)"):
        trajectory(model, start={**start, "classifier.bias": torch.zeros(2)})
    with pytest.raises(ProbeError, match="no start weights"):
        trajectory(model, start=None)
    with pytest.raises(ConfigurationError, match="adapters"):
        trajectory(model, start=start, adapters="none")


def test_record_of_the_measure():
    model = families.build("bert")
    groups = find_layer_groups(model)
    start = copied(model, groups)
    moved(model)
    record = json.loads(json.dumps(measure("trajectory", model, [], groups, start=start)))
    found = trajectory(model, start=start)
    assert record["value"] == found.total.distance
    assert record["per_group"]["head"] == found.groups["head"].distance
    assert record["num_examples"] is None
    signs = record["details"]["quantities"]["sign_changes"]
    assert (signs["value"], signs["per_group"]["block.1"]) == (
        found.total.sign_changes,
        found.groups["block.1"].sign_changes,
    )
    assert "update_length" not in record["details"]["quantities"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_disk_it_is_the_same(tmp_path, dtype):
    model = families.build("bert").to(dtype)
    groups = find_layer_groups(model)
    start = copied(model, groups)
    write_start_weights(tmp_path / "start.safetensors", start)
    moved(model)
    on_disk = mapped_weights(tmp_path / "start.safetensors")
    assert trajectory(model, start=on_disk) == trajectory(model, start=start)


# LoRA

TARGETS = {"bert": ["query", "value", "word_embeddings"], "gpt2": ["c_attn", "c_proj"]}


def lora(family: str = "bert", dtype: torch.dtype = torch.float64, **settings) -> nn.Module:
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=TARGETS[family], modules_to_save=["classifier", "score"], **settings
    )
    torch.manual_seed(0)
    return get_peft_model(families.build(family), config).to(dtype)


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the model that peft makes of a copy."""
    return weights(copy.deepcopy(model).merge_and_unload())


@pytest.mark.parametrize("piece", [40, 2**16])
@pytest.mark.parametrize(
    ("family", "settings"),
    [("bert", {}), ("gpt2", {"fan_in_fan_out": True}), ("bert", {"use_rslora": True, "init_lora_weights": False})],
    ids=str,
)
def test_lora_moves_the_merged_weights(monkeypatch, family, settings, piece):
    monkeypatch.setattr(module, "_ON_CPU", piece)
    model = lora(family, **settings)
    groups = find_layer_groups(model)
    start, at_start = copied(model, groups), merged(model)
    assert not any("base_layer" in name for name in start)
    moved(model)
    before, halfway = copied(model, groups), merged(model)
    moved(model, seed=1)
    now = merged(model)
    changed = [name for name in now if not torch.equal(now[name], at_start[name])]
    group_of = {name: find_layer_groups(model.get_base_model()).group_of(_of_base(model, name)) for name in changed}
    found = trajectory(model, start=start, before=before, groups=groups)
    assert found.num_merged == sum("lora_" in name for name in start) // 2 > 4
    assert ("embeddings" in found.groups) == (family == "bert")
    expected = movement_of(now, at_start, halfway, group_of)
    assert {"total", *found.groups} == set(expected)
    for group, movement in {"total": found.total, **found.groups}.items():
        assert asdict(movement) == pytest.approx(expected[group], rel=1e-9), group


def _of_base(model: nn.Module, name: str) -> str:
    """The name, inside the adapted model, of a weight of the merged one."""
    inner = dict(model.get_base_model().named_parameters())
    path, _, last = name.rpartition(".")
    tries = (name, f"{path}.base_layer.{last}", f"{path}.modules_to_save.default.{last}")
    # Base weights are in no group of a model with adapters: their adapters are.
    adapters = [f"{path}.lora_A.default.weight", f"{path}.lora_embedding_A.default"]
    return next(n for n in (*adapters, *tries) if n in inner and inner[n].requires_grad)


def test_lora_starts_at_no_movement_in_float32():
    model = lora(dtype=torch.float32)
    start = copied(model, find_layer_groups(model))
    assert trajectory(model, start=start).total.distance == 0
    moved(model, size=1e-6)
    at_all = trajectory(model, start=start)
    assert 0 < at_all.groups["block.0"].distance < 1e-3


def test_lora_counts_a_base_weight_that_trains_once():
    model = lora()
    for name, parameter in model.named_parameters():
        if "layer.0.attention.self.query.base_layer" in name:
            parameter.requires_grad_(True)
    groups = find_layer_groups(model)
    start, at_start = copied(model, groups), merged(model)
    moved(model)
    now = merged(model)
    found = trajectory(model, start=start, groups=groups)
    inside = [name for name in now if ".layer.0." in name and not torch.equal(now[name], at_start[name])]
    expected = movement_of(now, at_start, None, dict.fromkeys(inside, "block.0"))["block.0"]
    assert found.groups["block.0"].distance == pytest.approx(expected["distance"], rel=1e-9)
    assert found.groups["block.0"].num_parameters == expected["num_parameters"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "cannot be merged.*Got: .*adapters='raw'"),
        ({"lora_bias": True}, "cannot be merged.*with lora_bias.*adapters='raw'"),
    ],
    ids=str,
)
def test_other_adapters_are_refused_or_measured_as_they_are(settings, message):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["query"], **settings)
    model = get_peft_model(families.build("bert"), config)
    groups = find_layer_groups(model)
    start, at_start = copied(model, groups), weights(model)
    moved(model)
    with pytest.raises(UnsupportedModelError, match=message):
        trajectory(model, start=start, groups=groups)
    group_of = {name: group.name for group in groups for name in group.parameters}
    found = trajectory(model, start=start, groups=groups, adapters="raw")
    check(found, movement_of(weights(model), at_start, None, group_of))
    assert found.num_merged == 0


class Attends(nn.Module):
    """Two layers that hold weights under names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.experts = nn.Module()
        self.experts.stacked = nn.Parameter(torch.randn(2, 4, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["attention"]}, "Got: MultiheadAttention on MultiheadAttention.*adapters='raw'"),
        ({"target_modules": [], "target_parameters": ["experts.stacked"]}, "Got: ParamWrapper on Module.*'raw'"),
    ],
    ids=str,
)
def test_layers_whose_weight_has_another_name_are_refused(settings, message):
    model = get_peft_model(Attends(), LoraConfig(r=2, **settings))
    with pytest.raises(UnsupportedModelError, match=message):
        adapted_weights(model)


def test_merged_adapters_are_refused():
    model = lora()
    start = copied(model, find_layer_groups(model))
    model.merge_adapter()
    with pytest.raises(UnsupportedModelError, match=r"Linear, merged|Embedding, merged"):
        trajectory(model, start=start)
