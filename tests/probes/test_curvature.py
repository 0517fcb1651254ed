"""Trace and largest eigenvalue of the curvature equal those of the whole matrix, and leave no trace themselves."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_early_ood.errors import ConfigurationError, DataError, NonFiniteError
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.curvature import CurvatureTrace, hessian_top_eigenvalue, hessian_trace
from hf_early_ood.probes.fisher import fisher_trace
from hf_early_ood.probes.reference_curvature import dense_gauss_newton, dense_hessian
from tests import families
from tests.training import Rows, differences, make_trainer, outcome

TWINS = {"hessian": dense_hessian, "gauss_newton": dense_gauss_newton}
MATRICES = list(TWINS)
METHODS = ["hutch++", "hutchinson"]
# Families whose exact trace over examples is quick; the products of all are tested in test_products.
FAMILIES = ["albert", "bart", "bert", "deberta-v2", "distilbert", "electra", "gpt2", "gpt_neox", "llama", "modernbert"]
FAMILIES += ["opt", "roberta", "t5", "xlm"]


def bert(names: tuple[str, ...] = ()) -> nn.Module:
    """A model in float64 of which, if names are given, only the parameters with these parts in theirs train."""
    model = families.build("bert", num_hidden_layers=2).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not names or any(part in name for part in names))
    return model


def bert_batches(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    return [families.inputs("bert", model, 2, 7), families.inputs("bert", model, 1, 5, seed=1)]


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


SMALL = ("classifier", "1.output.LayerNorm", "embeddings.LayerNorm")


@pytest.mark.parametrize("matrix", MATRICES)
def test_trace_and_eigenvalue_are_those_of_the_whole_matrix(matrix: str) -> None:
    model = bert(SMALL)
    batches = bert_batches(model)
    whole = TWINS[matrix](model, batches, trainable(model))
    groups = find_layer_groups(model)
    exact = hessian_trace(model, batches, matrix=matrix, num_products=len(whole))
    assert (exact.method, exact.num_products, exact.standard_error) == ("exact", len(whole), 0)
    assert exact.value == pytest.approx(float(whole.trace()), rel=1e-9)
    diagonal = dict.fromkeys(exact.per_group, 0.0)
    at = 0
    for name in trainable(model):
        size = model.get_parameter(name).numel()
        diagonal[groups.group_of(name)] += float(whole.diagonal()[at : at + size].sum())
        at += size
    assert list(exact.per_group) == ["embeddings", "block.1", "head"]
    assert exact.per_group == pytest.approx(diagonal, rel=1e-9)
    for method in METHODS:
        runs = [
            hessian_trace(model, batches, matrix=matrix, method=method, num_products=8, seed=seed) for seed in range(24)
        ]
        table = torch.tensor([[run.value, *run.per_group.values()] for run in runs], dtype=torch.float64)
        truth = torch.tensor([exact.value, *exact.per_group.values()], dtype=torch.float64)
        assert bool(((table.mean(0) - truth).abs() < 4 * table.std(0) / math.sqrt(len(runs))).all())
        assert all(sum(run.per_group.values()) == pytest.approx(run.value) for run in runs)
        stated = math.sqrt(sum(run.standard_error**2 for run in runs) / len(runs))
        assert 0.5 < stated / float(table[:, 0].std()) < 2
    values = torch.linalg.eigvalsh(whole)
    top = hessian_top_eigenvalue(model, batches, matrix=matrix, tolerance=1e-8, num_products=len(whole))
    assert top.converged
    assert top.value == pytest.approx(float(values[-1]), rel=1e-9)
    flat = torch.cat([part.flatten() for part in top.vector.values()])
    assert list(top.vector) == trainable(model)
    assert float((whole @ flat - top.value * flat).norm()) == pytest.approx(top.residual, abs=1e-10)


@pytest.mark.sweep(keep=6)
@pytest.mark.parametrize("family", FAMILIES)
def test_gauss_newton_trace_is_the_fisher_trace(family: str) -> None:
    """Two ways to one number that share nothing but the forward pass: tr J'WJ = E_x E_y ||grad log p(y|x)||^2."""
    model = families.build(family).double()
    batches = [families.inputs(family, model, 3, 7), families.inputs(family, model, 2, 6, seed=1)]
    fisher = fisher_trace(model, batches, labels="expected", estimator="exact", parameters="all")
    # Rank: N (C - 1) = 10. With more sketched directions than that, nothing is left to chance.
    trace = hessian_trace(model, batches, matrix="gauss_newton", num_products=36, parameters="all")
    assert trace.value == pytest.approx(fisher.total, rel=1e-6)
    assert trace.per_group == pytest.approx(fisher.per_group, rel=1e-5, abs=1e-7 * fisher.total)
    assert trace.standard_error < 1e-6 * trace.value
    assert (trace.num_parameters, trace.num_examples) == (fisher.num_parameters, fisher.num_examples)
    assert trace.normalized == pytest.approx(fisher.normalized, rel=1e-6)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("sequence_classification", {"num_labels": 1}),
        ("sequence_classification", {"problem_type": "multi_label_classification"}),
        ("token_classification", {}),
        ("question_answering", {}),
        ("multiple_choice", {}),
    ],
)
def test_gauss_newton_trace_is_the_fisher_trace_of_every_task(task: str, settings: dict[str, Any]) -> None:
    model = families.build("bert", task=task, num_hidden_layers=1, **settings).double()
    batch = families.inputs("bert", model, 2, 5)
    if settings:
        del batch["labels"]
    if task == "multiple_choice":
        batch["input_ids"][:, 1] = batch["input_ids"][:, 1].flip(0, 1)  # else the choices are the same
    fisher = fisher_trace(model, [batch], labels="expected", parameters="all", estimator="exact")
    trace = hessian_trace(model, [batch], matrix="gauss_newton", num_products=75, parameters="all")
    assert trace.value == pytest.approx(fisher.total, rel=1e-6)
    assert trace.per_group == pytest.approx(fisher.per_group, rel=1e-5, abs=1e-8 * fisher.total)


