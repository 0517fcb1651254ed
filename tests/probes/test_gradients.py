"""Norms of mean gradients equal their slow twins and the published code, and none of them is the Fisher trace."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_early_ood.errors import ConfigurationError, DataError, NonFiniteError, ProbeError
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.fisher import fisher_trace
from hf_early_ood.probes.gradients import fisher_trace_batch_mean, gradient_norm, relative_gradient_norm
from hf_early_ood.probes.measures import labels_of, measure, needs_labels
from hf_early_ood.probes.ranks import Share
from hf_early_ood.probes.reference_gradients import (
    fisher_trace_batch_mean_loop,
    gradient_norm_loop,
    relative_gradient_norm_loop,
    summed_gradients,
)
from tests import families
from tests.probes import tasks, toys

Batches = list[dict[str, Tensor]]
TWINS: dict[Callable[..., Any], Callable[..., Any]] = {
    gradient_norm: gradient_norm_loop,
    relative_gradient_norm: relative_gradient_norm_loop,
    fisher_trace_batch_mean: fisher_trace_batch_mean_loop,
}
every_measure = pytest.mark.parametrize("function", TWINS, ids=lambda function: function.__name__)


def assert_same(actual: Any, expected: tuple[float, Mapping[str, float]], tolerance: float = 1e-9) -> None:
    total, per_group = expected
    assert actual.total == pytest.approx(total, rel=tolerance)
    assert list(actual.per_group) == list(per_group)
    for group, value in per_group.items():
        assert actual.per_group[group] == pytest.approx(value, rel=tolerance, abs=1e-12 * total), group


def bert(**config: Any) -> nn.Module:
    return families.build("bert", num_hidden_layers=2, **config).double()


def bert_batches(model: nn.Module) -> Batches:
    return [families.inputs("bert", model, 5, 7), families.inputs("bert", model, 3, 5, seed=1)]


def pieces(batch: Mapping[str, Tensor], *sizes: int) -> Batches:
    parts = {key: value.split(sizes) for key, value in batch.items()}
    return [{key: parts[key][i] for key in batch} for i in range(len(sizes))]


def backward(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the model's own loss, as training has them."""
    model.zero_grad()
    model(**batch).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def test_twins_on_every_family(family: str) -> None:
    # canine is not finite in float64: its attention mask overflows there.
    model = families.build(family) if family == "canine" else families.build(family).double()
    tolerance = 1e-4 if family == "canine" else 1e-9
    batches = [families.inputs(family, model, rows, length, seed=rows) for rows, length in ((2, 8), (1, 9))]
    for function, twin in TWINS.items():
        actual = function(model, batches, parameters="all")
        assert_same(actual, twin(model, batches, parameters="all"), tolerance)
        assert actual.total > 0
        assert actual.num_examples == 3
        assert actual.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("task", tasks.TASKS)
def test_twins_on_every_task(task: str) -> None:
    family = "bert" if "bert" in tasks.TASKS[task] else tasks.TASKS[task][-1]
    model = tasks.build(task, family)
    batches = [tasks.inputs(task, model, 3), tasks.inputs(task, model, 1, seed=1)]
    for function in (gradient_norm, relative_gradient_norm):
        assert_same(function(model, batches), TWINS[function](model, batches))
    for labels in ("sampled", "empirical", *(["argmax"] if task != "regression" else [])):
        actual = fisher_trace_batch_mean(model, batches, labels=labels, seed=3)
        assert_same(actual, fisher_trace_batch_mean_loop(model, batches, labels=labels, seed=3))
        assert (actual.labels, actual.batch_sizes) == (labels, (3, 1))
        assert math.fsum(actual.per_group.values()) == pytest.approx(actual.total)
        assert actual.normalized == actual.total / actual.num_parameters


def test_gradient_norm_is_that_of_the_gradient_that_training_has() -> None:
    model = bert()
    whole = families.inputs("bert", model, 6, 7)
    gradients = backward(model, whole)
    groups = find_layer_groups(model)
    squares: dict[str, float] = defaultdict(float)
    for name, gradient in gradients.items():
        squares[groups.group_of(name)] += float(gradient.square().sum())
    # However the examples are batched: the gradients are added up before a norm is taken.
    for batches in ([whole], pieces(whole, 4, 2), pieces(whole, *[1] * 6)):
        norm = gradient_norm(model, iter(batches))
        assert norm.total == pytest.approx(math.sqrt(sum(squares.values())))
        assert norm.per_group == pytest.approx({group: math.sqrt(square) for group, square in squares.items()})
        assert math.hypot(*norm.per_group.values()) == pytest.approx(norm.total)


