"""Tensor trains: sizes into digits, TT-SVD, the contraction, parameters and operations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from factored_cases import alive, drawn, error, make, run
from torch.nn.functional import conv2d

from wiring.graph.edges import Epilogue
from wiring.methods.tensor_train import factorise

LAYERS = [
    (8, 12, (1, 1)),
    (8, 12, (3, 3)),
    (7, 5, (3, 3)),  # primes: one source and one destination are added
]


def train(sources: int, destinations: int, kernel: tuple[int, int], **options: Any) -> Any:
    return make(
        "tensor-train", sources, destinations, kernel=kernel, padding=kernel[0] // 2, **options
    )


@pytest.mark.parametrize(("sources", "destinations", "kernel"), LAYERS)
@pytest.mark.parametrize("cores", [2, 3])
def test_a_train_of_full_rank_is_exact(
    sources: int, destinations: int, kernel: tuple[int, int], cores: int
) -> None:
    op = train(sources, destinations, kernel, cores=cores, rank=1000)
    op.approximate(weight := drawn(*op.shape))
    torch.testing.assert_close(op.expand(), weight)
    norms = torch.stack([p.detach().norm() for p in op.parameters()])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))


@pytest.mark.parametrize(("sources", "destinations", "kernel"), LAYERS)
@pytest.mark.parametrize("stride", [1, 2])
def test_contracting_the_cores_is_convolving_with_what_they_stand_for(
    sources: int, destinations: int, kernel: tuple[int, int], stride: int
) -> None:
    x = drawn(6, sources, 6, 7)
    for rank in (1, 3):
        op = train(sources, destinations, kernel, stride=stride, rank=rank)
        wanted = conv2d(x, op.expand(), stride=stride, padding=op.padding)
        torch.testing.assert_close(op.whole(x), wanted)
        for form in op.candidates(alive(op), Epilogue()).values():
            torch.testing.assert_close(form(x), wanted)


def test_every_weight_is_a_product_of_matrices_chosen_by_digits() -> None:
    op = train(8, 12, (3, 3), rank=3)
    assert (op.rows, op.columns) == ((2, 2, 3), (2, 2, 2))
    weight = op.expand()
    for destination, source, y, x in [(0, 0, 0, 0), (7, 5, 1, 2), (11, 6, 2, 0)]:
        i = (destination // 6, destination // 3 % 2, destination % 3)
        j = (source // 4, source // 2 % 2, source % 2)
        product = op.kernel[3 * y + x][None]
        for core, row, column in zip(op.cores, i, j, strict=True):
            product = product @ core[:, row, column]
        torch.testing.assert_close(weight[destination, source, y, x], product[0, 0])


def test_a_train_keeps_a_weight_of_its_ranks_and_errs_by_what_it_cuts_off() -> None:
    weight = train(8, 12, (3, 3), rank=2).expand().detach()
    op = train(8, 12, (3, 3), rank=2)
    for parameter in op.parameters():
        parameter.data.fill_(1)
    op.approximate(weight)
    torch.testing.assert_close(op.expand(), weight)
    # Oseledets 2011, theorem 2.2: squared, no more than all singular values cut off.
    op.approximate(weight := drawn(12, 8, 3, 3))
    digits = weight.reshape(2, 2, 3, 2, 2, 2, 9).permute(6, 0, 3, 1, 4, 2, 5)
    cuts = [torch.linalg.svdvals(digits.reshape(9 * 4**k, -1))[2:] for k in range(3)]
    bound = sum(float(cut.square().sum()) for cut in cuts)
    assert max(float(cut.square().sum()) for cut in cuts) <= error(op, weight) <= bound


@pytest.mark.parametrize(("sources", "destinations", "kernel"), LAYERS)
@pytest.mark.parametrize("rank", [2, 12])
def test_parameters_and_operations_are_those_of_the_cores(
    sources: int, destinations: int, kernel: tuple[int, int], rank: int
) -> None:
    op = train(sources, destinations, kernel, rank=rank)
    m, n, (r0, r1, r2, _) = op.rows, op.columns, op.ranks
    parameters = r0 * m[0] * n[0] * r1 + r1 * m[1] * n[1] * r2 + r2 * m[2] * n[2]
    first = m[0] * math.prod(n) * r0 * r1
    if kernel == (3, 3):
        parameters += 9 * r0
        apart, joined = sources * 9 * r0 + first, m[0] * math.prod(n) * 9 * r1
        assert op.joins == (joined <= apart)
        first = min(apart, joined)
    products = first + m[0] * m[1] * n[1] * n[2] * r1 * r2 + math.prod(m) * n[2] * r2
    cost = op.cost(alive(op), 36)
    assert sum(p.numel() for p in op.parameters()) == parameters
    assert cost.weight_bits == 32 * parameters
    assert cost.multiplications == cost.additions == 36 * products


def test_a_million_weights_are_3328_parameters_at_rank_8_of_five_cores() -> None:
    op = make("tensor-train", 1024, 1024, kernel=(1, 1), padding=0, cores=5, rank=8)
    assert op.rows == op.columns == (4, 4, 4, 4, 4)
    assert sum(p.numel() for p in op.parameters()) == 2 * 16 * 8 + 3 * 16 * 64


def test_a_share_of_parameters_is_held() -> None:
    for share in (0.1, 0.25, 0.8):
        op = make("tensor-train", 32, 32, kernel=(3, 3), parameters=share)
        rank = max(op.ranks)
        larger = make("tensor-train", 32, 32, kernel=(3, 3), rank=rank + 1)
        counts = [sum(p.numel() for p in one.parameters()) for one in (op, larger)]
        assert counts[0] <= share * op.shape.numel() < counts[1]


@pytest.mark.parametrize("rank", [2, 12])
def test_gradients_are_those_of_the_chain(rank: int) -> None:
    op = make("tensor-train", 3, 4, stride=2, rank=rank, cores=2)
    assert op.joins == (rank == 12)
    x = drawn(1, 3, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda *_: run(op, x), (x, *op.parameters()))


@pytest.mark.parametrize(
    ("size", "factors", "found"),
    [
        (64, 3, (4, 4, 4)),
        (256, 2, (16, 16)),
        (512, 3, (8, 8, 8)),
        (12, 3, (2, 2, 3)),
        (7, 2, (2, 4)),  # 8
        (3, 2, (1, 3)),
        (1, 3, (1, 1, 1)),
        (784, 4, (4, 4, 7, 7)),
    ],
)
def test_sizes_become_factors_of_about_one_size(
    size: int, factors: int, found: tuple[int, ...]
) -> None:
    assert factorise(size, factors) == found


def test_few_are_added_to_any_size() -> None:
    for size in range(1, 400):
        for factors in (2, 3, 4):
            found = factorise(size, factors)
            assert size <= math.prod(found) <= 1.25 * size + 3
            assert len(found) == factors


def test_weights_are_written_out_under_autocast() -> None:
    op = train(8, 12, (3, 3)).float()
    live = alive(op)
    live[0, 0] = False
    x = drawn(2, 8, 5, 5).float()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            y = op(x, live, live)
        expected = op(x, live, live)
    assert float((y - expected).abs().max()) < 0.05 * float(expected.abs().max())
