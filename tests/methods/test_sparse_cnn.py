"""Sparse convolutions: rotation, bases, proximal steps, sparsity, cost, storage."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from method_cases import Shape, images, make
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy

from wiring.cost import Cost
from wiring.graph.edges import Epilogue
from wiring.methods.sparse_cnn import SparseConvolution

F64 = torch.float64
SHAPE = Shape("3x3", sources=3, destinations=8, kernel=(3, 3), padding=1, density=1.0)


def sparse(shape: Shape = SHAPE, **options: Any) -> tuple[SparseConvolution, Tensor]:
    """(an operator, all of its edges)."""
    torch.manual_seed(0)
    op = make("sparse-cnn", shape, **options)
    assert isinstance(op, SparseConvolution)
    return op, torch.ones(op.shape, dtype=torch.bool)


def weights(shape: Shape = SHAPE) -> Tensor:
    size = (shape.destinations, shape.sources, *shape.kernel)
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=F64)


@pytest.mark.parametrize("bases", [None, 2])
def test_a_weight_is_a_sum_over_rotated_channels_and_their_bases(bases: int | None) -> None:
    op, every = sparse(bases=bases)
    rotation, kernels, mixing = (p.detach() for p in op.parameters())
    expected = torch.zeros(op.shape, dtype=F64)
    for o, c, i, k in itertools.product(range(8), range(3), range(3), range(bases or 9)):
        expected[o, c] += rotation[i, c] * mixing[o, i, k] * kernels[i, k]
    torch.testing.assert_close(op.weight.detach(), expected)
    x = images(SHAPE)
    torch.testing.assert_close(op(x, every, every), conv2d(x, expected, padding=1))


def test_gradients_are_exact() -> None:
    shape = Shape("3x3", sources=2, destinations=2, side=3, kernel=(3, 3), padding=1, density=1.0)
    op, every = sparse(shape, bases=2)
    x, names = images(shape).requires_grad_(), [name for name, _ in op.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        values = dict(zip(names, parameters, strict=True))
        y: Tensor = torch.func.functional_call(op, values, (x, every, every))
        return y

    assert torch.autograd.gradcheck(run, (x, *op.parameters()))


@pytest.mark.parametrize(
    ("bases", "kernel"), [(None, (3, 3)), (100, (3, 3)), (None, (1, 1)), (None, (1, 3))]
)
def test_all_bases_take_over_a_weight_exactly(bases: int | None, kernel: tuple[int, int]) -> None:
    shape = Shape("any", sources=3, destinations=8, kernel=kernel)
    op, _ = sparse(shape, bases=bases)
    op.approximate(weights(shape))
    torch.testing.assert_close(op.weight.detach(), weights(shape))
    assert op.mixing.numel() == weights(shape).numel()


def test_fewer_bases_lose_the_smallest_principal_components_of_each_channel() -> None:
    found = []
    for bases in (1, 3, 6):
        op, _ = sparse(bases=bases)
        op.approximate(weights())
        rotated = torch.einsum("ic,ocuv->iouv", op.rotation.detach(), weights()).flatten(2)
        # Eckart and Young: no other kernels of that number come nearer to a channel's.
        lost = torch.linalg.svdvals(rotated)[:, bases:].square().sum().sqrt()
        error = (op.weight.detach() - weights()).norm()
        torch.testing.assert_close(error, lost)
        found.append(float(error))
    assert found == sorted(found, reverse=True)


def test_rotated_channels_are_uncorrelated_and_come_in_order_of_their_energy() -> None:
    op, _ = sparse()
    op.approximate(weights())
    rotated = torch.einsum("ic,ocuv->iouv", op.rotation.detach(), weights()).flatten(1)
    moments = rotated @ rotated.T
    torch.testing.assert_close(moments, moments.diagonal().diag())
    assert moments.diagonal().tolist() == sorted(moments.diagonal().tolist(), reverse=True)


@pytest.mark.parametrize("bases", [None, 3])
def test_first_weights_have_the_variance_of_an_ordinary_layer(bases: int | None) -> None:
    shape = Shape("wide", sources=32, destinations=64, kernel=(3, 3))
    op, _ = sparse(shape, bases=bases)
    assert op.weight.var().item() == pytest.approx(1 / (3 * 32 * 9), rel=0.1)


def test_a_step_takes_both_penalties_off_and_keeps_norms_at_most_one() -> None:
    op, every = sparse(entries=2.0, columns=3.0)
    with torch.no_grad():
        op.mixing.mul_(5)
        op.mixing[:, 2, 0] = torch.eye(8, dtype=F64)[3] * 0.3  # of which the second step leaves 0
        op.rotation[0].mul_(4)
        op.kernels[1, 2].mul_(0.5)
    before, rotation, kernels = (p.detach().clone() for p in (op.mixing, op.rotation, op.kernels))
    op.after_step(every, every, 0.1)
    expected = before.sign() * (before.abs() - 0.2).clamp(min=0)
    for i, k in itertools.product(range(3), range(9)):
        column = expected[:, i, k]
        size = float(column.norm())
        expected[:, i, k] = column * (max(0.0, 1 - 0.3 / size) if size else 0.0)
    torch.testing.assert_close(op.mixing.detach(), expected)
    torch.testing.assert_close(op.rotation.detach()[0], rotation[0] / 4)
    torch.testing.assert_close(op.rotation.detach()[1:], rotation[1:])
    torch.testing.assert_close(op.kernels.detach(), kernels, rtol=1e-6, atol=1e-6)
    assert 0 < op.sparsity < 1


def pruned(keep: float, **options: Any) -> tuple[SparseConvolution, Tensor]:
    """An operator of which a share of S is not 0, and its first rotated channel unused."""
    op, every = sparse(**options)
    drawn = torch.rand(op.mixing.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        op.mixing[drawn > keep] = 0
        op.mixing[:, 0] = 0
    return op, every


def test_the_cost_counts_what_is_not_zero() -> None:
    op, every = sparse()
    with torch.no_grad():
        op.mixing.zero_()
        op.mixing[0, 1, 4] = op.mixing[3, 1, 4] = op.mixing[3, 2, 0] = 1.0
    # 2 rotated channels, 2 bases, 3 entries, each of which is one of 8·3·9 = 216 < 2**8
    products = (2 * 3 + 2 * 9 + 3) * 36
    bits = 32 * (2 * 3 + 2 * 9 + 3) + 3 * 8
    assert op.cost(every, 36) == Cost(products, products, weight_bits=bits)
    every[0, 0] = False
    assert op.cost(every, 1) == Cost(207, 207, weight_bits=bits)


@pytest.mark.parametrize("keep", [0.02, 0.5])
def test_listed_and_drawn_places_come_back_in_the_bits_they_cost(keep: float) -> None:
    op, every = pruned(keep)
    op.float()
    stored = {name: tensor.clone() for name, tensor in op.pack(every).items()}
    entries = int((op.mixing != 0).sum())
    assert stored["places"].numel() == -(-min(216, entries * 8) // 8)
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert 0 <= 8 * size - op.cost(every, 1).weight_bits < 8
    twin, _ = sparse()
    twin.float().unpack(stored, every)
    assert torch.equal(twin.mixing, op.mixing)
    assert torch.equal(twin.weight, op.weight)
    assert not twin.rotation[0].any()


@pytest.mark.parametrize("stride", [1, 2])
def test_the_factored_form_computes_the_same(stride: int) -> None:
    op, every = pruned(0.2)
    op.float().stride = stride
    epilogue = Epilogue(torch.rand(8) + 0.5, torch.randn(8), relu=True)
    x = images(SHAPE).float()
    expected = epilogue.after(lambda x: op(x, every, every).detach())(x)
    torch.testing.assert_close(op.candidates(every, epilogue)["factored"](x), expected)
    every[0, 0] = False
    assert "factored" not in op.candidates(every, epilogue)


def test_training_reaches_over_nine_tenths_of_zeros_where_few_bases_suffice() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = Shape("fit", sources=8, destinations=12, side=3, kernel=(3, 3), density=1.0)
    x = torch.randn(400, 8, 3, 3, generator=generator, dtype=F64)
    # What tells the classes apart is one edge detector for each of two mixtures of the channels.
    detectors = torch.randn(2, 9, generator=generator, dtype=F64)
    mixtures = torch.randn(2, 8, generator=generator, dtype=F64)
    features = torch.einsum("ncp,fc,fp->nf", x.flatten(2), mixtures, detectors)
    targets = (features @ torch.randn(2, 12, generator=generator, dtype=F64)).argmax(dim=1)
    op, every = sparse(shape, entries=0.01, columns=0.02)
    optimizer = torch.optim.SGD(op.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        scores = op(x, every, every).flatten(1)
        cross_entropy(scores, targets).backward()
        optimizer.step()
        op.after_step(every, every, 0.5)
    assert op.sparsity > 0.9
    assert (scores.argmax(dim=1) == targets).double().mean() > 0.8
