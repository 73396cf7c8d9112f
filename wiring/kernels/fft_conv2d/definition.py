"""Convolution by products of Fourier coefficients, in plain PyTorch.

With w'[u - p] = w[u] a convolution of padding p is y[i] = Σ_v x[i + v] w'[v], and the circular one
of n points agrees with it on every pixel that is wanted as soon as

    n ≥ max(H + p, k, H + 2p - k + 1):

what wraps around meets zeros. Both gradients need no more points. (A full convolution would take
H + k - 1.) Spectra are [F, rows, columns] with the F = (n2 / 2 + 1) n1 coefficients of a real
image, the frequencies of a row outermost, so that the sum over channels is one complex matrix
product per coefficient. Filters have few taps: their transforms, and back from coefficients to the
gradients of those taps, are products with k columns of the Fourier matrices, which skip the zeros.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.masked_conv2d.definition import check_edges, check_image

Points = tuple[int, int]


@functools.cache
def fast_size(least: int) -> int:
    """The smallest number from `least` on with no prime factor above 5, and even from 2 on."""
    size = max(1, least)
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and (size == 1 or size % 2 == 0):
            return size
        size += 1


def points(height: int, width: int, kernel: tuple[int, int], padding: int) -> Points:
    """(n1, n2): the points of the transforms for an image of this size."""
    # int: when a graph is traced a size may be a symbol, which is settled here.
    down = int(max(height + padding, kernel[0], height + 2 * padding - kernel[0] + 1))
    right = int(max(width + padding, kernel[1], width + 2 * padding - kernel[1] + 1))
    return fast_size(down), fast_size(right)


def coefficients(n: Points) -> int:
    """How many Fourier coefficients describe a real image of n1 x n2 points."""
    return (n[1] // 2 + 1) * n[0]


def check(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    """(H', W'); raises WiringError where types, shapes or sizes do not fit."""
    check_edges(weight)
    size = check_image(x, weight, stride, padding)
    if x.dtype not in (torch.float32, torch.float64):
        raise WiringError(f"Fourier transforms take float32 or float64, got {x.dtype}")
    return size


def complex_type(dtype: torch.dtype) -> torch.dtype:
    """The type of the coefficients of images of a type."""
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def spectrum(images: Tensor, n: Points) -> Tensor:
    """[A, B, h, w] → its coefficients [F, A, B]."""
    if not images.numel():
        shape = (coefficients(n), *images.shape[:2])
        return images.new_zeros(shape, dtype=complex_type(images.dtype))
    planes: Tensor = torch.fft.rfft2(images, s=n)
    return planes.permute(3, 2, 0, 1).flatten(0, 1).contiguous()


def images(coefficients: Tensor, n: Points) -> Tensor:
    """[F, A, B] → [A, B, n1, n2]: the inverse of `spectrum`."""
    _, a, b = coefficients.shape
    if not a * b:
        return coefficients.real.new_zeros(a, b, *n)
    planes = coefficients.view(n[1] // 2 + 1, n[0], a, b).permute(2, 3, 1, 0)
    result: Tensor = torch.fft.irfft2(planes, s=n)
    return result


def _waves(frequencies: int, n: int, taps: int, padding: int, like: Tensor) -> Tensor:
    """exp(2πi f (u - padding) / n), [frequencies, taps]: conjugate Fourier coefficients of taps."""
    f = torch.arange(frequencies, dtype=torch.float64, device=like.device)
    u = torch.arange(taps, dtype=torch.float64, device=like.device) - padding
    angle = torch.outer(f, u).remainder(n) * (2 * math.pi / n)
    return torch.polar(torch.ones_like(angle), angle).to(complex_type(like.dtype))


def filter_spectrum(weight: Tensor, padding: int, n: Points) -> Tensor:
    """conj F(w'), [F, S, D]: of the taps of weight [D, S, kh, kw], moved `padding` to the left."""
    d, s, kh, kw = weight.shape
    half = n[1] // 2 + 1
    across = _waves(half, n[1], kw, padding, weight)
    taps = weight.permute(3, 2, 1, 0).reshape(kw, kh * s * d).to(across.dtype)
    down = _waves(n[0], n[0], kh, padding, weight)
    rows = (across @ taps).view(half, kh, s * d)
    return torch.bmm(down.expand(half, -1, -1), rows).view(half * n[0], s, d)


def filter_taps(coefficients: Tensor, kernel: tuple[int, int], padding: int, n: Points) -> Tensor:
    """The taps [D, S, kh, kw] of conjugate spectra [F, S, D]: the inverse of `filter_spectrum`."""
    (_, s, d), (kh, kw) = coefficients.shape, kernel
    half = n[1] // 2 + 1
    like = coefficients.real
    back = _waves(n[0], n[0], kh, padding, like).conj_physical().t().contiguous()
    columns = coefficients.view(half, n[0], s * d)
    rows = torch.bmm(back.expand(half, -1, -1), columns).view(half, kh * s * d)
    across = _waves(half, n[1], kw, padding, like)
    # Columns that are not their own mirror image stand for two.
    twice = torch.full((half, 1), 2.0, dtype=like.dtype, device=like.device)
    twice[:: max(1, n[1] // 2)] = 1.0
    weights = across.conj_physical() * (twice / (n[0] * n[1]))
    taps = weights.real.t() @ rows.real - weights.imag.t() @ rows.imag
    return taps.view(kw, kh, s, d).permute(3, 2, 1, 0).contiguous()


def forward(x: Tensor, filters: Tensor, size: Points, stride: int, n: Points) -> tuple[Tensor, ...]:
    """(y [N, D, H', W'], F(x) [F, N, S]) for conjugate filter spectra [F, S, D]."""
    seen = spectrum(x, n)
    y = images(torch.bmm(seen, filters), n)
    h, w = ((side - 1) * stride + 1 for side in size)
    return y[:, :, :h:stride, :w:stride].contiguous(), seen


def spread(grad: Tensor, stride: int, n: Points) -> Tensor:
    """The spectrum of grad [N, D, H', W'], its pixels `stride` apart and zeros between."""
    if stride > 1 and grad.numel():
        h, w = ((side - 1) * stride + 1 for side in grad.shape[2:])
        wide = grad.new_zeros(*grad.shape[:2], h, w)
        wide[:, :, ::stride, ::stride] = grad
        grad = wide
    return spectrum(grad, n)


def input_gradient(grad: Tensor, filters: Tensor, size: Points, n: Points) -> Tensor:
    """dx [N, S, H, W] from the spectrum of dy and the filters' conjugate one."""
    # dy and the product are conjugated instead of the filters, which are larger.
    dx = images(torch.bmm(grad.conj_physical(), filters.transpose(1, 2)).conj_physical(), n)
    return dx[:, :, : size[0], : size[1]].contiguous()


def weight_gradient(
    grad: Tensor, seen: Tensor, kernel: tuple[int, int], padding: int, n: Points
) -> Tensor:
    """dw [D, S, kh, kw] from the spectra of dy and of x."""
    # dw' has the coefficients F(x) conj F(dy), and filters are described by conjugate ones.
    products = torch.bmm(seen.conj_physical().transpose(1, 2), grad)
    return filter_taps(products, kernel, padding, n)
