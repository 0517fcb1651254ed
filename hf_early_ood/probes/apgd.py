"""Auto-PGD: the search for the largest value of a function in a ball, without a step size to choose.

Croce and Hein (2020, arXiv 2003.01690, Algorithm 1). A point is a list of flat tensors, taken together as one vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NORMS = ("l2", "linf")
Point = list[Tensor]
# Value at a point; its gradient is written into the second point, unless the caller can do without.
Evaluate = Callable[[Point, Point | None], float]

_FIRST_CHECKPOINT, _SHRINKING, _SHORTEST = 22, 3, 6  # per cent of the steps
_ENOUGH_RISES = 0.75
_ALPHA = 0.75
# On the CPU a chain of operations goes through pieces that stay in the cache: half the time for 20 million elements.
_PIECE = 2**16


@dataclass(frozen=True)
class Ball:
    """The points u with ||u|| <= radius.

    Attributes:
        norm: "l2" or "linf".
        radius: Of the ball.
    """

    norm: str
    radius: float

    def advance(self, point: Point, gradient: Point, previous: Point, size: float, *, alpha: float, out: Point) -> None:
        r"""One step of the search, into ``out``, which may be ``previous``.

            z = project(x + eta * direction),    out = project(alpha z + 2 (1 - alpha) x - (1 - alpha) x_previous)

        Args:
            point: x.
            gradient: At x; the direction is it divided by its norm (L2) or its signs (L-infinity).
            previous: The point before x.
            size: eta.
            alpha: Weight of the new direction; 1: nothing is kept of the one before.
            out: The new point.
        """
        kept = 1 - alpha
        if self.norm == "linf":
            for x, g, before, new in _pieces(point, gradient, previous, out):
                z = torch.sign(g).mul_(size).add_(x).clamp_(-self.radius, self.radius)
                torch.mul(before, -kept, out=new).add_(x, alpha=2 * kept).add_(z, alpha=alpha)
                new.clamp_(-self.radius, self.radius)
            return
        # All points are in the plane of three vectors: their inner products tell every length beforehand.
        xx, gg, pp, xg, xp, gp = _inner_products(point, gradient, previous)
        # Where the gradient is zero there is no direction to go.
        step = size / math.sqrt(gg) if gg > 0 else 0.0
        shrunk = alpha * self._shrinking(xx + 2 * step * xg + step * step * gg)
        a, b, c = shrunk + 2 * kept, shrunk * step, -kept
        shrunk = self._shrinking(a * a * xx + b * b * gg + c * c * pp + 2 * (a * b * xg + a * c * xp + b * c * gp))
        for x, g, before, new in _pieces(point, gradient, previous, out):
            torch.mul(before, c * shrunk, out=new).add_(x, alpha=a * shrunk).add_(g, alpha=b * shrunk)

    def _shrinking(self, squared_length: float) -> float:
        """What a vector is to be multiplied by to be in the ball."""
        length = math.sqrt(max(squared_length, 0.0))
        return self.radius / length if length > self.radius else 1.0


def _pieces(*points: Point) -> Iterator[tuple[Tensor, ...]]:
    for tensors in zip(*points, strict=True):
        first = tensors[0]
        size = _PIECE if first.device.type == "cpu" else first.numel()
        yield from zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _inner_products(x: Point, g: Point, p: Point) -> tuple[float, ...]:
    """x.x, g.g, p.p, x.g, x.p and g.p, summed over the pieces in float64."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for u, v, w in _pieces(x, g, p):
        products = torch.stack([u.dot(u), v.dot(v), w.dot(w), u.dot(v), u.dot(w), v.dot(w)])
        by_device.setdefault(u.device, []).append(products)
    # One transfer per device, and to the CPU first: not every device has float64.
    sums = [torch.stack(parts).cpu().double().sum(0) for parts in by_device.values()]
    return tuple(torch.stack(sums).sum(0).tolist())


