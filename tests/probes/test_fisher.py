"""The Fisher trace equals its slow twin, and costs nothing that it should not."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_early_ood.errors import ConfigurationError, DataError, ProbeError, UnsupportedModelError
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.fisher import fisher_trace
from hf_early_ood.probes.reference import fisher_trace_loop
from hf_early_ood.probes.trace_record import FisherTrace
from tests import families
from tests.probes import toys

# What no rule covers, by family: parts of parameter names. Everything else must be exact without a fallback.
UNCOVERED = {
    "convbert": ("key_conv_attn_layer.bias", "intermediate", "output.dense"),
    "deberta": ("q_bias", "v_bias", "rel_embeddings"),
    "deberta-v2": ("query_proj", "key_proj", "rel_embeddings", "encoder.LayerNorm"),
    "funnel": ("r_w_bias", "r_r_bias", "r_kernel", "r_s_bias", "seg_embed"),
    "ibert": ("",),  # quantization aware layers of its own throughout
    "longformer": ("_global",),
    "mpnet": ("relative_attention_bias",),
    "t5": ("relative_attention_bias",),
}


def assert_same(actual: FisherTrace, expected: FisherTrace, tolerance: float = 1e-6) -> None:
    assert actual.total == pytest.approx(expected.total, rel=tolerance)
    assert list(actual.per_group) == list(expected.per_group)
    for group, value in expected.per_group.items():
        assert actual.per_group[group] == pytest.approx(value, rel=tolerance, abs=1e-12 * expected.total), group
    assert actual.standard_error == pytest.approx(expected.standard_error, rel=tolerance)
    assert sum(actual.per_group.values()) == pytest.approx(actual.total, rel=1e-12)
    assert (actual.num_examples, actual.num_parameters) == (expected.num_examples, expected.num_parameters)


def double(family: str) -> torch.nn.Module:
    return families.build(family).double()


def bert_batches(model: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
    return [families.inputs("bert", model, 5, 7), families.inputs("bert", model, 3, 5, seed=1)]


def test_exact_is_the_loop_on_every_family(family: str) -> None:
    # canine is not finite in float64: its attention mask overflows there.
    model = families.build(family) if family == "canine" else double(family)
    # T == B in the first batch; padding and another length in the second; a batch of one at the end.
    batches = [families.inputs(family, model, rows, length, seed=rows) for rows, length in ((8, 8), (3, 9), (1, 8))]
    expected = fisher_trace_loop(model, batches, parameters="all")
    actual = fisher_trace(model, batches, parameters="all", estimator="exact")
    assert_same(actual, expected, 1e-4 if family == "canine" else 1e-6)
    assert actual.total > 0
    parts = UNCOVERED.get(family, ())
    assert all(any(part in name for part in parts) for name in actual.fallbacks), actual.fallbacks
    assert bool(actual.fallbacks) == bool(parts)
    assert set(actual.fallbacks.values()) <= {"loop"}


@pytest.mark.parametrize("labels", ["sampled", "expected", "empirical", "argmax"])
@pytest.mark.parametrize("family", ["bert", "albert", "t5"])
def test_labels_are_chosen_as_in_the_loop(family: str, labels: str) -> None:
    model = double(family)
    batches = [families.inputs(family, model, 4, 6), families.inputs(family, model, 2, 6, seed=1)]
    expected = fisher_trace_loop(model, batches, labels=labels, seed=3)
    assert_same(fisher_trace(model, batches, labels=labels, estimator="exact", seed=3), expected)
    assert expected.labels == labels


@pytest.mark.parametrize("toy", [toys.TiedTwice, toys.SharedPositions, toys.PositionFirst, toys.InPlace])
@pytest.mark.parametrize("rows", [1, 4, 5])
def test_unusual_uses_are_exact(toy: type[toys.ToyForSequenceClassification], rows: int) -> None:
    model, batches = toys.make(toy), [toys.words(rows, 4), toys.words(3, 6, seed=1)]
    groups = toys.one_group(model)
    actual = fisher_trace(model, batches, estimator="exact", groups=groups)
    assert_same(actual, fisher_trace_loop(model, batches, groups=groups))
    # The tied table is read by two rules; writing into the output of ``dense`` takes its tap out of the graph.
    left = {toys.TiedTwice: {"embedding.weight"}, toys.InPlace: {"dense.weight", "dense.bias"}}
    assert set(actual.fallbacks) == left.get(toy, set())


def test_shared_weights_have_cross_terms() -> None:
    model = double("bert")
    first, second = (layer.attention.self for layer in model.bert.encoder.layer[:2])
    second.query.weight, second.key.bias = first.query.weight, first.key.bias
    model.bert.encoder.layer[1].output.LayerNorm = model.bert.encoder.layer[0].output.LayerNorm
    model.bert.embeddings.token_type_embeddings.weight = torch.nn.Parameter(
        model.bert.embeddings.position_embeddings.weight.detach()
    )
    model.bert.embeddings.position_embeddings.weight = model.bert.embeddings.token_type_embeddings.weight
    batches = bert_batches(model)
    actual = fisher_trace(model, batches, estimator="exact")
    assert_same(actual, fisher_trace_loop(model, batches))
    assert not actual.fallbacks


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_lora(family: str) -> None:
    targets = {"bert": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}[family]
    model = get_peft_model(
        double(family), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets, fan_in_fan_out=family == "gpt2")
    ).double()
    batches = [families.inputs(family, model, 4, 7), families.inputs(family, model, 2, 7, seed=1)]
    fresh = fisher_trace(model, batches, estimator="exact")
    assert_same(fresh, fisher_trace_loop(model, batches))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    trained = fisher_trace(model, batches, estimator="exact")
    assert_same(trained, fisher_trace_loop(model, batches))
    assert trained.num_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained.total != fresh.total
    assert not trained.fallbacks


def test_head_only_stops_the_graph_at_the_head() -> None:
    model = double("bert")
    groups = find_layer_groups(model)
    head = groups["head"].parameters
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)
    graphs = []
    model.bert.encoder.register_forward_hook(lambda m, i, out: graphs.append(out[0].requires_grad))
    batches = bert_batches(model)
    actual = fisher_trace(model, batches, groups=groups)
    assert graphs
    assert not any(graphs)
    assert_same(actual, fisher_trace_loop(model, batches, groups=groups))
    assert set(actual.per_group) == {"head"}


@pytest.mark.parametrize("frozen", ["embeddings", "block.1", "head"])
def test_frozen_parts(frozen: str) -> None:
    model = double("bert")
    groups = find_layer_groups(model)
    for parameter in groups[frozen].parameters.values():
        parameter.requires_grad_(False)
    batches = bert_batches(model)
    actual = fisher_trace(model, batches, groups=groups)
    assert_same(actual, fisher_trace_loop(model, batches, groups=groups))
    assert frozen not in actual.per_group
    every = fisher_trace(model, batches, parameters="all", groups=groups)
    assert every.per_group == pytest.approx({**every.per_group, **actual.per_group})
    assert every.normalized == pytest.approx(every.total / sum(p.numel() for p in model.parameters()))


def test_under_a_hook_that_makes_the_embeddings_require_a_gradient() -> None:
    model = double("bert")
    model.enable_input_require_grads()
    batches = bert_batches(model)
    graphs = []
    model.bert.encoder.register_forward_pre_hook(lambda m, args: graphs.append(args[0].requires_grad))
    assert_same(fisher_trace(model, batches), fisher_trace_loop(model, batches))
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad_(False)
    expected = fisher_trace_loop(model, batches)
    graphs.clear()
    actual = fisher_trace(model, batches)
    assert_same(actual, expected)
    assert not actual.fallbacks
    assert not any(graphs)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_train_mode_activation_checkpointing_and_no_grad(attention: str) -> None:
    model = double("bert")
    batches = bert_batches(model)
    expected = fisher_trace_loop(model, batches)
    model.set_attn_implementation(attention)
    model.gradient_checkpointing_enable()
    model.train()
    assert_same(fisher_trace(model, batches), expected)
    with torch.no_grad():
        assert_same(fisher_trace(model, batches), expected)
    with torch.inference_mode():
        assert_same(fisher_trace(model, batches), expected)


@pytest.mark.parametrize("labels", ["sampled", "expected"])
def test_the_split_into_batches_does_not_matter(labels: str) -> None:
    model = double("bert")
    whole = families.inputs("bert", model, 8, 7)
    splits = ([8], [1] * 8, [3, 5], [5, 1, 2])
    traces = []
    for sizes in splits:
        parts = {key: value.split(sizes) for key, value in whole.items()}
        batches = [{key: parts[key][i] for key in whole} for i in range(len(sizes))]
        traces.append(fisher_trace(model, batches, labels=labels))
    for one, other in pairwise(traces):
        assert_same(one, other)


def test_sampled_agrees_with_expected() -> None:
    model = double("bert")
    model.classifier.weight.data.mul_(50)  # classes of different probability
    batches = bert_batches(model)
    expected = fisher_trace(model, batches, labels="expected").total
    draws = torch.tensor([fisher_trace(model, batches, seed=seed).total for seed in range(60)], dtype=torch.float64)
    error = draws.std() / math.sqrt(len(draws))
    assert error > 0
    assert abs(draws.mean() - expected) < 4 * error
    argmax = fisher_trace(model, batches, labels="argmax").total
    assert abs(argmax - expected) > 4 * error  # what is told apart here is not all the same anyway


@pytest.mark.parametrize("labels", ["sampled", "expected"])
def test_rademacher_is_unbiased(labels: str) -> None:
    model = double("bert")
    batches = bert_batches(model)
    traces = [fisher_trace(model, batches, labels=labels, estimator="rademacher", seed=s) for s in range(120)]
    truth = fisher_trace(model, batches, labels="expected")
    draws = torch.tensor([[t.total, *t.per_group.values()] for t in traces], dtype=torch.float64)
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool(((draws.mean(0) - torch.tensor([truth.total, *truth.per_group.values()])).abs() < 4 * error).all())
    assert draws[:, 0].std() / truth.total < 1.5


def test_more_sign_draws_are_less_noisy() -> None:
    model = double("bert")
    batches = [families.inputs("bert", model, 8, 7)]
    truth = fisher_trace(model, batches).total
    trace = fisher_trace(model, batches, estimator="rademacher", num_draws=400)
    assert trace.total == pytest.approx(truth, rel=0.2)


@pytest.mark.parametrize("family", ["t5", "deberta"])
def test_auto_leaves_only_uncovered_parameters_to_signs(family: str) -> None:
    model = double(family)
    batches = [families.inputs(family, model, 4, 7, seed=s) for s in range(3)]
    exact, auto = (fisher_trace(model, batches, estimator=e) for e in ("exact", "auto"))
    assert set(auto.fallbacks) == set(exact.fallbacks) != set()
    assert set(auto.fallbacks.values()) == {"rademacher"}
    assert auto.estimator == exact.estimator == "exact"
    touched = {find_layer_groups(model).group_of(name) for name in auto.fallbacks}
    for group in set(exact.per_group) - touched:
        assert auto.per_group[group] == pytest.approx(exact.per_group[group], rel=1e-12)
    assert any(auto.per_group[group] != pytest.approx(exact.per_group[group], rel=1e-9) for group in touched)
    draws = [fisher_trace(model, batches, labels="argmax", seed=s).total for s in range(20)]
    truth = fisher_trace(model, batches, labels="argmax", estimator="exact").total
    assert abs(statistics.mean(draws) - truth) < 4 * statistics.stdev(draws) / math.sqrt(20)


def test_auto_is_exact_where_all_is_covered() -> None:
    model = double("bert")
    batches = bert_batches(model)
    auto = fisher_trace(model, batches)
    assert auto.to_dict() == fisher_trace(model, batches, estimator="exact").to_dict()
    assert auto.fallbacks == {}


def test_loop_estimator_is_the_twin() -> None:
    model = double("bert")
    batches = bert_batches(model)
    assert fisher_trace(model, batches, estimator="loop") == fisher_trace_loop(model, batches)


def test_scaling_the_logits_scales_the_head() -> None:
    # The gradient of the logits' bias is one-hot minus p: it does not know the scale. That of a scale-free
    # classifier weight w with logits c * w h is c times as long, at equal probabilities.
    model = toys.make(toys.ToyForSequenceClassification)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)  # p stays uniform whatever the scale
    groups = toys.one_group(model)
    for parameter in (*model.embedding.parameters(), *model.dense.parameters()):
        parameter.requires_grad_(False)
    before = fisher_trace(model, [toys.words()], labels="expected", groups=groups)
    model.head.register_forward_hook(lambda module, args, out: 3 * out)
    after = fisher_trace(model, [toys.words()], labels="expected", groups=groups)
    assert after.total == pytest.approx(9 * before.total)


def test_head_bias_has_its_closed_form() -> None:
    # tr F of the bias alone is E[sum_c p_c ||e_c - p||^2] = 1 - E||p||^2.
    model = toys.make(toys.ToyForSequenceClassification)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "head.bias")
    batch = toys.words()
    trace = fisher_trace(model, [batch], labels="expected", groups=toys.one_group(model))
    p = model(**batch).logits.detach().softmax(-1)
    assert trace.total == pytest.approx(float(1 - p.square().sum(-1).mean()))
    assert trace.num_parameters == toys.CLASSES


@pytest.mark.parametrize("family", ["bert", "llama", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_is_accumulated_in_float32(family: str, dtype: torch.dtype) -> None:
    model = families.build(family)
    batches = [families.inputs(family, model, 5, 7), families.inputs(family, model, 3, 5, seed=1)]
    truth = fisher_trace(model, batches, labels="argmax").total
    model.to(dtype)
    trace = fisher_trace(model, batches, labels="argmax")
    assert trace.total == pytest.approx(truth, rel=0.1 if dtype == torch.bfloat16 else 1e-6)
    assert not trace.fallbacks
    with torch.autocast("cpu", torch.bfloat16):
        assert fisher_trace(model.float(), batches, labels="argmax").total == pytest.approx(truth, rel=0.1)


def test_standard_error() -> None:
    model = double("bert")
    whole = families.inputs("bert", model, 6, 7)
    singles = [{key: value[i : i + 1] for key, value in whole.items()} for i in range(6)]
    # One at a time, every example is the first and draws the same uniform: argmax does not depend on it.
    values = torch.tensor([fisher_trace(model, [one], labels="argmax").total for one in singles], dtype=torch.float64)
    trace = fisher_trace(model, [whole], labels="argmax")
    assert trace.total == pytest.approx(float(values.mean()))
    assert trace.standard_error == pytest.approx(float(values.std() / math.sqrt(6)))
    assert fisher_trace(model, singles[:1]).standard_error is None
    assert fisher_trace(model, [whole], estimator="rademacher").standard_error is None


def test_record_is_json() -> None:
    import json

    model = double("bert")
    record = fisher_trace(model, bert_batches(model), seed=7).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["seed"] == 7


def test_not_finite_log_probs_name_the_batch() -> None:
    model = double("bert")
    batches = bert_batches(model)
    handle = model.classifier.register_forward_hook(lambda m, i, out: out * (math.nan if len(out) == 3 else 1))
    with pytest.raises(ProbeError, match="probe batch 1 are not finite"):
        fisher_trace(model, batches)
    handle.remove()
    model.classifier.bias.data[0] = math.inf
    for estimator in ("auto", "exact", "rademacher", "loop"):
        with pytest.raises(ProbeError, match="probe batch 0 are not finite"):
            fisher_trace(model, batches, estimator=estimator)


def test_overflowing_gradients_are_an_error() -> None:
    model = families.build("bert")
    model.bert.embeddings.register_forward_hook(lambda m, i, out: out + 0 * out.detach())
    model.classifier.weight.data.fill_(1e25)
    model.classifier.weight.data[0] = -1e25
    with pytest.raises(ProbeError, match="squared gradient norm is not finite"):
        fisher_trace(model, bert_batches(model), labels="empirical")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "sample"}, "Did you mean 'sampled'"),
        ({"estimator": "exakt"}, "Did you mean 'exact'"),
        ({"parameters": "trainables"}, "Did you mean 'trainable'"),
        ({"num_draws": 0}, "num_draws is not usable"),
    ],
)
def test_unknown_settings(settings: dict, message: str) -> None:
    model = double("bert")
    with pytest.raises(ConfigurationError, match=message):
        fisher_trace(model, bert_batches(model), **settings)


def test_nothing_to_measure() -> None:
    model = double("bert")
    with pytest.raises(ConfigurationError, match="no batch to measure on"):
        fisher_trace(model, [])
    model.requires_grad_(False)
    with pytest.raises(ProbeError, match="no parameter to measure"):
        fisher_trace(model, bert_batches(model))


def test_unusable_batches() -> None:
    model = double("bert")
    with pytest.raises(DataError, match="Batch 0 is not a dictionary of tensors"):
        fisher_trace(model, [torch.zeros(2, 3)])
    with pytest.raises(DataError, match="no common number of examples"):
        fisher_trace(model, [{"input_ids": torch.zeros(2, 3), "labels": torch.zeros(3)}])
    with pytest.raises(DataError, match="no common number of examples"):
        fisher_trace(model, [{"input_ids": torch.zeros(0, 3)}])


def test_unsupported_models() -> None:
    model = families.build("bert", task="encoder")
    with pytest.raises(UnsupportedModelError, match="BertModel"):
        fisher_trace(model, [families.inputs("bert", model)])


def test_not_exact_under_ddp_names_the_model_inside() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    with pytest.raises(UnsupportedModelError, match="Pass the BertForSequenceClassification inside it"):
        fisher_trace(Wrapper(families.build("bert")), [])
