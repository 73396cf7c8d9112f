"""Separable, biclustered and monochromatic weights: nearest, exact at full size, formulas."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import pytest
import torch
from factored_cases import alive, data_error, drawn, error, make, run, seen
from method_cases import SHAPES

from wiring.errors import ConfigError, WiringError
from wiring.graph.balanced_clusters import balanced_clusters
from wiring.graph.ranks import second_moments
from wiring.methods.separable import DataFit

WEIGHT = drawn(12, 5, 3, 3)


def separable(**options: Any) -> Any:
    return make("separable", **options)


@pytest.mark.parametrize("filters", [1, 6, 15])
def test_what_is_left_of_the_filters_are_the_smaller_singular_values(filters: int) -> None:
    op = separable(filters=filters)
    op.approximate(WEIGHT)
    matrix = torch.stack(
        [WEIGHT[:, s, y].flatten() for s in range(5) for y in range(3)]
    )  # a row for each source and kernel row
    tail = torch.linalg.svdvals(matrix)[filters:].square().sum()
    assert error(op, WEIGHT) == pytest.approx(float(tail), abs=1e-12)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((3, 5), 1, 2), ((3, 3), 2, 1), ((5, 1), 2, 1)]
)
def test_columns_then_rows_are_the_convolution(
    kernel: tuple[int, int], stride: int, padding: int
) -> None:
    op = make("separable", kernel=kernel, stride=stride, padding=padding, filters=99)
    op.approximate(weight := drawn(12, 5, *kernel))
    x = drawn(2, 5, 9, 8)
    wanted = torch.nn.functional.conv2d(x, weight, stride=stride, padding=padding)
    torch.testing.assert_close(run(op, x), wanted)


def test_a_separable_layer_costs_k_times_side_times_channels() -> None:
    op = separable(filters=4)
    cost = op.cost(alive(op), 49)
    assert cost.multiplications == cost.additions == 4 * 3 * (5 + 12) * 49
    assert cost.weight_bits == 32 * 4 * 3 * (5 + 12)
    strided = make("separable", stride=2, filters=4)
    assert strided.cost(alive(strided), 49).additions == 4 * 3 * (2 * 5 + 12) * 49
    half = separable().filters
    assert half * 3 * 17 <= WEIGHT.numel() / 2 < (half + 1) * 3 * 17


def test_rounds_on_data_never_make_it_worse() -> None:
    op = separable(filters=3, fit="data")
    images = seen(op)
    gram, cross = second_moments(op, images)
    fit = DataFit(gram, WEIGHT.flatten(1) @ cross, op.shape)
    vertical, horizontal = op._nearest(WEIGHT)
    values = [fit.value(vertical, horizontal)]
    for _ in range(4):
        horizontal = fit.rows(vertical)
        values.append(fit.value(vertical, horizontal))
        vertical = fit.columns(vertical, horizontal)
        values.append(fit.value(vertical, horizontal))
    slack = 1e-10 * abs(values[0])
    assert all(new <= old + slack for old, new in pairwise(values))
    op.approximate(WEIGHT, images)
    plain = separable(filters=3)
    plain.approximate(WEIGHT)
    assert data_error(op, WEIGHT, images) < 0.8 * data_error(plain, WEIGHT, images)


def test_each_half_of_a_round_on_data_solves_its_least_squares() -> None:
    op = make("separable", 2, 3, filters=2, fit="data")
    weight = drawn(3, 2, 3, 3)
    gram, cross = second_moments(op, seen(op))
    fit = DataFit(gram, weight.flatten(1) @ cross, op.shape)
    vertical, horizontal = (t.requires_grad_() for t in op._nearest(weight))

    def slope(with_respect_to: torch.Tensor, v: torch.Tensor, h: torch.Tensor) -> float:
        made = torch.einsum("dkx,ksy->dsyx", h, v).flatten(1)
        value = 0.5 * (made * (made @ gram)).sum() - (made * fit.target).sum()
        return float(torch.autograd.grad(value, with_respect_to)[0].norm())

    first = slope(horizontal, vertical, horizontal)
    best = fit.rows(vertical.detach()).requires_grad_()
    assert slope(best, vertical, best) < 1e-9 * first
    found = vertical
    for _ in range(3):
        found = fit.columns(found.detach(), best.detach()).requires_grad_()
    assert slope(found, found, best) < 1e-6 * slope(vertical, vertical, best)


@pytest.mark.parametrize("name", ["separable", "bicluster", "monochromatic"])
def test_gradients_are_those_of_the_chain_of_convolutions(name: str) -> None:
    op = make(name, 3, 4, stride=2)
    x = drawn(1, 3, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda *_: run(op, x), (x, *op.parameters()))


@pytest.mark.parametrize("name", ["separable", "bicluster", "monochromatic", "tensor-train"])
def test_two_sizes_are_refused(name: str) -> None:
    size = {"separable": "filters", "monochromatic": "colours"}.get(name, "rank")
    with pytest.raises(ConfigError, match=f"{size} and parameters both say"):
        make(name, parameters=0.5, **{size: 2})


def test_a_separable_fit_on_data_asks_for_images() -> None:
    with pytest.raises(WiringError, match="give it images"):
        separable(fit="data").approximate(WEIGHT)


def _shuffled_blocks() -> torch.Tensor:
    """Two clusters of inputs and three of outputs, of rank 1 between them, all mixed up."""
    outputs, inputs = torch.arange(12) % 3, torch.arange(6) % 2
    heights, widths = drawn(12), drawn(6, seed=2)
    kernels = 5 * drawn(3, 2, 3, 3, seed=3)
    outer = (1 + heights.abs())[:, None] * (1 + widths.abs())
    return outer[..., None, None] * kernels[outputs][:, inputs]


@pytest.mark.parametrize("kind", ["svd", "outer"])
def test_biclustering_finds_clusters_that_are_there(kind: str) -> None:
    op = make("bicluster", 6, kind=kind, input_clusters=2, output_clusters=3, rank=1)
    op.approximate(weight := _shuffled_blocks())
    torch.testing.assert_close(op.expand(), weight)
    assert op.input_cluster.unique_consecutive().numel() == 6
    assert len({tuple(op.output_cluster[k::3].tolist()) for k in range(3)}) == 3


@pytest.mark.parametrize("shape", [(12, 6, 3, 3), (7, 5, 3, 3), (7, 5, 1, 1), (1, 1, 3, 3)])
def test_a_bicluster_of_full_rank_is_exact(shape: tuple[int, ...]) -> None:
    op = make("bicluster", shape[1], shape[0], kernel=shape[2:], rank=99)
    op.approximate(weight := drawn(*shape))
    torch.testing.assert_close(op.expand(), weight)


def test_pairs_of_1x1_clusters_are_left_with_their_smaller_singular_values() -> None:
    op = make("bicluster", 6, kernel=(1, 1), padding=0, rank=2)
    op.approximate(weight := drawn(12, 6, 1, 1))
    blocks = [
        weight[op.output_cluster == h][:, op.input_cluster == g, 0, 0]
        for g in range(2)
        for h in range(2)
    ]
    tails = sum(float(torch.linalg.svdvals(b)[2:].square().sum()) for b in blocks)
    assert error(op, weight) == pytest.approx(tails)


@pytest.mark.parametrize(("kind", "core"), [("svd", 9 * 2 * 2), ("outer", 9 * 2)])
def test_a_bicluster_has_the_papers_parameters_and_operations(kind: str, core: int) -> None:
    op = make("bicluster", 6, kind=kind, input_clusters=2, output_clusters=3, rank=2)
    parameters = 2 * 3 * (3 * 2 + core + 2 * 4)
    cost = op.cost(alive(op), 49)
    assert sum(p.numel() for p in op.parameters()) == parameters
    assert cost.multiplications == cost.additions == parameters * 49
    assert cost.weight_bits == 32 * parameters + 6 * 1 + 12 * 2
    strided = make("bicluster", 6, stride=2, kind=kind, input_clusters=2, output_clusters=3, rank=2)
    assert strided.cost(alive(op), 49).additions == (parameters + 3 * 2 * 3 * 3 * 2) * 49


def test_a_bicluster_nears_a_weight_as_its_rank_rises() -> None:
    for kind in ("svd", "outer"):
        errors = []
        for rank in (1, 2, 4):
            op = make("bicluster", 6, kind=kind, rank=rank)
            op.approximate(weight := drawn(12, 6, 3, 3))
            errors.append(error(op, weight))
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.7 * errors[0]


def test_balanced_clusters_have_one_size_and_the_least_distance() -> None:
    points = torch.cat(
        [drawn(4, 3, seed=seed) + 20 * drawn(1, 3, seed=9 - seed) for seed in (1, 2)]
    )
    order = torch.tensor([5, 0, 2, 7, 1, 6, 3, 4])
    cluster = balanced_clusters(points[order], 2)
    assert len(set(cluster[order < 4].tolist())) == len(set(cluster[order >= 4].tolist())) == 1
    assert torch.bincount(balanced_clusters(drawn(7, 2), 3)).tolist() == [3, 2, 2]
    assert sorted(balanced_clusters(drawn(5, 2, seed=4), 5).tolist()) == list(range(5))
    many = drawn(30, 2, seed=5)
    cluster = balanced_clusters(many, 3)
    centres = torch.stack([many[cluster == k].mean(dim=0) for k in range(3)])
    away = torch.cdist(many, centres).square()
    own, other = away[torch.arange(30), cluster], away[:, cluster]  # [point], [point, other's]
    assert (own[:, None] + own <= other + other.T + 1e-12).all()  # no exchange would help


def test_monochromatic_filters_and_their_colours_are_found() -> None:
    colours, filters = drawn(3, 5), drawn(12, 1, 3, 3)
    colour = torch.arange(12) % 3
    op = make("monochromatic", colours=3)
    op.approximate(weight := colours[colour][..., None, None] * filters)
    torch.testing.assert_close(op.expand(), weight)
    matches = [
        all(order[op.colour[d]] == colour[d] for d in range(12)) for order in permutations(range(3))
    ]
    assert sum(matches) == 1


def test_a_colour_for_each_destination_leaves_its_smaller_singular_values() -> None:
    op = make("monochromatic", colours=12)
    op.approximate(WEIGHT)
    tails = torch.linalg.svdvals(WEIGHT.flatten(2))[:, 1:].square().sum()
    assert error(op, WEIGHT) == pytest.approx(float(tails))
    fewer = []
    for colours in (8, 4, 1):
        op = make("monochromatic", colours=colours)
        op.approximate(WEIGHT)
        fewer.append(error(op, WEIGHT))
    assert float(tails) < fewer[0] < fewer[1] < fewer[2]
    whole = torch.linalg.svdvals(WEIGHT.transpose(0, 1).flatten(1))[1:].square().sum()
    mixed = WEIGHT.transpose(0, 1).flatten(1)
    one = torch.linalg.svd(mixed)[0][:, 0]
    best = float((mixed - torch.outer(one, one @ mixed)).square().sum())
    assert fewer[2] == pytest.approx(best) == pytest.approx(float(whole))


def test_monochromatic_filters_have_the_papers_parameters_and_operations() -> None:
    op = make("monochromatic", colours=3)
    cost = op.cost(alive(op), 49)
    assert cost.multiplications == cost.additions == (3 * 5 + 12 * 9) * 49
    assert cost.weight_bits == 32 * (3 * 5 + 12 * 9) + 12 * 2
    strided = make("monochromatic", stride=2, colours=3)
    assert strided.cost(alive(strided), 49).additions == (4 * 3 * 5 + 12 * 9) * 49


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_full_size_separable_weights_are_exact_at_every_shape(shape: Any) -> None:
    layer = {"kernel": shape.kernel, "stride": shape.stride, "padding": shape.padding}
    op = make("separable", shape.sources, shape.destinations, filters=99, **layer)
    op.approximate(weight := drawn(*op.shape))
    torch.testing.assert_close(op.expand(), weight)