@dataclass(frozen=True)
class Visited:
    """What a search saw.

    Attributes:
        start: Value at the starting point.
        values: Values at the points after it, one per step.
        step_sizes: Size of each step.
    """

    start: float
    values: tuple[float, ...]
    step_sizes: tuple[float, ...]

    @property
    def best(self) -> float:
        """Largest value after the starting point."""
        return max(self.values)


def checkpoints(steps: int) -> tuple[int, ...]:
    """Numbers of steps after which the step size is looked at.

    They are at 22 % of the steps, then at gaps that shrink by 3 % of the steps, but not below 6 %; rounded up.

    Example:
        >>> checkpoints(15), checkpoints(100)
        ((4, 7, 9, 11, 12, 14), (22, 41, 57, 70, 80, 87, 93, 99))
    """
    found, gap, percent = set(), _FIRST_CHECKPOINT, _FIRST_CHECKPOINT
    while percent < 100:
        found.add(-(-percent * steps // 100))  # whole numbers: 0.80 * 15 must not round up to 13
        gap = max(gap - _SHRINKING, _SHORTEST)
        percent += gap
    return tuple(sorted(number for number in found if number < steps))


def ascend(evaluate: Evaluate, start: Point, ball: Ball, steps: int) -> Visited:
    r"""Search the ball for the largest value of a function, with ``steps`` gradients and one value more.

    From x_k, with z the projection of x_k + eta * direction and alpha = 0.75 (1 in the first step):

        x_{k+1} = project(x_k + alpha (z - x_k) + (1 - alpha) (x_k - x_{k-1}))

    eta starts at twice the radius. At a `checkpoints` number of steps it is halved, and the search goes on from
    the best point so far, if fewer than 75 % of the steps since the last one raised the value, or if neither eta
    nor the best value changed since then.

    Args:
        evaluate: Called with a point, and where to write its gradient, or None where that is not needed. It must
            keep neither.
        start: First point, inside the ball. Its memory is used for later points.
        ball: Where to search.
        steps: Number of steps, 1 or more.

    Returns:
        The values at all points visited.

    Example:
        >>> slope = torch.tensor([3.0, 4.0])
        >>> def linear(x, gradient):
        ...     if gradient is not None:
        ...         gradient[0].copy_(slope)
        ...     return float(slope @ x[0])
        >>> visited = ascend(linear, [torch.zeros(2)], Ball("l2", 0.1), 5)
        >>> round(visited.best, 6)
        0.5
    """
    looks = checkpoints(steps)
    size, sizes = 2 * ball.radius, []
    point = previous = best_point = start
    gradient = best_gradient = [torch.empty_like(tensor) for tensor in start]
    value = best_value = first = evaluate(point, gradient)
    # What is not held any more is written over: fresh memory costs as much as the arithmetic.
    points, gradients, values = [start], [gradient], []
    rises, look, look_size, look_best = 0, 0, size, best_value
    for done in range(1, steps + 1):
        # The previous point may be: it is read piece by piece before it is written.
        moved = _unused(points, (point, best_point))
        ball.advance(point, gradient, previous, size, alpha=1.0 if done == 1 else _ALPHA, out=moved)
        before, previous, point = value, point, moved
        if done < steps:
            gradient = _unused(gradients, (best_gradient,))
            value = evaluate(point, gradient)
        else:
            value = evaluate(point, None)
        values.append(value)
        sizes.append(size)
        rises += value > before
        if value > best_value:
            best_value, best_point, best_gradient = value, point, gradient
        if done in looks:
            few = rises < _ENOUGH_RISES * (done - look)
            same = size == look_size and best_value == look_best
            rises, look, look_size, look_best = 0, done, size, best_value
            if few or same:
                size /= 2
                value, point, gradient = best_value, best_point, best_gradient
    return Visited(first, tuple(values), tuple(sizes))


def _unused(pool: list[Point], held: tuple[Point, ...]) -> Point:
    """One of the pool that is not held, made and added if there is none."""
    for candidate in pool:
        if not any(candidate is other for other in held):
            return candidate
    pool.append([torch.empty_like(tensor) for tensor in pool[0]])
    return pool[-1]
