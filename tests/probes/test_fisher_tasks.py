"""The Fisher trace of every task: equal to the loop, to the losses of transformers, and to what it is defined as."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.fisher import fisher_trace
from hf_early_ood.probes.reference import fisher_trace_loop
from tests import families
from tests.probes import tasks
from tests.probes.test_fisher import UNCOVERED, assert_same


@pytest.mark.parametrize(("task", "family"), tasks.PAIRS)
def test_exact_is_the_loop(task: str, family: str) -> None:
    model = tasks.build(task, family)
    batches = [tasks.inputs(task, model), tasks.inputs(task, model, 2, 9, seed=1)]
    actual = fisher_trace(model, batches, parameters="all", estimator="exact")
    assert_same(actual, fisher_trace_loop(model, batches, parameters="all"))
    assert actual.total > 0
    parts = (*UNCOVERED.get(family, ()), *(("word_embeddings", "cls.predictions") if family == "mobilebert" else ()))
    assert all(any(part in name for part in parts) for name in actual.fallbacks), actual.fallbacks


CHOICES = [
    (task, labels)
    for task in tasks.TASKS
    for labels in ("sampled", "expected", "empirical", "argmax")
    if (task, labels) != ("regression", "argmax") and not (task.endswith("_lm") and labels == "expected")
]


@pytest.mark.parametrize(("task", "labels"), CHOICES)
def test_labels_are_chosen_as_in_the_loop(task: str, labels: str) -> None:
    model = tasks.build(task, {"causal_lm": "gpt2", "seq2seq_lm": "bart"}.get(task, "bert"))
    batches = [tasks.inputs(task, model), tasks.inputs(task, model, 2, 5, seed=1)]
    expected = fisher_trace_loop(model, batches, labels=labels, seed=3)
    assert_same(fisher_trace(model, batches, labels=labels, seed=3), expected)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_empirical_is_the_gradient_of_the_loss_of_transformers(task: str) -> None:
    """Its loss is a mean: over tokens, over start and end, over 2 ||y - f||^2 / K."""
    family = {"causal_lm": "gpt2", "seq2seq_lm": "t5"}.get(task, "bert")
    model = tasks.build(task, family)
    batch = tasks.inputs(task, model, 2)
    batch["labels" if "labels" in batch else "start_positions"] = next(
        batch[k].double() if task in tasks.CASES else batch[k] for k in ("labels", "start_positions") if k in batch
    )
    expected = 0.0
    for i in range(2):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        shift = task == "causal_lm"
        count = {
            "regression": families.NUM_LABELS / 2,
            "multi_label": families.NUM_LABELS,
            "question_answering": 2,
        }.get(task) or (1 if one["labels"].dim() == 1 else int((one["labels"][:, shift:] != -100).sum()))
        model.zero_grad()
        (model(**one).loss * count).backward()
        expected += sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) / 2
    model.zero_grad()
    tolerance = 1e-5 if shift else 1e-9  # transformers computes that loss in float32
    trace = fisher_trace(model, [batch], labels="empirical", estimator="exact")
    assert trace.total == pytest.approx(expected, rel=tolerance)


def test_expected_is_the_mean_over_all_label_sequences() -> None:
    """All 3^2 of them, with their probabilities: the cross terms between positions vanish."""
    model = tasks.build("token_classification")
    batch = {key: value[:1, :2] for key, value in tasks.inputs("token_classification", model).items()}
    p = model(**batch).logits[0].softmax(-1).tolist()
    mean = 0.0
    for y in itertools.product(range(families.NUM_LABELS), repeat=2):
        weight = p[0][y[0]] * p[1][y[1]]
        mean += weight * fisher_trace_loop(model, [{**batch, "labels": torch.tensor([y])}], labels="empirical").total
    assert fisher_trace(model, [batch], labels="expected").total == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
@pytest.mark.parametrize("task", ["regression", "multi_label", "token_classification", "question_answering"])
def test_random_labels_and_signs_average_to_the_expectation(task: str, estimator: str) -> None:
    model = tasks.build(task)
    batches = [tasks.inputs(task, model, 4, 5)]
    truth = fisher_trace(model, batches, labels="expected")
    traces = [fisher_trace(model, batches, estimator=estimator, seed=seed) for seed in range(60)]
    draws = torch.tensor([[t.total, *t.per_group.values()] for t in traces], dtype=torch.float64)
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool((error > 0).all())
    assert bool(((draws.mean(0) - torch.tensor([truth.total, *truth.per_group.values()])).abs() < 4 * error).all())


def test_a_regression_has_its_closed_form() -> None:
    model = tasks.build("regression", num_labels=1)
    batch = tasks.inputs("regression", model, 3)
    batch["labels"] = torch.randn(3)
    expected = fisher_trace(model, [batch], labels="expected").total
    squares = []
    for i in range(3):
        output = model(**{key: value[i : i + 1] for key, value in batch.items() if key != "labels"}).logits.sum()
        gradients = torch.autograd.grad(output, list(model.parameters()))
        squares.append(sum(float(g.square().sum()) for g in gradients))
    assert expected == pytest.approx(sum(squares) / 3, rel=1e-9)
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    residuals = (batch["labels"] - outputs).square().tolist()
    by_hand = sum(r * s for r, s in zip(residuals, squares, strict=True)) / 3
    assert fisher_trace(model, [batch], labels="empirical").total == pytest.approx(by_hand, rel=1e-6)
    assert fisher_trace(model, [{**batch, "labels": batch["labels"][:, None]}], labels="empirical").total == (
        pytest.approx(by_hand, rel=1e-6)
    )


def test_what_a_regression_refuses() -> None:
    model = tasks.build("regression")
    batch = tasks.inputs("regression", model)
    with pytest.raises(ConfigurationError, match="where the gradient is zero"):
        fisher_trace(model, [batch], labels="argmax")
    with pytest.raises(DataError, match=r"do not fit .*\(3,\).* 3 numbers per example"):
        fisher_trace(model, [{**batch, "labels": torch.zeros(3)}], labels="empirical")
    with pytest.raises(DataError, match="label of the batch is not finite"):
        fisher_trace(model, [{**batch, "labels": batch["labels"] * math.nan}], labels="empirical")


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm", "seq2seq_lm"])
def test_the_expectation_over_a_vocabulary_is_refused(task: str) -> None:
    model = tasks.build(task, {"causal_lm": "gpt2", "seq2seq_lm": "t5"}.get(task, "bert"))
    with pytest.raises(ConfigurationError, match=r"too many backward passes.*100 classes.*256 at most.*labels='samp"):
        fisher_trace(model, [tasks.inputs(task, model)], labels="expected")


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5", "albert"])
def test_a_tied_head_has_cross_terms(family: str) -> None:
    task = {"gpt2": "causal_lm", "t5": "seq2seq_lm"}.get(family, "masked_lm")
    model = tasks.build(task, family)
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table
    model.requires_grad_(False)
    table.requires_grad_(True)
    batches = [tasks.inputs(task, model), tasks.inputs(task, model, 2, 9, seed=1)]
    actual = fisher_trace(model, batches, estimator="exact")
    assert_same(actual, fisher_trace_loop(model, batches))
    assert not actual.fallbacks
    apart = torch.nn.Parameter(table.detach().clone())
    model.get_output_embeddings().weight = apart
    assert fisher_trace(model, batches).total != pytest.approx(actual.total, rel=1e-3)  # the cross term is not small


@pytest.mark.parametrize("task", ["causal_lm", "token_classification", "question_answering"])
def test_lora(task: str) -> None:
    family = "gpt2" if task == "causal_lm" else "bert"
    kind = {"causal_lm": "CAUSAL_LM", "token_classification": "TOKEN_CLS", "question_answering": "QUESTION_ANS"}[task]
    targets = ["c_attn"] if family == "gpt2" else ["query", "value"]
    config = LoraConfig(task_type=kind, r=2, target_modules=targets, fan_in_fan_out=family == "gpt2")
    model = get_peft_model(tasks.build(task, family), config).double().eval()
    batches = [tasks.inputs(task, model.get_base_model(), 3), tasks.inputs(task, model.get_base_model(), 2, 5, seed=1)]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    actual = fisher_trace(model, batches, estimator="exact")
    assert_same(actual, fisher_trace_loop(model, batches))
    assert not actual.fallbacks


@pytest.mark.parametrize("task", ["token_classification", "causal_lm", "multiple_choice"])
def test_head_only(task: str) -> None:
    model = tasks.build(task, "llama" if task == "causal_lm" else "bert")
    groups = find_layer_groups(model)
    for name in set(groups.names) - {groups.names[-1]}:
        for parameter in groups[name].parameters.values():
            parameter.requires_grad_(False)
    batches = [tasks.inputs(task, model)]
    assert_same(fisher_trace(model, batches, groups=groups), fisher_trace_loop(model, batches, groups=groups))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("task", ["token_classification", "causal_lm"])
def test_padding_changes_nothing(task: str, labeled: bool, side: str) -> None:
    """Also not what is drawn: the predictions of an example are numbered without it."""
    model = tasks.build(task, "llama" if task == "causal_lm" else "bert")
    if side == "left" and task == "token_classification":
        model.bert.embeddings.position_embeddings.weight.data.zero_()
    batch = tasks.inputs(task, model, 3, 6)
    batch["attention_mask"][:] = 1
    batch["input_ids"] = batch["input_ids"].clamp(min=families.FIRST_WORD)
    batch["labels"] = batch["input_ids"] % families.NUM_LABELS
    before = (0, 4) if side == "right" else (4, 0)
    fill = {"input_ids": families.PAD, "attention_mask": 0, "labels": -100}
    padded = {key: torch.nn.functional.pad(value, before, value=fill[key]) for key, value in batch.items()}
    if not labeled:
        del batch["labels"], padded["labels"]
    for labels in ("sampled", "argmax"):
        expected = fisher_trace(model, [batch], labels=labels).total
        assert fisher_trace(model, [padded], labels=labels).total == pytest.approx(expected, rel=1e-9)


def test_positions_without_a_label_do_not_count() -> None:
    model = tasks.build("token_classification")
    batch = tasks.inputs("token_classification", model, 3, 6)
    batch["labels"][:, 2:] = -100
    before = fisher_trace(model, [batch]).total
    batch["labels"][:, 3:] = 1
    assert fisher_trace(model, [batch]).total != pytest.approx(before, rel=1e-3)
    assert_same(fisher_trace(model, [batch]), fisher_trace_loop(model, [batch]))
    # An example in which nothing is predicted has log p = 0.
    batch["labels"][0] = -100
    assert_same(fisher_trace(model, [batch]), fisher_trace_loop(model, [batch]))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_probe_set_of_one_example(task: str) -> None:
    model = tasks.build(task, {"causal_lm": "gpt2", "seq2seq_lm": "bart"}.get(task, "bert"))
    trace = fisher_trace(model, [tasks.inputs(task, model, 1)])
    assert trace.total > 0
    assert (trace.num_examples, trace.standard_error) == (1, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", ["token_classification", "question_answering", "causal_lm"])
def test_half_precision(task: str, dtype: torch.dtype) -> None:
    model = tasks.build(task, "gpt2" if task == "causal_lm" else "bert").float()
    batches = [tasks.inputs(task, model, 4)]
    truth = fisher_trace(model, batches, labels="argmax")
    with torch.autocast("cpu", dtype):
        cast = fisher_trace(model, batches, labels="argmax")
    half = fisher_trace(model.to(dtype), batches, labels="argmax")
    for trace in (cast, half):
        assert trace.total == pytest.approx(truth.total, rel=0.05)
        assert trace.total != truth.total
        assert not trace.fallbacks


@pytest.mark.parametrize("estimator", ["auto", "rademacher", "loop"])
@pytest.mark.parametrize("task", ["token_classification", "regression", "causal_lm", "multiple_choice"])
def test_nothing_is_made_on_the_default_device(task: str, estimator: str) -> None:
    """What lands on a device by default would not be where the model, or a generator, is."""
    model = tasks.build(task, "llama" if task == "causal_lm" else "bert")
    batches = [tasks.inputs(task, model)]
    expected = fisher_trace(model, batches, estimator=estimator)
    torch.set_default_device("meta")
    try:
        actual = fisher_trace(model, batches, estimator=estimator)
    finally:
        torch.set_default_device(None)
    assert actual == expected
