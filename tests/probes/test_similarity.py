"""Predicted risks against training run to its end, and what cannot be predicted."""

from __future__ import annotations

import math

import pytest
import torch

from hf_early_ood.errors import ConfigurationError, NonFiniteError, ProbeError
from hf_early_ood.probes.matrices import Spectrum
from hf_early_ood.probes.reference_similarity import descend, population_risk
from hf_early_ood.probes.similarity import FineTuningSample, fine_tuning_risk

N, D = 4, 9


def problem(seed: int = 0, noise: float = 0.5, scale: float = 1.3):
    """Covariance, sample and two related teachers (D, 1), nothing of which is aligned with the axes."""
    draws = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    root = normal(D, D) / D**0.5
    left, _, right = torch.linalg.svd(normal(N, D) @ root.T, full_matrices=False)
    features = left @ torch.diag(torch.linspace(1.8, 2.4, N, dtype=torch.float64)) @ right  # quickly trained on
    target = normal(D, 1) / D**0.5
    return root @ root.T, features, scale * target + noise * normal(D, 1) / D**0.5, target


def predicted(covariance, features, source, target, *, depth=1, ridge=0.0):
    sample = FineTuningSample(features, ridge=ridge)
    return fine_tuning_risk(source, target, sample, Spectrum.of(covariance), depth=depth)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("seed", "noise", "scale"), [(0, 0.5, 1.3), (1, 0.1, 0.5), (2, 1.0, -0.7)])
def test_predicted_risk_is_that_of_gradient_descent(depth, seed, noise, scale):
    covariance, features, source, target = problem(seed, noise, scale)
    rate = 0.3 if depth == 1 else 0.002  # a deep network follows gradient flow only in small steps
    end = descend(source[:, 0], features, (features @ target)[:, 0], depth=depth, rate=rate, tolerance=1e-5)
    risk = predicted(covariance, features, source, target, depth=depth)
    simulated = population_risk(end, target[:, 0], covariance)
    assert risk.value == pytest.approx(simulated, rel=1e-3)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_target_that_is_zero_where_the_sample_sees_is_unlearned_to(depth):
    """As of a class that the few examples do not have: exactly zero, and no equation left to solve."""
    features = torch.diag(torch.tensor([2.0, 1.8])).double() @ torch.eye(2, 5).double()
    source = torch.tensor([[0.8], [-0.5], [0.6], [0.3], [-0.7]]).double()
    target = torch.tensor([[0.0], [0.0], [0.5], [-0.4], [0.2]]).double()
    covariance = torch.diag(torch.tensor([2.0, 1.0, 1.5, 0.7, 0.4])).double()
    end = descend(source[:, 0], features, torch.zeros(2).double(), depth=depth, rate=0.002, tolerance=1e-6)
    risk = predicted(covariance, features, source, target, depth=depth)
    assert 0 < risk.scale.item() < 1
    assert risk.value == pytest.approx(population_risk(end, target[:, 0], covariance), rel=1e-3)
    assert predicted(covariance, features, source, target, depth=math.inf).value == risk.from_scratch


