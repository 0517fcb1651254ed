"""The taps know what they measure, or say that they do not."""

from __future__ import annotations

import pytest
import torch

from hf_early_ood.errors import ProbeError
from hf_early_ood.probes.fisher import fisher_trace
from hf_early_ood.probes.likelihood import Scorer, likelihood_for
from hf_early_ood.probes.reference import fisher_trace_loop
from hf_early_ood.probes.survey import _two_short_examples, survey
from hf_early_ood.probes.taps import Layout
from tests import families
from tests.probes import toys


def found(model: torch.nn.Module, batch: dict[str, torch.Tensor]):
    scorer = Scorer(model.eval(), likelihood_for(model), "sampled")
    return survey(model, dict(model.named_parameters()), batch, scorer.predictions)


def test_layouts_are_learned_where_shapes_coincide() -> None:
    batch = toys.words(4, 4)
    layouts = {
        kind: found(toys.make(kind), batch).layouts[("dense.weight", "dense.bias"), 1]
        for kind in (toys.ToyForSequenceClassification, toys.PositionFirst)
    }
    assert layouts == {toys.ToyForSequenceClassification: Layout(0), toys.PositionFirst: Layout(1)}
    shared = found(toys.make(toys.SharedPositions), batch).layouts
    assert shared[("positions.weight",), 1].broadcast
    assert not shared[("mix.weight", "mix.bias"), 1].broadcast  # it sees the expanded positions


@pytest.mark.parametrize("position_major", [False, True])
def test_flattened_outputs_are_example_major_or_refused(position_major: bool) -> None:
    model = toys.make(toys.Flattened, position_major)
    batch, groups = toys.words(4, 4), toys.one_group(model)
    plan = found(model, batch)
    assert ("dense.weight" in plan.covered) is not position_major
    assert {"embedding.weight", "head.weight", "head.bias"} <= plan.covered
    actual = fisher_trace(model, [batch], estimator="exact", groups=groups)
    assert actual.total == pytest.approx(fisher_trace_loop(model, [batch], groups=groups).total, rel=1e-9)


def test_flattened_outputs_are_compared_and_not_only_their_gradients() -> None:
    model = toys.make(toys.GatedFlattened)
    batch = toys.words(4, 4)
    batch["input_ids"][1] = 0  # the rehearsal differentiates the second example: nothing arrives
    assert "dense.weight" not in found(model, batch).covered


def test_a_broadcast_output_that_cannot_be_expanded_is_refused() -> None:
    model = toys.make(toys.FirstRowOnly)
    batch, groups = toys.words(4, 4), toys.one_group(model)
    assert "positions.weight" not in found(model, batch).covered
    actual = fisher_trace(model, [batch], estimator="exact", groups=groups)
    assert set(actual.fallbacks) == {"positions.weight"}
    assert actual.total == pytest.approx(fisher_trace_loop(model, [batch], groups=groups).total, rel=1e-9)


def test_examples_that_influence_each_other_are_an_error() -> None:
    model = toys.make(toys.Interacting)
    with pytest.raises(ProbeError, match="depends on the other examples"):
        fisher_trace(model, [toys.words()], groups=toys.one_group(model))


def test_gradients_that_cross_examples_are_not_taken_for_exact() -> None:
    model = toys.make(toys.Peeking)
    plan = found(model, toys.words())
    assert "dense.weight" not in plan.covered
    assert "head.weight" in plan.covered


def test_a_tap_that_misses_a_use_is_noticed() -> None:
    model = toys.make(toys.HalfSeen)
    batch, groups = toys.words(), toys.one_group(model)
    plan = found(model, batch)
    assert "dense.weight" not in plan.covered
    assert "dense.bias" in plan.covered
    actual = fisher_trace(model, [batch], estimator="exact", groups=groups)
    assert actual.total == pytest.approx(fisher_trace_loop(model, [batch], groups=groups).total, rel=1e-9)


def test_uses_by_different_rules_are_not_joined() -> None:
    # A table and the weight of a linear layer.
    assert "embedding.weight" not in found(toys.make(toys.TiedTwice), toys.words()).covered


def test_unused_parameters_are_zero_and_proven_so() -> None:
    model = toys.make(toys.Sometimes, False)
    groups = toys.one_group(model)
    plan = found(model, toys.words())
    assert plan.unused == {"extra.weight", "extra.bias"}
    trace = fisher_trace(model, [toys.words()], groups=groups)
    assert trace.total == pytest.approx(fisher_trace_loop(model, [toys.words()], groups=groups).total)
    assert trace.fallbacks == {}


