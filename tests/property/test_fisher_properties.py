"""What must hold for the Fisher trace whatever the model, the data and their order."""

from __future__ import annotations

import functools
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from hf_early_ood.layers import LayerGroup, LayerGroups
from hf_early_ood.probes.fisher import fisher_trace
from tests.probes import tasks, toys

quick = settings(max_examples=12, deadline=None)
TASKS = st.sampled_from(["multi_label", "regression", "token_classification"])


@functools.cache
def bert(task: str) -> torch.nn.Module:
    return tasks.build(task, num_hidden_layers=1)


def parts(batch: dict[str, torch.Tensor], cuts: list[int]) -> list[dict[str, torch.Tensor]]:
    """The batch in pieces, each without the padding that it does not need."""
    rows = len(batch["input_ids"])
    edges = sorted({0, rows, *(cut % rows for cut in cuts)})
    pieces = []
    for start, stop in pairwise(edges):
        piece = {key: value[start:stop] for key, value in batch.items()}
        length = int(piece["attention_mask"].sum(1).max())
        pieces.append(
            {k: v[:, :length] if v.shape[1:] == batch["input_ids"].shape[1:] else v for k, v in piece.items()}
        )
    return pieces


@quick
@given(task=TASKS, cuts=st.lists(st.integers(0, 100), max_size=4), seed=st.integers(0, 3))
def test_how_examples_are_batched_and_padded_does_not_matter(task: str, cuts: list[int], seed: int) -> None:
    model = bert(task)
    batch = tasks.inputs(task, model, 6, 7, seed)
    whole, split = (fisher_trace(model, b, seed=seed) for b in ([batch], parts(batch, cuts)))
    assert split.total == pytest.approx(whole.total, rel=1e-9)
    assert split.per_group == pytest.approx(whole.per_group, rel=1e-9)
    assert split.standard_error == pytest.approx(whole.standard_error, rel=1e-9)


@quick
@given(task=TASKS, order=st.permutations(range(5)), labels=st.sampled_from(["expected", "empirical"]))
def test_the_order_of_examples_does_not_matter(task: str, order: list[int], labels: str) -> None:
    model = bert(task)
    batch = tasks.inputs(task, model, 5, 7)
    turned = {key: value[list(order)] for key, value in batch.items()}
    one, other = (fisher_trace(model, [b], labels=labels) for b in (batch, turned))
    assert other.per_group == pytest.approx(one.per_group, rel=1e-9)
    assert other.standard_error == pytest.approx(one.standard_error, rel=1e-9)


@quick
@given(task=TASKS, copies=st.integers(2, 4))
def test_more_of_the_same_examples_change_nothing(task: str, copies: int) -> None:
    model = bert(task)
    batch = tasks.inputs(task, model, 3, 7)
    one, many = (fisher_trace(model, [batch] * n, labels="empirical") for n in (1, copies))
    assert many.total == pytest.approx(one.total, rel=1e-9)
    assert many.num_examples == copies * one.num_examples


@quick
@given(assignment=st.lists(st.integers(0, 3), min_size=60, max_size=60), frozen=st.integers(0, 3))
def test_groups_add_up_whatever_they_are(assignment: list[int], frozen: int) -> None:
    model = bert("multi_label")
    named = dict(model.named_parameters())
    members: dict[int, dict[str, torch.nn.Parameter]] = {}
    for number, (name, parameter) in zip(assignment, named.items(), strict=False):
        members.setdefault(number, {})[name] = parameter
    groups = LayerGroups([LayerGroup(f"group.{number}", found) for number, found in sorted(members.items())])
    batch = tasks.inputs("multi_label", model, 3, 5)
    trace = fisher_trace(model, [batch], groups=groups)
    assert sum(trace.per_group.values()) == pytest.approx(trace.total, rel=1e-12)
    assert trace.total == pytest.approx(fisher_trace(model, [batch]).total, rel=1e-9)
    held = members.get(frozen, {})
    if held and len(members) > 1:
        try:
            for parameter in held.values():
                parameter.requires_grad_(False)
            rest = fisher_trace(model, [batch], groups=groups)
        finally:
            for parameter in held.values():
                parameter.requires_grad_(True)
        kept = {name: value for name, value in trace.per_group.items() if name != f"group.{frozen}"}
        assert rest.per_group == pytest.approx(kept, rel=1e-9)


@quick
@given(scale=st.floats(0.1, 10), labels=st.sampled_from(["expected", "sampled"]))
def test_a_log_likelihood_times_c_has_a_trace_times_c_squared(scale: float, labels: str) -> None:
    # For a Gaussian, log p has the gradient eps * grad f: outputs times c are scores times c.
    model = bert("regression")
    batch = tasks.inputs("regression", model, 3, 5)
    before = fisher_trace(model, [batch], labels=labels)
    handle = model.classifier.register_forward_hook(lambda module, args, out: scale * out)
    try:
        after = fisher_trace(model, [batch], labels=labels)
    finally:
        handle.remove()
    expected = {name: scale**2 * value for name, value in before.per_group.items()}
    assert after.per_group == pytest.approx(expected, rel=1e-6)


@quick
@given(scale=st.floats(0.1, 10))
def test_logits_times_c_at_equal_probabilities(scale: float) -> None:
    model = toys.make(toys.ToyForSequenceClassification)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    before = fisher_trace(model, [toys.words()], labels="expected", groups=toys.one_group(model)).total
    model.head.register_forward_hook(lambda module, args, out: scale * out)
    after = fisher_trace(model, [toys.words()], labels="expected", groups=toys.one_group(model)).total
    assert after == pytest.approx(scale**2 * before, rel=1e-9)


@quick
@given(task=TASKS, seed=st.integers(0, 1000))
def test_the_trace_is_never_negative_and_mean_gradients_are_shorter(task: str, seed: int) -> None:
    from hf_early_ood.probes.reference import squared_norm_of_mean_gradient

    model = bert(task)
    batch = tasks.inputs(task, model, 4, 5, seed)
    trace = fisher_trace(model, [batch], labels="empirical")
    assert all(value >= 0 for value in trace.per_group.values())
    assert squared_norm_of_mean_gradient(model, batch, labels="empirical") <= trace.total * (1 + 1e-9)
