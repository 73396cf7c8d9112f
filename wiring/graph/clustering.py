"""k-means: of numbers, and of the vectors that lie side by side in many blocks.

Lloyd's iteration (S. P. Lloyd: Least squares quantization in PCM, IEEE Transactions on Information
Theory 1982): each value goes to the nearest centroid, each centroid to the mean of its values; what
has no values stays where it is. Numbers are sorted once: then a cluster is a stretch of them, its
bounds are found by bisection, and its mean by two entries of a running sum, so that an iteration
over n numbers takes O(k log n). Everything is deterministic: sums are made in float64, ties go to
the lower centroid.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Init = Literal["linear", "density", "random"]

ITERATIONS = 100
CHUNK = 1 << 22  # distances held at once


def number_centroids(
    values: Tensor,
    count: int,
    *,
    init: Init = "linear",
    seed: int = 0,
    iterations: int = ITERATIONS,
) -> Tensor:
    """`count` centroids of numbers [n], ascending, in the values' type; zeros where n is 0.

    First centroids (Han et al. 2016, section 3.2): `linear` evenly between the least and the
    greatest value, `density` at evenly spaced quantiles, `random` at values drawn by `seed`. No
    more distinct values than centroids give back exactly those, the last one repeated.
    """
    if not values.numel():
        return values.new_zeros(count)
    ordered = values.detach().flatten().sort().values
    distinct = torch.unique_consecutive(ordered)
    if len(distinct) <= count:
        return torch.cat([distinct, distinct[-1:].expand(count - len(distinct))])
    exact = ordered.double()
    sums = torch.cat([exact.new_zeros(1), exact.cumsum(0)])
    centroids = _first_numbers(exact, distinct.double(), count, init, seed)
    before = None
    for _ in range(iterations):
        ends = torch.searchsorted(exact, _middles(centroids), right=True)
        bounds = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(exact))])
        if before is not None and torch.equal(bounds, before):
            break
        before = bounds
        sizes = bounds.diff()
        means = (sums[bounds[1:]] - sums[bounds[:-1]]) / sizes.clamp(min=1)
        centroids = torch.where(sizes > 0, means, centroids).sort().values
    return centroids.to(values.dtype)


def _first_numbers(ordered: Tensor, distinct: Tensor, count: int, init: Init, seed: int) -> Tensor:
    """The centroids that Lloyd's iteration starts from, ascending; float64 [count]."""
    low, high = float(ordered[0]), float(ordered[-1])
    if init == "linear":
        return torch.linspace(low, high, count, dtype=ordered.dtype, device=ordered.device)
    if init == "density":
        places = (torch.arange(count, device=ordered.device) + 0.5) / count * len(ordered)
        return ordered[places.long()]
    drawn = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))[:count]
    return distinct[drawn.sort().values.to(distinct.device)]


def _middles(centroids: Tensor) -> Tensor:
    """The borders between neighbouring clusters [k - 1]."""
    return (centroids[1:] + centroids[:-1]) / 2


def nearest_number(values: Tensor, centroids: Tensor) -> Tensor:
    """The place of the nearest of ascending centroids [k] for each value; int64, ties to the
    lower."""
    borders = _middles(centroids.detach().double())
    return torch.searchsorted(borders, values.detach().double().contiguous())


def vector_centroids(
    points: Tensor, live: Tensor, count: int, *, seed: int = 0, iterations: int = 25
) -> tuple[Tensor, Tensor]:
    """(centroids [B, k, d], codes int64 [B, M]) of the points [B, M, d] of B blocks, k = `count`.

    Distances and means are taken over live entries alone, bool [B, M, d]; a centroid is 0 where
    no point of its cluster lives. The first centroids are drawn by k-means++ (Arthur &
    Vassilvitskii, SODA 2007), with dead entries as 0. As many centroids as points, or as distinct
    points, give the points themselves.
    """
    blocks, size, width = points.shape
    generator = torch.Generator().manual_seed(seed)
    exact = torch.where(live, points.detach(), 0.0).double()
    centroids = exact.new_zeros(blocks, count, width)
    codes = torch.zeros(blocks, size, dtype=torch.int64, device=points.device)
    step = max(1, CHUNK // max(1, size * max(count, width)))
    for begin in range(0, blocks, step):
        part = slice(begin, begin + step)
        centroids[part], codes[part] = _cluster(
            exact[part], live[part], count, generator, iterations
        )
    return centroids.to(points.dtype), codes


def _cluster(
    points: Tensor, live: Tensor, count: int, generator: torch.Generator, iterations: int
) -> tuple[Tensor, Tensor]:
    """k-means of some blocks, float64."""
    mask = live.double()
    centroids = _plus_plus(points, mask, count, generator)
    codes = nearest_vector(points, mask, centroids)
    for _ in range(iterations):
        centroids = _means(points, mask, codes, centroids)
        moved = nearest_vector(points, mask, centroids)
        if torch.equal(moved, codes):
            break
        codes = moved
    return _means(points, mask, codes, centroids), codes


def _means(points: Tensor, mask: Tensor, codes: Tensor, centroids: Tensor) -> Tensor:
    """Means of the live entries of each cluster, what they were where there are none."""
    places = codes[:, :, None].expand_as(points)
    sums = torch.zeros_like(centroids).scatter_add_(1, places, points)
    counts = torch.zeros_like(centroids).scatter_add_(1, places, mask)
    return torch.where(counts > 0, sums / counts.clamp(min=1), centroids)


def nearest_vector(points: Tensor, mask: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid [B, k, d] of each point [B, M, d], whose masked entries are 0, by
    Σ mask·(p - c)²; int64 [B, M], ties to the lower."""
    blocks, size, _ = points.shape
    codes = torch.empty(blocks, size, dtype=torch.int64, device=points.device)
    step = max(1, CHUNK // max(1, blocks * centroids.shape[1]))
    for begin in range(0, size, step):
        rows = slice(begin, begin + step)
        # |p|² is the same for every centroid.
        distance = torch.bmm(mask[:, rows], centroids.square().mT)
        distance.baddbmm_(points[:, rows], centroids.mT, alpha=-2)
        codes[:, rows] = distance.argmin(dim=2)
    return codes


def _plus_plus(points: Tensor, mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """First centroids [B, k, d]: each a point of which something lives, drawn by its squared
    distance to those before."""
    blocks, size, _ = points.shape
    if count >= size:
        pad = points[:, -1:].expand(-1, count - size, -1)
        return torch.cat([points, pad], dim=1)
    block = torch.arange(blocks, device=points.device)
    alive = mask.amax(dim=2)
    drawn = torch.rand(count, blocks, generator=generator, dtype=torch.float64)
    away = alive
    chosen: list[Tensor] = []
    for draw in drawn.to(points.device):
        sums = away.cumsum(dim=1)
        place = torch.searchsorted(sums, (draw * sums[:, -1])[:, None], right=True)[:, 0]
        # Nothing is away from what is chosen already: any point will do.
        one = points[block, place.clamp(max=size - 1)]
        chosen.append(one)
        distance = (points - one[:, None]).square().sum(dim=2) * alive
        away = distance if len(chosen) == 1 else torch.minimum(away, distance)
    return torch.stack(chosen, dim=1)
