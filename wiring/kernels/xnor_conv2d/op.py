"""Convolution of signs: y = alpha · Σ_live sign(w) sign(x) [· scale], from packed words.

A dot product of n signs is n - 2·popcount(a xor b); a live plane m and the borders of the image
make it popcount(m) - 2·popcount((a xor b) & m) over the taps inside. The sum is exact, so the
result is the definition's bit for bit (Rastegari et al.: XNOR-Net, ECCV 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import has_triton, native, threads
from wiring.kernels.bitpack import unpack_signs, words
from wiring.kernels.bitpack.layout import unpack_bits
from wiring.kernels.xnor_conv2d.shapes import (
    check_packed,
    check_scale,
    check_weights,
    output_size,
    prepare,
)

_native = native("xnor_conv2d")


def _sizes(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    scale: Tensor | None,
    channels: int,
    stride: int,
    padding: int,
) -> tuple[int, int, int, int]:
    """The output's n, height, width and d, of inputs that fit one another."""
    check_weights(weight, live, alpha, channels)
    check_packed("input words", x, words(channels), channels)
    n, h, w, _ = x.shape
    d, kh, kw, _ = weight.shape
    height, width = output_size(h, kh, stride, padding), output_size(w, kw, stride, padding)
    check_scale(scale, n, height, width)
    return n, height, width, d


def _is_compiled() -> bool:
    return _native() is not None


# torch.compile asks once.
_compiled: Callable[[], bool] = torch.compiler.assume_constant_result(  # type: ignore[no-untyped-call]
    _is_compiled
)


def packs_inputs(x: Tensor) -> bool:
    """Whether packing x for `xnor_conv2d` pays: a compiled kernel takes its words."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and _compiled()


def weight_signs(weight: Tensor, live: Tensor | None, channels: int) -> Tensor:
    """±1 on live edges, 0 on dead ones, float32 [D, channels, kh, kw]; words [D, kh, kw, ·]."""
    signs: Tensor = unpack_signs(weight, channels)
    return signs if live is None else signs.where(unpack_bits(live, channels), 0)


def _definition(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    scale: Tensor | None,
    channels: int,
    stride: int,
    padding: int,
) -> Tensor:
    filters = weight_signs(weight, live, channels)
    if not len(filters):  # which conv2d refuses
        height = output_size(x.shape[1], filters.shape[2], stride, padding)
        width = output_size(x.shape[2], filters.shape[3], stride, padding)
        return alpha.new_empty(x.shape[0], height, width, 0).permute(0, 3, 1, 2)
    total = F.conv2d(unpack_signs(x, channels), filters, stride=stride, padding=padding)
    y = total * alpha.view(1, -1, 1, 1)
    if scale is not None:
        y = y * scale
    return y.contiguous(memory_format=torch.channels_last)


@custom_op("wiring::xnor_conv2d", mutates_args=())
def xnor_conv2d(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    scale: Tensor | None,
    channels: int,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Sum live signs, times alpha, times scale; padding is 0, not a sign: it adds nothing.

    x int64 words [N, H, W, ⌈channels/64⌉]; weight and live words [D, kh, kw, ⌈channels/64⌉], live
    None where every edge lives; alpha float32 [D]; scale float32 [N, 1, H', W'] or None; returns
    float32 [N, D, H', W'], channels_last. No gradient. Raises WiringError for what does not fit.
    """
    _sizes(x, weight, live, alpha, scale, channels, stride, padding)
    return _definition(x, weight, live, alpha, scale, channels, stride, padding)


@xnor_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    scale: Tensor | None,
    channels: int,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    sizes = _sizes(x, weight, live, alpha, scale, channels, stride, padding)
    return x.new_empty(sizes, dtype=torch.float32).permute(0, 3, 1, 2)


@xnor_conv2d.register_kernel("cpu")
def _(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    scale: Tensor | None,
    channels: int,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    sizes = _sizes(x, weight, live, alpha, scale, channels, stride, padding)
    kernel = _native()
    if kernel is None:
        return _definition(x, weight, live, alpha, scale, channels, stride, padding)
    x = x.contiguous()
    result = x.new_empty(sizes, dtype=torch.float32)
    ready = prepare(kernel, weight, live, alpha, channels)
    n, h, w, _ = x.shape
    d, kh, kw, _ = weight.shape
    shape = (n, h, w, channels, d, kh, kw, stride, padding)
    factors = None if scale is None else scale.contiguous()
    at = 0 if factors is None else factors.data_ptr()
    kernel.xnor(x.data_ptr(), *ready.addresses, at, result.data_ptr(), shape, threads())
    return result.permute(0, 3, 1, 2)


@xnor_conv2d.register_kernel("cuda")
def _(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    scale: Tensor | None,
    channels: int,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    _sizes(x, weight, live, alpha, scale, channels, stride, padding)
    if not has_triton():
        return _definition(x, weight, live, alpha, scale, channels, stride, padding)
    from wiring.kernels.xnor_conv2d import gpu

    arguments = (x, weight, live, alpha, scale, channels, stride, padding)
    return gpu.xnor_conv2d(*arguments)


@xnor_conv2d.register_vmap
def _(info: Any, in_dims: Any, x: Tensor, *others: Any) -> tuple[Tensor, int]:
    """More images: x and scale may be batched, weights may not."""
    weight, live, alpha, scale, *settings = others
    if in_dims[0] is None or any(in_dims[i] is not None for i in (1, 2, 3)):
        raise WiringError("vmap over xnor_conv2d batches x and scale, not the weights")
    x = x.movedim(in_dims[0], 0)
    if scale is not None:
        copies = (info.batch_size, *scale.shape)
        scale = scale.expand(copies) if in_dims[4] is None else scale.movedim(in_dims[4], 0)
        scale = scale.flatten(0, 1)
    y = xnor_conv2d(x.flatten(0, 1), weight, live, alpha, scale, *settings)
    return y.unflatten(0, (info.batch_size, -1)), 0


def xnor_linear(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    alpha: Tensor,
    scale: Tensor | None,
    channels: int,
) -> Tensor:
    """The same without positions: x words [M, words], weight and live words [D, words], alpha
    [D], scale [M, 1] or None; returns float32 [M, D]. Raises WiringError for what does not fit.
    """
    check_rows(x, weight, live)
    n, d = x.shape[0], weight.shape[0]
    y = xnor_conv2d(
        x.view(n, 1, 1, -1),
        weight.view(d, 1, 1, -1),
        None if live is None else live.view(d, 1, 1, -1),
        alpha,
        None if scale is None else scale.view(n, 1, 1, 1),
        channels,
    )
    result: Tensor = y.view(n, d)
    return result


def check_rows(x: Tensor, weight: Tensor, live: Tensor | None) -> None:
    """Raises WiringError unless all are matrices."""
    for name, tensor in (("inputs", x), ("weights", weight), ("live words", live)):
        if tensor is not None and tensor.dim() != 2:
            raise WiringError(f"{name} of a linear map must be a matrix, got {list(tensor.shape)}")
