"""All measures by name: settings are refused before anything is loaded, by the code that the measures use."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.probes.likelihood import likelihood_for
from hf_early_ood.probes.measures import MEASURES, check_examples, check_measures, labels_of, measure, reads_examples
from tests import families

OF_EXAMPLES = [name for name in MEASURES if reads_examples(name)]
BAD = [
    ("fisher_trace", "labels", "sampld", "Did you mean 'sampled'"),
    ("fisher_trace", "estimator", "fast", "auto, exact, rademacher, loop"),
    ("fisher_trace", "num_draws", 0, "whole number, 1 or more"),
    ("fisher_trace", "num_draws", True, "whole number, 1 or more"),
    ("fisher_trace", "parameters", "some", "trainable, all"),
    ("average_sharpness", "rho", -1, "finite number above 0"),
    ("average_sharpness", "rho", math.nan, "finite number above 0"),
    ("average_sharpness", "rho", "0.1", "finite number above 0"),
    ("average_sharpness", "num_draws", 0, "whole number, 1 or more"),
    ("average_sharpness", "adaptive", 1, "true or false"),
    ("worst_case_sharpness", "steps", 0, "whole number, 1 or more"),
    ("worst_case_sharpness", "steps", "5", "whole number, 1 or more"),
    ("worst_case_sharpness", "norm", "l1", "l2, linf"),
    ("hessian_trace", "num_products", 3, "4 or more with method='hutch"),
    ("hessian_trace", "num_products", 6.0, "whole number"),
    ("hessian_trace", "method", "hutch", "hutchinson"),
    ("hessian_trace", "matrix", "fisher", "gauss_newton"),
    ("gauss_newton_trace", "num_products", -2, "whole number"),
    ("hessian_top_eigenvalue", "num_products", 0, "whole number, 1 or more"),
    ("hessian_top_eigenvalue", "tolerance", math.nan, "0 or more"),
    ("gradient_subspace_overlap", "num_directions", 31, "larger than num_products"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "value", "message"), BAD, ids=lambda value: str(value)[:20])
def test_values_are_refused_as_the_measure_refuses_them(name, key, value, message):
    with pytest.raises(ConfigurationError, match=rf"^{name}: .*{message}") as checked:
        check_measures([name], {name: {key: value}})
    with pytest.raises(ConfigurationError, match=message) as measured:
        MEASURES[name](None, [], **{key: value})
    assert str(checked.value) == f"{name}: {measured.value}"


def test_defaults_and_fewer_products_of_another_method_are_fine():
    check_measures(list(OF_EXAMPLES), {"hessian_trace": {"method": "hutchinson", "num_products": 2}})


@pytest.mark.parametrize("name", MEASURES)
def test_every_setting_of_a_measure_is_checked(name):
    """A setting that was added and is not checked fails here: no value of it is a bare object."""
    own = {"model", "batches", "seed", "groups", "share", "start", "before"}
    fixed = set(getattr(MEASURES[name], "keywords", {}))
    for key in set(inspect.signature(MEASURES[name]).parameters) - own - fixed:
        with pytest.raises(ConfigurationError, match=key):
            check_measures([name], {name: {key: object()}}, from_start=True)


@pytest.mark.parametrize(
    ("measures", "settings", "message"),
    [
        (["fisher_trace"] * 2, {}, "named twice. Got: fisher_trace"),
        ("fisher_trace", {}, "not a list of names"),
        ([], {}, "nothing to measure"),
        (["fisher"], {}, "Allowed: fisher_trace, .*trajectory.*Did you mean 'fisher_trace'"),
        (["sign_changes"], {}, "part of another one.*Measure 'trajectory'"),
        (["fisher_trace"], {"fisher_trace": 3}, "settings of measures are not usable"),
        (["fisher_trace"], [1], "settings of measures are not usable"),
        (["gauss_newton_trace"], {"gauss_newton_trace": {"matrix": "hessian"}}, "Unknown setting .* matrix"),
    ],
)
def test_requests_that_make_no_sense(measures, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        check_measures(measures, settings)


def test_labels_of_measures():
    assert {name: labels_of(name) for name in OF_EXAMPLES} == {
        "fisher_trace": "sampled",
        "fisher_trace_batch_mean": "argmax",
        "gradient_norm": "empirical",
        "relative_gradient_norm": "empirical",
        "average_sharpness": "empirical",
        "worst_case_sharpness": "empirical",
        "hessian_trace": "empirical",
        "gauss_newton_trace": "expected",
        "hessian_top_eigenvalue": "empirical",
        "gradient_subspace_overlap": "empirical",
    }
    assert labels_of("hessian_top_eigenvalue", {"matrix": "gauss_newton"}) == "expected"


# Examples for which nothing is predicted

CHEAP = {
    "average_sharpness": {"num_draws": 2}, "worst_case_sharpness": {"steps": 2}, "hessian_trace": {"num_products": 4},
    "gauss_newton_trace": {"num_products": 4}, "hessian_top_eigenvalue": {"num_products": 2},
    "gradient_subspace_overlap": {"num_products": 3},
}  # fmt: skip


def token_batch(model):
    return families.inputs("bert", model, batch=4)


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_only_ignored_labels_are_refused(name):
    model = families.build("bert", task="token_classification")
    batch = token_batch(model)
    batch["labels"].fill_(-100)
    with pytest.raises(DataError, match=r"Nothing is predicted for any example.*Got: 4 examples.*-100"):
        measure(name, model, [batch], None, settings=CHEAP.get(name))
    with pytest.raises(DataError, match="Nothing is predicted for any example"):
        check_examples(likelihood_for(model), [batch], [name], CHEAP)


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_examples_without_labels_among_others_add_nothing_and_are_counted(name):
    """Twice the examples, half of them empty: half the value."""
    model = families.build("bert", task="token_classification")
    batch = token_batch(model)
    batch["labels"][:, 0] = 0
    batch["labels"][2:] = -100
    # Whole batches of empty ones, too.
    halves = [{key: value[i : i + 2] for key, value in batch.items()} for i in (0, 2)]
    mixed = measure(name, model, halves, None, settings=CHEAP.get(name))
    full = measure(name, model, halves[:1], None, settings=CHEAP.get(name))
    assert mixed["num_examples"] == 4
    assert mixed["details"]["num_empty"] == 2
    assert full["details"]["num_empty"] == 0
    # A share does not change when gradient and Hessian are halved.
    factor = 1 if name == "gradient_subspace_overlap" else 2
    assert mixed["value"] == pytest.approx(full["value"] / factor, rel=1e-4)


@pytest.mark.parametrize("estimator", ["exact", "rademacher", "loop"])
def test_expected_labels_with_a_batch_of_empty_examples(estimator):
    model = families.build("bert", task="token_classification")
    batch = token_batch(model)
    batch["labels"].fill_(-100)
    batch["labels"][:1, 1] = 0
    halves = [{key: value[i : i + 2] for key, value in batch.items()} for i in (0, 2)]
    settings = {"labels": "expected", "estimator": estimator}
    assert measure("fisher_trace", model, halves, None, settings=settings)["details"]["num_empty"] == 3


def test_answers_that_are_all_outside_of_the_input():
    model = families.build("bert", task="question_answering")
    batch = families.inputs("bert", model, batch=4)
    length = batch["input_ids"].shape[1]
    batch["start_positions"], batch["end_positions"] = torch.full((4,), length), torch.full((4,), length + 3)
    for settings, name in (({"labels": "empirical"}, "fisher_trace"), ({"num_draws": 2}, "average_sharpness")):
        with pytest.raises(DataError, match="answers are all outside of the input"):
            measure(name, model, [batch], None, settings=settings)
    # Where y is drawn, the given answers say nothing.
    assert measure("fisher_trace", model, [batch], None)["value"] > 0
    batch["end_positions"][1] = 2
    record = measure("average_sharpness", model, [batch], None, settings={"num_draws": 2})
    assert record["details"]["num_empty"] == 3
