"""The Fisher penalty against finite differences, the Fisher trace, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_early_ood.errors import ConfigurationError, UnsupportedModelError
from hf_early_ood.freezing import requires_grad_set
from hf_early_ood.interventions.fisher_penalty import FisherPenalty, fisher_penalty
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes import outcomes
from hf_early_ood.probes.fisher import fisher_trace
from tests import families
from tests.probes import tasks

SEED = 3
# It computes a part in float32 also in float64: differences lose digits.
ROUGH = "llama"
CASES = [
    ("regression", "bert"),
    ("multi_label", "bart"),
    ("token_classification", "deberta-v2"),
    ("question_answering", "modernbert"),
    ("multiple_choice", "bert"),
    ("masked_lm", "bert"),
    ("causal_lm", "gpt2"),
    ("causal_lm", "llama"),
    ("seq2seq_lm", "bart"),
]
FAMILIES = ["albert", "bert", "distilbert", "electra", "gpt2", "modernbert", "mpnet", "roberta"]


@pytest.fixture
def labels_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences hold the labels constant, as the penalty's gradient does."""
    drawn: list[Tensor] = []

    def once(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def held(*arguments: Tensor) -> Tensor:
            if not drawn:
                drawn.append(draw(*arguments))
            return drawn[0]

        return held

    monkeypatch.setattr(outcomes, "_sample_where", once(outcomes._sample_where))


def direction_for(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(p.shape, generator=generator).to(p) for n, p in model.named_parameters()}
    for prefix, module in model.named_modules():
        padding = module.padding_idx if isinstance(module, nn.Embedding) else None
        if padding is not None and f"{prefix}.weight" in direction:
            direction[f"{prefix}.weight"][padding] = 0  # a constant to autograd
    return direction


def slope_by_differences(value: Callable[[], float], model: nn.Module, step: float) -> float:
    """The derivative along the direction, with an error of the fourth order."""
    direction = direction_for(model)

    def at(distance: float) -> float:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(direction[name], alpha=distance)
        moved = value()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])
        return moved

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


def slope(penalty: FisherPenalty, model: nn.Module) -> float:
    direction = direction_for(model)
    return sum((gradient * direction[name]).sum().item() for name, gradient in penalty.gradient.items())


