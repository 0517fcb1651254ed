"""Products with the Hessian and the Gauss-Newton matrix equal their slow twins, on every family and task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from hf_early_ood.errors import ConfigurationError, DataError, NonFiniteError, ProbeError, UnsupportedModelError
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.products import curvature_matrix
from hf_early_ood.probes.reference_curvature import dense_gauss_newton, dense_hessian, difference_product
from tests import families
from tests.probes import toys

MATRICES = ["hessian", "gauss_newton"]
TWINS = {"hessian": dense_hessian, "gauss_newton": dense_gauss_newton}
# The largest of these steps before a ReLU changes its mind, which no derivative sees.
STEPS = {"mobilebert": 1e-8, "opt": 1e-7, "t5": 1e-6, "canine": 1e-4}
# Families that compute a part in float32 also where the model is in float64: differences lose digits.
ROUGH = {"canine": 1e-3, "deberta": 1e-3, "funnel": 1e-3, "gemma2": 1e-3, "llama": 1e-3, "mistral": 1e-3}
ROUGH |= {"qwen2": 1e-3, "t5": 2e-2}
SMALL = 16  # numbers in a tensor whose rows of the matrix the twin can afford
DENSE_FAMILIES = ["albert", "bart", "bert", "bloom", "camembert", "deberta-v2", "distilbert", "electra", "gpt2"]
DENSE_FAMILIES += ["gpt_neox", "longformer", "modernbert", "mpnet", "roberta", "t5", "xlm"]


def double(family: str, **settings: Any) -> nn.Module:
    model = families.build(family, **settings)
    # canine is not finite in float64: its attention mask overflows there.
    return model if family == "canine" else model.double()


def batches_for(family: str, model: nn.Module) -> list[dict[str, Tensor]]:
    return [families.inputs(family, model, 3, 7), families.inputs(family, model, 1, 6, seed=1)]


def product(
    model: nn.Module, batches: list[dict[str, Tensor]], groups: LayerGroups | None = None, **settings: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A random vector and the product with it, by name."""
    with curvature_matrix(model, batches, groups=groups, **settings) as whole:
        vector = whole.start()
        named = whole.named(vector)  # views of the vector
        for prefix, module in model.named_modules():
            padding = module.padding_idx if isinstance(module, nn.Embedding) else None
            if padding is not None and f"{prefix}.weight" in named:
                # Autograd takes this row for a constant, where it is looked up: differences would move it.
                named[f"{prefix}.weight"][padding] = 0
        image = torch.zeros_like(vector)
        for term in whole.terms():
            image += term(vector)
        return whole.named(vector), whole.named(image)


def flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts.values()])


def relative(actual: Tensor, expected: Tensor) -> float:
    assert float(expected.norm()) > 0
    return float((actual - expected).norm() / expected.norm())