@pytest.mark.parametrize("functional", [False, True])
def test_a_parameter_that_only_some_examples_use_is_an_error(functional: bool) -> None:
    model = toys.make(toys.Sometimes, functional)
    later = {"input_ids": torch.full((2, 4), 10)}
    with pytest.raises(ProbeError, match=r"used (in another way|for some probe examples only)"):
        fisher_trace(model, [toys.words(), later], groups=toys.one_group(model))


def test_a_table_that_changes_in_the_forward_pass_is_an_error() -> None:
    model = toys.make(toys.Renormalized)
    with pytest.raises(ProbeError, match=r"changed the model it measured\. Got: embedding\.weight"):
        fisher_trace(model, [toys.words()], estimator="exact", groups=toys.one_group(model))


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5", "mobilebert"])
def test_normalizations_written_in_python_are_recognized(family: str) -> None:
    model = families.build(family).double()
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():
            parameter.data.zero_() if "layers.1" in name else torch.nn.init.normal_(parameter)
    batch = families.inputs(family, model, 4, 7)
    plan = found(model, batch)
    assert plan.elementwise
    norms = {f"{n}.weight" for n, m in model.named_modules() if type(m).__name__.endswith(("Norm", "NoNorm"))}
    assert norms <= plan.covered | plan.unused
    loop = fisher_trace_loop(model, [batch])
    actual = fisher_trace(model, [batch], estimator="exact")
    assert actual.total == pytest.approx(loop.total, rel=1e-6)
    assert actual.per_group == pytest.approx(loop.per_group, rel=1e-6)


def test_no_hook_stays_behind() -> None:
    model = families.build("llama")
    batch = families.inputs("llama", model)
    fisher_trace(model, [batch])
    model.score.weight.data.fill_(float("nan"))
    with pytest.raises(ProbeError, match="not finite"):
        fisher_trace(model, [batch])
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_survey_takes_two_short_examples_without_their_padding(side: str) -> None:
    lengths, length = [30, 18, 25, 17], 30
    ids = torch.stack([torch.arange(length) + 100 * row for row in range(4)])
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    labels, square = torch.arange(4), torch.zeros(4, 3, length)
    short = _two_short_examples({"input_ids": ids, "attention_mask": mask, "labels": labels, "square": square})
    assert short["labels"].tolist() == [3, 1]
    assert short["attention_mask"].sum(1).tolist() == [17, 18]
    columns = slice(0, 18) if side == "right" else slice(12, 30)
    assert torch.equal(short["input_ids"], ids[[3, 1], columns])
    assert short["square"].shape == (2, 3, 30)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_survey_keeps_a_few_positions(side: str) -> None:
    mask = torch.zeros(2, 40, dtype=torch.long)
    mask[:, 0 if side == "right" else -1] = 1
    assert _two_short_examples({"attention_mask": mask})["attention_mask"].shape == (2, 16)
    assert _two_short_examples({"attention_mask": mask[:1, :3]})["attention_mask"].shape == (2, 3)
    assert _two_short_examples({"input_ids": mask[:1]})["input_ids"].shape == (2, 40)


def test_a_survey_crops_the_choices_of_an_example_together() -> None:
    mask = torch.zeros(3, 2, 40, dtype=torch.long)
    for row, (first, second) in enumerate(((40, 3), (20, 18), (2, 17))):
        mask[row, 0, :first], mask[row, 1, :second] = 1, 1
    short = _two_short_examples({"attention_mask": mask, "labels": torch.arange(3)})
    assert short["labels"].tolist() == [2, 1]
    assert short["attention_mask"].sum(-1).tolist() == [[2, 17], [20, 18]]
    assert short["attention_mask"].shape == (2, 2, 20)


def test_outputs_for_all_choices_are_expanded_to_each() -> None:
    model = families.build("bert", task="multiple_choice").double()
    batch = families.inputs("bert", model, 3, 7)
    plan = found(model, batch)
    assert plan.layouts[("bert.embeddings.position_embeddings.weight",), 1].broadcast
    assert plan.covered == set(dict(model.named_parameters()))


@pytest.mark.parametrize("family", ["bart", "funnel", "gpt2", "longformer", "llama", "modernbert", "t5", "xlm"])
def test_a_survey_of_cropped_examples_holds_for_whole_ones(family: str) -> None:
    model = families.build(family).double()
    batch = families.inputs(family, model, 4, 36)
    for row, length in enumerate((36, 5, 21, 3)):
        batch["attention_mask"][row] = (torch.arange(36) < length).long()
        batch["input_ids"][row, length:] = families.PAD
        if family in families.NEEDS_EOS:
            batch["input_ids"][row, : length - 1] += batch["input_ids"][row, : length - 1] == families.EOS
            batch["input_ids"][row, length - 1] = families.EOS
    loop = fisher_trace_loop(model, [batch])
    actual = fisher_trace(model, [batch], estimator="exact")
    assert actual.per_group == pytest.approx(loop.per_group, rel=1e-6)
