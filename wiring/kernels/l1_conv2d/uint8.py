"""The L1 distance of bytes, exact, for networks quantised after training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.kernels.backends import native, threads
from wiring.kernels.l1_conv2d import definition
from wiring.kernels.l1_conv2d.checks import check_bytes, check_shapes
from wiring.kernels.l1_conv2d.layout import address, images_last, layer_of, new_images, on_gpu

_native = native("l1_conv2d")


def _define(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    padding_value: int,
    stride: int,
    padding: int,
) -> Tensor:
    check_bytes(x, weight, padding_value)
    check_shapes(x, weight, live, stride, padding)
    y = definition.sums(x.int(), weight.int(), live, stride, padding, padding_value)
    return images_last(y.int())


@custom_op("wiring::l1_conv2d_uint8", mutates_args=())
def l1_conv2d_uint8(
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    padding_value: int,
    stride: int,
    padding: int,
) -> Tensor:
    """-Σ_live |w - x|: x uint8 [N, S, H, W], weight uint8 [D, S, kh, kw]; int32 [N, D, H', W'].

    A pixel outside the image has value `padding_value`: the zero point of quantised x. Raises
    WiringError for what does not fit.
    """
    return _define(x, weight, live, padding_value, stride, padding)


@l1_conv2d_uint8.register_fake
def _(
    x: Tensor, weight: Tensor, live: Tensor | None, padding_value: int, stride: int, padding: int
) -> Tensor:
    size = check_shapes(x, weight, live, stride, padding)
    return new_images(x, weight.shape[0], size, torch.int32)


@l1_conv2d_uint8.register_kernel("cpu")
def _(
    x: Tensor, weight: Tensor, live: Tensor | None, padding_value: int, stride: int, padding: int
) -> Tensor:
    kernel = _native()
    if kernel is None:
        return _define(x, weight, live, padding_value, stride, padding)
    check_bytes(x, weight, padding_value)
    size = check_shapes(x, weight, live, stride, padding)
    mask = None if live is None or bool(live.all()) else live.contiguous()
    images, filters = x.contiguous(memory_format=torch.channels_last), weight.contiguous()
    layer = layer_of(kernel, x, weight, stride, padding)
    packed = x.new_empty(kernel.packed_bytes(layer, mask is not None))
    kernel.pack_bytes(filters.data_ptr(), address(mask), layer, packed.data_ptr(), threads())
    y = new_images(x, len(weight), size, torch.int32)
    kernel.forward_bytes(
        images.data_ptr(),
        packed.data_ptr(),
        mask is not None,
        padding_value,
        layer,
        y.data_ptr(),
        threads(),
    )
    return y


@l1_conv2d_uint8.register_kernel("cuda")
def _(
    x: Tensor, weight: Tensor, live: Tensor | None, padding_value: int, stride: int, padding: int
) -> Tensor:
    check_bytes(x, weight, padding_value)
    check_shapes(x, weight, live, stride, padding)
    run = on_gpu("l1_conv2d_uint8", _define)
    return run(x, weight, live, padding_value, stride, padding)
