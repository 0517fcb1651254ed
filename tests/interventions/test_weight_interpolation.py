"""Interpolated weights: exact ends, exact way back, LoRA as scaled adapters, heads that mean something."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from hf_early_ood.errors import ConfigurationError, UnsupportedModelError
from hf_early_ood.freezing import Freezer, thaw
from hf_early_ood.interventions import weight_interpolation as module
from hf_early_ood.interventions.weight_interpolation import (
    copied_weights,
    interpolate,
    interpolated,
    moving_weights,
    starting_point,
)
from hf_early_ood.layers import find_layer_groups
from tests import families

HEAD = "base_model.model.classifier.modules_to_save.default.weight"


def trained(model: nn.Module, seed: int = 1) -> nn.Module:
    """As if it had been fine-tuned: everything that may move has moved, frozen parameters have not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)
    return model


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2, lora_alpha=4, **settings)


def logits(model: nn.Module) -> Tensor:
    inputs = families.inputs("bert", model)
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["bert", "albert", "t5", "gpt2"])
def test_ends_and_the_way_back_are_exact(family, dtype):
    model = families.build(family).to(dtype)
    model.register_buffer("mean", torch.randn(3).to(dtype))
    model.register_buffer("count", torch.tensor(4))
    begin, start = bits(model), copied_weights(model)
    trained(model).get_buffer("count").add_(3)
    model.get_buffer("mean").mul_(1 / 3)
    end = bits(model)
    for alpha, expected in ((0.0, begin), (1.0, end), (0, begin), (1, end)):
        with interpolated(model, start, alpha):
            assert same(bits(model), expected)
        assert same(bits(model), end)
    with interpolated(model, start, 0.5):
        between = bits(model)
    assert same(bits(model), end)
    for name, value in between.items():
        if name == "count":
            assert value == 7
        else:
            wanted = (begin[name].double() + end[name].double()) / 2
            torch.testing.assert_close(value.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_the_way_back_is_exact_after_an_error_too():
    model = families.build("bert")
    start = copied_weights(model)
    end = bits(trained(model))
    with pytest.raises(KeyboardInterrupt), interpolated(model, start, 0.3):
        raise KeyboardInterrupt
    assert same(bits(model), end)


def test_formula_keeps_what_does_not_differ():
    generator = torch.Generator().manual_seed(0)
    same_value, begin, end = (torch.randn(1000, generator=generator) for _ in range(3))
    for alpha in (0.1, 0.3, 0.6):  # 0.4 w + 0.6 w is not always w in floating point
        mixed = interpolate({"a": same_value, "b": begin}, {"a": same_value, "b": end}, alpha)
        assert torch.equal(mixed["a"], same_value)
        torch.testing.assert_close(mixed["b"], (1 - alpha) * begin + alpha * end)
    infinite = torch.tensor([float("-inf")])
    assert interpolate({"a": infinite}, {"a": infinite.clone()}, 0.5)["a"].item() == float("-inf")


def test_tied_weights_stay_tied():
    model = families.build("bert", task="masked_lm")
    word, decoder = model.bert.embeddings.word_embeddings, model.cls.predictions.decoder
    assert word.weight is decoder.weight
    start = copied_weights(model)
    before = word.weight.detach().clone()
    trained(model)
    with interpolated(model, start, 0.0):
        assert torch.equal(decoder.weight, before)
        assert word.weight is decoder.weight


def test_what_the_user_froze_is_no_part_of_it():
    model = families.build("bert")
    model.bert.embeddings.requires_grad_(False)
    assert not [name for name in copied_weights(model) if "embeddings" in name]
    groups = {group.name: group.parameters for group in find_layer_groups(model)}
    Freezer(groups, model).train_only(["head"])
    with pytest.raises(ConfigurationError, match=r"frozen by a schedule now.*after Trainer.train"):
        copied_weights(model)
    thaw(model)
    assert len(copied_weights(model)) > 4


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_bias": True}, {"bias": "lora_only"}], ids=str)
def test_lora_is_scaled_and_nothing_below_it_is_touched(settings):
    model = get_peft_model(families.build("bert"), lora(**settings))
    begin, at_start, start = bits(model), logits(model), copied_weights(model)
    assert HEAD in start
    assert not [name for name in start if "lora_A" in name]
    end = bits(trained(model))
    layers = module._lora_layers(model)
    deltas = [layer.get_delta_weight("default") for layer in layers]
    for alpha in (0.0, 0.25, 1.0):
        with interpolated(model, start, alpha):
            for layer, delta in zip(layers, deltas, strict=True):
                torch.testing.assert_close(layer.get_delta_weight("default"), alpha * delta)
            now = bits(model)
            for name, value in now.items():
                if "base_layer" in name and ("bias" not in name or not settings.get("bias")):
                    assert torch.equal(value, begin[name])
                elif "lora_A" in name:
                    assert torch.equal(value, end[name])
        if alpha == 0.0:
            with interpolated(model, start, alpha):
                torch.testing.assert_close(logits(model), at_start)
    assert same(bits(model), end)


def test_lora_equals_interpolated_merged_weights():
    """What a user would do by hand: merge at both ends and mix whole models."""
    base = families.build("bert")
    model = get_peft_model(base, lora())
    start = copied_weights(model)
    head = start[HEAD].clone()
    trained(model)
    merged = get_peft_model(families.build("bert"), lora())
    merged.load_state_dict(model.state_dict())
    whole = merged.merge_and_unload()
    plain = families.build("bert").state_dict()
    plain["classifier.weight"] = head
    plain["classifier.bias"] = start[HEAD.replace("weight", "bias")]
    by_hand = families.build("bert")
    by_hand.load_state_dict(interpolate(plain, whole.state_dict(), 0.4))
    with interpolated(model, start, 0.4):
        torch.testing.assert_close(logits(model), logits(by_hand))


def test_an_adapter_saved_inside_the_block_is_the_interpolated_one(tmp_path):
    model = get_peft_model(families.build("bert"), lora())
    start = copied_weights(model)
    trained(model)
    with interpolated(model, start, 0.4):
        model.save_pretrained(tmp_path)
        expected = logits(model)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(families.build("bert"), tmp_path)), expected)


