"""Prediction depth equals its slow twin, follows its definition, and leaves no trace."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_early_ood.errors import ConfigurationError, DataError, NonFiniteError, UnsupportedModelError
from hf_early_ood.probes.depth import depth_among, prediction_depth
from hf_early_ood.probes.reference_depth import prediction_depth_loop
from hf_early_ood.probes.representations import Representations, pooled, represent
from tests import families
from tests.probes.test_isolation import picture

# Their layers have other lengths, or there are two stacks of them.
WITHOUT_STATES = {"bart", "canine", "funnel", "mbart", "t5"}


def support(model, family="bert", count=2):
    return [families.inputs(family, model, 8, 9 - seed, seed=seed) for seed in range(count)]


def queries(model, family="bert"):
    batch = families.inputs(family, model, 6, 8, seed=9)
    return [{key: value for key, value in batch.items() if key != "labels"}]


@pytest.mark.parametrize("reference", ["model", "last_probe"])
def test_it_equals_the_loop_on_every_family(family, reference):
    model = families.build(family) if family == "canine" else families.build(family).double()
    if family in WITHOUT_STATES:
        with pytest.raises(UnsupportedModelError, match="one hidden state for each layer, example and position"):
            prediction_depth(model, support(model, family), k=3)
        return
    for asked in (queries(model, family), None):
        found = prediction_depth(model, support(model, family), asked, k=5, reference=reference)
        depths, probes = prediction_depth_loop(model, support(model, family), asked, k=5, reference=reference)
        assert found.depth.tolist() == depths
        assert found.probes.tolist() == probes
    assert found.layers == ("embeddings", "block.0", "block.1", "block.2", "output")


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_poolings(tiny_bert, pooling):
    model = tiny_bert.double()
    found = prediction_depth(model, support(model), queries(model), k=4, pooling=pooling)
    depths, probes = prediction_depth_loop(model, support(model), queries(model), k=4, pooling=pooling)
    assert (found.depth.tolist(), found.probes.tolist()) == (depths, probes)


def made(layers, predictions, labels=None):
    return Representations(
        {f"block.{number}": torch.tensor(vectors)[:, None].float() for number, vectors in enumerate(layers)},
        torch.tensor(predictions),
        None if labels is None else torch.tensor(labels),
        2,
        "mean",
        torch.device("cpu"),
    )


def test_the_definition():
    """One neighbor on a line: at 0 it says class 0, at 1 class 1."""
    around = made([[0.0, 1.0]] * 4, [0, 1], [0, 1])
    said = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]])
    asked = made(said.T.tolist(), [1, 1, 1, 1, 1])
    found = depth_among(around, asked, k=1)
    assert found.depth.tolist() == [0, 1, 2, 4, 4]  # 4: the last probe does not say what the model says
    assert (found.mean, found.share, found.consistency) == (2.2, 0.55, 0.6)
    assert found.agreement == {"block.0": 0.6, "block.1": 0.6, "block.2": 0.8, "block.3": 0.6}
    assert depth_among(around, asked, k=1, reference="last_probe").depth.tolist() == [0, 1, 2, 3, 0]
    assert json.loads(json.dumps(found.to_dict()))["num_support"] == 2


def test_queries_of_the_support_are_none_of_their_own_neighbors():
    around = made([[0.0, 0.1, 1.0, 1.1]], [0, 0, 1, 1], [0, 1, 1, 0])
    assert depth_among(around, k=1).probes[:, 0].tolist() == [1, 0, 0, 1]
    assert depth_among(around, around, k=1).probes[:, 0].tolist() == [0, 1, 1, 0]


def test_the_order_of_the_support_does_not_count(tiny_bert):
    first = prediction_depth(tiny_bert, support(tiny_bert), queries(tiny_bert), k=3)
    second = prediction_depth(tiny_bert, support(tiny_bert)[::-1], queries(tiny_bert), k=3)
    assert first.depth.tolist() == second.depth.tolist()


def test_padding_does_not_count(tiny_bert):
    """Neither what is written there nor how much of it there is."""
    plain = queries(tiny_bert)[0]
    longer = {key: torch.nn.functional.pad(value, (0, 5), value=0) for key, value in plain.items()}
    longer["input_ids"][:, -5:] = 7
    for pooling in ("mean", "first", "last"):
        found = [represent(tiny_bert, [batch], pooling=pooling).layers for batch in (plain, longer)]
        for name in found[0]:
            torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_padding_may_be_on_either_side_and_hold_anything(side, pooling):
    state = torch.tensor([[1.0, 2.0, 4.0]])[..., None]
    away = torch.full((1, 2, 1), torch.nan)
    parts, counts = ([away, state], [0, 0, 1, 1, 1]) if side == "left" else ([state, away], [1, 1, 1, 0, 0])
    expected = {"mean": 7 / 3, "first": 1.0, "last": 4.0}[pooling]
    assert pooled(torch.cat(parts, 1), torch.tensor([counts]), pooling).item() == pytest.approx(expected)


def test_probabilities_next_to_one_are_no_ties(tiny_bert):
    tiny_bert.classifier.bias.data.copy_(torch.tensor([0.0, -20.0, -20.0]))
    output = represent(tiny_bert, support(tiny_bert)).layers["output"]
    assert output[:, 0].min() > 1 - 1e-8  # 1, in float32
    assert len(output[:, 0].unique()) == len(output)


@pytest.mark.parametrize("kind", ["frozen", "lora", "half", "bfloat"])
def test_it_leaves_no_trace(tiny_bert, kind):
    model = tiny_bert.train()
    if kind == "frozen":
        for parameter in model.bert.parameters():
            parameter.requires_grad_(False)
    elif kind == "lora":
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    else:
        model = model.to(torch.float16 if kind == "half" else torch.bfloat16)
    torch.stack([p.float().sum() for p in model.parameters() if p.requires_grad]).sum().backward()
    before = picture(model)
    found = prediction_depth(model, support(model), queries(model), k=3)
    assert picture(model) == before
    assert found.num_examples == 6
    assert model.training


def test_half_precision_is_nearly_the_same():
    model = families.build("bert")
    whole, half = (prediction_depth(m, support(m), k=5) for m in (model, families.build("bert").half()))
    assert (whole.probes == half.probes).mean() > 0.8


def test_a_subset_of_the_layers(tiny_bert):
    whole = prediction_depth(tiny_bert, support(tiny_bert), k=3)
    some = prediction_depth(tiny_bert, support(tiny_bert), k=3, layers=["output", "block.1"])
    assert some.layers == ("block.1", "output")
    assert some.probes.tolist() == whole.probes[:, [2, 4]].tolist()
    with pytest.raises(ConfigurationError, match=r"Unknown layer.*block\.9"):
        prediction_depth(tiny_bert, support(tiny_bert), k=3, layers=["block.9"])
    with pytest.raises(ConfigurationError, match="no layer to look at"):
        prediction_depth(tiny_bert, support(tiny_bert), k=3, layers=[])


def test_what_cannot_be_measured(tiny_bert):
    batches = support(tiny_bert)
    with pytest.raises(DataError, match="without a label"):
        prediction_depth(tiny_bert, [*batches, *queries(tiny_bert)], k=3)
    with pytest.raises(ConfigurationError, match="no batch to measure on"):
        prediction_depth(tiny_bert, [], k=3)
    with pytest.raises(ConfigurationError, match="no batch to measure on"):
        prediction_depth(tiny_bert, batches, [], k=3)
    with pytest.raises(ConfigurationError, match=r"number of neighbors.*k=30.*1 to 15"):
        prediction_depth(tiny_bert, batches)
    for wrong in ({"k": 0}, {"k": 2.5}, {"pooling": "max"}, {"reference": "labels"}):
        with pytest.raises(ConfigurationError, match=r"k is not usable|Unknown (pooling|reference)"):
            prediction_depth(tiny_bert, batches, **wrong)
    beyond = {**batches[0], "labels": torch.full((8,), 3)}
    with pytest.raises(DataError, match="not one of the classes"):
        prediction_depth(tiny_bert, [beyond], k=3)
    blank = {**batches[0], "attention_mask": torch.zeros_like(batches[0]["attention_mask"])}
    with pytest.raises(DataError, match="no position that counts"):
        prediction_depth(tiny_bert, [blank], k=3)
    with pytest.raises(ConfigurationError, match="not represented alike"):
        depth_among(represent(tiny_bert, batches), represent(tiny_bert, batches, pooling="first"), k=3)
    tiny_bert.bert.encoder.layer[1].output.dense.bias.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"batch 0 is not finite.*block\.1"):
        prediction_depth(tiny_bert, batches, k=3)


@pytest.mark.parametrize("task", ["multiple_choice", "token_classification", "question_answering", "causal_lm"])
def test_other_tasks_are_refused(task):
    family = "gpt2" if task == "causal_lm" else "bert"
    model = families.build(family, task=task)
    with pytest.raises(UnsupportedModelError, match=r"one of several classes|one hidden state for each layer"):
        prediction_depth(model, [families.inputs(family, model)], k=2)


def trained(ids, labels):
    """A small BERT that has learned the labels of these examples by heart."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = families.build("bert", num_labels=2, hidden_size=32, **quiet)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(500):
        outputs = model(input_ids=ids, labels=labels)
        if bool((outputs.logits.argmax(-1) == labels).all()):
            return model
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    raise AssertionError("the labels were not learned")


def test_random_labels_are_predicted_deeper_than_real_ones():
    """What has to be learned by heart is decided late."""
    real = torch.arange(96) % 2
    own = torch.rand(96, 8) < 0.8  # most of the words of an example tell its class
    ids = families.FIRST_WORD + 40 * torch.where(own, real[:, None], 1 - real[:, None]) + torch.randint(0, 40, (96, 8))
    depths = {}
    for name, labels in (("real", real), ("random", real[torch.randperm(96)])):
        found = prediction_depth(trained(ids, labels), [{"input_ids": ids, "labels": labels}], k=15)
        depths[name] = found.mean
    assert depths["random"] > depths["real"] + 0.3
