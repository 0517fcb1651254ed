"""What each perturbation keeps, what it changes, and that draws depend on seed and name alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_early_ood.config.perturbations import PerturbationConfig
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.interventions import perturbations
from hf_early_ood.interventions.perturbations import check_sources, effective_std, noisy, perturbed, shuffled

SHAPES = {"a.weight": (6, 5), "a.bias": (6,), "conv": (3, 2, 4), "norm": (7,)}


def tensors(seed: int = 0, dtype: torch.dtype = torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def config(kind: str, **own) -> PerturbationConfig:
    return PerturbationConfig(at=3, kind=kind, **own)


def multiset(*values: torch.Tensor) -> list[float]:
    return sorted(torch.cat([value.flatten() for value in values]).tolist())


NOW, START, INITIAL = tensors(1), tensors(2), tensors(3)
EVERY = [
    config("reset_to_start"),
    config("reset_to_random"),
    *(config("redraw_magnitudes", source=source) for source in (None, "start", "initializer")),
    *(config("redraw_signs", source=source) for source in (None, "start")),
    *(config("shuffle", within=within, keep_signs=k) for within in ("tensor", "row", "group") for k in (False, True)),
    *(config("noise", unit=unit, std=0.5) for unit in ("start", "initializer", "movement", "absolute")),
]
NAMED = {"ids": lambda one: "-".join(map(str, (one.kind, one.source, one.within, one.keep_signs, one.unit)))}


def after(one: PerturbationConfig, seed: int = 0, values=NOW):
    return perturbed(one, values, seed, start=START, initial=INITIAL)


@pytest.mark.parametrize("one", EVERY, **NAMED)
def test_new_tensors_the_same_ones_in_every_run_and_no_global_random_numbers(one):
    before, rng = {name: value.clone() for name, value in NOW.items()}, torch.get_rng_state()
    first, again = after(one), after(one)
    assert torch.equal(rng, torch.get_rng_state())
    assert list(first) == list(NOW)
    for name, value in NOW.items():
        assert torch.equal(value, before[name])
        assert torch.equal(first[name], again[name])
        assert (first[name].shape, first[name].dtype) == (value.shape, value.dtype)
        kept = {START[name].data_ptr(), INITIAL[name].data_ptr(), value.data_ptr()}
        assert first[name].data_ptr() not in kept


GIVEN = ("start", "initializer")  # what was drawn before: see `initial_values`


@pytest.mark.parametrize(
    "one", [one for one in EVERY if not one.kind.startswith("reset") and one.source not in GIVEN], **NAMED
)
def test_another_seed_draws_something_else(one):
    assert not torch.equal(after(one, 0)["a.weight"], after(one, 1)["a.weight"])


@pytest.mark.parametrize("one", [one for one in EVERY if one.within != "group"], **NAMED)
def test_draws_do_not_depend_on_order_or_company(one):
    alone = after(one, values={"conv": NOW["conv"]})
    assert torch.equal(after(one)["conv"], alone["conv"])
    turned = after(one, values={name: NOW[name] for name in reversed(NOW)})
    assert all(torch.equal(turned[name], value) for name, value in after(one).items())


def test_across_a_group_the_order_does_not_matter_either():
    one = config("shuffle", within="group")
    turned = after(one, values={name: NOW[name] for name in reversed(NOW)})
    assert all(torch.equal(turned[name], value) for name, value in after(one).items())


def test_resets_are_what_was_given():
    assert all(torch.equal(value, START[name]) for name, value in after(config("reset_to_start")).items())
    assert all(torch.equal(value, INITIAL[name]) for name, value in after(config("reset_to_random")).items())


@pytest.mark.parametrize("source", ["start", "start_shuffled", "initializer"])
def test_magnitudes_are_redrawn_and_signs_stay(source):
    for name, value in after(config("redraw_magnitudes", source=source)).items():
        assert torch.equal(value.sign(), NOW[name].sign())
        of = (INITIAL if source == "initializer" else START)[name].abs()
        assert multiset(value.abs()) == multiset(of)
        assert torch.equal(value.abs(), of) == (source != "start_shuffled")


def test_a_weight_without_sign_gets_no_magnitude():
    now = {"w": torch.tensor([0.0, 1.0, -1.0])}
    found = perturbed(config("redraw_magnitudes", source="start"), now, 0, start={"w": torch.tensor([5.0, 6.0, 7.0])})
    assert found["w"].tolist() == [0.0, 6.0, -7.0]


@pytest.mark.parametrize("source", ["random", "start"])
def test_signs_are_redrawn_and_magnitudes_stay(source):
    found = after(config("redraw_signs", source=source))
    for name, value in found.items():
        assert torch.equal(value.abs(), NOW[name].abs())
        assert torch.equal(value.sign(), START[name].sign()) == (source == "start")


def test_random_signs_are_fair():
    now = {"w": torch.ones(40_000)}
    assert abs(float(perturbed(config("redraw_signs"), now, 0)["w"].mean())) < 0.02  # 4 standard errors


@pytest.mark.parametrize("keep_signs", [False, True])
def test_shuffles_keep_the_multiset_in_their_scope(keep_signs):
    def same(ours, theirs):
        if keep_signs:
            assert all(torch.equal(a.sign(), b.sign()) for a, b in zip(ours, theirs, strict=True))
            ours, theirs = [a.abs() for a in ours], [b.abs() for b in theirs]
        return multiset(*ours) == multiset(*theirs)

    group = shuffled(NOW, 0, within="group", keep_signs=keep_signs)
    assert same(list(group.values()), list(NOW.values()))
    assert not same([group["a.weight"]], [NOW["a.weight"]])
    for name, value in shuffled(NOW, 0, keep_signs=keep_signs).items():
        assert same([value], [NOW[name]])
        assert not torch.equal(value, NOW[name])
    for name, value in shuffled(NOW, 0, within="row", keep_signs=keep_signs).items():
        assert all(same([a], [b]) for a, b in zip(value, NOW[name], strict=True))
        assert torch.equal(value, NOW[name]) == (value.ndim == 1)  # one value an output unit


def test_the_output_units_of_a_transposed_matrix_are_its_columns():
    found = shuffled(NOW, 0, within="row", transposed={"a.weight"})["a.weight"]
    assert found.is_contiguous()
    for column, before in zip(found.T, NOW["a.weight"].T, strict=True):
        assert multiset(column) == multiset(before)
    assert any(multiset(a) != multiset(b) for a, b in zip(found, NOW["a.weight"], strict=True))


def test_every_place_is_as_likely():
    firsts = torch.zeros(4)
    for seed in range(800):
        firsts[int(shuffled({"w": torch.arange(4.0)[None]}, seed, within="row")["w"][0, 0])] += 1
    assert (firsts - 200).abs().max() < 4 * math.sqrt(800 * 0.25 * 0.75)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("one", EVERY, **NAMED)
def test_in_every_type(one, dtype):
    now, start, initial = (tensors(seed, dtype) for seed in (1, 2, 3))
    found = perturbed(one, now, 0, start=start, initial=initial)
    assert {value.dtype for value in found.values()} == {dtype}
    if one.kind == "shuffle":
        values = [list(group.values()) for group in (found, now)]
        kept = [[v.abs() for v in group] for group in values] if one.keep_signs else values
        assert multiset(*kept[0]) == multiset(*kept[1])


@pytest.mark.parametrize("std", [0.01, 1.0, 3.0])
@pytest.mark.parametrize("unit", ["start", "initializer", "movement", "absolute"])
def test_noise_has_the_effective_standard_deviation_that_was_asked_for(unit, std):
    shapes = {"w": (200, 200)}
    now, start, initial = (
        {"w": scale * tensors(seed, shapes=shapes)["w"]} for seed, scale in ((1, 1.0), (2, 0.5), (3, 0.1))
    )
    sigma = {
        "start": float(start["w"].std(correction=0)),
        "initializer": float(initial["w"].std(correction=0)),
        "movement": effective_std(start, now),
        "absolute": 1.0,
    }[unit]
    found = perturbed(config("noise", unit=unit, std=std), now, 0, start=start, initial=initial)
    added = (found["w"] - now["w"]) / (std * sigma)
    assert effective_std(now, found) == pytest.approx(std * sigma, rel=5 / math.sqrt(2 * 40_000))
    assert abs(float(added.mean())) < 5 / 200
    assert float((added.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.015)


def test_effective_std_is_that_of_all_differences_together():
    before, now = tensors(1, torch.float64), tensors(2, torch.float64)
    added = torch.cat([(now[name] - before[name]).flatten() for name in before])
    assert effective_std(before, now) == pytest.approx(float(added.std(correction=0)), rel=1e-12)
    assert effective_std(now, now) == 0.0
    one = {"w": torch.ones(1)}
    assert effective_std(one, {"w": torch.tensor([5.0])}) == 0.0
    assert math.isnan(effective_std(one, {"w": torch.tensor([math.nan])}))


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=3),
    within=st.sampled_from(["tensor", "row", "group"]),
    keep_signs=st.booleans(),
    zeros=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_shuffle_loses_a_weight(shapes, within, keep_signs, zeros, seed):
    values = tensors(seed, shapes={f"t{number}": tuple(shape) for number, shape in enumerate(shapes)})
    if zeros:
        values = {name: value * (value > -0.5) for name, value in values.items()}
    found = shuffled(values, seed, within=within, keep_signs=keep_signs)
    kept = [[abs(v) if keep_signs else v for v in multiset(*group.values())] for group in (found, values)]
    assert sorted(kept[0]) == sorted(kept[1])
    if keep_signs:
        assert all(bool((found[n].sign() * value.sign() >= 0).all()) for n, value in values.items())


@pytest.mark.parametrize(
    ("one", "start", "initial", "message"),
    [
        (config("redraw_magnitudes"), True, False, r"no magnitudes at the start.*1 of 2, such as b.*parameters='matri"),
        (config("redraw_magnitudes", source="initializer"), False, True, "no magnitudes from the initializer"),
        (config("redraw_signs", source="start"), True, False, "no signs at the start"),
        (config("noise"), True, False, "no standard deviation at the start"),
        (config("noise", unit="initializer"), False, True, "no standard deviation from the initializer"),
        (config("redraw_signs"), False, False, None),
        (config("noise", unit="absolute"), False, False, None),
        (config("noise", unit="movement"), True, False, None),
        (config("reset_to_start"), True, False, None),
    ],
)
def test_sources_that_give_nothing_are_refused(one, start, initial, message):
    constant = {"w": torch.randn(3, 3), "b": torch.zeros(3)}
    given = (constant if start else {}, constant if initial else {})
    if message is None:
        check_sources(one, *given)
    else:
        with pytest.raises(ConfigurationError, match=f"(?s){message}"):
            check_sources(one, *given)


def test_constants_have_signs_but_no_spread():
    ones = {"norm": torch.ones(3)}
    check_sources(config("redraw_signs", source="start"), ones, {})
    with pytest.raises(ConfigurationError, match="no standard deviation"):
        check_sources(config("noise"), ones, {})


def test_an_unknown_scope_is_refused():
    with pytest.raises(ConfigurationError, match="Unknown within"):
        shuffled(NOW, 0, within="rows")


def test_noise_and_shuffle_of_one_tensor_share_no_draw_with_the_training():
    torch.manual_seed(0)
    ours = noisy({"w": torch.zeros(5)}, {"w": 1.0}, seed=0)["w"]
    assert not torch.equal(ours, torch.randn(5))
    assert perturbations.seed_for(0, "w") != perturbations.seed_for(0, "v")
