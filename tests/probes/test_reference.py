"""The twin itself, and the classic bug."""

from __future__ import annotations

import pytest
import torch

from hf_early_ood.errors import ProbeError
from hf_early_ood.probes.fisher import fisher_trace
from hf_early_ood.probes.reference import fisher_trace_loop, squared_norm_of_mean_gradient
from tests import families
from tests.probes import toys


def test_loop_is_the_definition() -> None:
    """Against .backward() on a batch of one, with labels given by hand."""
    model = families.build("bert").double()
    batch = families.inputs("bert", model, 3, 6)
    expected = 0.0
    for i in range(3):
        model.zero_grad()
        model(**{key: value[i : i + 1] for key, value in batch.items()}).loss.backward()
        expected += sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) / 3
    model.zero_grad()
    assert fisher_trace_loop(model, [batch], labels="empirical").total == pytest.approx(expected)


def test_expected_is_the_mean_over_all_labels() -> None:
    model = families.build("bert").double()
    batch = families.inputs("bert", model, 1, 6)
    p = model(**batch).logits.softmax(-1)[0].tolist()
    by_hand = sum(
        p[c] * fisher_trace_loop(model, [{**batch, "labels": torch.tensor([c])}], labels="empirical").total
        for c in range(families.NUM_LABELS)
    )
    assert fisher_trace_loop(model, [batch], labels="expected").total == pytest.approx(by_hand)


@pytest.mark.parametrize("labels", ["sampled", "empirical"])
def test_the_norm_of_the_mean_is_another_number(labels: str) -> None:
    model = families.build("bert").double()
    batch = families.inputs("bert", model, 16, 7)
    batch["labels"] = torch.arange(16) % families.NUM_LABELS
    trace = fisher_trace(model, [batch], labels=labels).total
    bug = squared_norm_of_mean_gradient(model, batch, labels=labels)
    assert bug < trace / 4  # ||mean||^2 <= mean of ||.||^2 always; far below it when gradients cancel
    one = {key: value[:1] for key, value in batch.items()}
    assert squared_norm_of_mean_gradient(model, one, labels=labels) == pytest.approx(
        fisher_trace(model, [one], labels=labels).total
    )


def test_the_norm_of_the_mean_averages_to_a_fraction_of_the_trace() -> None:
    model = families.build("bert").double()
    batch = families.inputs("bert", model, 6, 7)
    expected = fisher_trace(model, [batch], labels="expected").total / 6
    draws = torch.tensor([squared_norm_of_mean_gradient(model, batch, seed=s) for s in range(200)])
    assert abs(float(draws.mean()) - expected) < 4 * float(draws.std()) / 200**0.5


def test_unused_parameters_count_as_zero() -> None:
    model = toys.make(toys.Sometimes, False)
    groups = toys.one_group(model)
    every = fisher_trace_loop(model, [toys.words()], groups=groups)
    model.extra.requires_grad_(False)
    used = fisher_trace_loop(model, [toys.words()], groups=groups)
    assert every.total == used.total
    assert every.num_parameters > used.num_parameters
    model.requires_grad_(False)
    model.extra.requires_grad_(True)
    assert fisher_trace_loop(model, [toys.words()], groups=groups).total == 0.0
    assert fisher_trace(model, [toys.words()], groups=groups).total == 0.0


def test_nothing_to_measure() -> None:
    model = families.build("bert").requires_grad_(False)
    with pytest.raises(ProbeError, match="no parameter to measure"):
        fisher_trace_loop(model, [families.inputs("bert", model)])
