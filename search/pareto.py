"""Which points no other beats in every objective, and how points rank among one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from wiring.errors import WiringError

Direction = Literal["maximize", "minimize"]
Point = tuple[float, ...]


def pareto_front(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[int]:
    """Indices of the non-dominated points, best first objective first.

    Of equal points only the first is kept; ties in an objective are ordered by the next. Raises
    WiringError for NaN or a point with another number of objectives.
    """
    losses = as_losses(points, directions)
    first: dict[Point, int] = {}
    for index, loss in enumerate(losses):
        first.setdefault(loss, index)
    front = [a for a in first if not any(dominates(b, a) for b in first)]
    return [first[loss] for loss in sorted(front)]


def as_losses(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[Point]:
    """The points with every objective to be minimised."""
    signs = [1.0 if direction == "minimize" else -1.0 for direction in directions]
    losses = []
    for point in points:
        if len(point) != len(signs) or any(math.isnan(value) for value in point):
            raise WiringError(
                f"a point must have {len(signs)} objectives and none NaN, got {tuple(point)}"
            )
        # + 0.0 makes of -0.0, which would be another key, plain 0.0
        losses.append(tuple(s * float(v) + 0.0 for s, v in zip(signs, point, strict=True)))
    return losses


def dominates(a: Point, b: Point) -> bool:
    """Whether loss `a` is nowhere above loss `b` and somewhere below."""
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def ranks(losses: Sequence[Point]) -> list[int]:
    """Rank 0 for the front, 1 for the front of the rest, and so on; equal points rank alike."""
    result = [-1] * len(losses)
    left, rank = set(range(len(losses))), 0
    while left:
        front = {i for i in left if not any(dominates(losses[j], losses[i]) for j in left)}
        for index in front:
            result[index] = rank
        left -= front
        rank += 1
    return result


def crowding(losses: Sequence[Point]) -> list[float]:
    """Crowding distance within one front: infinite at its ends (Deb et al., NSGA-II, 2002)."""
    distance = [0.0] * len(losses)
    for objective in range(len(losses[0]) if losses else 0):
        order = sorted(range(len(losses)), key=lambda i: losses[i][objective])
        low, high = (losses[order[end]][objective] for end in (0, -1))
        distance[order[0]] = distance[order[-1]] = math.inf
        if not 0 < high - low < math.inf:
            continue
        for before, here, after in zip(order, order[1:], order[2:], strict=False):
            gap = losses[after][objective] - losses[before][objective]
            distance[here] += gap / (high - low)
    return distance
