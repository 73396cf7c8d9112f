"""The fly's hash: its projection, who wins, what it costs, and neighbours found by it."""

from __future__ import annotations

import math

import pytest
import torch
from method_cases import Shape, images, make, masks
from torch import Tensor
from torch.nn.functional import conv2d

from wiring.config import Component
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.edges import EdgeOp
from wiring.graph.static import StaticGraph
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology
from wiring.methods.fly_hash import FlyHash, FlyTags, sampled

SHAPE = Shape("3x3", sources=4, destinations=12, kernel=(3, 3), padding=1, density=1.0)


def fly(**options: float) -> tuple[EdgeOp, Tensor]:
    """(an operator, all of its edges)."""
    op = make("fly-hash", SHAPE, **options)
    return op, torch.ones(op.shape, dtype=torch.bool)


def test_every_destination_samples_its_share_by_the_smallest_hashes() -> None:
    op, every = fly(sample=0.25, seed=3)
    assert set(op.weight.unique().tolist()) == {0.0, 1.0}
    assert op.weight.sum(dim=(1, 2, 3)).tolist() == [9.0] * 12  # of 36
    assert not torch.equal(op.weight, fly(sample=0.25, seed=4)[0].weight)
    assert torch.equal(op.weight, fly(sample=0.25, seed=3)[0].weight)
    share = sampled(400, 50, 0.1, 0).double().mean(dim=0)
    assert share.mean().item() == pytest.approx(0.1)
    assert share.std().item() == pytest.approx(math.sqrt(0.09 / 400), rel=0.3)
    assert op.cost(every, 25) == Cost(additions=12 * 9 * 25)


@pytest.mark.parametrize(("winners", "count"), [(0.05, 1), (0.25, 3), (1.0, 12)])
def test_the_largest_sums_of_a_pixel_keep_their_value_and_the_rest_are_silent(
    winners: float, count: int
) -> None:
    op, every = fly(sample=0.3, winners=winners)
    x = images(SHAPE)
    sums = conv2d(x, op.weight, padding=1)
    y = op(x, every, every)
    order = sums.argsort(dim=1, descending=True)
    wins = torch.zeros_like(sums, dtype=torch.bool).scatter_(1, order[:, :count], True)
    torch.testing.assert_close(y, sums * wins)


def test_the_gradient_goes_through_winners_alone() -> None:
    op, every = fly(sample=0.3, winners=0.25)
    x = images(SHAPE).requires_grad_()
    y = op(x, every, every)
    g = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    (found,) = torch.autograd.grad(y, x, g)
    (wanted,) = torch.autograd.grad(conv2d(x, op.weight, padding=1), x, g * (y != 0))
    torch.testing.assert_close(found, wanted)


def test_dead_edges_add_nothing_and_destinations_without_edges_never_win() -> None:
    shape = Shape("sparse", sources=12, destinations=6, density=0.4)
    op = make("fly-hash", shape, sample=0.9, winners=0.5)
    live, learn = masks(shape)
    x = images(shape) - 9  # all sums are negative: one without edges would be the largest
    y = op(x, live, learn)
    assert not y[:, 0].any()
    assert (y != 0).sum(dim=1).eq(3).all()
    op.weight[~live] = 1e3
    assert torch.equal(op(x, live, learn), y)


def test_nothing_is_learned_stored_cut_or_taken_over() -> None:
    op, every = fly()
    assert list(op.parameters()) == []
    assert op.state_dict() == {}
    assert op.pack(every) == {}
    assert op.restrict(torch.arange(12), torch.arange(4)) == {}
    with pytest.raises(WiringError, match="none can be cut out"):
        op.restrict(torch.arange(11), torch.arange(4))
    with pytest.raises(WiringError, match="takes over no trained weights"):
        op.approximate(torch.zeros(op.shape))


def test_rules_that_set_weights_are_refused() -> None:
    topology = Topology(
        groups=(NodeGroup(name="in", size=8), NodeGroup(name="out", size=6)),
        bundles=(Bundle(name="edges", sources=("in",), destination="out"),),
        scopes=(Scope(name="all", bundles=("edges",), budget=20),),
    )
    with pytest.raises(WiringError, match=r"AnnealedL1 sets single weights .* FlyHash"):
        StaticGraph(topology, Component(name="fly-hash"), Component(name="l1-anneal"))


def average_precision(nearness: Tensor, relevant: Tensor) -> float:
    """Mean over items of the precision at each relevant one, the items themselves left out."""
    order = nearness.fill_diagonal_(-math.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]
    found = relevant.gather(1, order).double()
    precision = found.cumsum(dim=1) / torch.arange(1, order.shape[1] + 1)
    return float(((precision * found).sum(dim=1) / found.sum(dim=1)).mean())


@pytest.mark.parametrize("length", [4, 8, 16])
def test_tags_find_more_of_the_nearest_than_dense_projections_of_the_same_length(
    length: int,
) -> None:
    generator = torch.Generator().manual_seed(length)
    centres = torch.randn(40, 1, 48, generator=generator).exp()
    x = (centres * (torch.randn(40, 10, 48, generator=generator) / 2).exp()).flatten(0, 1)
    distance = torch.cdist(x, x).fill_diagonal_(math.inf)
    nearest = distance.topk(len(x) // 50, largest=False).indices
    relevant = torch.zeros(distance.shape, dtype=torch.bool).scatter_(1, nearest, True)
    tags = FlyTags(48, length)
    tags.add(x)
    dense = (x - x.mean(dim=1, keepdim=True)) @ torch.randn(48, length, generator=generator)
    signs = dense.sign() @ dense.sign().T
    by_tags = average_precision(tags.overlaps(x), relevant)
    assert by_tags > average_precision(signs, relevant) + 0.15


def test_items_are_numbered_as_they_come_and_each_is_its_own_nearest() -> None:
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    tags = FlyTags(20, 12, expansion=20)
    tags.add(x[:10])
    tags.add(x[10:])
    assert tags.nearest(x, 3)[:, 0].tolist() == list(range(30))
    found, sums = tags.tags(x), x @ tags.projection.float().T
    assert found.sum(dim=1).tolist() == [12] * 30
    least = sums.masked_fill(~found, math.inf).amin(dim=1)
    assert (least >= sums.masked_fill(found, -math.inf).amax(dim=1)).all()
    assert torch.equal(tags.tags(x + 5.0), tags.tags(x))  # only differences count


def test_tags_that_cannot_be_are_refused_in_a_sentence() -> None:
    with pytest.raises(WiringError, match=r"1\.\.200 winners, got 0"):
        FlyTags(20, 0)
    with pytest.raises(WiringError, match=r"share in \(0, 1\], got 0"):
        FlyTags(20, 5, sample=0)
    tags = FlyTags(20, 5)
    with pytest.raises(WiringError, match=r"items are \[N, 20\], got \[3, 19\]"):
        tags.add(torch.zeros(3, 19))
    with pytest.raises(WiringError, match="0 items are known, 1 were asked for"):
        tags.nearest(torch.zeros(1, 20), 1)


def test_an_operator_without_parameters_has_parts() -> None:
    op = FlyHash(4, 3)
    assert EdgeOp.part(op, torch.arange(3), torch.arange(4)).shape == op.shape
