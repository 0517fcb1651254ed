"""Sharpness equals its slow twin, leaves no trace, and says what it means."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_early_ood.errors import ConfigurationError, DataError, NonFiniteError, ProbeError, UnsupportedModelError
from hf_early_ood.probes import sharpness
from hf_early_ood.probes.apgd import ascend
from hf_early_ood.probes.given_loss import GivenLoss, normalized
from hf_early_ood.probes.outcomes import CategoricalLikelihood
from hf_early_ood.probes.reference_sharpness import auto_pgd_losses, average_sharpness_by_copies, loss_one_by_one
from hf_early_ood.probes.sharpness import PAPER_AVERAGE, PAPER_WORST_CASE, average_sharpness, worst_case_sharpness
from tests import families
from tests.probes import toys
from tests.probes.test_isolation import picture

MEASURES = {"average": average_sharpness, "worst_case": worst_case_sharpness}
CHEAP = {"average": {"num_draws": 2}, "worst_case": {"steps": 3}}
measure = pytest.mark.parametrize("kind", list(MEASURES))


def run(kind: str, model: nn.Module, batches: Any, **settings: Any) -> sharpness.Sharpness:
    return MEASURES[kind](model, batches, **{**CHEAP[kind], **settings})


def double(family: str) -> nn.Module:
    # canine is not finite in float64: its attention mask overflows there.
    return families.build(family) if family == "canine" else families.build(family).double()


def two_batches(family: str, model: nn.Module) -> list[dict[str, Tensor]]:
    return [families.inputs(family, model, 3, 8), families.inputs(family, model, 2, 9, seed=1)]


def toy() -> toys.ToyForSequenceClassification:
    return toys.make(toys.ToyForSequenceClassification)


def words(rows: int = 5, length: int = 4, seed: int = 0) -> dict[str, Tensor]:
    return {**toys.words(rows, length, seed), "labels": torch.arange(rows) % toys.CLASSES}


class LogisticForSequenceClassification(nn.Module):
    """Two logits that are linear in the weights."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=2, problem_type=None)
        self.head = nn.Linear(width, 2, bias=False)
        self.double().eval()

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(x))


@pytest.mark.sweep(keep=15)
def test_average_is_its_twin_on_every_family(family: str) -> None:
    model = double(family)
    batches = two_batches(family, model)
    actual = average_sharpness(model, batches, num_draws=3, rho=0.02, seed=4)
    expected, per_batch = average_sharpness_by_copies(model, batches, num_draws=4, rho=0.02, seed=4)
    tolerance = {"rel": 1e-9, "abs": 1e-14} if family != "canine" else {"rel": 1e-3, "abs": 1e-6}
    assert actual.value == pytest.approx(expected, **tolerance)
    assert actual.per_batch == pytest.approx(per_batch, **tolerance)
    assert actual.value != 0
    assert actual.batch_sizes == (3, 2)
    assert actual.num_parameters == model.num_parameters()
    assert actual.standard_error > 0
    assert actual.settings["num_draws"] == 4  # an odd number is rounded up to whole pairs
    loss = sum(float(model(**batch).loss.detach()) * len(batch["labels"]) for batch in batches) / 5
    assert actual.loss == pytest.approx(loss, rel=1e-6)  # deberta computes its own in float32


