"""Low rank: the best of its rank, by weights and by data; its ranks, bits and operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factored_cases import alive, data_error, drawn, error, make, run, seen
from torch.nn.functional import conv2d, unfold

from wiring.errors import ConfigError, WiringError
from wiring.graph.edges import Epilogue

ROWS, COLUMNS = 12, 45
WEIGHT = drawn(12, 5, 3, 3)


def low_rank(**options: Any) -> Any:
    return make("low-rank", **options)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_what_is_left_are_the_smaller_singular_values(rank: int) -> None:
    op = low_rank(rank=rank)
    op.approximate(WEIGHT)
    tail = torch.linalg.svdvals(WEIGHT.flatten(1))[rank:].square().sum()
    assert error(op, WEIGHT) == pytest.approx(float(tail))


def test_a_weight_of_its_rank_is_represented_exactly() -> None:
    weight = (drawn(12, 3) @ drawn(3, 45, seed=2)).view(12, 5, 3, 3)
    op = low_rank(rank=3)
    op.approximate(weight)
    torch.testing.assert_close(op.expand(), weight)
    torch.testing.assert_close(op.left.norm(), op.right.norm())


def test_full_rank_is_exact_where_a_layer_has_no_smaller_one() -> None:
    op = make("low-rank", 1, 4, kernel=(1, 1), padding=0)
    op.approximate(weight := drawn(4, 1, 1, 1))
    torch.testing.assert_close(op.expand(), weight)


@pytest.mark.parametrize(("size", "rank", "bound"), [((8, 8), 4, "4.0"), ((40, 10), 8, "8.0")])
def test_a_rank_that_saves_nothing_is_refused_with_the_numbers(
    size: tuple[int, int], rank: int, bound: str
) -> None:
    layer = {"kernel": (1, 1), "padding": 0}
    products = size[0] * size[1]
    message = f"{rank} saves nothing.*{products} parameters instead of {products}.*below {bound}"
    with pytest.raises(WiringError, match=message):
        make("low-rank", *size, rank=rank, **layer)
    op = make("low-rank", *size, rank=rank - 1, **layer)
    assert sum(p.numel() for p in op.parameters()) < products


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_share_of_parameters_buys_the_largest_rank_that_it_can(share: float) -> None:
    op = low_rank(parameters=share)
    assert op.rank * (ROWS + COLUMNS) <= share * ROWS * COLUMNS < (op.rank + 1) * (ROWS + COLUMNS)


def test_energy_takes_the_smallest_rank_that_keeps_it() -> None:
    weight = (WEIGHT.flatten(1).T * 0.5 ** torch.arange(12).double()).T.reshape(WEIGHT.shape)
    shares = torch.linalg.svdvals(weight.flatten(1)).square().cumsum(0)
    shares = shares / shares[-1]
    op = low_rank(energy=0.9)
    left = op.left
    assert op.rank == 9  # until there is a weight: all that saves something
    op.approximate(weight)
    assert shares[op.rank - 2] < 0.9 <= shares[op.rank - 1]
    assert op.left is left
    assert error(op, weight) <= 0.1 * float(weight.square().sum())
    assert run(op, drawn(2, 5, 6, 6)).shape == (2, 12, 6, 6)


def test_energy_for_which_no_saving_rank_is_enough_is_refused() -> None:
    with pytest.raises(WiringError, match=r"rank 12, due for energy 0.999, saves nothing"):
        low_rank(energy=0.999).approximate(WEIGHT)
    with pytest.raises(WiringError, match="even rank 1 saves nothing"):
        make("low-rank", 1, 4, kernel=(1, 1), energy=0.9)


def test_two_sizes_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="rank and energy both say"):
        low_rank(rank=2, energy=0.9)


@pytest.mark.parametrize("stride", [1, 2])
def test_on_data_the_error_is_the_least_there_is(stride: int) -> None:
    op = low_rank(rank=3, fit="data", stride=stride)
    images = seen(op)
    op.approximate(WEIGHT, images)
    before, now = (
        unfold(x, 3, padding=1, stride=stride).transpose(0, 1).flatten(1)
        for x in (images.full, images.here)
    )
    wanted = WEIGHT.flatten(1) @ before
    free = torch.linalg.lstsq(now.T, wanted.T).solution.T @ now
    tail = torch.linalg.svdvals(free)[3:].square().sum()
    least = float((wanted - free).square().sum() + tail)
    assert data_error(op, WEIGHT, images) == pytest.approx(least, rel=1e-4)
    plain = low_rank(rank=3, stride=stride)
    plain.approximate(WEIGHT)
    assert least < 0.8 * data_error(plain, WEIGHT, images)


def test_on_data_what_the_images_leave_open_is_fitted_to_the_weight() -> None:
    op = make("low-rank", 6, 6, kernel=(1, 1), padding=0, rank=2, fit="data")
    weight = (drawn(6, 2) @ drawn(2, 6, seed=2)).view(6, 6, 1, 1)
    images = seen(op)
    images.full[:, 3:] = 0
    images.here.copy_(images.full)
    op.approximate(weight, images)
    torch.testing.assert_close(op.expand(), weight, rtol=1e-4, atol=1e-4)


def test_a_fit_on_data_without_images_is_refused() -> None:
    op = low_rank(fit="data")
    assert op.needs_data
    assert not low_rank().needs_data
    with pytest.raises(WiringError, match="looks at what the layer reads: give it images"):
        op.approximate(WEIGHT)


def test_gradients_are_those_of_the_two_convolutions() -> None:
    op = make("low-rank", 2, 3, stride=2, rank=1)
    x = drawn(1, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda *_: run(op, x), (x, op.left, op.right))


@pytest.mark.parametrize("factors", ["float", "binary"])
def test_operations_and_bits_are_those_of_two_convolutions(factors: str) -> None:
    cost = (op := low_rank(rank=4, factors=factors)).cost(alive(op), 10)
    assert cost.additions == 4 * (ROWS + COLUMNS) * 10
    if factors == "float":
        assert (cost.multiplications, cost.weight_bits) == (cost.additions, 32 * 4 * 57)
    else:
        assert (cost.multiplications, cost.weight_bits) == ((4 + 12) * 10, 4 * 57 + 32 * (4 + 12))


def test_binary_factors_are_signs_times_the_mean_of_their_rows() -> None:
    op = low_rank(rank=4, factors="binary")
    left, right = op.left[:, :, 0, 0], op.right.flatten(1)
    one, two = (f.sign() * f.abs().mean(dim=1, keepdim=True) for f in (left, right))
    x = drawn(2, 5, 6, 6)
    torch.testing.assert_close(run(op, x), conv2d(x, (one @ two).view(op.shape), padding=1))
    run(op, x).square().sum().backward()
    assert op.left.grad.all()
    assert op.right.grad.all()
    op.right.data.mul_(100)
    op.after_step(alive(op), alive(op))
    assert op.right.abs().max() == 1


def test_binary_factors_represent_a_product_of_signs_and_fit_their_scales_to_others() -> None:
    op = low_rank(rank=1, factors="binary")
    rows, columns = drawn(12, 1), drawn(1, 45, seed=2).sign()
    op.approximate((rows * columns).view(op.shape))
    torch.testing.assert_close(op.expand(), (rows * columns).view(op.shape))
    op, plain = low_rank(rank=8, factors="binary"), low_rank(rank=8)
    op.approximate(WEIGHT)
    plain.approximate(WEIGHT)
    found = error(op, WEIGHT)
    op.left.data.copy_(plain.left)
    op.right.data.copy_(plain.right)
    assert found < 0.99 * error(op, WEIGHT)
    assert found < 0.8 * float(WEIGHT.square().sum())


@pytest.mark.parametrize(
    ("name", "options"),
    [("low-rank", {}), ("low-rank", {"factors": "binary"}), ("separable", {})],
)
def test_the_compiled_form_takes_in_what_follows(name: str, options: dict[str, str]) -> None:
    op = make(name, stride=2, **options)
    epilogue = Epilogue(drawn(12), drawn(12, seed=2), relu=True)
    kernels, x = op.candidates(alive(op), epilogue), drawn(2, 5, 6, 6)
    torch.testing.assert_close(kernels["factored"](x), kernels["eager"](x))
    assert "factored" not in op.candidates(alive(op).triu_(), epilogue)
