"""masked_conv2d and its gradients against their float64 definition, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from masked_cases import Problem, always, problems
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels import backends
from wiring.kernels.masked_conv2d import (
    masked_conv2d,
    masked_conv2d_input_gradient,
    masked_conv2d_weight_gradient,
    masked_linear,
)

every_set = pytest.mark.parametrize("isa", backends.instruction_sets())
both_paths = pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])


def results(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, live, grad = problem.tensors()
    step = (problem.stride, problem.padding)
    return (
        masked_conv2d(x, weight, live, live, *step),
        masked_conv2d_input_gradient(grad, weight, live, problem.height, problem.width, *step),
        masked_conv2d_weight_gradient(grad, x, live, *step),
    )


def assert_right(problem: Problem) -> None:
    for result, expected in zip(results(problem), problem.expected(), strict=True):
        # Sums of a few thousand products of unit variance.
        torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=3e-4)


@every_set
@both_paths
def test_results_equal_the_definition_in_float64(isa: str, sparse: bool) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(problems)
    def check(problem: Problem) -> None:
        with backends.use(isa), always(sparse):
            assert_right(problem)

    check()


@every_set
@pytest.mark.parametrize("sources", [64, 100])
def test_panels_are_joined_where_an_image_takes_several(isa: str, sources: int) -> None:
    wide = Problem(1, sources, 9, 50, 61, density=0.05, seed=1)
    with backends.use(isa), always(sparse=True):
        assert_right(wide)


@every_set
@both_paths
def test_results_do_not_depend_on_the_number_of_threads(isa: str, sparse: bool) -> None:
    problem = Problem(3, 40, 35, 9, 9, density=0.2, channels_last=True)
    with backends.use(isa), always(sparse):
        expected = results(problem) if sparse else None
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            try:
                found = results(problem)
                assert_right(problem)
            finally:
                torch.set_num_threads(1)
            if expected is not None:
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_set
@both_paths
@pytest.mark.parametrize("poison", [torch.nan, 1e30])
def test_every_value_is_written(isa: str, sparse: bool, poison: float) -> None:
    problem = Problem(2, 9, 6, 7, 7, stride=3, padding=0, density=0.1)
    deterministic = torch.are_deterministic_algorithms_enabled()
    with backends.use(isa), always(sparse):
        torch.full((1 << 18,), poison)  # what memory handed out next may hold
        torch.use_deterministic_algorithms(True)  # fills fresh tensors with NaN
        try:
            assert_right(problem)
        finally:
            torch.use_deterministic_algorithms(deterministic)


@every_set
@both_paths
def test_unaligned_and_non_contiguous_images_are_read_right(isa: str, sparse: bool) -> None:
    x, weight, live, _ = Problem(2, 6, 5, 6, 6).tensors()
    with backends.use(isa), always(sparse):
        expected = masked_conv2d(x, weight, live, live, 1, 1)
        shifted = torch.zeros(x.numel() + 1)[1:].view_as(x).copy_(x)
        spaced = torch.zeros(2, 6, 6, 12)[..., ::2].copy_(x)
        turned = x.transpose(2, 3).contiguous().transpose(2, 3)
        last = x.contiguous(memory_format=torch.channels_last)
        for other in (shifted, spaced, turned, last):
            torch.testing.assert_close(masked_conv2d(other, weight, live, live, 1, 1), expected)
        apart = torch.zeros(5, 6, 3, 6)[..., ::2].copy_(weight)
        flags = torch.zeros(5, 6, 3, 6, dtype=torch.bool)[..., ::2].copy_(live)
        torch.testing.assert_close(masked_conv2d(x, apart, flags, flags, 1, 1), expected)


@every_set
@both_paths
def test_a_row_without_live_edges_is_exactly_zero(isa: str, sparse: bool) -> None:
    problem = Problem(density=0.0)
    with backends.use(isa), always(sparse):
        assert all(not result.any() for result in results(problem))


@every_set
def test_memory_is_channels_last_in_every_path(isa: str) -> None:
    x, weight, live, grad = Problem(2, 1, 1, 4, 1, (1, 1), padding=0).tensors()
    with backends.use(isa):
        for sparse in (True, False):
            with always(sparse):
                y = masked_conv2d(x, weight, live, live)
                dx = masked_conv2d_input_gradient(grad, weight, live, 4, 1, 1, 0)
                for image in (y, dx):
                    assert image.stride() == (4, 1, 1, 1)


@every_set
def test_a_linear_sum_is_a_matrix_product(isa: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 18, generator=g)
    weight = torch.randn(7, 18, generator=g)
    live = torch.rand(7, 18, generator=g) < 0.3
    with backends.use(isa), always(sparse=True):
        y = masked_linear(x, weight, live, live)
    torch.testing.assert_close(y, x @ torch.where(live, weight, 0.0).t())


EDGES = torch.ones(3, 2, 3, 3)
ALL = torch.ones(3, 2, 3, 3, dtype=torch.bool)
IMAGE = torch.ones(1, 2, 5, 5)


@pytest.mark.parametrize(
    ("x", "weight", "live", "step", "message"),
    [
        (IMAGE.int(), EDGES, ALL, (1, 0), "floating-point"),
        (IMAGE.double(), EDGES, ALL, (1, 0), "share a floating-point type"),
        (IMAGE[0], EDGES, ALL, (1, 0), r"\[N, S, H, W\]"),
        (IMAGE[:, :1], EDGES, ALL, (1, 0), "takes 2 channels, the image has 1"),
        (IMAGE, EDGES[0], ALL, (1, 0), r"\[D, S, kh, kw\]"),
        (IMAGE, EDGES, EDGES, (1, 0), "'live' must be bool"),
        (IMAGE, EDGES, ALL[:2], (1, 0), "the weight's shape"),
        (IMAGE, EDGES, ALL, (0, 0), "stride must be at least 1, got 0"),
        (IMAGE, EDGES, ALL, (1, -1), "padding must be at least 0, got -1"),
        (IMAGE[..., :2], EDGES, ALL, (1, 0), "does not fit"),
        (IMAGE[..., :0], EDGES, ALL, (1, 2), "does not fit"),
    ],
)
def test_misuse_raises_a_sentence(
    x: Tensor, weight: Tensor, live: Tensor, step: tuple[int, int], message: str
) -> None:
    with pytest.raises(WiringError, match=message):
        masked_conv2d(x, weight, live, live, *step)


def test_a_gradient_of_another_size_is_refused() -> None:
    with pytest.raises(WiringError, match="the gradient must be"):
        masked_conv2d_input_gradient(torch.ones(1, 3, 9, 9), EDGES, ALL, 5, 5, 1, 0)
    with pytest.raises(WiringError, match="floating-point type"):
        masked_conv2d_input_gradient(torch.ones(1, 3, 3, 3).double(), EDGES, ALL, 5, 5, 1, 0)
    with pytest.raises(WiringError, match="of 1 images, got 2"):
        masked_conv2d_weight_gradient(torch.ones(2, 3, 3, 3), IMAGE, ALL, 1, 0)
    with pytest.raises(WiringError, match="images must be"):
        masked_conv2d_weight_gradient(torch.ones(1, 3, 3, 3), IMAGE[:, :1], ALL, 1, 0)
    with pytest.raises(WiringError, match="linear sum"):
        masked_linear(torch.ones(3, 4), EDGES, ALL, ALL)
