"""Auto-PGD: the search for the largest value of a function in a ball, without a step size to choose.

Croce and Hein (2020, arXiv 2003.01690, Algorithm 1). A point is a list of tensors, taken together as one vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_early_ood.probes.perturbation import squared_norm

NORMS = ("l2", "linf")
Point = list[Tensor]
# Value at a point, and its gradient unless the caller can do without.
Evaluate = Callable[[Point, bool], tuple[float, Point | None]]

_FIRST_CHECKPOINT, _SHRINKING, _SHORTEST = 22, 3, 6  # per cent of the steps
_ENOUGH_RISES = 0.75
_ALPHA = 0.75


@dataclass(frozen=True)
class Ball:
    """The points u with ||u|| <= radius.

    Attributes:
        norm: "l2" or "linf".
        radius: Of the ball.
    """

    norm: str
    radius: float

    def step(self, point: Point, gradient: Point, size: float) -> Point:
        """New point: ``size`` along the gradient (L2) or its signs (L-infinity), before projection."""
        if self.norm == "linf":
            moved = list(torch._foreach_sign(gradient))
            torch._foreach_mul_(moved, size)
            torch._foreach_add_(moved, point)
            return moved
        length = math.sqrt(squared_norm(gradient))
        # Where the gradient is zero there is no direction to go.
        return list(torch._foreach_add(point, gradient, alpha=size / length if length > 0 else 0.0))

    def project_(self, point: Point, times: float = 1.0) -> None:
        """Move ``point``, in place, to the nearest one of the ball, and multiply that by ``times``."""
        if self.norm == "linf":
            torch._foreach_clamp_min_(point, -self.radius)
            torch._foreach_clamp_max_(point, self.radius)
        else:
            length = math.sqrt(squared_norm(point))
            times *= self.radius / length if length > self.radius else 1.0
        if times != 1.0:
            torch._foreach_mul_(point, times)


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
        evaluate: Called with a point, and whether its gradient is needed.
        start: First point, inside the ball. Not changed.
        ball: Where to search.
        steps: Number of steps, 1 or more.

    Returns:
        The values at all points visited.

    Example:
        >>> slope = torch.tensor([3.0, 4.0])
        >>> visited = ascend(lambda x, _: (float(slope @ x[0]), [slope]), [torch.zeros(2)], Ball("l2", 0.1), 5)
        >>> round(visited.best, 6)
        0.5
    """
    looks = checkpoints(steps)
    size, sizes = 2 * ball.radius, []
    point = previous = start
    value, gradient = evaluate(start, True)
    best_value, best_point, best_gradient = value, point, gradient
    first, values = value, []
    rises, look, look_size, look_best = 0, 0, size, best_value
    for done in range(1, steps + 1):
        assert gradient is not None
        moved = ball.step(point, gradient, size)
        if done == 1:
            ball.project_(moved)
        else:
            ball.project_(moved, times=_ALPHA)
            torch._foreach_add_(moved, point, alpha=2 * (1 - _ALPHA))
            torch._foreach_add_(moved, previous, alpha=_ALPHA - 1)
            ball.project_(moved)
        before, previous, point = value, point, moved
        value, gradient = evaluate(point, done < steps)
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