@pytest.mark.parametrize(("task", "family"), CASES)
@pytest.mark.usefixtures("labels_drawn_once")
def test_gradient_equals_finite_differences_for_every_task(task: str, family: str) -> None:
    model = tasks.build(task, family)
    batch = tasks.inputs(task, model)
    penalty = fisher_penalty(model, batch, seed=SEED)
    if task == "regression":
        # The y that were drawn are constants too: f + noise at these weights.
        uniforms = torch.rand(3, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
        noise = torch.special.ndtri(outcomes.spread(uniforms, families.NUM_LABELS))
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        drawn = model(**inputs).logits.detach() + noise

        def value() -> float:
            log_p = -(drawn - model(**inputs).logits).square().sum(-1) / 2
            gradients = torch.autograd.grad(log_p.mean(), list(model.parameters()))
            return sum(g.square().sum().item() for g in gradients)

        assert value() == pytest.approx(penalty.value.item(), rel=1e-10)
    else:

        def value() -> float:
            return fisher_penalty(model, batch, seed=SEED).value.item()

    tolerance, step = (1e-4, 1e-4) if family == ROUGH else (1e-6, 1e-5)
    assert slope(penalty, model) == pytest.approx(slope_by_differences(value, model, step), rel=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("labels_drawn_once")
def test_gradient_equals_finite_differences_in_every_family(family: str) -> None:
    model = families.build(family).double()
    batch = families.inputs(family, model)
    penalty = fisher_penalty(model, batch, seed=SEED)
    differences = slope_by_differences(lambda: fisher_penalty(model, batch, seed=SEED).value.item(), model, 1e-5)
    assert slope(penalty, model) == pytest.approx(differences, rel=1e-6)


@pytest.mark.usefixtures("labels_drawn_once")
def test_gradient_equals_finite_differences_in_train_mode_and_of_what_trains_only() -> None:
    """With dropout, whose masks the same random numbers make, and of the top half."""
    model = families.build("bert").double().train()
    batch = families.inputs("bert", model)
    groups = find_layer_groups(model)
    parameters = dict(model.named_parameters())
    top = {*groups["head"].parameters, *groups["block.2"].parameters}
    with requires_grad_set(parameters, top):
        torch.manual_seed(1)
        penalty = fisher_penalty(model, batch, seed=SEED)
        assert penalty.gradient.keys() == top
        other = torch.Generator().manual_seed(0)
        parts = {name: torch.randn(parameters[name].shape, generator=other, dtype=torch.float64) for name in top}

        def at(distance: float) -> float:
            with torch.no_grad():
                for name, part in parts.items():
                    parameters[name].add_(part, alpha=distance)
            moved = fisher_penalty(model, batch, seed=SEED).value.item()
            with torch.no_grad():
                for name, part in parts.items():
                    parameters[name].sub_(part, alpha=distance)
            return moved

        along = sum((penalty.gradient[name] * part).sum().item() for name, part in parts.items())
        assert along == pytest.approx((at(1e-6) - at(-1e-6)) / 2e-6, rel=1e-6)


def test_batch_size_times_the_penalty_is_the_fisher_trace_on_average() -> None:
    model = families.build("bert", num_hidden_layers=1).double()
    batch = families.inputs("bert", model, 6)
    head = find_layer_groups(model)["head"].parameters
    with requires_grad_set(dict(model.named_parameters()), head):
        values = torch.tensor([6 * fisher_penalty(model, batch, seed=seed).value.item() for seed in range(200)])
        expected = fisher_trace(model, [batch], labels="expected").total
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - expected) < 4 * error
    assert error < 0.15 * expected


def test_labels_follow_the_seed() -> None:
    model = families.build("bert")
    batch = families.inputs("bert", model)
    values = {fisher_penalty(model, batch, seed=seed).value.item() for seed in (0, 0, 1, 2)}
    assert len(values) == 3
    unlabeled = {key: value for key, value in batch.items() if key != "labels"}
    assert fisher_penalty(model, unlabeled, seed=1).value == fisher_penalty(model, batch, seed=1).value


def test_nothing_is_left_behind_and_the_loss_has_the_same_masks() -> None:
    model = families.build("bert", attn_implementation="sdpa").train()
    model.register_buffer("count", torch.zeros(1))
    seen = []

    def look(module: nn.Module, inputs: object, outputs: object) -> None:
        module.count += 1
        seen.append(outputs.logits.detach())  # type: ignore[attr-defined]

    model.register_forward_hook(look)
    batch = families.inputs("bert", model)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fisher_penalty(model, batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.count.item() == 0
    assert model.config._attn_implementation == "sdpa"
    assert all(parameter.grad is None for parameter in model.parameters())
    model(**batch)
    torch.testing.assert_close(seen[0], seen[1])


def test_as_loss_has_the_value_and_adds_the_gradient() -> None:
    model = families.build("bert")
    batch = families.inputs("bert", model)
    penalty = fisher_penalty(model, batch)
    model(**batch).loss.backward()
    alone = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    extra = penalty.as_loss(0.5)
    assert extra.item() == pytest.approx(0.5 * penalty.value.item())
    (3 * (model(**batch).loss + extra)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 3 * (alone[name] + 0.5 * penalty.gradient[name]))


def test_lora_has_a_penalty_of_its_adapters_and_head() -> None:
    model = get_peft_model(families.build("bert"), LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False))
    penalty = fisher_penalty(model, families.inputs("bert", model))
    assert penalty.gradient.keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def test_activation_checkpointing_changes_nothing() -> None:
    penalties = []
    for checkpointing in (False, True):
        model = families.build("bert").double().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(1)
        penalties.append(fisher_penalty(model, families.inputs("bert", model)))
    assert penalties[0].value == penalties[1].value
    for name, gradient in penalties[0].gradient.items():
        torch.testing.assert_close(penalties[1].gradient[name], gradient)


def test_bfloat16_is_near_float32() -> None:
    model = families.build("bert")
    batch = families.inputs("bert", model)
    full = fisher_penalty(model, batch)
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)  # as accelerate does
    half = fisher_penalty(model, batch)
    assert half.value.dtype == torch.float32
    assert half.value.item() == pytest.approx(full.value.item(), rel=0.05)
    apart = sum((half.gradient[n] - g).square().sum() for n, g in full.gradient.items())
    assert apart < 0.01 * sum(g.square().sum() for g in full.gradient.values())


def test_nothing_that_trains_is_refused() -> None:
    model = families.build("bert")
    batch = families.inputs("bert", model)
    with (
        requires_grad_set(dict(model.named_parameters()), []),
        pytest.raises(ConfigurationError, match="has nothing to act on"),
    ):
        fisher_penalty(model, batch)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


def test_what_is_differentiable_once_is_refused_with_advice_for_training() -> None:
    model = families.build("bert")
    batch = families.inputs("bert", model)
    model.classifier.register_forward_hook(lambda module, inputs, output: Once.apply(output))
    with pytest.raises(UnsupportedModelError, match=r"differentiable once only.*Leave out the Fisher penalty"):
        fisher_penalty(model, batch)
