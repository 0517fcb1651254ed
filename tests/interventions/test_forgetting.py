"""Weights that are initialized anew follow the model's own initializer, and nothing else changes."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_early_ood.errors import UnsupportedModelError
from hf_early_ood.interventions.forgetting import reinitialize, without_norms
from hf_early_ood.layers import find_layer_groups
from tests import families


def bits(model):
    """All that a model holds, buffers that are not saved included."""
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def identities(model):
    return {
        module: [*map(id, module._parameters.values()), *map(id, module._buffers.values())]
        for module in model.modules()
    }


def changed(model, before):
    return {name for name, value in bits(model).items() if not torch.equal(value, before[name])}


def group(model, *names):
    groups = find_layer_groups(model)
    return {name: parameter for group in names for name, parameter in groups[group].parameters.items()}


def fresh(family, seed, **settings):
    """What transformers itself makes: all marks of what was initialized are taken away, then it initializes."""
    model = families.build(family, seed=1, **settings)
    seen = set()
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
        for name, parameter in module._parameters.items():
            if parameter in seen:  # shared only after the initialization
                module._parameters[name] = nn.Parameter(parameter.detach().clone())
            elif parameter is not None:
                seen.add(parameter)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.__dict__.pop("_is_hf_initialized", None)
    torch.manual_seed(seed)
    model.initialize_weights()
    return dict(model.named_parameters())


def test_all_weights_anew_are_those_of_transformers(family):
    model = families.build(family)
    before = identities(model)
    reinitialize(model, dict(model.named_parameters()), seed=7)
    expected = fresh(family, 7)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert identities(model) == before


def test_nothing_else_changes(family):
    model = families.build(family)
    groups = find_layer_groups(model)
    top = groups[-2:]
    chosen = without_norms(model, {name: p for g in top for name, p in g.parameters.items()})
    for parameter in model.parameters():
        parameter.data.add_(0.125)  # as after some training: no bias is zero
        parameter.grad = torch.ones_like(parameter)
    before, held = bits(model), identities(model)
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    reinitialize(model, chosen, seed=3)
    # A shared parameter appears in named_parameters by one name only.
    assert changed(model, before) == set(chosen)
    assert identities(model) == held
    assert all(bool((p.grad == 1).all()) and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])  # noqa: NPY002


def test_the_spread_is_that_of_the_model():
    """GPT-2 draws the projections into the residual stream with a smaller spread; the parent module does that."""
    model = families.build("gpt2", n_embd=64, n_layer=8)
    reinitialize(model, group(model, "block.6"), seed=0)
    block = model.transformer.h[6]
    assert float(block.attn.c_attn.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(block.mlp.c_proj.weight.detach().std()) == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
    assert bool((block.mlp.c_proj.bias == 0).all())


def test_settings_of_the_configuration_count():
    model = families.build("bert", hidden_size=64, intermediate_size=256, initializer_range=0.5)
    reinitialize(model, group(model, "block.2"), seed=0)
    dense = model.bert.encoder.layer[2].intermediate.dense
    assert float(dense.weight.detach().std()) == pytest.approx(0.5, rel=0.05)


def test_seeds():
    models = [families.build("bert", seed=seed) for seed in (1, 2, 3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        reinitialize(model, group(model, "block.2"), seed)
    weights = [model.bert.encoder.layer[2].output.dense.weight for model in models]
    assert torch.equal(weights[0], weights[1])  # whatever was there before
    assert not torch.equal(weights[0], weights[2])


def test_marks_of_a_loaded_checkpoint_do_not_matter(tmp_path):
    families.build("bert").save_pretrained(tmp_path)
    loaded = type(families.build("bert")).from_pretrained(tmp_path)
    marked = [n for n, p in loaded.named_parameters() if getattr(p, "_is_hf_initialized", False)]
    before = bits(loaded)
    chosen = without_norms(loaded, group(loaded, "block.2"))
    reinitialize(loaded, chosen, seed=5)
    assert changed(loaded, before) >= {name for name in chosen if name.endswith("weight")}
    assert [n for n, p in loaded.named_parameters() if getattr(p, "_is_hf_initialized", False)] == marked


def test_embeddings_tied_to_a_decoder_stay():
    model = families.build("bert", task="masked_lm", tie_word_embeddings=True)
    decoder, embeddings = model.cls.predictions.decoder, model.bert.embeddings.word_embeddings
    assert decoder.weight is embeddings.weight
    before = bits(model)
    chosen = group(model, "head")
    reinitialize(model, chosen, seed=1)
    assert "cls.predictions.transform.dense.weight" in changed(model, before)
    assert "bert.embeddings.word_embeddings.weight" not in changed(model, before)
    assert decoder.weight is embeddings.weight
    assert decoder.bias is model.cls.predictions.bias
    # And the other way round: the shared tensor changes at both places.
    reinitialize(model, group(model, "embeddings"), seed=1)
    assert "bert.embeddings.word_embeddings.weight" in changed(model, before)
    assert decoder.weight is embeddings.weight
    assert bool((embeddings.weight[families.PAD] == 0).all())  # as embeddings are initialized, not decoders


def test_norms_are_left_out(family):
    model = families.build(family)
    parameters = dict(model.named_parameters())
    left_out = set(parameters) - set(without_norms(model, parameters))
    named = {name for name in parameters if "norm" in name.lower().rsplit(".", 1)[0].rsplit(".", 1)[-1]}
    assert named <= left_out
    # Layers of the same kind with other names: ln_1, final_norm of a module called norm, ...
    for name in left_out:
        assert parameters[name].dim() <= 1, name


def test_half_precision():
    model = families.build("bert").to(torch.bfloat16)
    chosen = group(model, "block.2")
    reinitialize(model, chosen, seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(bool(parameter.isnan().any()) for parameter in model.parameters())


class Unknown(nn.Module):
    """A layer whose weight no initializer of transformers or torch knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 5.0))


