"""Fourier and Winograd convolutions against the direct one in float64, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from wiring.errors import WiringError
from wiring.kernels.fft_conv2d import PreparedFft, fast_size, fft_conv2d
from wiring.kernels.fft_conv2d import prepared as fft_prepared
from wiring.kernels.fft_conv2d.op import fft_conv2d_gradients, fft_conv2d_spectra
from wiring.kernels.winograd_conv2d import PreparedWinograd, winograd_conv2d
from wiring.kernels.winograd_conv2d.op import (
    winograd_conv2d_input_gradient,
    winograd_conv2d_weight_gradient,
)

Convolution = Callable[[Tensor, Tensor, int], Tensor]
few = settings(max_examples=25, deadline=None, derandomize=True)
sizes = st.tuples(
    st.integers(0, 3), st.sampled_from([1, 2, 5]), st.sampled_from([0, 1, 3, 4])
)  # images, sources, destinations
sides = st.tuples(st.integers(1, 13), st.integers(1, 13))
WINOGRAD: dict[str, Convolution] = {
    "winograd 2": lambda x, w, p: winograd_conv2d(x, w, p, 2),
    "winograd 4": lambda x, w, p: winograd_conv2d(x, w, p, 4),
}
ALL: dict[str, Convolution] = {"fft": lambda x, w, p: fft_conv2d(x, w, 1, p), **WINOGRAD}
every_way = pytest.mark.parametrize("way", ALL)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layouts(x: Tensor) -> list[Tensor]:
    """The same values in memory that is channels_last, with gaps, turned and unaligned."""
    gaps = x.new_zeros(*x.shape[:3], 2 * x.shape[3])[..., ::2].copy_(x)
    unaligned = x.new_zeros(x.numel() + 1)[1:].view_as(x).copy_(x)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    return [x.contiguous(memory_format=torch.channels_last), gaps, unaligned, turned]


def assert_equal_to_the_direct(
    ours: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, stride: int, padding: int
) -> None:
    """Results and both gradients, at float64 precision."""
    x, w = x.requires_grad_(), w.requires_grad_()
    expected = F.conv2d(x, w, stride=stride, padding=padding)
    grad = drawn(*expected.shape, seed=3)
    found = ours(x, w)
    wanted = torch.autograd.grad(expected, (x, w), grad)
    for one, other in zip(
        (found, *torch.autograd.grad(found, (x, w), grad)), (expected, *wanted), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@few
@given(
    sizes, sides, st.tuples(*[st.sampled_from([1, 2, 3, 5, 7])] * 2), st.integers(1, 3),
    st.integers(0, 5),
)  # fmt: skip
def test_fourier_results_and_gradients_are_the_direct_ones(
    size: tuple[int, int, int], side: tuple[int, int], kernel: tuple[int, int], stride: int, p: int
) -> None:
    n, s, d = size
    if min(a + 2 * p - k for a, k in zip(side, kernel, strict=True)) < 0:
        return
    x, w = drawn(n, s, *side), drawn(d, s, *kernel, seed=1)
    if x.numel() and d:
        assert_equal_to_the_direct(lambda x, w: fft_conv2d(x, w, stride, p), x, w, stride, p)
    expected = F.conv2d(x, w, stride=stride, padding=p) if d else x.new_zeros(0)
    for tile in (None, 8, 11):
        found = PreparedFft(w, stride=stride, padding=p, tile=tile)(x)
        torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("tile", [2, 4])
def test_winograd_results_and_gradients_are_the_direct_ones(tile: int) -> None:
    @few
    @given(sizes, sides, st.integers(0, 4))
    def check(size: tuple[int, int, int], side: tuple[int, int], p: int) -> None:
        n, s, d = size
        if min(side) + 2 * p < 3:
            return
        x, w = drawn(n, s, *side), drawn(d, s, 3, 3, seed=1)
        if x.numel() and d:
            assert_equal_to_the_direct(lambda x, w: winograd_conv2d(x, w, p, tile), x, w, 1, p)
        expected = F.conv2d(x, w, padding=p) if d else x.new_zeros(0)
        found = PreparedWinograd(w, padding=p, tile=tile)(x)
        torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-10, atol=1e-11)

    check()


@every_way
def test_the_layout_of_memory_changes_nothing(way: str) -> None:
    x, w = drawn(2, 3, 6, 7), drawn(4, 3, 3, 3, seed=1)
    expected = F.conv2d(x, w, padding=1)
    for image, weight in zip(layouts(x), layouts(w), strict=True):
        torch.testing.assert_close(ALL[way](image, weight, 1), expected, rtol=1e-11, atol=1e-11)


@every_way
def test_gradients_pass_gradcheck(way: str) -> None:
    x, w = drawn(1, 2, 4, 5).requires_grad_(), drawn(2, 2, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: ALL[way](x, w, 1), (x, w))


@every_way
def test_only_the_gradient_that_is_wanted_is_computed(way: str) -> None:
    x, w = drawn(1, 2, 4, 5), drawn(2, 2, 3, 3, seed=1)
    for wanted in (x, w):
        one, other = (t.clone().requires_grad_(t is wanted) for t in (x, w))
        ALL[way](one, other, 1).sum().backward()
        assert (one.grad is not None) == (wanted is x)
        assert (other.grad is not None) == (wanted is w)


@pytest.mark.parametrize(("way", "tolerance"), [("fft", 1e-6), ("winograd 2", 2e-6)])
def test_float32_rounds_about_as_the_direct_one_does(way: str, tolerance: float) -> None:
    assert worst(way) < tolerance


def test_winograd_tiles_of_four_keep_float32_within_the_stated_error() -> None:
    assert worst("winograd 4") < 5e-5


def worst(way: str) -> float:
    """The largest error in float32, of the largest result, over 64 channels."""
    x, w = drawn(2, 64, 16, 15), drawn(8, 64, 3, 3, seed=1)
    expected = F.conv2d(x, w, padding=1)
    found = ALL[way](x.float(), w.float(), 1)
    return float((found - expected).abs().max() / expected.abs().max())


def test_the_operations_pass_opcheck() -> None:
    shape = (2, 3, 6, 7)
    x = drawn(*shape, dtype=torch.float32).requires_grad_()
    w = drawn(2, shape[1], 3, 3, seed=1, dtype=torch.float32).requires_grad_()
    opcheck(fft_conv2d_spectra, (x, w, 1, 1))
    opcheck(winograd_conv2d, (x, w, 1, 2))
    y, seen, filters = (t.detach() for t in fft_conv2d_spectra(x, w, 1, 1))
    numbers = (*shape[2:], 3, 3, 1, 1)
    opcheck(fft_conv2d_gradients, (y, seen, filters, *numbers, True, False))
    opcheck(winograd_conv2d_input_gradient, (y, w.detach(), *shape[2:], 1, 2))
    opcheck(winograd_conv2d_weight_gradient, (y, x.detach(), 1, 2))


def test_a_prepared_convolution_follows_images_of_other_sizes() -> None:
    w = drawn(3, 2, 5, 5)
    prepared = PreparedFft(w, padding=2)
    for side in (9, 14, 9):
        x = drawn(1, 2, side, side, seed=side)
        torch.testing.assert_close(prepared(x), F.conv2d(x, w, padding=2))


def test_filters_that_would_take_too_much_memory_are_transformed_for_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, w = drawn(1, 2, 50, 41), drawn(3, 2, 5, 5, seed=1)
    whole = PreparedFft(w, padding=2)
    torch.testing.assert_close(whole(x), F.conv2d(x, w, padding=2))
    monkeypatch.setattr(fft_prepared, "LIMIT_BYTES", 1 << 10)
    cut = PreparedFft(w, padding=2)
    torch.testing.assert_close(cut(x), F.conv2d(x, w, padding=2))
    assert cut.nbytes < whole.nbytes


def test_sizes_of_transforms_have_small_prime_factors() -> None:
    assert [fast_size(n) for n in (1, 2, 3, 7, 11, 13, 17, 65, 129)] == [
        1, 2, 4, 8, 12, 16, 18, 72, 144,
    ]  # fmt: skip


IMAGE, WEIGHT = torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fft_conv2d(IMAGE.half(), WEIGHT.half()), "float32 or float64"),
        (lambda: fft_conv2d(IMAGE, WEIGHT, 0), "stride must be at least 1, got 0"),
        (lambda: fft_conv2d(IMAGE[:, :1], WEIGHT), "takes 2 channels, the image has 1"),
        (lambda: PreparedFft(WEIGHT, tile=2), "a tile must hold the kernel"),
        (lambda: winograd_conv2d(IMAGE, WEIGHT[..., :2]), "kernels of 3x3"),
        (lambda: winograd_conv2d(IMAGE, WEIGHT, 0, 3), "2 or 4 results a side, got 3"),
        (lambda: winograd_conv2d(IMAGE.half(), WEIGHT.half()), "float32 or float64"),
        (lambda: winograd_conv2d(IMAGE[..., :2], WEIGHT), "does not fit"),
        (lambda: PreparedWinograd(WEIGHT[..., :1]), "kernels of 3x3"),
        (
            lambda: winograd_conv2d_weight_gradient(IMAGE, IMAGE, 0, 2),
            "the gradient must be",
        ),
        (
            lambda: fft_conv2d_gradients(
                WEIGHT[:1], IMAGE[..., 0].cfloat(), IMAGE[..., 0].cfloat(), 3, 3, 1, 1, 1, 0, 1, 0
            ),
            "the gradient must be",
        ),
    ],
)
def test_misuse_raises_a_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises(WiringError, match=message):
        call()