def test_hessian_of_the_head_has_its_closed_form() -> None:
    # Of the bias it is E[diag(p) - p p'], whatever the labels.
    model = bert(("classifier.bias",))
    batches = bert_batches(model)
    p = torch.cat([model(**batch).logits.detach().softmax(-1) for batch in batches])
    trace = hessian_trace(model, batches)
    assert trace.method == "exact"
    assert trace.value == pytest.approx(float((1 - p.square().sum(-1)).mean()))
    covariance = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0)
    top = hessian_top_eigenvalue(model, batches, tolerance=1e-12)
    assert top.value == pytest.approx(float(torch.linalg.eigvalsh(covariance)[-1]))
    assert top.num_products <= 3


def test_scaling_and_splitting() -> None:
    model = bert(SMALL)
    whole = families.inputs("bert", model, 4, 7)
    values = []
    for sizes in ([4], [1, 3], [1] * 4):
        parts = {key: value.split(sizes) for key, value in whole.items()}
        batches = [{key: parts[key][i] for key in whole} for i in range(len(sizes))]
        trace = hessian_trace(model, batches, num_products=9)
        top = hessian_top_eigenvalue(model, iter(batches), num_products=9)
        values.append((trace.value, trace.standard_error, top.value))
    for one, other in pairwise(values):
        assert one == pytest.approx(other, rel=1e-8)


def test_same_seed_same_numbers() -> None:
    model = bert()
    batches = bert_batches(model)
    first, again = (hessian_trace(model, batches, num_products=6, seed=3) for _ in range(2))
    assert first == again
    assert hessian_trace(model, batches, num_products=6, seed=4).value != first.value
    tops = [hessian_top_eigenvalue(model, batches, num_products=4, seed=seed) for seed in (0, 0, 1)]
    assert tops[0] == tops[1]
    assert tops[0].value != tops[2].value
    assert not tops[0].converged
    converged = hessian_top_eigenvalue(model, batches)
    assert converged.converged
    assert tops[0].value < converged.value + 1e-9