ADAPTERS = {
    "dora": (lambda: lora(use_dora=True), "lora_magnitude_vector"),
    "adalora": (lambda: AdaLoraConfig(task_type="SEQ_CLS", target_modules=["query"], total_step=9, tfinal=1), "lora_E"),
    "ia3": (
        lambda: IA3Config(task_type="SEQ_CLS", target_modules=["key", "value"], feedforward_modules=[]),
        "ia3_l",
    ),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_other_adapters_are_refused(adapter):
    make, what = ADAPTERS[adapter]
    model = get_peft_model(families.build("bert"), make())
    with pytest.raises(UnsupportedModelError, match=rf"cannot be scaled by alpha.*{what}.*merge_and_unload"):
        copied_weights(model)


def test_adapters_that_do_not_start_at_zero_or_are_merged_are_refused():
    model = get_peft_model(families.build("bert"), lora(init_lora_weights=False))
    start = copied_weights(model)
    with pytest.raises(ConfigurationError, match="An adapter did not start at zero"), interpolated(model, start, 0.5):
        pass
    model.merge_adapter()
    with pytest.raises(UnsupportedModelError, match="merged"):
        moving_weights(model)


def test_head_of_the_first_stage_and_final_head():
    model = families.build("bert")
    start = copied_weights(model)
    groups = find_layer_groups(model)
    head = set(groups["head"].parameters)
    trained(model)
    first_stage = {name: torch.full_like(start[name], 0.5) for name in head}
    point = starting_point(model, start, first_stage=first_stage)
    final = starting_point(model, start, head="final")
    now = dict(model.named_parameters())
    for name, value in start.items():
        assert torch.equal(point[name], first_stage[name] if name in head else value)
        assert torch.equal(final[name], now[name] if name in head else value)
    with interpolated(model, final, 0.0):
        assert torch.equal(now["classifier.weight"], final["classifier.weight"])
        assert torch.equal(
            now["bert.embeddings.word_embeddings.weight"], start["bert.embeddings.word_embeddings.weight"]
        )


def test_heads_that_mean_nothing_are_refused():
    model = families.build("bert")
    start = copied_weights(model)
    with pytest.raises(ConfigurationError, match=r"needed for head='first_stage'.*FirstStageCallback"):
        starting_point(model, start)
    with pytest.raises(ConfigurationError, match="Unknown head"):
        starting_point(model, start, head="random")
    adapted = get_peft_model(families.build("bert"), lora())
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    with pytest.raises(ConfigurationError, match=r"cannot be interpolated.*lora_A.*initial=\['head'\]"):
        starting_point(adapted, copied_weights(adapted), first_stage=dict.fromkeys(names, torch.zeros(1)))


def test_start_weights_of_another_model_are_refused():
    model = families.build("bert")
    start = copied_weights(model)
    end = bits(model)
    name = "classifier.weight"

    def refused(weights: dict[str, Tensor], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message), interpolated(model, weights, 0.5):
            pass
        assert same(bits(model), end)

    refused({key: value for key, value in start.items() if key != name}, "1 missing .such as classifier.weight., 0 unk")
    refused({**start, "other": torch.zeros(1)}, "0 missing, 1 unknown .such as other")
    refused({**start, name: start[name].double()}, "classifier.weight does not fit the model.*float64")
    refused({**start, name: start[name][:1]}, "classifier.weight does not fit the model.*shape")
    for alpha in (-0.1, 1.1, float("nan"), True, "0.5"):
        with pytest.raises(ConfigurationError, match="alpha is not usable"), interpolated(model, start, alpha):
            pass
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="nothing says what fine-tuning has moved"):
        copied_weights(model)


def test_sharded_models_are_refused(monkeypatch):
    monkeypatch.setattr(module, "holds_shards", lambda model: True)
    with pytest.raises(UnsupportedModelError, match="sharded model cannot be interpolated"):
        copied_weights(families.build("bert"))