def test_what_nothing_initializes_is_refused_and_the_model_unchanged():
    model = families.build("bert")
    model.classifier = nn.Sequential(model.classifier, Unknown())
    before, held = bits(model), identities(model)
    with pytest.raises(
        UnsupportedModelError, match=r"cannot be initialized anew.*1 of 5, such as classifier\.1\.scale"
    ):
        reinitialize(model, group(model, "head"), seed=0)
    assert not changed(model, before)
    assert identities(model) == held


def test_layers_around_which_there_is_no_model_of_transformers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = bits(model)
    reinitialize(model, dict(model[1].named_parameters(prefix="1")), seed=4)
    assert changed(model, before) == {"1.weight", "1.bias"}
    torch.manual_seed(4)
    expected = nn.Linear(4, 4)
    assert torch.equal(model[1].weight, expected.weight)
    assert torch.equal(model[1].bias, expected.bias)


def lora(**settings):
    model = get_peft_model(families.build("bert"), LoraConfig(task_type="SEQ_CLS", r=2, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.125)
    return model


@pytest.mark.parametrize(("how", "spread"), [(True, 1 / math.sqrt(3 * 64)), ("gaussian", 1 / 8)])
def test_adapters_begin_as_those_of_peft(how, spread):
    model = get_peft_model(
        families.build("bert", hidden_size=64), LoraConfig(task_type="SEQ_CLS", r=8, init_lora_weights=how)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.125)
    before, chosen = bits(model), group(model, "block.1", "block.2", "head")
    reinitialize(model, chosen, seed=2)
    assert changed(model, before) == set(chosen)
    assert len(chosen) == 2 * 4 + 2  # A and B of query and value in two blocks; the classifier, weight and bias
    for name, parameter in chosen.items():
        if "lora_B" in name or name.endswith("bias"):
            assert bool((parameter == 0).all()), name
        elif "lora_A" in name:
            assert float(parameter.detach().std()) == pytest.approx(spread, rel=0.15), name
    classifier = model.get_base_model().classifier
    assert float(classifier.modules_to_save["default"].weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert torch.equal(classifier.original_module.weight, before["base_model.model.classifier.original_module.weight"])


@pytest.mark.parametrize("settings", [{"init_lora_weights": False}, {"init_lora_weights": "orthogonal"}])
def test_adapters_whose_beginning_cannot_be_repeated_are_refused(settings):
    model = lora(**settings)
    before = bits(model)
    with pytest.raises(UnsupportedModelError, match="initial values of this adapter cannot be made again"):
        reinitialize(model, group(model, "block.2"), seed=0)
    assert not changed(model, before)
    reinitialize(model, group(model, "head"), seed=0)  # holds no adapter
    assert changed(model, before)


def test_magnitudes_of_dora_are_refused():
    model = lora(use_dora=True)
    with pytest.raises(UnsupportedModelError, match=r"no initializer writes to them.*lora_magnitude_vector"):
        reinitialize(model, group(model, "block.2"), seed=0)