@pytest.mark.sweep(keep=10)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("family", sorted(set(families.FAMILIES) - {"canine"})[::2])
def test_worst_case_is_its_twin_on_many_families(family: str, norm: str) -> None:
    model = double(family)
    batches = two_batches(family, model)
    rho = {"l2": 0.3, "linf": 0.003}[norm]
    actual = worst_case_sharpness(model, batches, rho=rho, norm=norm, steps=6)
    losses = [auto_pgd_losses(model, batch, rho=rho, norm=norm, steps=6) for batch in batches]
    assert actual.per_batch == pytest.approx([max(own[1:]) - own[0] for own in losses], rel=1e-6)
    assert actual.value == pytest.approx((3 * actual.per_batch[0] + 2 * actual.per_batch[1]) / 5, rel=1e-12)
    assert actual.value > 0
    assert actual.standard_error is None


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("norm", "rho"), [("l2", 1.0), ("linf", 0.05)])
def test_worst_case_is_its_twin_step_by_step(norm: str, rho: float, adaptive: bool, monkeypatch: Any) -> None:
    model, batch = double("bert"), two_batches("bert", double("bert"))[0]
    visited = []

    def recorded(*args: Any) -> Any:
        visited.append(ascend(*args))
        return visited[-1]

    monkeypatch.setattr(sharpness, "ascend", recorded)
    actual = worst_case_sharpness(model, [batch], rho=rho, norm=norm, adaptive=adaptive, steps=15)
    expected = auto_pgd_losses(model, batch, rho=rho, norm=norm, adaptive=adaptive, steps=15)
    assert [visited[0].start, *visited[0].values] == pytest.approx(expected, rel=1e-9)
    # The rule was put to use, where the ball is not small compared to how the loss bends.
    assert len(set(visited[0].step_sizes)) > 1 or (adaptive and norm == "l2")
    assert actual.value == pytest.approx(max(expected[1:]) - expected[0], rel=1e-9)


@pytest.mark.parametrize("settings", [{"adaptive": True}, {"antithetic": False}, {"adaptive": True, "rho": 0.3}])
def test_settings_of_the_average_are_those_of_the_twin(settings: dict[str, Any]) -> None:
    model = double("bert")
    model.bert.encoder.layer[0].requires_grad_(False)
    batches = two_batches("bert", model)
    arguments = {"rho": 0.05, "num_draws": 4, "seed": 2, **settings}
    actual = average_sharpness(model, batches, **arguments)
    expected, per_batch = average_sharpness_by_copies(model, batches, **arguments)
    assert actual.value == pytest.approx(expected, rel=1e-9)
    assert actual.per_batch == pytest.approx(per_batch, rel=1e-9)


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", "token_classification"),
        ("bert", "question_answering"),
        ("bert", "multiple_choice"),
        ("bert", "masked_lm"),
        ("gpt2", "causal_lm"),
        ("t5", "seq2seq_lm"),
        ("albert", "masked_lm"),
    ],
)
def test_tasks(family: str, task: str) -> None:
    model = families.build(family, task=task).double()
    batches = two_batches(family, model)
    actual = average_sharpness(model, batches, num_draws=2)
    expected, _ = average_sharpness_by_copies(model, batches, num_draws=2, rho=0.01)
    assert actual.value == pytest.approx(expected, rel=1e-8)
    worst = worst_case_sharpness(model, batches[:1], rho=0.05, steps=3)
    losses = auto_pgd_losses(model, batches[0], rho=0.05, norm="l2", steps=3)
    assert worst.value == pytest.approx(max(losses[1:]) - losses[0], rel=1e-6)


def test_regression() -> None:
    model = families.build("bert", num_labels=1).double()
    batch = {**families.inputs("bert", model, 3), "labels": torch.tensor([0.5, -1.0, 2.0])}
    actual = average_sharpness(model, [batch], num_draws=2)
    assert actual.value == pytest.approx(average_sharpness_by_copies(model, [batch], num_draws=2, rho=0.01)[0])
    assert actual.loss == pytest.approx(float(model(**batch).loss.detach()) / 2)  # half the squared error


# What the values mean