def test_relative_norms_of_tensors_are_those_of_the_published_code() -> None:
    """Lee et al.: mean over batches of ||grad|| / ||param|| for every tensor."""
    model = bert()
    with torch.no_grad():
        model.classifier.bias.fill_(0.1)  # other biases begin with zeros
    batches = bert_batches(model)
    ratios: dict[str, list[float]] = defaultdict(list)
    for batch in batches:
        for name, gradient in backward(model, batch).items():
            ratios[name].append(float(gradient.norm() / model.get_parameter(name).detach().norm()))
    relative = relative_gradient_norm(model, batches)
    finite = {name: sum(values) / 2 for name, values in ratios.items() if math.isfinite(sum(values))}
    assert relative.per_tensor == pytest.approx(finite)
    assert "classifier.bias" in relative.per_tensor
    assert 0 < len(relative.per_tensor) < len(ratios)
    assert relative.batch_sizes == (5, 3)


def test_relative_norm_does_not_depend_on_the_scale_of_a_layer() -> None:
    """What it is for: of a weight k times as large, with the same function, the gradient is 1/k times as large."""
    model = bert()
    batch = families.inputs("bert", model, 4, 7)
    groups = find_layer_groups(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "classifier.weight")
    before, norm = relative_gradient_norm(model, [batch], groups=groups), gradient_norm(model, [batch], groups=groups)
    model.classifier.register_forward_pre_hook(lambda module, args: (args[0] / 10,))
    with torch.no_grad():
        model.classifier.weight.mul_(10)
    after = relative_gradient_norm(model, [batch], groups=groups)
    assert gradient_norm(model, [batch], groups=groups).total == pytest.approx(norm.total / 10)
    assert after.total == pytest.approx(before.total / 100)
    assert after.total == pytest.approx(norm.total / 10 / float(model.classifier.weight.detach().norm()))


def test_batch_mean_is_the_number_of_the_released_code() -> None:
    """FUN: the loss of the most likely labels, backward, grad^2 / batch size, added up over batches."""
    model = bert()
    batches = [families.inputs("bert", model, 4, 7, seed=seed) for seed in range(3)]
    total = 0.0
    for batch in batches:
        labels = model(**batch).logits.argmax(-1)
        gradients = backward(model, {**batch, "labels": labels})
        total += sum(float(gradient.square().sum()) / 4 for gradient in gradients.values())
    trace = fisher_trace_batch_mean(model, batches)
    assert trace.labels == "argmax"
    assert trace.total * len(batches) == pytest.approx(total)
    values = torch.tensor([fisher_trace_batch_mean(model, [batch]).total for batch in batches])
    assert trace.standard_error == pytest.approx(float(values.std()) / 3**0.5, rel=1e-5)
    assert fisher_trace_batch_mean(model, batches[:1]).standard_error is None


@pytest.mark.parametrize("labels", ["argmax", "empirical"])
def test_batch_mean_is_no_multiple_of_the_fisher_trace(labels: str) -> None:
    """The classic bug: in the norm of a mean, gradients of different examples cancel, or do not, as they happen to."""
    model = families.build("bert", num_labels=2).double()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1e-9, 0.0]))  # p = 1/2; the most likely label is 0
    one = families.inputs("bert", model, 1, 6)
    same = {key: value.repeat(4, *[1] * (value.dim() - 1)) for key, value in one.items()}
    same["labels"] = torch.zeros(4, dtype=torch.long)
    # Four times the same example: nothing cancels, and the value is 1/B of the trace.
    trace = fisher_trace(model, [same], labels=labels)
    assert fisher_trace_batch_mean(model, [same], labels=labels).total == pytest.approx(trace.total / 4)
    # Two of four with the other label, the gradients are opposite: the trace stays, the norm of the mean is zero.
    opposite = {**same, "labels": torch.tensor([0, 1, 0, 1])}
    if labels == "empirical":
        assert fisher_trace(model, [opposite], labels=labels).total == pytest.approx(trace.total, rel=1e-6)
        assert fisher_trace_batch_mean(model, [opposite], labels=labels).total < 1e-12 * trace.total


def test_batch_mean_with_sampled_labels_is_the_fisher_trace_in_expectation() -> None:
    model = bert()
    batches = [families.inputs("bert", model, 6, 7), families.inputs("bert", model, 6, 7, seed=1)]
    expected = fisher_trace(model, batches, labels="expected").total
    draws = [36 * fisher_trace_batch_mean(model, batches, labels="sampled", seed=seed).total for seed in range(60)]
    values = torch.tensor(draws, dtype=torch.float64)
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / 60**0.5
    assert float(values.std()) < 3 * expected  # so that the line above says something
    # With the most likely labels it is something else.
    argmax = 36 * fisher_trace_batch_mean(model, batches).total
    assert abs(argmax - fisher_trace(model, batches, labels="argmax").total) > 0.2 * argmax


