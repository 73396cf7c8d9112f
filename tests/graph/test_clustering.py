"""k-means of numbers and of vectors: where it ends, what it starts from, what it finds exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wiring.graph.clustering import (
    Init,
    nearest_number,
    nearest_vector,
    number_centroids,
    vector_centroids,
)

F64 = torch.float64
INITS: tuple[Init, ...] = ("linear", "density", "random")


def numbers(count: int = 300) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=F64) ** 3


def plain_lloyd(values: Tensor, centroids: Tensor) -> Tensor:
    """Lloyd's iteration as one would write it down."""
    for _ in range(100):
        codes = (values[:, None] - centroids[None]).abs().argmin(dim=1)
        means = [values[codes == j].mean() for j in range(len(centroids)) if (codes == j).any()]
        empty = [centroids[j] for j in range(len(centroids)) if not (codes == j).any()]
        centroids = torch.stack([*means, *empty]).sort().values
    return centroids


@pytest.mark.parametrize("count", [2, 5, 24])
def test_numbers_end_where_the_plain_iteration_does(count: int) -> None:
    values = numbers()
    first = torch.linspace(float(values.min()), float(values.max()), count, dtype=F64)
    torch.testing.assert_close(number_centroids(values, count), plain_lloyd(values, first))


@pytest.mark.parametrize("init", INITS)
def test_every_first_choice_ends_at_means_of_nearest_numbers(init: Init) -> None:
    values = numbers()
    found = number_centroids(values, 9, init=init, seed=3)
    codes = nearest_number(values, found)
    assert torch.equal(codes, (values[:, None] - found).abs().argmin(dim=1))
    for code in codes.unique().tolist():
        torch.testing.assert_close(found[code], values[codes == code].mean())
    assert torch.equal(found, number_centroids(values, 9, init=init, seed=3))


def test_first_centroids_lie_where_the_paper_says() -> None:
    values = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 10.0], dtype=F64)
    linear, density = (number_centroids(values, 3, init=i, iterations=0) for i in INITS[:2])
    assert linear.tolist() == [0, 5, 10]
    assert density.tolist() == [0.1, 0.3, 10]
    drawn = [number_centroids(values, 3, init="random", seed=s, iterations=0) for s in range(9)]
    assert all(set(one.tolist()) <= set(values.tolist()) for one in drawn)
    assert len({tuple(one.tolist()) for one in drawn}) > 1


def test_as_many_centroids_as_distinct_numbers_are_those() -> None:
    values = torch.tensor([0.3, -1.7, 0.3, 0.1, 0.1, 0.1])
    for count in (3, 5):
        found = number_centroids(values, count)
        assert torch.equal(found[nearest_number(values, found)], values)
    assert number_centroids(values[:0], 4).tolist() == [0, 0, 0, 0]


def points(blocks: int = 3, size: int = 40, width: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(blocks, size, width, generator=generator, dtype=F64)
    return drawn, torch.rand(drawn.shape, generator=generator) < 0.7


def test_vectors_end_at_means_of_nearest_vectors_over_live_entries() -> None:
    values, live = points()
    centroids, codes = vector_centroids(values, live, 5)
    distance = ((values[:, :, None] - centroids[:, None]) ** 2 * live[:, :, None]).sum(dim=3)
    assert torch.equal(codes, distance.argmin(dim=2))
    for block in range(3):
        for code in codes[block].unique().tolist():
            chosen, alive = values[block][codes[block] == code], live[block][codes[block] == code]
            mean = (chosen * alive).sum(dim=0) / alive.sum(dim=0)
            found = centroids[block, code]
            torch.testing.assert_close(found[alive.any(dim=0)], mean[alive.any(dim=0)])


def test_blocks_in_pieces_are_assigned_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values, live = points()
    centroids, _ = vector_centroids(values, live, 5)
    mask = live.double()
    whole = nearest_vector(values * mask, mask, centroids)
    monkeypatch.setattr("wiring.graph.clustering.CHUNK", 30)
    assert torch.equal(nearest_vector(values * mask, mask, centroids), whole)
    pieces, codes = vector_centroids(values, live, 40)
    assert torch.equal(pieces.gather(1, codes[:, :, None].expand(-1, -1, 4)) * mask, values * mask)


def test_as_many_centroids_as_distinct_vectors_are_those() -> None:
    kinds, _ = points(2, 6)
    choice = torch.randint(6, (2, 50), generator=torch.Generator().manual_seed(2))
    choice[:, :6] = torch.arange(6)
    values = kinds.float().gather(1, choice[:, :, None].expand(-1, -1, 4))
    centroids, codes = vector_centroids(values, torch.ones_like(values, dtype=torch.bool), 6)
    assert torch.equal(centroids.gather(1, codes[:, :, None].expand(-1, -1, 4)), values)