def test_worst_case_of_a_linear_model_is_known() -> None:
    """The margin of one example falls by sqrt(2) rho ||x||: closed form of the largest loss."""
    model = LogisticForSequenceClassification()
    x = torch.randn(1, 4, dtype=torch.float64)
    batch = {"x": x, "labels": torch.tensor([1])}
    logits = model(x).logits[0]
    margin = float(logits[1] - logits[0])
    for rho in (0.01, 0.5):
        expected = math.log1p(math.exp(-margin + math.sqrt(2) * rho * float(x.norm()))) - math.log1p(math.exp(-margin))
        assert worst_case_sharpness(model, [batch], rho=rho).value == pytest.approx(expected, rel=1e-6)
        expected = math.log1p(math.exp(-margin + 2 * rho * float(x.abs().sum()))) - math.log1p(math.exp(-margin))
        actual = worst_case_sharpness(model, [batch], rho=rho, norm="linf")
        assert actual.value == pytest.approx(expected, rel=1e-6)


def test_adaptive_worst_case_of_a_linear_model_is_known() -> None:
    model = LogisticForSequenceClassification()
    x = torch.randn(1, 4, dtype=torch.float64)
    batch = {"x": x, "labels": torch.tensor([1])}
    logits = model(x).logits[0]
    margin, w, rho = float(logits[1] - logits[0]), model.head.weight.detach(), 0.4
    for norm, fall in (("l2", float((w * x).norm())), ("linf", float((w * x).abs().sum()))):
        expected = math.log1p(math.exp(-margin + rho * fall)) - math.log1p(math.exp(-margin))
        actual = worst_case_sharpness(model, [batch], rho=rho, norm=norm, adaptive=True)
        assert actual.value == pytest.approx(expected, rel=1e-4), norm


