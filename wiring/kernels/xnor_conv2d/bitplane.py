"""Convolution of k-bit numbers as bit planes: y = Σ_ij 2^(i+j) popcount(x_i & w_j).

A product of a bits by b bits costs a·b passes of one-bit work (Zhou et al.: DoReFa-Net, 2016,
section 2.1). Numbers are unsigned, and padding is 0, so borders need no care.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import has_triton, native, threads
from wiring.kernels.bitpack.layout import BITS, MOST_PLANES, unpack_bits
from wiring.kernels.xnor_conv2d.shapes import output_size, panels

_native = native("xnor_conv2d")


def _sizes(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int, int, int]:
    """The output's n, height, width and d, of planes that fit one another."""
    for name, planes in (("input", x), ("weight", weight)):
        if planes.dim() != 5 or planes.dtype != torch.int64:
            raise WiringError(
                f"{name} planes must be int64 [bits, ·, ·, ·, words], "
                f"got {planes.dtype} {list(planes.shape)}"
            )
        if not 1 <= planes.shape[0] <= MOST_PLANES:
            raise WiringError(f"{name} planes must be 1..{MOST_PLANES}, got {planes.shape[0]}")
    if x.shape[4] != weight.shape[4]:
        raise WiringError(
            f"input and weight planes must have as many words, got {x.shape[4]} and "
            f"{weight.shape[4]}"
        )
    _, n, h, w, _ = x.shape
    _, d, kh, kw, _ = weight.shape
    return n, output_size(h, kh, stride, padding), output_size(w, kw, stride, padding), d


def _numbers(planes: Tensor) -> Tensor:
    """Planes [bits, N, H, W, words] → float64 [N, 64 · words, H, W]."""
    channels = BITS * planes.shape[4]
    parts = [unpack_bits(p, channels).double() * 2**i for i, p in enumerate(planes)]
    return torch.stack(parts).sum(dim=0)


def _definition(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    n, height, width, d = _sizes(x, weight, stride, padding)
    if d == 0 or x.shape[4] == 0:  # which conv2d refuses
        return x.new_zeros(n, height, width, d, dtype=torch.int32).permute(0, 3, 1, 2)
    # float64 holds every sum of products of 8 bits exactly.
    y = F.conv2d(_numbers(x), _numbers(weight), stride=stride, padding=padding)
    return y.to(torch.int32).contiguous(memory_format=torch.channels_last)


@custom_op("wiring::bitplane_conv2d", mutates_args=())
def bitplane_conv2d(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """The exact convolution of unsigned numbers of up to 8 bits.

    x int64 planes [bits, N, H, W, words] of `bit_planes`; weight [bits, D, kh, kw, words];
    returns int32 [N, D, H', W'], channels_last. Raises WiringError for what does not fit.
    """
    return _definition(x, weight, stride, padding)


@bitplane_conv2d.register_fake
def _(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    sizes = _sizes(x, weight, stride, padding)
    return x.new_empty(sizes, dtype=torch.int32).permute(0, 3, 1, 2)


@bitplane_conv2d.register_kernel("cpu")
def _(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    sizes = _sizes(x, weight, stride, padding)
    kernel = _native()
    if kernel is None:
        return _definition(x, weight, stride, padding)
    x = x.contiguous()
    ready = torch.stack([panels(kernel, plane) for plane in weight])
    result = x.new_empty(sizes, dtype=torch.int32)
    x_bits, n, h, w, words = x.shape
    w_bits, d, kh, kw, _ = weight.shape
    kernel.planes(
        x.data_ptr(),
        x_bits,
        ready.data_ptr(),
        w_bits,
        result.data_ptr(),
        (n, h, w, BITS * words, d, kh, kw, stride, padding),
        threads(),
    )
    return result.permute(0, 3, 1, 2)


@bitplane_conv2d.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    _sizes(x, weight, stride, padding)
    if not has_triton():
        return _definition(x, weight, stride, padding)
    from wiring.kernels.xnor_conv2d import gpu

    return gpu.bitplane_conv2d(x, weight, stride, padding)


@bitplane_conv2d.register_vmap
def _(info: Any, in_dims: Any, x: Tensor, weight: Tensor, *settings: int) -> tuple[Tensor, int]:
    """More images: x may be batched, the weights may not."""
    if in_dims[0] is None or in_dims[1] is not None:
        raise WiringError("vmap over bitplane_conv2d batches x, not the weights")
    x = x.movedim(in_dims[0], 1)
    y = bitplane_conv2d(x.flatten(1, 2), weight, *settings)
    return y.unflatten(0, (info.batch_size, -1)), 0
