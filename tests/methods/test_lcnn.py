"""Look-up convolutions: dictionary and coefficients, thresholds, penalty, look-ups, bits."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from method_cases import Shape, images, make
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy

from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.bitstream import BitReader, number_bits, pack_numbers
from wiring.graph.edges import Epilogue
from wiring.graph.pixels import pixels_read
from wiring.graph.sparse_coding import learn_dictionary, pursue
from wiring.methods.lcnn import LookupConvolution

F64 = torch.float64
SHAPE = Shape("3x3", sources=5, destinations=4, kernel=(3, 3), padding=1, density=1.0)


def lookup(shape: Shape = SHAPE, **options: Any) -> tuple[LookupConvolution, Tensor]:
    """(an operator, all of its edges)."""
    torch.manual_seed(0)
    op = make("lcnn", shape, **{"dictionary": 7, "lookups": 2, **options})
    assert isinstance(op, LookupConvolution)
    return op, torch.ones(op.shape, dtype=torch.bool)


def test_every_pixel_of_a_filter_sums_its_largest_multiples_of_rows() -> None:
    op, every = lookup(threshold=0.5)
    expected = torch.zeros(op.shape, dtype=F64)
    taken = 0
    for o, r, c in itertools.product(range(4), range(3), range(3)):
        entries = op.coefficients.detach()[o, :, r, c]
        for row in entries.abs().argsort(descending=True)[:2]:
            if entries[row].abs() >= 0.5:
                expected[o, :, r, c] += entries[row] * op.dictionary.detach()[row]
                taken += 1
    assert taken < 2 * 36  # some coefficients stay below the threshold
    torch.testing.assert_close(op.weight.detach(), expected)
    x = images(SHAPE)
    torch.testing.assert_close(op(x, every, every), conv2d(x, expected, padding=1))


def test_gradients_of_coefficients_go_straight_through_the_threshold() -> None:
    op, every = lookup(threshold=0.5)
    x = images(SHAPE)
    y = op(x, every, every)
    y.square().sum().backward()
    sparse = op.sparse().detach().requires_grad_()
    dictionary = op.dictionary.detach().requires_grad_()
    products = conv2d(x, dictionary[:, :, None, None])
    conv2d(products, sparse, padding=1).square().sum().backward()
    torch.testing.assert_close(op.coefficients.grad, sparse.grad)
    torch.testing.assert_close(op.dictionary.grad, dictionary.grad)
    assert op.coefficients.grad is not None
    assert op.coefficients.grad[~op.used()].any()


def test_the_penalty_is_a_proximal_step_of_the_learning_rate() -> None:
    op, every = lookup(penalty=0.5)
    before = op.coefficients.detach().clone()
    op.after_step(every, every, 0.2)
    expected = before.sign() * (before.abs() - 0.1).clamp(min=0)
    torch.testing.assert_close(op.coefficients.detach(), expected)
    assert (op.coefficients == 0).any()


def test_first_weights_have_the_variance_of_an_ordinary_layer() -> None:
    shape = Shape("wide", sources=64, destinations=128)
    op, _ = lookup(shape, dictionary=96, lookups=4)
    assert op.weight.var().item() == pytest.approx(1 / (3 * 64), rel=0.1)


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_looking_up_computes_the_same(stride: int, padding: int) -> None:
    shape = Shape("3x3", sources=5, kernel=(3, 3), stride=stride, padding=padding, density=1.0)
    op, every = lookup(shape)
    op.float()
    x = images(shape).float()
    epilogue = Epilogue(torch.rand(4) + 0.5, torch.randn(4), relu=True)
    forms = op.candidates(every, epilogue)
    expected = epilogue.after(lambda x: op(x, every, every).detach())(x)
    torch.testing.assert_close(forms["look-up"](x), expected)
    every[0, 0] = False  # what is masked is no dictionary's any more
    assert "look-up" not in op.candidates(every, epilogue)


def test_the_cost_is_that_of_the_dictionary_and_of_look_ups() -> None:
    op, every = lookup(threshold=0.0)
    count, side = 2 * 36, 6
    products = 7 * 5 * side**2 + count * side**2
    bits = 32 * 7 * 5 + count * (32 + 3) + 36 * 2
    cost = Cost(products, products, lookups=count * side**2, weight_bits=bits)
    assert op.cost(every, side**2) == cost
    every[0, 0] = False
    dead = 4 * 5 * 9 - 9
    assert op.cost(every, 1) == Cost(dead, dead, weight_bits=bits)


def test_bits_count_the_coefficients_that_matter() -> None:
    op, every = lookup()
    with torch.no_grad():
        op.coefficients.zero_()
        op.coefficients[1, 3, 0, 2] = -2.0
    assert op.cost(every, 1).weight_bits == 32 * 35 + 35 + 36 * 2
    stored = op.pack(every)
    assert stored["coefficients"].tolist() == [-2.0]
    twin, _ = lookup()
    twin.unpack(stored, every)
    assert torch.equal(twin.coefficients, op.coefficients)


def test_filters_on_few_lines_are_found_again_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    lines = torch.randn(7, 5, generator=generator, dtype=F64)
    chosen = torch.randint(0, 7, (4, 3, 3), generator=generator)
    scale = 1 + torch.rand(4, 3, 3, generator=generator, dtype=F64)
    weight = (lines[chosen] * scale[..., None]).permute(0, 3, 1, 2)
    op, _ = lookup(lookups=1)
    op.approximate(weight)
    torch.testing.assert_close(op.weight.detach(), weight)
    # As many rows as there are pixels of filters: anything is exact with one look-up.
    drawn = torch.randn(4, 5, 3, 3, generator=generator, dtype=F64)
    op, _ = lookup(dictionary=1000, lookups=1)
    assert op.rows == 36
    op.approximate(drawn)
    torch.testing.assert_close(op.weight.detach(), drawn)


def test_more_rows_and_more_look_ups_come_nearer_to_a_trained_weight() -> None:
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    shape = Shape("3x3", sources=8, destinations=16, kernel=(3, 3), density=1.0)

    def error(rows: int, lookups: int) -> float:
        op, _ = lookup(shape, dictionary=rows, lookups=lookups)
        op.approximate(weight)
        return float((op.weight.detach() - weight).norm() / weight.norm())

    errors = [error(8, 1), error(8, 3), error(24, 3), error(24, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02  # eight rows span the eight sources
    assert errors[0] < 0.9


def test_a_pursuit_is_exact_for_orthogonal_atoms_and_never_worse_with_another_look_up() -> None:
    generator = torch.Generator().manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=F64)).Q * 3
    codes = torch.zeros(20, 6, dtype=F64)
    codes[:, 1], codes[:, 4] = torch.randn(2, 20, generator=generator, dtype=F64)
    for lookups in (2, 3, 6):  # more than are needed do no harm
        torch.testing.assert_close(pursue(codes @ atoms, atoms, lookups), codes)
    skew = torch.randn(9, 6, generator=generator, dtype=F64)
    skew[3], skew[5] = 0, skew[4]  # one atom of norm 0, two of one direction
    targets = torch.randn(20, 6, generator=generator, dtype=F64)
    errors = [(targets - pursue(targets, skew, s) @ skew).norm(dim=1) for s in (1, 2, 3, 6)]
    for fewer, more in itertools.pairwise(errors):
        assert (more <= fewer + 1e-9).all()


def test_nothing_but_zeros_has_a_dictionary_of_zeros() -> None:
    dictionary, codes = learn_dictionary(torch.zeros(5, 3), 2, 1)
    assert not dictionary.any()
    assert not codes.any()


def test_a_layer_learns_and_its_penalty_leaves_fewer_look_ups() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = Shape("fit", sources=8, destinations=10, density=1.0)
    x = torch.randn(256, 8, 1, 1, generator=generator, dtype=F64)
    targets = (x[:, :, 0, 0] @ torch.randn(8, 10, generator=generator, dtype=F64)).argmax(dim=1)
    left = []
    for penalty in (0.0, 0.05):
        op, every = lookup(shape, dictionary=8, lookups=4, penalty=penalty)
        optimizer = torch.optim.SGD(op.parameters(), lr=0.5, momentum=0.9)
        for _ in range(100):
            optimizer.zero_grad()
            scores = op(x, every, every).flatten(1)
            cross_entropy(scores, targets).backward()
            optimizer.step()
            op.after_step(every, every, 0.5)
        assert (scores.argmax(dim=1) == targets).double().mean() > 0.7
        left.append(int(op.used().sum()))
    assert left[1] < left[0]


def test_numbers_come_back_from_a_stream_of_as_many_bits_as_they_take() -> None:
    fields = [(torch.tensor([5, 0, 7]), 3), (torch.tensor([[1], [0]]), 1), (torch.tensor([0]), 0)]
    packed = pack_numbers(fields)
    assert packed.tolist() == [0b10100011, 0b11000000]
    reader = BitReader(packed)
    assert reader.take(3, 3).tolist() == [5, 0, 7]
    assert reader.take(2, 1).tolist() == [1, 0]
    assert reader.take(1, 0).tolist() == [0]
    with pytest.raises(WiringError, match="20 bits were asked of a stream of 16"):
        reader.take(9, 1)
    with pytest.raises(WiringError, match=r"3 bits hold 0\.\.7, got 1\.\.8"):
        pack_numbers([(torch.tensor([1, 8]), 3)])
    assert [number_bits(count) for count in (1, 2, 3, 4, 5)] == [0, 1, 2, 2, 3]


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_pixels_read_are_those_of_the_largest_input_that_have_a_gradient(
    size: int, stride: int, padded: bool
) -> None:
    count, padding = 4, size // 2 if padded else 0
    side = count * stride + size - 2 * padding - 1
    x = torch.zeros(1, 1, side, side, requires_grad=True)
    y = conv2d(x, torch.ones(1, 1, size, size), stride=stride, padding=padding)
    y.sum().backward()
    assert y.numel() == count**2
    assert x.grad is not None
    assert pixels_read(y.numel(), (size, size), stride, padding) == int((x.grad > 0).sum())


def test_pixels_of_outputs_that_are_no_square_lie_in_a_row() -> None:
    assert pixels_read(7, (1, 3), 1, 0) == 9
    assert pixels_read(12, (3, 3), 1, 1) == 12
    assert pixels_read(1, (1, 1), 1, 0) == 1