def test_with_a_ridge_it_is_that_of_gradient_descent_with_more_examples_than_features():
    covariance, _, source, target = problem()
    features = torch.randn(3 * D, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    end = descend(source[:, 0], features, (features @ target)[:, 0], ridge=0.3, rate=0.3)
    risk = predicted(covariance, features, source, target, ridge=0.3)
    assert risk.value == pytest.approx(population_risk(end, target[:, 0], covariance), rel=1e-9)
    assert risk.value > 0


def test_a_small_ridge_is_none():
    plain, small = (predicted(*problem(), ridge=ridge) for ridge in (0.0, 1e-9))
    assert small.value == pytest.approx(plain.value, rel=1e-6)
    assert plain.spectrum.allclose(small.spectrum, atol=1e-7)


def test_depth_one_by_dense_matrices():
    covariance, features, source, target = problem()
    unseen = torch.eye(D).double() - torch.linalg.pinv(features) @ features
    gap = unseen @ (source - target)
    risk = predicted(covariance, features, source, target)
    assert risk.value == pytest.approx(float(gap.T @ covariance @ gap), rel=1e-12)
    left = unseen @ target
    assert risk.from_scratch == pytest.approx(float(left.T @ covariance @ left), rel=1e-12)
    assert risk.ratio == pytest.approx(risk.value / risk.from_scratch)


def test_the_spectrum_adds_up_and_sits_where_the_mismatch_is():
    covariance, features, _, target = problem()
    spectrum = Spectrum.of(covariance)
    risk = predicted(covariance, features, target, target)
    assert risk.value == pytest.approx(0, abs=1e-25)
    everywhere = predicted(covariance, features, torch.zeros_like(target), target)
    assert everywhere.value == everywhere.from_scratch
    assert float(everywhere.cumulated[-1]) == pytest.approx(everywhere.value, rel=1e-12)
    assert (everywhere.cumulated.diff() >= 0).all()
    assert everywhere.variances.tolist() == sorted(everywhere.variances.tolist(), reverse=True)
    # A sample that sees the first four eigenvectors, and a source that errs in the seventh alone.
    seen = FineTuningSample(spectrum.directions[:, :4].T)
    wrong = target + spectrum.directions[:, 6:7]
    found = fine_tuning_risk(wrong, target, seen, spectrum).spectrum
    assert int(found.argmax()) == 6
    assert float(found[6]) == pytest.approx(float(spectrum.variances[6]), rel=1e-9)


def test_columns_are_networks_of_their_own():
    covariance, features, source, target = problem()
    other_source, other_target = problem(5)[2:]
    for depth in (1, 3, math.inf):
        both = predicted(
            covariance,
            features,
            torch.cat([source, other_source], 1),
            torch.cat([target, other_target], 1),
            depth=depth,
        )
        first = predicted(covariance, features, source, target, depth=depth)
        second = predicted(covariance, features, other_source, other_target, depth=depth)
        assert both.value == pytest.approx(first.value + second.value, rel=1e-12)
        assert both.scale.tolist() == pytest.approx([*first.scale.tolist(), *second.scale.tolist()])


def test_infinite_depth_is_the_limit_and_knows_directions_only():
    covariance, features, source, target = problem()
    limit = predicted(covariance, features, source, target, depth=math.inf)
    gaps = [
        abs(predicted(covariance, features, source, target, depth=depth).scale - limit.scale).item()
        for depth in (1, 2, 3, 8, 40, 10_000)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-4
    for factor in (1e-3, 7.0):
        scaled = predicted(covariance, features, factor * source, target, depth=math.inf)
        assert scaled.value == pytest.approx(limit.value, rel=1e-9)
        assert predicted(covariance, features, factor * source, target).value != pytest.approx(limit.value, rel=1e-3)


@pytest.mark.parametrize("depth", [2, 3, 50, 1000])
def test_scale_solves_its_equation(depth):
    _, features, source, target = problem()
    sample = FineTuningSample(features)
    for wanted in (target, 1e-6 * target, 1e6 * target, sample.unseen(target)):
        c = fine_tuning_risk(source, wanted, sample, Spectrum.of(torch.eye(D)), depth=depth).scale.item()
        length = c ** (depth / (depth - 1)) * float(source.norm())
        seen = float(sample.seen(wanted).norm())
        assert length**2 == pytest.approx(seen**2 + (c * float(sample.unseen(source).norm())) ** 2, rel=1e-9)


def test_types_and_repeated_examples_make_no_difference():
    covariance, features, source, target = problem()
    risk = predicted(covariance, features, source, target)
    single = predicted(covariance.float(), features.float(), source.float(), target.float())
    assert single.value == pytest.approx(risk.value, rel=1e-5)
    assert single.spectrum.dtype == torch.float64
    repeated = torch.cat([features, features[:2], torch.zeros(1, D)])
    assert FineTuningSample(repeated).rank == N
    assert predicted(covariance, repeated, source, target).value == pytest.approx(risk.value, rel=1e-9)
    trained = source.clone().requires_grad_()  # a head as it is in a model
    assert predicted(covariance, features, trained, target).value == risk.value


def test_a_target_that_the_sample_shows_whole_leaves_no_risk_from_scratch():
    covariance, features, source, target = problem()
    target = FineTuningSample(features).seen(target)
    risk = predicted(covariance, features, source, target)
    assert risk.from_scratch == pytest.approx(0, abs=1e-25)
    assert predicted(torch.eye(2), torch.eye(2)[:1], torch.ones(2, 1), torch.eye(2)[:, :1]).ratio is None


@pytest.mark.parametrize("change", ["many examples", "few directions"])
def test_a_sample_that_sees_everything_is_refused(change):
    covariance, features, source, target = problem()
    if change == "many examples":
        features = torch.randn(D + 3, D, generator=torch.Generator().manual_seed(1))
    else:  # fewer examples than features, but the features have no more directions
        covariance = features.T @ features
    with pytest.raises(ProbeError, match=r"any source ends at the target.*or a ridge"):
        predicted(covariance, features, source, target)
    assert predicted(covariance, features, source, target, ridge=0.1).value > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(D, 1)}, "nothing to learn"),
        ({"source": torch.zeros(D, 1), "depth": 2}, "does not move"),
        ({"source": torch.zeros(D, 1), "depth": math.inf}, "does not move"),
        ({"source": torch.ones(D, 2)}, "do not fit each other"),
        ({"features": torch.ones(2, D + 1)}, "do not fit each other"),
        ({"source": torch.ones(D)}, r"a single column has the shape \(rows, 1\)"),
        ({"features": torch.zeros(3, D)}, "all zero"),
        ({"covariance": torch.zeros(D, D)}, "zero, or has a negative eigenvalue"),
        ({"covariance": -torch.eye(D)}, "negative eigenvalue"),
        ({"covariance": torch.ones(D, D).triu()}, "not symmetric"),
        ({"covariance": torch.ones(D, 2)}, "not symmetric"),
    ],
)
def test_what_has_no_prediction(change, message):
    arguments = dict(zip(("covariance", "features", "source", "target"), problem(), strict=True))
    with pytest.raises(ProbeError, match=message):
        predicted(**{**arguments, **change})