def small_parameters(model: nn.Module, most: int = 3) -> list[str]:
    """Names of a few tensors of at most `SMALL` numbers, from the bottom to the top."""
    names = [name for name, parameter in model.named_parameters() if parameter.numel() <= SMALL]
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def train_only(model: nn.Module, names: list[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def test_hessian_products_are_differences_of_gradients(family: str) -> None:
    model = double(family)
    batches = batches_for(family, model)
    vector, image = product(model, batches, parameters="all")
    expected = difference_product(model, batches, vector, STEPS.get(family, 1e-5))
    assert relative(flat(image), flat(expected)) < ROUGH.get(family, 2e-5)


@pytest.mark.sweep(keep=8)
@pytest.mark.parametrize("family", DENSE_FAMILIES)
def test_products_are_those_of_the_whole_matrix(family: str) -> None:
    model = double(family)
    names = small_parameters(model)
    train_only(model, names)
    batches = batches_for(family, model)
    for matrix, twin in TWINS.items():
        whole = twin(model, batches, names)
        vector, image = product(model, batches, matrix=matrix)
        assert list(vector) == names
        assert relative(flat(image), whole @ flat(vector)) < 1e-6
        assert torch.allclose(whole, whole.T, atol=1e-6 * float(whole.abs().max()))
        if matrix == "gauss_newton":
            assert float(torch.linalg.eigvalsh(whole)[0]) > -1e-9 * float(whole.trace())


@pytest.mark.parametrize(
    ("family", "task", "settings"),
    [
        ("bert", "sequence_classification", {"num_labels": 1}),
        ("bert", "sequence_classification", {"problem_type": "multi_label_classification"}),
        ("roberta", "token_classification", {}),
        ("bert", "question_answering", {}),
        ("distilbert", "multiple_choice", {}),
        ("gpt2", "causal_lm", {}),
        ("bert", "masked_lm", {}),
        ("bart", "seq2seq_lm", {}),
    ],
)
def test_tasks(family: str, task: str, settings: dict[str, Any]) -> None:
    model = double(family, task=task, **settings)
    batches = batches_for(family, model)
    if task == "multiple_choice":
        for batch in batches:
            batch["input_ids"][:, 1] = batch["input_ids"][:, 1].flip(0, 1)  # else the choices are the same
    if settings:
        for batch in batches:
            shape = (len(batch["input_ids"]), 3) if "problem_type" in settings else (len(batch["input_ids"]),)
            batch["labels"] = torch.randint(2, shape).double()
    vector, image = product(model, batches)
    expected = difference_product(model, batches, vector)
    assert relative(flat(image), flat(expected)) < 2e-5
    _, curved = product(model, batches, matrix="gauss_newton")
    assert float(flat(vector) @ flat(curved)) > 0


def test_gauss_newton_of_regression_is_the_mean_of_squared_slopes() -> None:
    model = double("bert", num_labels=1)
    train_only(model, ["classifier.weight"])
    (batch, _) = batches_for("bert", model)
    batch["labels"] = torch.zeros(3).double()
    vector, image = product(model, [batch], matrix="gauss_newton")
    pooled = model.bert(batch["input_ids"], batch["attention_mask"]).pooler_output.detach()
    expected = (pooled.T @ pooled / 3) @ vector["classifier.weight"][0]
    assert torch.allclose(image["classifier.weight"][0], expected)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("toy", [toys.TiedTwice, toys.SharedPositions])
def test_shared_parameters_have_cross_terms(toy: type[toys.ToyForSequenceClassification], matrix: str) -> None:
    model = toys.make(toy)
    names = [name for name, _ in model.named_parameters()]
    batches = [{**toys.words(rows, 4, seed=rows), "labels": torch.arange(rows) % toys.CLASSES} for rows in (2, 1)]
    vector, image = product(model, batches, toys.one_group(model), matrix=matrix)
    assert relative(flat(image), TWINS[matrix](model, batches, names) @ flat(vector)) < 1e-9


@pytest.mark.parametrize("matrix", MATRICES)
def test_lora(matrix: str) -> None:
    config = LoraConfig(task_type="SEQ_CLS", r=1, target_modules=["query"])
    model = get_peft_model(double("bert", num_hidden_layers=1), config).double()
    torch.nn.init.normal_(next(p for name, p in model.named_parameters() if "lora_B" in name))
    batches = batches_for("bert", model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    vector, image = product(model, batches, matrix=matrix)
    assert list(vector) == names
    assert relative(flat(image), TWINS[matrix](model, batches, names) @ flat(vector)) < 1e-6


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_split_into_batches_does_not_matter(matrix: str) -> None:
    model = double("bert")
    whole = families.inputs("bert", model, 6, 7)
    images = []
    for sizes in ([6], [1] * 6, [2, 4]):
        parts = {key: value.split(sizes) for key, value in whole.items()}
        batches = [{key: parts[key][i] for key in whole} for i in range(len(sizes))]
        images.append(flat(product(model, batches, matrix=matrix)[1]))
    for image in images[1:]:
        assert relative(image, images[0]) < 1e-10


@pytest.mark.parametrize("matrix", MATRICES)
def test_fused_attention_is_switched_and_back(matrix: str) -> None:
    model = double("bert")
    batches = batches_for("bert", model)
    model.set_attn_implementation("eager")
    _, expected = product(model, batches, matrix=matrix)
    model.set_attn_implementation("sdpa")
    loss = model(**batches[0]).loss
    (slope,) = torch.autograd.grad(loss, [model.bert.embeddings.word_embeddings.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="derivative for"):  # what the switch is for
        torch.autograd.grad(slope.sum(), [model.classifier.weight])
    _, actual = product(model, batches, matrix=matrix)
    assert relative(flat(actual), flat(expected)) < 1e-10
    assert model.config._attn_implementation == "sdpa"
    assert torch.backends.cuda.flash_sdp_enabled()


def test_attention_that_is_neither_is_replaced_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double("bert")
    batches = batches_for("bert", model)
    _, expected = product(model, batches)
    model.config._attn_implementation = "flash_attention_2"  # as if it were installed
    _, actual = product(model, batches)
    assert relative(flat(actual), flat(expected)) < 1e-10
    assert model.config._attn_implementation == "flash_attention_2"
    monkeypatch.setattr(model, "set_attn_implementation", lambda name: None)
    with pytest.raises(UnsupportedModelError, match="BertConfig with attn_implementation='flash_attention_2'"):
        product(model, batches)
    assert model.config._attn_implementation == "flash_attention_2"


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize("matrix", MATRICES)
def test_what_cannot_be_differentiated_twice_is_named(matrix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = double("bert")
    batches = batches_for("bert", model)
    handle = model.bert.embeddings.register_forward_hook(lambda module, args, out: _Once.apply(out))
    with pytest.raises(UnsupportedModelError, match="Got: _Once in BertForSequenceClassification"):
        product(model, batches, matrix=matrix)
    handle.remove()
    monkeypatch.setattr("hf_early_ood.probes.double_backward.SDPBackend.MATH", SDPBackend.FLASH_ATTENTION)
    with pytest.raises(UnsupportedModelError, match=r"BertForSequenceClassification: derivative for .*attention"):
        product(model, batches, matrix=matrix)


@pytest.mark.parametrize("matrix", MATRICES)
def test_frozen_parameters_are_constants(matrix: str) -> None:
    model = double("bert")
    batches = batches_for("bert", model)
    names = small_parameters(model)
    every, _ = product(model, batches, matrix=matrix)
    train_only(model, names)
    vector, image = product(model, batches, matrix=matrix)
    assert list(vector) == list(image) == names
    for name in names:  # the same numbers, whatever else is measured
        assert torch.equal(vector[name], every[name])
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == names
    model.requires_grad_(False)
    with pytest.raises(ProbeError, match="no parameter to measure"):
        product(model, batches, matrix=matrix)
    again, _ = product(model, batches, matrix=matrix, parameters="all")
    assert torch.equal(flat(again), flat(every))


def test_unused_and_linear_parameters_have_zeros() -> None:
    model = double("bert", num_labels=2)
    model.spare = nn.Linear(2, 2).double()
    train_only(model, ["spare.weight", "classifier.bias"])
    batches = batches_for("bert", model)
    one_group = toys.one_group(model)
    _, image = product(model, batches, one_group)
    assert not image["spare.weight"].any()
    assert image["classifier.bias"].any()
    train_only(model, ["spare.weight"])
    for matrix in MATRICES:
        assert not product(model, batches, one_group, matrix=matrix)[1]["spare.weight"].any()


def test_random_vectors_depend_on_seed_index_and_name() -> None:
    model = double("bert")
    batches = batches_for("bert", model)
    before = torch.get_rng_state()
    with curvature_matrix(model, batches, seed=1) as whole, curvature_matrix(model, batches, seed=2) as other:
        signs = whole.signs(0)
        assert sorted(set(signs.tolist())) == [-1, 1]
        assert torch.equal(signs, whole.signs(0))
        for different in (whole.signs(1), other.signs(0)):
            assert abs(float((signs * different).mean())) < 0.1
        assert abs(float(signs.mean())) < 0.1
        assert not torch.equal(whole.start(), other.start())
        named = whole.named(signs)
        weights = [part for name, part in named.items() if name.endswith("query.weight")]
        assert not torch.equal(weights[0], weights[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_inner_products_are_by_group() -> None:
    model = double("bert")
    with curvature_matrix(model, batches_for("bert", model)) as whole:
        left, right = whole.start(), whole.signs(0)
        sums = dict(zip(whole.measured.group_names, whole.dot(left, right).tolist(), strict=True))
        by_hand = dict.fromkeys(sums, 0.0)
        for name, part in whole.named(left).items():
            group = whole.measured.group_names[whole.measured.columns[name]]
            by_hand[group] += float((part * whole.named(right)[name]).sum())
    assert sums == pytest.approx(by_hand)
    assert sum(sums.values()) == pytest.approx(float(left @ right))


def test_inner_products_of_float32_are_exact_enough() -> None:
    model = families.build("bert", vocab_size=200_000)
    with curvature_matrix(model, batches_for("bert", model)) as whole:
        vector = whole.start()
    assert float(whole.dot(vector, vector).sum()) == pytest.approx(float(vector.double().square().sum()), rel=1e-6)


def test_a_product_after_its_turn_is_an_error() -> None:
    model = double("bert")
    with curvature_matrix(model, batches_for("bert", model)) as whole:
        first, _ = list(whole.terms())
        with pytest.raises(ProbeError, match=r"after the turn of its batch\. Got: batch 0"):
            first(whole.signs(0))


@pytest.mark.parametrize("matrix", MATRICES)
def test_low_precision_and_autocast(matrix: str) -> None:
    model = families.build("bert")
    batches = batches_for("bert", model)
    _, expected = product(model, batches, matrix=matrix)
    with torch.autocast("cpu", torch.bfloat16):
        _, cast = product(model, batches, matrix=matrix)
        assert model(**batches[0]).loss.requires_grad
    assert relative(flat(cast), flat(expected)) < 0.1
    with curvature_matrix(model.bfloat16(), batches, matrix=matrix) as whole:
        assert whole.start().dtype == torch.float32
    _, low = product(model, batches, matrix=matrix)
    assert relative(flat(low).float(), flat(expected)) < 0.1


@pytest.mark.parametrize("matrix", MATRICES)
def test_not_finite(matrix: str) -> None:
    model = families.build("bert")
    batches = batches_for("bert", model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.classifier.weight.requires_grad_(True)
    handle = model.bert.pooler.register_forward_hook(lambda module, args, out: out * 1e25)
    model.classifier.weight.data.zero_()
    with pytest.raises(NonFiniteError, match=f"{matrix} matrix of probe batch 0 is not finite"):
        product(model, batches, matrix=matrix)
    handle.remove()
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match="predictions for probe batch 0 are not finite"):
        product(model, batches, matrix=matrix)


def test_unusable_input() -> None:
    model = double("bert")
    batches = batches_for("bert", model)
    with pytest.raises(ConfigurationError, match="Did you mean 'hessian'"):
        product(model, batches, matrix="hesian")
    with pytest.raises(ConfigurationError, match="no batch to measure on"):
        product(model, [])
    with pytest.raises(DataError, match="Batch 0 is not a dictionary of tensors"):
        product(model, [torch.zeros(2, 3)])
    unlabeled = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    with pytest.raises(DataError, match="the batch has none"):
        product(model, unlabeled)
    _, image = product(model, unlabeled, matrix="gauss_newton")
    assert torch.equal(flat(image), flat(product(model, batches, matrix="gauss_newton")[1]))
