"""Hashed weights and hashed features: the hash itself, sharing, memory, inner products."""

from __future__ import annotations

import math
import struct

import pytest
import torch
import xxhash
from method_cases import Largest, Shape, images, make
from torch import Tensor
from torch.nn.functional import conv2d

from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.methods import hashed
from wiring.methods.hashed import hashed_conv2d

F64 = torch.float64
SHAPE = Shape("3x3", sources=3, destinations=4, kernel=(3, 3), stride=2, padding=1, density=1.0)


def reference(words: list[int], seed: int) -> int:
    return xxhash.xxh32(struct.pack(f"<{len(words)}I", *words), seed=seed).intdigest()


def written_out(values: Tensor, shape: torch.Size, seed: int) -> tuple[Tensor, Tensor]:
    """(weights, the derivative of each in each shared value) by the definition, edge by edge."""
    count, row = len(values), shape[1:].numel()
    slopes = torch.zeros(shape[0] * row, count, dtype=F64)
    for i in range(shape[0]):
        for j in range(row):
            sign = -1 if reference([i, j], seed ^ 0x9E3779B9) >= 2**31 else 1
            slopes[i * row + j, reference([i, j], seed) % count] = sign
    return (slopes @ values).view(shape), slopes


@pytest.mark.parametrize("index", ["kept", "recomputed"])
def test_weights_and_gradients_are_those_of_the_definition(index: str) -> None:
    op = make("hashed", SHAPE, ratio=0.3, seed=11, index=index)
    weight, slopes = written_out(op.values.detach(), op.shape, 11)
    assert torch.equal(op.weight, weight)
    x, every = images(SHAPE), torch.ones(op.shape, dtype=torch.bool)
    y = op(x, every, every)
    y.square().sum().backward()
    full = weight.requires_grad_()
    expected = conv2d(x, full, stride=2, padding=1)
    (to_weight,) = torch.autograd.grad(expected.square().sum(), full)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(op.values.grad, slopes.T @ to_weight.flatten())


def test_blocks_of_destinations_give_exact_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed, "BLOCK", 30)  # one destination of 27 edges at a time
    op = make("hashed", SHAPE, ratio=0.3, index="recomputed")
    x = images(SHAPE).requires_grad_()

    def run(x: Tensor, values: Tensor) -> Tensor:
        return hashed_conv2d(x, values, op.recomputed, op.shape, 2, 1)

    assert torch.autograd.gradcheck(run, (x, op.values))


def test_recomputed_weights_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed, "BLOCK", 2**12)
    shape = Shape("wide", batch=2, sources=256, destinations=256, side=4, density=1.0)
    every = torch.ones(256, 256, 1, 1, dtype=torch.bool)
    largest: dict[str, int] = {}
    saved: dict[str, int] = {}
    for index in ("kept", "recomputed"):
        op = make("hashed", shape, ratio=1 / 64, index=index).float()
        op.always_whole = True
        x = images(shape).float().requires_grad_()
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with Largest() as found, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = op(x, every, every)
            saved[index] = sum(kept)
            y.sum().backward()
        largest[index] = found.elements
    assert largest["kept"] >= 2**16
    # Hashes are int64: two of float32's elements.
    assert largest["recomputed"] <= 2 * max(2**12, 2 * 256 * 16)
    assert saved["recomputed"] == 2 * 256 * 16 + 2**16 // 64
    assert saved["kept"] > 2**16


def test_as_many_weights_as_edges_and_a_permutation_are_a_dense_layer() -> None:
    shape = torch.Size((4, 3, 3, 3))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(shape.numel(), generator=generator)
    values = torch.randn(shape.numel(), generator=generator, dtype=F64, requires_grad=True)
    weight = values.detach()[order].view(shape).requires_grad_()

    def places(first: int, last: int) -> Tensor:
        return order.view(4, -1)[first:last].flatten()

    x = images(SHAPE).requires_grad_()
    y, expected = hashed_conv2d(x, values, places, shape), conv2d(x, weight)
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.square().sum(), (x, values))
    wanted = torch.autograd.grad(expected.square().sum(), (x, weight))
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1][order].view(shape), wanted[1])


def test_first_weights_have_the_variance_of_an_ordinary_layer() -> None:
    torch.manual_seed(0)
    shape = Shape("wide", sources=128, destinations=256)
    weight = make("hashed", shape, ratio=0.1).weight
    assert weight.var().item() == pytest.approx(1 / (3 * 128), rel=0.05)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("ratio", [0.2, 1.0])
def test_the_nearest_shared_weights_are_least_squares(ratio: float) -> None:
    op = make("hashed", SHAPE, ratio=ratio)
    weight = torch.randn(op.shape, generator=torch.Generator().manual_seed(4), dtype=F64)
    _, slopes = written_out(op.values.detach(), op.shape, 0)
    expected = torch.linalg.lstsq(slopes, weight.flatten(), driver="gelsd").solution
    op.approximate(weight)
    torch.testing.assert_close(op.values.detach(), expected)


def test_nothing_but_the_shared_weights_is_stored() -> None:
    op = make("hashed", SHAPE, ratio=1 / 64)
    every = torch.ones(op.shape, dtype=torch.bool)
    assert list(op.state_dict()) == ["values"]
    assert op.values.numel() == math.ceil(108 / 64)
    assert op.cost(every, 9) == Cost(108 * 9, 108 * 9, lookups=108, weight_bits=2 * 32)
    every[0] = False
    assert op.cost(every, 9) == Cost(81 * 9, 81 * 9, lookups=81, weight_bits=2 * 32)


def test_hashed_features_are_signed_sums() -> None:
    op = make("feature-hash", SHAPE, seed=5)
    x = images(SHAPE)
    every = torch.ones(op.shape, dtype=torch.bool)
    seen = torch.nn.functional.unfold(x, (3, 3), padding=1, stride=2)
    expected = torch.zeros(len(x), 4, seen.shape[2], dtype=F64)
    for j in range(27):
        sign = -1 if reference([j], 5 ^ 0x9E3779B9) >= 2**31 else 1
        expected[:, reference([j], 5) % 4] += sign * seen[:, j]
    y = op(x, every, every)
    torch.testing.assert_close(y.flatten(2), expected)
    assert op.cost(every, 9) == Cost(additions=27 * 9)
    assert op.cost(every & (op.weight == 0), 9) == Cost()
    assert list(op.parameters()) == []


def test_inner_products_of_hashed_features_have_the_papers_mean_and_variance() -> None:
    places, buckets, seeds = 12, 8, 1500
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, places, generator=generator, dtype=F64)
    y = y + x  # so that the mean is not 0
    products = []
    for seed in range(seeds):
        weight = make("feature-hash", Shape("row", places, places, buckets), seed=seed).weight
        matrix = weight[:, :, 0, 0]
        products.append(float((matrix @ x) @ (matrix @ y)))
    found = torch.tensor(products, dtype=F64)
    pairs = x[:, None] ** 2 * y[None] ** 2 + (x * y)[:, None] * (x * y)[None]
    variance = float((pairs.sum() - pairs.diagonal().sum()) / buckets)
    assert found.mean().item() == pytest.approx(float(x @ y), abs=3 * (variance / seeds) ** 0.5)
    assert found.var().item() == pytest.approx(variance, rel=0.1)


def test_a_projection_of_a_seed_takes_over_no_weights() -> None:
    op = make("feature-hash", SHAPE)
    with pytest.raises(WiringError, match="takes over no trained weights"):
        op.approximate(torch.zeros(op.shape))