def exact_hessian(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(w: Tensor) -> Tensor:
        parts = w.split([shape.numel() for shape in shapes])
        values = {n: part.view(shape) for n, part, shape in zip(names, parts, shapes, strict=True)}
        logits = torch.func.functional_call(model, values, (batch["input_ids"],)).logits
        return nn.functional.cross_entropy(logits, batch["labels"])

    return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.parametrize("adaptive", [False, True])
def test_small_noise_measures_the_trace_of_the_hessian(adaptive: bool) -> None:
    model, batch, rho = toy(), words(), 1e-3
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    diagonal = exact_hessian(model, batch).diagonal() * (weights.square() if adaptive else 1)
    expected = rho**2 / 2 * float(diagonal.sum())
    actual = average_sharpness(model, [batch], rho=rho, num_draws=600, adaptive=adaptive)
    assert abs(actual.value - expected) < 4 * actual.standard_error
    assert actual.standard_error < 0.2 * expected


def test_mirrored_pairs_take_the_noise_out() -> None:
    model, batch = toy(), words()
    pairs = average_sharpness(model, [batch], rho=1e-3, num_draws=40)
    independent = average_sharpness(model, [batch], rho=1e-3, num_draws=40, antithetic=False)
    assert pairs.standard_error < independent.standard_error / 20
    assert abs(pairs.value - independent.value) < 4 * independent.standard_error


def test_the_standard_error_is_that_of_the_draws() -> None:
    model, batch = toy(), words()
    values = [average_sharpness(model, [batch], rho=0.1, num_draws=12, seed=s) for s in range(60)]
    spread = torch.tensor([v.value for v in values]).std()
    assert float(spread) == pytest.approx(sum(v.standard_error for v in values) / 60, rel=0.35)
    assert average_sharpness(model, [batch], num_draws=2).standard_error is None
    assert average_sharpness(model, [batch], num_draws=1, antithetic=False).standard_error is None


def summit() -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A model whose loss has its maximum near w = 0, and w = 0."""

    class PeakForSequenceClassification(LogisticForSequenceClassification):
        def forward(self, x: Tensor) -> SimpleNamespace:
            height = -self.head.weight.square().sum() - 1e-3 * self.head.weight.sum()
            return SimpleNamespace(logits=torch.stack([height.expand(len(x)), torch.zeros(len(x)).double()], 1))

    model = PeakForSequenceClassification()
    nn.init.zeros_(model.head.weight)
    return model, [{"x": torch.ones(2, 4, dtype=torch.float64), "labels": torch.tensor([1, 1])}]


def test_values_are_signed() -> None:
    """Where every way leads down the values are negative; the maximum over the ball itself would be at least 0."""
    model, batches = summit()
    assert average_sharpness(model, batches, rho=1.0).value < 0
    assert worst_case_sharpness(model, batches, rho=1e3, steps=1).value < 0
    found = worst_case_sharpness(model, batches, rho=0.01, steps=60).value
    assert found == pytest.approx(8 * 0.0005**2 / 2, rel=1e-2)


@measure
@pytest.mark.parametrize("adaptive", [False, True])
def test_rescaling_of_layers(kind: str, adaptive: bool) -> None:
    """tanh is linear for small inputs, so that layers can trade a factor; only adaptive values do not mind."""

    class TwoForSequenceClassification(LogisticForSequenceClassification):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False).double()

        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.head(self.first(x).relu()))

    model = TwoForSequenceClassification()
    batch = {"x": torch.randn(6, 4, dtype=torch.float64), "labels": torch.arange(6) % 2}
    before = run(kind, model, [batch], rho=0.2, adaptive=adaptive)
    with torch.no_grad():
        model.first.weight.mul_(8)
        model.head.weight.div_(8)
    after = run(kind, model, [batch], rho=0.2, adaptive=adaptive)
    assert after.loss == pytest.approx(before.loss, rel=1e-12)
    assert (after.value == pytest.approx(before.value, rel=1e-9)) is adaptive


@measure
@settings(max_examples=10, deadline=None)
@given(factor=st.floats(0.1, 10), rows=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 9))
def test_scaling_and_weighting_laws(kind: str, factor: float, rows: list[int], seed: int) -> None:
    model = toy()
    batches = [words(count, 4, seed=seed + number) for number, count in enumerate(rows)]
    plain = run(kind, model, batches, rho=0.1, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        nll = CategoricalLikelihood.nll
        patch.setattr(CategoricalLikelihood, "nll", lambda self, *args: factor * nll(self, *args))
        scaled = run(kind, model, batches, rho=0.1, seed=seed)
    assert scaled.value == pytest.approx(factor * plain.value, rel=1e-6, abs=1e-12)
    assert plain.batch_sizes == tuple(rows)
    assert plain.num_examples == sum(rows)
    weighted = sum(value * count for value, count in zip(plain.per_batch, rows, strict=True)) / sum(rows)
    assert plain.value == pytest.approx(weighted, rel=1e-9, abs=1e-15)
    alone = [run(kind, model, [batch], rho=0.1, seed=seed).value for batch in batches]
    assert plain.per_batch == pytest.approx(alone, rel=1e-9, abs=1e-15)  # the noise does not depend on the batch
    assert run(kind, model, batches * 2, rho=0.1, seed=seed).value == pytest.approx(plain.value, rel=1e-9, abs=1e-15)


def test_the_average_does_not_depend_on_how_examples_are_batched_but_the_worst_case_does() -> None:
    model, whole = toy(), words(6)
    parts = [{key: value[i : i + 2] for key, value in whole.items()} for i in (0, 2, 4)]
    together, apart = (average_sharpness(model, b, rho=0.1) for b in ([whole], parts))
    assert apart.value == pytest.approx(together.value, rel=1e-9)
    assert apart.standard_error == pytest.approx(together.standard_error, rel=1e-9)
    together, apart = (worst_case_sharpness(model, b, rho=0.1) for b in ([whole], parts))
    assert apart.value > together.value * 1.05
    assert (together.batch_sizes, apart.batch_sizes) == ((6,), (2, 2, 2))


def test_equal_seeds_are_equal_noise() -> None:
    model, batches = toy(), [words()]
    first, again, other = (average_sharpness(model, batches, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first.value != other.value
    longer = average_sharpness(model, batches, seed=1, num_draws=64)
    assert longer.value != first.value


def test_generators_and_lists_are_the_same() -> None:
    model, batches = toy(), [words(), words(3, seed=1)]
    assert average_sharpness(model, (b for b in batches)) == average_sharpness(model, batches)


# Radius


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize(("norm", "rho"), [("l2", 2.0), ("linf", 0.1)])
def test_never_outside_the_ball(norm: str, rho: float, random_start: bool, adaptive: bool) -> None:
    model = double("bert")
    model.bert.embeddings.requires_grad_(False)
    original = {name: p.detach().clone() for name, p in model.named_parameters()}
    lengths = []

    def look(module: nn.Module, inputs: Any) -> None:
        moved = []
        for name, p in model.named_parameters():
            if not name.startswith("bert.embeddings"):
                scale = original[name].abs() if adaptive else torch.ones_like(original[name])
                delta = p.detach() - original[name]
                assert not delta[scale == 0].any()
                moved.append((delta / scale)[scale > 0])
            else:
                assert torch.equal(p, original[name])
        u = torch.cat(moved)
        lengths.append(float(u.norm() if norm == "l2" else u.abs().max()))

    model.register_forward_pre_hook(look)
    batch = families.inputs("bert", model, 3, 6)
    worst_case_sharpness(
        model, [batch], rho=rho, norm=norm, steps=8, adaptive=adaptive, random_start=random_start, seed=3
    )
    assert max(lengths) <= rho * (1 + 1e-9)
    assert max(lengths) > rho * 0.99
    assert len(lengths) == 9 + random_start
    assert lengths[0] == 0


def test_random_starts_depend_on_the_seed() -> None:
    model, batches = toy(), [words()]
    values = [worst_case_sharpness(model, batches, rho=0.1, steps=2, random_start=True, seed=s) for s in (0, 0, 1)]
    assert values[0] == values[1]
    assert values[0].value != values[2].value
    assert values[0].loss == pytest.approx(worst_case_sharpness(model, batches, steps=1).loss, rel=1e-12)


# Leaves no trace


def train_mode(family: str) -> tuple[nn.Module, dict[str, Tensor]]:
    model = families.build(family).train()
    batch = families.inputs(family, model)
    model(**batch).loss.backward()
    next(model.parameters()).requires_grad_(False)
    return model, batch


@measure
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_leaves_no_trace(family: str, adaptive: bool, kind: str) -> None:
    model, batch = train_mode(family)
    before, config = picture(model), model.config.to_dict()
    tensors = {key: value.clone() for key, value in batch.items()}
    first = run(kind, model, [batch], adaptive=adaptive)
    assert picture(model) == before
    assert model.config.to_dict() == config
    assert all(torch.equal(batch[key], tensors[key]) for key in tensors)
    assert run(kind, model, [batch], adaptive=adaptive) == first


@measure
@pytest.mark.parametrize("at", [1, 2, 4])
def test_leaves_no_trace_when_it_fails(kind: str, at: int) -> None:
    model, batch = train_mode("bert")
    before = picture(model)
    calls = []

    def fail(module: nn.Module, inputs: Any, output: Any) -> None:
        calls.append(1)
        if len(calls) == at:
            raise KeyError("inside")

    handle = model.bert.encoder.layer[1].register_forward_hook(fail)
    with pytest.raises(KeyError, match="inside"):
        run(kind, model, [batch], **({"num_draws": 4} if kind == "average" else {"steps": 4}))
    handle.remove()
    assert picture(model) == before


def test_training_with_measurements_is_bit_for_bit_the_same() -> None:
    def weights(measured: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model = families.build("bert").train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for seed in range(3):
            batch = families.inputs("bert", model, seed=seed)
            loss = model(**batch).loss  # with dropout: depends on the random state
            if measured:  # between forward and backward, where the graph still needs the weights
                for kind in MEASURES:
                    run(kind, model, [families.inputs("bert", model, seed=9)], seed=seed)
            loss.backward()
            if measured:
                for kind in MEASURES:
                    run(kind, model, [families.inputs("bert", model, seed=9)], seed=seed, adaptive=True)
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach() for parameter in model.parameters()]

    for plain, with_probes in zip(weights(False), weights(True), strict=True):
        assert torch.equal(plain, with_probes)


def test_no_more_than_one_copy_of_the_weights_for_the_average(monkeypatch: Any) -> None:
    model, batch = families.build("bert"), families.inputs("bert", families.build("bert"))
    sizes = []
    clone = torch.Tensor.clone
    pointers = {p.data_ptr() for p in model.parameters()}

    def counted(tensor: Tensor, **arguments: Any) -> Tensor:
        if tensor.data_ptr() in pointers:
            sizes.append(tensor.numel())
        return clone(tensor, **arguments)

    monkeypatch.setattr(torch.Tensor, "clone", counted)
    average_sharpness(model, [batch], num_draws=4)
    assert sum(sizes) == model.num_parameters()


# Precision


@measure
def test_inside_autocast_the_cached_weights_are_not_used(kind: str) -> None:
    """Autocast keeps low-precision copies of weights; a perturbation must be seen all the same, and its end too."""
    model = families.build("bert")
    batch = families.inputs("bert", model)
    rho = 0.05 if kind == "average" else 0.5
    expected = run(kind, model, [batch], rho=rho)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(**batch).logits
        actual = run(kind, model, [batch], rho=rho)
        assert torch.equal(model(**batch).logits, before)
    # An average of few draws is small against bfloat16 losses, but not against what is not perturbed at all.
    tolerance = 0.1 * abs(expected.value) if kind == "worst_case" else 5e-3
    assert actual.value == pytest.approx(expected.value, abs=tolerance)
    assert actual.value != 0


def test_half_precision_weights() -> None:
    model = families.build("bert").bfloat16()
    batch = families.inputs("bert", model)
    before = picture(model)
    assert math.isfinite(run("average", model, [batch], rho=0.05).value)
    assert run("worst_case", model, [batch], rho=1.0).value > 0
    with pytest.raises(ProbeError, match=r"smaller than the precision of the weights.*bfloat16"):
        run("worst_case", model, [batch], rho=1e-3)
    assert picture(model) == before
    full = families.build("bert").bfloat16().float()
    expected = run("worst_case", full, [batch], rho=1.0).value
    assert run("worst_case", model, [batch], rho=1.0).value == pytest.approx(expected, rel=0.1)


# LoRA


def lora() -> nn.Module:
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    return get_peft_model(double("bert"), config).double()


@measure
def test_lora(kind: str) -> None:
    model = lora()
    batch = families.inputs("bert", model)
    fresh = run(kind, model, [batch], rho=0.1)
    assert fresh.num_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    if kind == "average":
        assert fresh.value == pytest.approx(average_sharpness_by_copies(model, [batch], rho=0.1, num_draws=2)[0])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    if kind == "average":
        # Only A moves, and B = 0 hides it.
        assert run(kind, model, [batch], adaptive=True).value == 0.0
    else:
        with pytest.raises(ProbeError, match=r"no gradient.*For LoRA with adaptive=True: measure after"):
            run(kind, model, [batch], adaptive=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    with pytest.raises(ProbeError, match=r"adaptive radius .* is zero too.*LoRA starts with B = 0"):
        run(kind, model, [batch], adaptive=True)
    assert run(kind, model, [batch], adaptive=False).value != 0


# Logit normalization


def test_normalized_logits_ignore_confidence() -> None:
    logits = torch.randn(3, 4, 5, dtype=torch.float64)
    result = normalized(logits)
    torch.testing.assert_close(result.norm(dim=-1), torch.ones(3, 4).double())
    torch.testing.assert_close(result.sum(-1), torch.zeros(3, 4).double())
    torch.testing.assert_close(normalized(7 * logits + 2), result)
    assert normalized(logits.half()).dtype == torch.float32
    assert not normalized(torch.ones(2, 3)).any()


@measure
def test_normalized_sharpness_ignores_confidence(kind: str) -> None:
    model, batch = toy(), words()
    model.head.requires_grad_(False)
    before = run(kind, model, [batch], rho=0.1, normalize_logits=True)
    assert before.value != run(kind, model, [batch], rho=0.1).value
    with torch.no_grad():
        model.head.weight.mul_(5)
        model.head.bias.mul_(5)
    after = run(kind, model, [batch], rho=0.1, normalize_logits=True)
    assert after.value == pytest.approx(before.value, rel=1e-9)


def test_normalized_logits_of_two_classes() -> None:
    model = families.build("bert", num_labels=2)
    batch = families.inputs("bert", model)
    assert math.isfinite(run("average", model, [batch], normalize_logits=True).value)
    with pytest.raises(ProbeError, match=r"two classes have no gradient.*normalize_logits=False"):
        run("worst_case", model, [batch], normalize_logits=True)


@measure
@pytest.mark.parametrize("task", ["question_answering", "sequence_classification"])
def test_logits_that_cannot_be_normalized(kind: str, task: str) -> None:
    model = families.build("bert", task=task, num_labels=2 if task == "question_answering" else 1)
    with pytest.raises(UnsupportedModelError, match=r"Only logits over classes can be normalized. Got: BertFor"):
        run(kind, model, [families.inputs("bert", model)], normalize_logits=True)


# What cannot be measured


@measure
@pytest.mark.parametrize("rho", [0, -1.0, float("nan"), float("inf"), "0.1", None])
def test_rho_must_be_positive(kind: str, rho: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"rho is not usable.*Allowed: a finite number above 0"):
        run(kind, toy(), [words()], rho=rho)


@pytest.mark.parametrize(("kind", "name"), [("average", "num_draws"), ("worst_case", "steps")])
@pytest.mark.parametrize("count", [0, -2, 1.5, "3"])
def test_counts_must_be_positive(kind: str, name: str, count: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is not usable.*whole number, 1 or more"):
        run(kind, toy(), [words()], **{name: count})


def test_unknown_norm() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown norm. Got: l1. Allowed: l2, linf"):
        run("worst_case", toy(), [words()], norm="l1")


@measure
def test_data_that_cannot_be_used(kind: str) -> None:
    model = toy()
    with pytest.raises(ConfigurationError, match="no batch to measure on"):
        run(kind, model, [])
    with pytest.raises(DataError, match="Labels were asked for, but the batch has none"):
        run(kind, model, [toys.words()])
    with pytest.raises(DataError, match=r"not a class of the model. Got: 7"):
        run(kind, model, [{**words(1), "labels": torch.tensor([7])}])
    with pytest.raises(DataError, match="Batch 1 has no common number of examples"):
        run(kind, model, [words(), {**words(), "labels": torch.zeros(2)}])
    with pytest.raises(UnsupportedModelError, match="log-likelihood of this model is not known"):
        run(kind, nn.Linear(2, 2), [words()])
    with pytest.raises(ProbeError, match="no parameter to perturb"):
        run(kind, toy().requires_grad_(False), [words()])


@measure
def test_one_example(kind: str) -> None:
    result = run(kind, toy(), [words(1)], rho=0.1)
    assert (result.num_examples, result.batch_sizes) == (1, (1,))
    assert result.value != 0


@measure
def test_losses_that_are_not_finite(kind: str) -> None:
    model, batches = toy(), [words(), words(2, seed=1)]
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFiniteError, match=r"loss of probe batch 0 is not finite for perturbed weights.*smaller rho"):
        run(kind, model, batches, rho=1e308)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    model.head.bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"loss of probe batch 0 is not finite\. Got: 5 of 5 values.*diverged"):
        run(kind, model, batches)


def test_gradients_that_are_not_finite() -> None:
    class RootForSequenceClassification(LogisticForSequenceClassification):
        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=(x @ self.head.weight.t()).abs().sqrt())

    model = RootForSequenceClassification()
    batch = {"x": torch.zeros(1, 4, dtype=torch.float64), "labels": torch.tensor([0])}
    with pytest.raises(NonFiniteError, match="gradient of the loss of probe batch 0 is not finite"):
        run("worst_case", model, [batch])


def test_no_gradient_to_follow() -> None:
    model = LogisticForSequenceClassification()
    batch = {"x": torch.zeros(1, 4, dtype=torch.float64), "labels": torch.tensor([0])}
    with pytest.raises(ProbeError, match=r"probe batch 0 has no gradient.*random_start=True"):
        run("worst_case", model, [batch])
    with pytest.raises(ProbeError, match=r"probe batch 0 has no gradient.*also at a random start"):
        run("worst_case", model, [batch], random_start=True)
    model, batches = summit()
    with torch.no_grad():
        model.head.weight.fill_(-5e-4)  # the summit itself
    with pytest.raises(ProbeError, match="has no gradient"):
        run("worst_case", model, batches)
    assert run("worst_case", model, batches, random_start=True).value < 0


@measure
def test_weights_that_change_in_the_forward_pass(kind: str) -> None:
    model = toys.make(toys.Renormalized)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ProbeError, match=r"measurement changed the model.*embedding.weight"):
        run(kind, model, [words()])
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@measure
def test_tied_weights_are_moved_once(kind: str) -> None:
    model, batch = toys.make(toys.TiedTwice), words()
    actual = run(kind, model, [batch], rho=0.1)
    assert actual.num_parameters == sum(p.numel() for p in model.parameters())
    if kind == "average":
        expected = average_sharpness_by_copies(model, [batch], rho=0.1, num_draws=2)[0]
    else:
        losses = auto_pgd_losses(model, batch, rho=0.1, norm="l2", steps=3)
        expected = max(losses[1:]) - losses[0]
    assert actual.value == pytest.approx(expected, rel=1e-9)


# Records and presets


@measure
def test_records_are_json(kind: str) -> None:
    result = run(kind, toy(), [words(), words(2)])
    record = json.loads(json.dumps(result.to_dict()))
    assert record["kind"] == kind
    assert record["batch_sizes"] == [5, 2]
    assert record["value"] == result.value
    assert record["settings"]["rho"] == 0.01
    with pytest.raises(AttributeError, match="cannot assign"):
        result.value = 0.0


def test_settings_can_be_used_again() -> None:
    model, batches = toy(), [words()]
    for kind in MEASURES:
        first = run(kind, model, batches, rho=0.1, seed=3)
        assert MEASURES[kind](model, batches, **first.settings) == first


def test_paper_presets() -> None:
    model, batches = toy(), [words()]
    average = average_sharpness(model, batches, **PAPER_AVERAGE)
    worst = worst_case_sharpness(model, batches, **PAPER_WORST_CASE)
    assert (average.settings["rho"], average.settings["num_draws"], average.settings["antithetic"]) == (0.01, 15, False)
    assert (worst.settings["norm"], worst.settings["steps"], worst.settings["adaptive"]) == ("l2", 15, False)
    with pytest.raises(TypeError, match="does not support item assignment"):
        PAPER_AVERAGE["rho"] = 1.0


def test_the_loss_is_that_of_single_examples() -> None:
    model = double("roberta")
    batch = families.inputs("roberta", model, 4, 8)
    with torch.no_grad():
        losses = GivenLoss.of(model).per_example(batch)
    assert losses.shape == (4,)
    assert float(losses.mean()) == pytest.approx(float(loss_one_by_one(model, batch).detach()))
    assert not losses.requires_grad


@pytest.mark.gpu
@measure
def test_on_a_gpu_the_numbers_are_those_of_the_cpu(kind: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = double("bert")
    batches = two_batches("bert", model)
    expected = run(kind, model, batches, rho=0.1)
    actual = run(kind, model.cuda(), batches, rho=0.1)
    assert actual.value == pytest.approx(expected.value, rel=1e-6)
    assert actual.loss == pytest.approx(expected.loss, rel=1e-9)
