"""Weights that are moved and come back bit for bit, the noise, and Auto-PGD on functions with a known maximum."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from hf_early_ood.errors import ConfigurationError, ProbeError
from hf_early_ood.probes import apgd
from hf_early_ood.probes.apgd import Ball, Point, ascend, checkpoints
from hf_early_ood.probes.isolation import weights_kept
from hf_early_ood.probes.perturbation import measured_parameters, noise, perturbed, squared_norm
from tests import families


def bits(model: nn.Module) -> list[bytes]:
    """The weights as bytes: NaN equals NaN, and -0.0 is not 0.0."""
    return [p.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for p in model.parameters()]


def awkward(dtype: torch.dtype = torch.float32) -> nn.Linear:
    """Weights that w + delta - delta would not bring back."""
    model = nn.Linear(3, 2).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.0, 1e-30, 3.0], [float("nan"), float("inf"), 0.1]]))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fails", [False, True])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype, fails: bool) -> None:
    model = awkward(dtype)
    parameters = dict(model.named_parameters())
    before, ids = bits(model), [(id(p), p.data_ptr(), p._version) for p in model.parameters()]
    try:
        with weights_kept(parameters):
            for parameter in parameters.values():
                parameter.data.add_(1).mul_(3)
            assert bits(model) != before
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert bits(model) == before
    assert [(id(p), p.data_ptr(), p._version) for p in model.parameters()] == ids


def test_a_graph_made_before_can_still_be_gone_back_through() -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    loss = model(x).square().sum()  # keeps the weight for its backward pass
    with weights_kept(dict(model.named_parameters())):
        model.weight.data.zero_()
    (actual,) = torch.autograd.grad(loss, x)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_moved_and_mirrored(dtype: torch.dtype, adaptive: bool) -> None:
    model = nn.Linear(40, 30).to(dtype)
    parameters = dict(model.named_parameters())
    u = [torch.randn(p.shape).to(torch.promote_types(dtype, torch.float32)) for p in parameters.values()]
    w = [p.detach().clone().to(t.dtype) for p, t in zip(parameters.values(), u, strict=True)]
    delta = [t * value if adaptive else t for t, value in zip(u, w, strict=True)]
    before = bits(model)
    with perturbed(parameters, adaptive) as weights:
        for sign in (1, -1):
            if sign == 1:
                weights.move_to(iter(u))
            else:
                weights.mirror()
            for p, value, d in zip(parameters.values(), w, delta, strict=True):
                # One rounding each way.
                torch.testing.assert_close(
                    p.detach().to(d.dtype),
                    value + sign * d,
                    rtol=2 * torch.finfo(dtype).eps,
                    atol=4 * torch.finfo(dtype).eps,
                )
        weights.move_to(weights.by_parameter(weights.zero()))
        assert bits(model) == before
    assert bits(model) == before


def test_pulled_back_is_the_chain_rule() -> None:
    model = nn.Linear(3, 2).double()
    parameters = dict(model.named_parameters())
    x = torch.randn(4, 3, dtype=torch.float64)
    g = torch.autograd.grad(model(x).square().sum(), list(parameters.values()))
    with perturbed(parameters, adaptive=True) as weights:
        point = weights.zero()
        point[0].fill_(7.0)  # what is there is written over
        weights.pull_back([g[0], None], point)
        pulled = weights.by_parameter(point)
    u = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    w = model.weight.detach()
    (expected,) = torch.autograd.grad((x @ (w + w * u).t() + model.bias.detach()).square().sum(), u)
    torch.testing.assert_close(pulled[0], expected)
    assert not pulled[1].any()


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 1e-4), (torch.float32, 1e-9)])
def test_a_perturbation_that_the_weights_cannot_hold(dtype: torch.dtype, size: float) -> None:
    model = nn.Linear(30, 30).to(dtype)
    before = bits(model)
    parameters = dict(model.named_parameters())
    with (
        pytest.raises(ProbeError, match=rf"smaller than the precision of the weights.*{dtype}.*float32 copy"),
        perturbed(parameters, adaptive=False) as weights,
    ):
        weights.move_to(torch.randn(p.shape) * size for p in parameters.values())
    assert bits(model) == before
    with perturbed(parameters, adaptive=False) as weights:  # one that they can
        weights.move_to(torch.randn(p.shape) * 0.1 for p in parameters.values())


def test_adaptive_perturbations_need_weights_that_are_not_zero() -> None:
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with (
        pytest.raises(ProbeError, match=r"radius rho \* \|w\| is zero too. Got: weight, bias.*LoRA starts with B = 0"),
        perturbed(dict(model.named_parameters()), adaptive=True),
    ):
        pass


def test_what_is_measured() -> None:
    model = families.build("bert")
    model.classifier.requires_grad_(False)
    every = set(dict(model.named_parameters()))
    assert set(measured_parameters(model, "all")) == every
    assert set(measured_parameters(model, "trainable")) == every - {"classifier.weight", "classifier.bias"}
    with pytest.raises(ConfigurationError, match=r"Unknown parameters. Got: some"):
        measured_parameters(model, "some")
    with pytest.raises(ProbeError, match=r"no parameter to perturb. Got: requires_grad is False everywhere"):
        measured_parameters(model.requires_grad_(False), "trainable")
    with pytest.raises(ProbeError, match=r"no parameter to perturb. Got: a model without parameters"):
        measured_parameters(nn.Identity(), "all")


def test_parameters_that_cannot_be_perturbed() -> None:
    model = nn.Linear(2, 2)
    model.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    assert set(measured_parameters(model, "trainable")) == {"weight", "bias"}
    with pytest.raises(ProbeError, match=r"cannot be perturbed. Got: codes of type torch.int8"):
        measured_parameters(model, "all")
    model = nn.Linear(2, 2)
    model.twin = nn.Parameter(model.weight.detach())
    with pytest.raises(ProbeError, match=r"share their memory.*Got: weight and twin"):
        measured_parameters(model, "trainable")
    model.twin = model.weight  # tied properly: one parameter
    assert set(measured_parameters(model, "trainable")) == {"weight", "bias"}


def test_noise_depends_on_seed_draw_name_and_shape_only() -> None:
    like = torch.zeros(50, 40)
    reference = noise("a", like, draw=0, seed=0)
    torch.rand(3)
    assert torch.equal(noise("a", like.double(), draw=0, seed=0), reference.double())
    assert noise("a", like.to(torch.bfloat16), draw=0, seed=0).dtype == torch.float32
    others = [noise("b", like, draw=0, seed=0), noise("a", like, draw=1, seed=0), noise("a", like, draw=0, seed=1)]
    for first, second in itertools.combinations([reference, *others], 2):
        correlation = float((first * second).mean())
        assert abs(correlation) < 4 / 2000**0.5
    assert abs(float(reference.mean())) < 4 / 2000**0.5
    assert abs(float(reference.var()) - 1) < 4 * (2 / 2000) ** 0.5


def test_noise_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    noise("a", torch.zeros(3), draw=0, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_norm_of_many_small_numbers() -> None:
    values = torch.full((5_000_003,), 0.1)  # torch's own float32 norm is off by 1e-4 here and more
    expected = 2 * len(values) * float(values[0]) ** 2
    assert squared_norm([values, values[:, None]]) == pytest.approx(expected, rel=2e-6)
    assert squared_norm([torch.zeros(0), torch.tensor(2.0), torch.ones(513)]) == 4 + 513
    assert squared_norm([]) == 0.0


def test_checkpoints() -> None:
    assert checkpoints(1) == checkpoints(0) == ()
    assert checkpoints(10) == (3, 5, 6, 7, 8, 9)
    assert all(0 < look < steps for steps in range(40) for look in checkpoints(steps))


class Quadratic:
    """f(x) = x'Ax / 2 + b'x, with a record of all points asked for."""

    def __init__(self, matrix: Tensor, slope: Tensor) -> None:
        self.matrix, self.slope = matrix, slope
        self.points: list[Tensor] = []

    def __call__(self, point: Point, gradient: Point | None) -> float:
        x = torch.cat(point)
        self.points.append(x)
        if gradient is not None:
            write(gradient, self.matrix @ x + self.slope)
        return float(x @ (self.matrix @ x)) / 2 + float(self.slope @ x)


def write(point: Point, values: Tensor) -> None:
    for tensor, part in zip(point, values.split([t.numel() for t in point]), strict=True):
        tensor.copy_(part)


def quadratic(seed: int) -> Quadratic:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return Quadratic(root + root.t(), torch.randn(6, generator=generator, dtype=torch.float64))


def start() -> list[Tensor]:
    return [torch.zeros(2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)]


def largest_in_l2_ball(f: Quadratic, radius: float) -> float:
    """The maximum solves (m - A) x = b with m above all eigenvalues and ||x|| = radius."""
    values, vectors = torch.linalg.eigh(f.matrix)
    b = vectors.t() @ f.slope
    top = float(values[-1])
    inside = -b / values
    if top < 0 and float(inside.norm()) <= radius:
        x = inside
    else:
        m = brentq(lambda m: float((b / (m - values)).norm()) - radius, max(top, 0) + 1e-9, abs(top) + 1e6)
        x = b / (m - values)
    return float(0.5 * x @ (values * x) + b @ x)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("radius", [0.01, 1.0])
def test_reaches_the_maximum_in_l2(seed: int, radius: float) -> None:
    f = quadratic(seed)
    expected = largest_in_l2_ball(f, radius)
    few, many = (ascend(quadratic(seed), start(), Ball("l2", radius), steps).best for steps in (15, 200))
    assert 0.9 * expected < few <= expected * (1 + 1e-9)
    # Not concave: where it is curved up most, another valley may be higher.
    assert many == pytest.approx(expected, rel=2e-3)
    ascend(f, start(), Ball("l2", radius), 15)
    assert all(float(x.norm()) <= radius * (1 + 1e-12) for x in f.points)
    assert len(f.points) == 16


@pytest.mark.parametrize("seed", range(4))
def test_reaches_the_maximum_in_linf(seed: int) -> None:
    """A convex function is largest in a corner of the cube; a nearly linear one has no other summits."""
    f = quadratic(seed)
    f.matrix = f.matrix @ f.matrix * 0.02
    corners = torch.tensor(list(itertools.product([-0.3, 0.3], repeat=6)), dtype=torch.float64)
    expected = max(float(x @ f.matrix @ x) / 2 + float(f.slope @ x) for x in corners)
    assert ascend(f, start(), Ball("linf", 0.3), 15).best == pytest.approx(expected, rel=1e-9)
    assert all(float(x.abs().max()) <= 0.3 for x in f.points)


def test_steps_are_halved_from_the_best_point() -> None:
    """A sharp peak inside the ball: without halving the search would jump over it for ever."""
    f = Quadratic(-torch.eye(6, dtype=torch.float64), torch.full((6,), 0.01, dtype=torch.float64))
    visited = ascend(f, start(), Ball("l2", 1.0), 50)
    assert visited.best == pytest.approx(6 * 0.01**2 / 2, rel=1e-2)
    assert visited.step_sizes[0] == 2.0
    ratios = {b / a for a, b in itertools.pairwise(visited.step_sizes)}
    assert ratios == {1.0, 0.5}
    changed = [n for n, (a, b) in enumerate(itertools.pairwise(visited.step_sizes), start=1) if a != b]
    assert set(changed) <= set(checkpoints(50))
    assert visited.start == 0.0


def test_a_search_without_success_is_negative() -> None:
    """At the top there is nowhere to rise, and the starting point does not count."""
    f = Quadratic(-torch.eye(6, dtype=torch.float64), torch.full((6,), 1e-9, dtype=torch.float64))
    assert ascend(f, start(), Ball("l2", 1.0), 3).best < 0


def test_a_flat_function_is_no_error() -> None:
    def flat(point: Point, gradient: Point | None) -> float:
        if gradient is not None:
            write(gradient, torch.zeros(6))
        return 1.0

    assert ascend(flat, start(), Ball("l2", 1.0), 15).best == 1.0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pieces_make_no_difference(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = quadratic(3), quadratic(3)
    ascend(whole, start(), Ball(norm, 0.5), 15)
    monkeypatch.setattr(apgd, "_PIECE", 1)
    ascend(pieces, start(), Ball(norm, 0.5), 15)
    torch.testing.assert_close(torch.stack(pieces.points), torch.stack(whole.points), rtol=1e-12, atol=1e-12)


def test_weights_of_several_types_make_one_point() -> None:
    """float32 or better for all, in the shapes and the order of the parameters."""
    parameters = {
        "a": nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16)),
        "b": nn.Parameter(torch.ones((), dtype=torch.float64)),
        "c": nn.Parameter(torch.ones(4)),
    }
    with perturbed(parameters, adaptive=False) as weights:
        (flat,) = point = weights.zero()
        flat.copy_(torch.arange(11.0))
        assert [tuple(view.shape) for view in weights.by_parameter(point)] == [(2, 3), (), (4,)]
        weights.move_to(weights.by_parameter(point))
        assert flat.dtype == torch.float64
        assert torch.cat([p.detach().double().flatten() for p in parameters.values()]).tolist() == list(range(1, 12))


@pytest.mark.parametrize(
    ("values", "halved"),
    [
        ([10.0, 1.0, 2.0, 3.0, 4.0], True),  # rises often enough, but the best is still the start
        ([10.0, 9.0, 9.5, 9.7, 11.0], False),  # three rises of four, and a new best
        ([10.0, 12.0, 9.5, 9.7, 9.6], True),  # a new best, but too few rises
    ],
)
def test_when_steps_are_halved(values: list[float], halved: bool) -> None:
    """The first look, after 4 of 15 steps, with values from a script."""
    script = iter(values + [0.0] * 20)
    asked = []

    def evaluate(point: Point, gradient: Point | None) -> float:
        asked.append(torch.cat(point))
        if gradient is not None:
            write(gradient, torch.ones(6))
        return next(script)

    visited = ascend(evaluate, start(), Ball("linf", 1.0), 15)
    assert visited.step_sizes[:5] == (2.0,) * 4 + ((1.0,) if halved else (2.0,))
    assert visited.best == max(values[1:])