def test_a_source_of_which_nothing_is_seen_has_no_limit():
    covariance, features, source, target = problem()
    hidden = FineTuningSample(features).unseen(source)
    with pytest.raises(ProbeError, match="no limit with the depth"):
        predicted(covariance, features, hidden, target, depth=math.inf)
    assert predicted(covariance, features, hidden, target, depth=3).value > 0


@pytest.mark.parametrize("what", ["covariance", "features", "source", "target"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_refused(what, value):
    arguments = dict(zip(("covariance", "features", "source", "target"), problem(), strict=True))
    arguments[what][0, 0] = value
    with pytest.raises(NonFiniteError, match=f"The {what}.* has NaN or infinity"):
        predicted(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth is not usable"),
        ({"depth": 1.5}, "depth is not usable"),
        ({"depth": math.nan}, "depth is not usable"),
        ({"ridge": -1.0}, "ridge is not usable"),
        ({"depth": 2, "ridge": 0.1}, "no formula for a deep network with a ridge"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ConfigurationError, match=message):
        predicted(*problem(), **change)


def test_the_twin_says_when_it_has_not_converged():
    _, features, source, target = problem()
    with pytest.raises(RuntimeError, match="not converged in 3 steps"):
        descend(source[:, 0], features, (features @ target)[:, 0], max_steps=3)