@pytest.mark.parametrize("labels", ["argmax", "sampled", "empirical"])
def test_batches_of_one_give_the_fisher_trace(labels: str) -> None:
    model = bert()
    batches = pieces(families.inputs("bert", model, 4, 7), 1, 1, 1, 1)
    mean = fisher_trace_batch_mean(model, batches, labels=labels, seed=5)
    trace = fisher_trace(model, batches, labels=labels, seed=5)
    assert_same(mean, (trace.total, trace.per_group))
    assert mean.standard_error == pytest.approx(trace.standard_error)
    assert mean.normalized == pytest.approx(trace.normalized)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_lora_from_its_first_update_on(family: str) -> None:
    targets = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}[family]
    model = get_peft_model(
        families.build(family), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets)
    ).double()
    batches = [families.inputs(family, model, 3, 7), families.inputs(family, model, 2, 7, seed=1)]

    def check() -> Any:
        for function, twin in TWINS.items():
            assert_same(function(model, batches), twin(model, batches))
        return relative_gradient_norm(model, batches)

    fresh = check()
    assert all(math.isfinite(value) and value > 0 for value in fresh.per_group.values())
    assert not fresh.zero_groups
    assert not any("lora_B" in name for name in fresh.per_tensor)  # B = 0
    assert fresh.num_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-6)
    moved = check()
    assert any("lora_B" in name for name in moved.per_tensor)
    assert max(moved.per_tensor.values()) > 1e4 * fresh.per_group["block.1"]
    # A small tensor does not blow up its group.
    assert moved.per_group == pytest.approx(fresh.per_group, rel=1e-2)


def test_weights_that_are_all_zero() -> None:
    model = bert()
    groups = find_layer_groups(model)
    batches = bert_batches(model)
    biases = ("encoder.layer.0.output.dense.bias", "classifier.bias")  # both begin with zeros
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(biases))
    with pytest.raises(ProbeError, match=r"all zero, .* Got: bert\.encoder\.layer\.0\.output\.dense\.bias, classifier"):
        relative_gradient_norm(model, batches, groups=groups)
    with torch.no_grad():
        model.classifier.bias.fill_(1.0)
    relative = relative_gradient_norm(model, batches, groups=groups)
    assert_same(relative, relative_gradient_norm_loop(model, batches, groups=groups))
    assert (list(relative.per_group), relative.zero_groups) == (["head"], ("block.0",))
    assert list(relative.per_tensor) == ["classifier.bias"]
    assert math.isfinite(relative.total)
    # Their gradient is part of the whole all the same.
    assert relative.total > relative.per_group["head"]
    assert list(gradient_norm(model, batches, groups=groups).per_group) == ["block.0", "head"]


def test_head_only_stops_the_graph_at_the_head() -> None:
    model = bert()
    groups = find_layer_groups(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in groups["head"].parameters)
    graphs: list[bool] = []
    handle = model.bert.encoder.register_forward_hook(lambda module, args, out: graphs.append(out[0].requires_grad))
    batches = bert_batches(model)
    found = {function: function(model, batches, groups=groups) for function in TWINS}
    handle.remove()
    assert graphs == [False] * 6
    for function, twin in TWINS.items():
        assert_same(found[function], twin(model, batches, groups=groups))
        assert list(found[function].per_group) == ["head"]
        assert found[function].num_parameters == groups["head"].num_parameters
    everything = gradient_norm(model, batches, parameters="all", groups=groups)
    assert len(everything.per_group) == 4
    assert everything.per_group["head"] == pytest.approx(found[gradient_norm].total)


def test_parameters_that_are_not_used_count_as_zero() -> None:
    model = toys.make(toys.Sometimes, False)
    groups = toys.one_group(model)
    batch = {**toys.words(), "labels": torch.zeros(5, dtype=torch.long)}
    used = gradient_norm(model, [batch], groups=groups)
    model.requires_grad_(False)
    model.extra.requires_grad_(True)
    for function in TWINS:
        assert function(model, [batch], groups=groups).total == 0.0
    model.requires_grad_(True)
    model.extra.requires_grad_(False)
    without = gradient_norm(model, [batch], groups=groups)
    assert without.total == used.total
    assert without.num_parameters < used.num_parameters


