"""Y = F⁻¹(F(X) ⊙ conj F(W)), summed over channels among the Fourier coefficients.

dX = F⁻¹(F(dY) ⊙ F(W)), dW = F⁻¹(F(X) ⊙ conj F(dY)): every tensor is transformed once, since the
forward pass keeps the coefficients of its image and of its filters for the backward pass (Mathieu,
Henaff, LeCun: Fast Training of Convolutional Networks through FFTs, ICLR 2014). A stride computes
every position and keeps some.

The result is that of the ordinary convolution up to rounding, which is relative to the largest
value of an image; a NaN or an infinity spreads over the whole of its image. In memory coefficients
take twice the bytes of the padded images and filters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.fft_conv2d.definition import (
    check,
    coefficients,
    complex_type,
    filter_spectrum,
    forward,
    input_gradient,
    points,
    spread,
    weight_gradient,
)
from wiring.kernels.masked_conv2d.definition import check_gradient, output_size


@custom_op("wiring::fft_conv2d", mutates_args=())
def fft_conv2d_spectra(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """(y [N, D, H', W'], F(x) [F, N, S], conj F(w) [F, S, D]); no gradient reaches the spectra."""
    size = check(x, weight, stride, padding)
    n = points(x.shape[2], x.shape[3], (weight.shape[2], weight.shape[3]), padding)
    filters = filter_spectrum(weight, padding, n)
    y, seen = forward(x, filters, size, stride, n)
    return y, seen, filters


@custom_op("wiring::fft_conv2d_gradients", mutates_args=())
def fft_conv2d_gradients(
    grad: Tensor,
    seen: Tensor,
    filters: Tensor,
    height: int,
    width: int,
    kh: int,
    kw: int,
    stride: int,
    padding: int,
    to_x: bool,
    to_weight: bool,
) -> tuple[Tensor, Tensor]:
    """(dx [N, S, height, width], dw [D, S, kh, kw]) from dy and the spectra of the forward pass.

    One that is not wanted comes back empty. Raises WiringError where sizes do not fit.
    """
    n = points(height, width, (kh, kw), padding)
    (_, images, sources), destinations = seen.shape, filters.shape[2]
    like = torch.empty((destinations, sources, kh, kw), device="meta")
    size = output_size(height, kh, stride, padding), output_size(width, kw, stride, padding)
    check_gradient(grad, like, size)
    if seen.shape[0] != coefficients(n) or len(grad) != images or grad.device != seen.device:
        raise WiringError(
            f"the spectra hold {seen.shape[0]} coefficients of {images} images, the gradient "
            f"needs {coefficients(n)} of {len(grad)} on {grad.device}"
        )
    dy = spread(grad, stride, n)
    dx, dw = grad.new_empty(0), grad.new_empty(0)
    if to_x:
        dx = input_gradient(dy, filters, (height, width), n)
    if to_weight:
        dw = weight_gradient(dy, seen, (kh, kw), padding, n)
    return dx, dw


@fft_conv2d_spectra.register_fake
def _(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    h, w = check(x, weight, stride, padding)
    kind = complex_type(x.dtype)
    f = coefficients(points(x.shape[2], x.shape[3], (weight.shape[2], weight.shape[3]), padding))
    return (
        x.new_empty(x.shape[0], weight.shape[0], h, w),
        x.new_empty(f, x.shape[0], x.shape[1], dtype=kind),
        x.new_empty(f, x.shape[1], weight.shape[0], dtype=kind),
    )


@fft_conv2d_gradients.register_fake
def _(
    grad: Tensor,
    seen: Tensor,
    filters: Tensor,
    height: int,
    width: int,
    kh: int,
    kw: int,
    stride: int,
    padding: int,
    to_x: bool,
    to_weight: bool,
) -> tuple[Tensor, Tensor]:
    (_, images, sources), destinations = seen.shape, filters.shape[2]
    return (
        grad.new_empty((images, sources, height, width) if to_x else 0),
        grad.new_empty((destinations, sources, kh, kw) if to_weight else 0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, ctx.stride, ctx.padding = inputs
    ctx.sizes = (*x.shape[2:], *weight.shape[2:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    to_x, to_weight = ctx.needs_input_grad[:2]
    dx, dw = fft_conv2d_gradients(
        grad, *ctx.saved_tensors, *ctx.sizes, ctx.stride, ctx.padding, to_x, to_weight
    )
    return dx if to_x else None, dw if to_weight else None, None, None


fft_conv2d_spectra.register_autograd(_backward, setup_context=_setup)
fft_conv2d_spectra.register_autocast("cpu", torch.float32)
fft_conv2d_spectra.register_autocast("cuda", torch.float32)


def fft_conv2d(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """The ordinary convolution by Fourier transforms, differentiable once.

    x float32 or float64 [N, S, H, W]; weight [D, S, kh, kw] of its type. Returns [N, D, H', W'],
    contiguous. Raises WiringError where types, shapes or sizes do not fit.
    """
    y: Tensor = fft_conv2d_spectra(x, weight, stride, padding)[0]
    return y