def test_float32_agrees_with_float64() -> None:
    model = bert()
    batches = bert_batches(model)
    expected = hessian_trace(model, batches, num_products=9), hessian_top_eigenvalue(model, batches)
    model.float()
    actual = hessian_trace(model, batches, num_products=9), hessian_top_eigenvalue(model, batches)
    assert actual[0].value == pytest.approx(expected[0].value, rel=1e-3)
    assert actual[1].value == pytest.approx(expected[1].value, rel=1e-4)


def test_records_are_json() -> None:
    model = bert(SMALL)
    batches = bert_batches(model)
    trace = hessian_trace(model, batches, num_products=6, matrix="gauss_newton", seed=7)
    record = trace.to_dict()
    assert CurvatureTrace(**json.loads(json.dumps(record))) == trace
    top = hessian_top_eigenvalue(model, batches, num_products=6).to_dict()
    assert json.loads(json.dumps(top)) == top
    assert "vector" not in top


@pytest.mark.parametrize("matrix", MATRICES)
def test_in_training_mode_with_checkpointing_and_without_gradients(matrix: str) -> None:
    model = bert()
    batches = bert_batches(model)
    expected = hessian_trace(model, batches, matrix=matrix, num_products=6).value
    model.gradient_checkpointing_enable()
    model.train()
    with torch.no_grad():
        assert hessian_trace(model, batches, matrix=matrix, num_products=6).value == pytest.approx(expected)
    with torch.inference_mode():
        assert hessian_trace(model, batches, matrix=matrix, num_products=6).value == pytest.approx(expected)
    assert model.training


class _Probe(TrainerCallback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step_end(self, args, state, control, model, **kwargs):
        rows = Rows(4)
        batch = {key: torch.stack([rows[i][key] for i in range(4)]) for key in rows[0]}
        self.values.append(hessian_trace(model, [batch], num_products=4).value)
        self.values.append(hessian_top_eigenvalue(model, [batch], matrix="gauss_newton", num_products=3).value)


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}, {"bf16": True}]
)
def test_training_with_the_probes_is_bit_identical(tmp_path: Path, settings: dict[str, Any]) -> None:
    outcomes = []
    probe = _Probe()
    for name, callbacks in (("without", []), ("with", [probe])):
        trainer = make_trainer(tmp_path / name, callbacks, max_steps=3, **settings)
        trainer.train()
        outcomes.append(outcome(trainer))
    assert len(probe.values) == 6
    assert len(set(probe.values)) == 6
    assert differences(*outcomes) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "hutch+"}, "Did you mean 'hutch\\+\\+'"),
        ({"matrix": "hesse"}, "Did you mean 'hessian'"),
        ({"parameters": "trainables"}, "Did you mean 'trainable'"),
        ({"num_products": 3}, "too few products .* Got: num_products=3. Allowed: 4 or more"),
        ({"num_products": 0, "method": "hutchinson"}, "Got: num_products=0. Allowed: 2 or more"),
    ],
)
def test_unusable_settings_of_the_trace(settings: dict[str, Any], message: str) -> None:
    model = bert()
    with pytest.raises(ConfigurationError, match=message):
        hessian_trace(model, bert_batches(model), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_products": 0}, "num_products is not usable"),
        ({"tolerance": -1.0}, "tolerance is not usable"),
        ({"tolerance": math.nan}, "tolerance is not usable"),
        ({"matrix": "hesse"}, "Did you mean 'hessian'"),
    ],
)
def test_unusable_settings_of_the_eigenvalue(settings: dict[str, Any], message: str) -> None:
    model = bert()
    with pytest.raises(ConfigurationError, match=message):
        hessian_top_eigenvalue(model, bert_batches(model), **settings)


def test_unusable_data_and_models() -> None:
    model = bert()
    batches = bert_batches(model)
    for measure in (hessian_trace, hessian_top_eigenvalue):
        with pytest.raises(ConfigurationError, match="no batch to measure on"):
            measure(model, [])
        with pytest.raises(DataError, match="the batch has none"):
            measure(model, [{"input_ids": batches[0]["input_ids"]}])
    flags = trainable(model)
    model.classifier.bias.data[0] = math.inf
    for measure in (hessian_trace, hessian_top_eigenvalue):
        with pytest.raises(NonFiniteError, match="probe batch 0 are not finite"):
            measure(model, batches)
    assert trainable(model) == flags