class SameGradient(toys.ToyForSequenceClassification):
    """Two parameters whose gradient autograd returns as one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Parameter(torch.rand(toys.WIDTH)) for _ in range(2))

    def body(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden * (self.left + self.right))


class Small:
    """A device with room for two examples at a time; the second attempt fails in the backward pass."""

    def __init__(self, model: nn.Module, layer: nn.Module) -> None:
        self.seen: list[int] = []
        layer.register_forward_pre_hook(self.forward)

    def forward(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = len(args[0])
        self.seen.append(rows)
        if rows > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if rows > 2 and args[0].requires_grad:
            args[0].register_hook(self.no_memory)

    def no_memory(self, gradient: Tensor) -> None:
        raise RuntimeError("CUDA error: out of memory")


@every_measure
def test_smaller_batches_give_the_same_number(function: Callable[..., Any]) -> None:
    model = bert()
    batches = bert_batches(model)
    expected = function(model, batches).to_dict()
    small = Small(model, model.bert.encoder)
    actual = function(model, batches).to_dict()
    assert small.seen == [5, 3, 2, 1, 2, 3, 2, 1]
    assert actual.pop("per_group") == pytest.approx(expected.pop("per_group"), rel=1e-9)
    for key, value in expected.items():
        assert actual[key] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), key


@every_measure
def test_gradients_in_one_tensor_are_not_added_twice(function: Callable[..., Any]) -> None:
    model = toys.make(SameGradient)
    groups = toys.one_group(model)
    batch = {**toys.words(5), "labels": torch.tensor([0, 1, 2, 0, 1])}
    Small(model, model.head)
    assert_same(function(model, [batch], groups=groups), TWINS[function](model, [batch], groups=groups))


def test_no_memory_for_one_example() -> None:
    model = bert().train()

    def none_left(module: nn.Module, args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.bert.encoder.register_forward_pre_hook(none_left)
    with pytest.raises(ProbeError, match="no memory to measure probe batch 0"):
        gradient_norm(model, bert_batches(model))
    assert model.training


class Part(Share):
    """Some batches; what was found for the others is known."""

    def __init__(self, mine: set[int], others: Mapping[int, Any]) -> None:
        super().__init__()
        self.mine, self.others, self.results = mine, others, {}

    def __contains__(self, index: object) -> bool:
        return index in self.mine

    def gathered(self, results: Mapping[int, Any]) -> list[Any]:
        self.results = dict(results)
        return super().gathered({**self.others, **results})


@pytest.mark.parametrize(
    ("function", "settings"),
    [(relative_gradient_norm, {}), (fisher_trace_batch_mean, {}), (fisher_trace_batch_mean, {"labels": "sampled"})],
)
def test_ranks_share_the_batches(function: Callable[..., Any], settings: dict[str, str]) -> None:
    model = bert()
    batches = [families.inputs("bert", model, rows, 6, seed=rows) for rows in (4, 2, 3)]
    first = Part({0, 2}, {})
    function(model, batches, share=first, **settings)
    second = Part({1}, first.results)
    assert function(model, batches, share=second, **settings) == function(model, batches, **settings)
    assert (set(first.results), set(second.results)) == ({0, 2}, {1})


@every_measure
def test_leaves_no_trace(function: Callable[..., Any]) -> None:
    model = bert()
    batches = bert_batches(model)
    expected = function(model, batches)
    model.gradient_checkpointing_enable()
    model.train()
    model.bert.embeddings.requires_grad_(False)
    model(**batches[0]).loss.backward()
    gradients = {name: (p.grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    draws = torch.get_rng_state()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            found = function(model, batches, parameters="all")
        assert found.total == pytest.approx(expected.total)
        assert found == function(model, batches, parameters="all")
    assert model.training
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        gradient, value = gradients[name]
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, value)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(draws, torch.get_rng_state())


@every_measure
def test_other_precisions_agree(function: Callable[..., Any]) -> None:
    model = bert()
    batches = bert_batches(model)
    expected = function(model, batches)
    assert function(model.float(), batches).total == pytest.approx(expected.total, rel=1e-4)
    assert function(model.bfloat16(), batches).total == pytest.approx(expected.total, rel=0.1)


def test_examples_for_which_nothing_is_predicted() -> None:
    model = tasks.build("token_classification")
    batch = tasks.inputs("token_classification", model, 3)
    kept = {key: value[:2] for key, value in batch.items()}
    batch["labels"][2] = -100
    norm = gradient_norm(model, [batch])
    assert (norm.num_examples, norm.num_empty) == (3, 1)
    assert norm.total == pytest.approx(gradient_norm(model, [kept]).total * 2 / 3)
    assert relative_gradient_norm(model, [batch]).num_empty == 1
    assert fisher_trace_batch_mean(model, [batch]).num_empty == 1
    batch["labels"][:] = -100
    for function in TWINS:
        with pytest.raises(DataError, match="Nothing is predicted for any example"):
            function(model, [batch])


@every_measure
def test_unusable_data_and_models(function: Callable[..., Any]) -> None:
    model = bert()
    batches = bert_batches(model)
    with pytest.raises(ConfigurationError, match="no batch to measure on"):
        function(model, [])
    with pytest.raises(ConfigurationError, match="Did you mean 'trainable'"):
        function(model, batches, parameters="trainables")
    with pytest.raises(DataError, match="no common number of examples"):
        function(model, [{"input_ids": torch.zeros(0, 3, dtype=torch.long)}])
    if function is not fisher_trace_batch_mean:
        with pytest.raises(DataError, match="the batch has none"):
            function(model, [{"input_ids": batches[0]["input_ids"]}])
    groups = find_layer_groups(model)
    flags = [p.requires_grad for p in model.parameters()]
    for value in (math.nan, math.inf):
        with torch.no_grad():
            model.classifier.bias[0] = value
        with pytest.raises(NonFiniteError, match=r"The predictions for probe batch 0 are|A weight is not finite"):
            function(model, batches)
    assert flags == [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    with pytest.raises(ProbeError, match="no parameter to measure"):
        function(model, batches, groups=groups)


class Steep(toys.ToyForSequenceClassification):
    """Finite logits with gradients that are not."""

    def body(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden)) + 0 * (self.dense.weight - self.dense.weight.detach()).abs().sqrt().sum()


@every_measure
def test_gradients_and_weights_that_are_not_finite(function: Callable[..., Any]) -> None:
    model = toys.make(Steep)
    batch = {**toys.words(3), "labels": torch.tensor([0, 1, 2])}
    with pytest.raises(NonFiniteError, match=r"A gradient is not finite.* Got: 1 of 5 tensors, such as dense\.weight"):
        function(model, [batch], groups=toys.one_group(model))
    model = toys.make(toys.ToyForSequenceClassification)
    with torch.no_grad():
        model.embedding.weight[10] = math.inf  # a word that the examples do not have
    if function is relative_gradient_norm:
        with pytest.raises(NonFiniteError, match="A weight is not finite"):
            function(model, [batch], groups=toys.one_group(model))
    else:
        assert math.isfinite(function(model, [batch], groups=toys.one_group(model)).total)


def test_unusable_labels() -> None:
    model = tasks.build("regression")
    batch = tasks.inputs("regression", model)
    with pytest.raises(ConfigurationError, match="where the gradient is zero"):
        fisher_trace_batch_mean(model, [batch])
    for labels in ("expected", "arg_max"):
        with pytest.raises(ConfigurationError, match="Unknown labels"):
            fisher_trace_batch_mean(model, [batch], labels=labels)


@every_measure
def test_records_of_a_series(function: Callable[..., Any]) -> None:
    model = bert()
    batches = bert_batches(model)
    name = function.__name__
    record = measure(name, model, batches, find_layer_groups(model), seed=4)
    assert json.loads(json.dumps(record)) == record
    result = function(model, batches)
    assert (record["value"], record["per_group"]) == (result.total, result.per_group)
    assert record["num_examples"] == 8
    assert list(record["per_group"]) == ["embeddings", "block.0", "block.1", "head"]
    assert (record["standard_error"] is None) == (function is gradient_norm)
    assert (record["normalized"] is None) == (function is not fisher_trace_batch_mean)
    assert "per_tensor" not in record["details"]
    assert needs_labels(name) == (function is not fisher_trace_batch_mean)
    assert labels_of("fisher_trace_batch_mean") == "argmax"
    assert needs_labels("fisher_trace_batch_mean", {"labels": "empirical"})
    with pytest.raises(ConfigurationError, match="Unknown parameters"):
        measure(name, model, batches, find_layer_groups(model), settings={"parameters": "none"})


def test_the_twin_is_the_definition() -> None:
    model = bert()
    batch = families.inputs("bert", model, 3, 6)
    ((rows, sums),) = summed_gradients(model, [batch])
    gradients = backward(model, batch)
    assert rows == 3
    for name, total in sums.items():
        torch.testing.assert_close(-total / 3, gradients.get(name, torch.zeros_like(total)))
