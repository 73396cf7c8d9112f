"""L1 convolutions for inference: weights in the kernel's own layout, no dispatcher on the way.

The layout is the same on every instruction set. Without the compiled kernel the weights stay as
they are and the operation itself runs.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads
from wiring.kernels.l1_conv2d.checks import check_mask
from wiring.kernels.l1_conv2d.definition import output_size
from wiring.kernels.l1_conv2d.layout import address, new_images
from wiring.kernels.l1_conv2d.op import SPARSE, l1_conv2d
from wiring.kernels.l1_conv2d.uint8 import l1_conv2d_uint8

_native = native("l1_conv2d")


class _Prepared:
    """Weights [D, S, kh, kw] waiting for images; `live` None, or bool like them."""

    dtype: torch.dtype

    def __init__(
        self, weight: Tensor, live: Tensor | None = None, *, stride: int = 1, padding: int = 0
    ) -> None:
        check_mask(weight, live, stride, padding)
        if weight.dtype != self.dtype:
            raise WiringError(f"the weight must be {self.dtype}, got {weight.dtype}")
        self.shape = weight.shape
        self.stride, self.padding = stride, padding
        self._kernel = _native()
        self.weight = weight.detach().clone(memory_format=torch.contiguous_format)
        self.live = None if live is None or live.all() else live.contiguous()
        self.masked = self.live is not None

    def _layer(self, x: Tensor) -> tuple[object, tuple[int, int]]:
        """(the kernel's sizes, (H', W')). Raises WiringError for images that do not fit."""
        d, s, kh, kw = self.shape
        if x.dim() != 4 or x.shape[1] != s or x.dtype != self.dtype:
            raise WiringError(
                f"these weights take {self.dtype} [N, {s}, H, W], got {x.dtype} {list(x.shape)}"
            )
        n, _, h, w = x.shape
        size = (
            output_size(h, kh, self.stride, self.padding),
            output_size(w, kw, self.stride, self.padding),
        )
        if min(size) < 1:
            raise WiringError(
                f"a kernel of {kh}x{kw} does not fit an image of {h}x{w} with padding "
                f"{self.padding}"
            )
        assert self._kernel is not None
        return self._kernel.Layer(n, h, w, s, d, kh, kw, self.stride, self.padding), size

    def _any_layer(self) -> object:
        """Sizes that fit the weights: packing does not look at the image."""
        assert self._kernel is not None
        d, s, kh, kw = self.shape
        return self._kernel.Layer(0, kh, kw, s, d, kh, kw, self.stride, 0)


class PreparedL1(_Prepared):
    """`l1_conv2d(x, weight, live, stride, padding)` without gradients, float32.

    x [N, S, H, W]; returns [N, D, H', W'], channels_last. Raises WiringError for what does not
    fit.
    """

    dtype = torch.float32

    def __init__(
        self, weight: Tensor, live: Tensor | None = None, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(weight, live, stride=stride, padding=padding)
        kernel = self._kernel
        self.most = int(SPARSE * weight.numel())
        self.packed = False
        if kernel is None or (self.live is not None and int(self.live.sum()) <= self.most):
            return
        layer = self._any_layer()
        packed = self.weight.new_empty(kernel.packed_floats(layer, self.masked))
        kernel.pack(self.weight.data_ptr(), address(self.live), layer, packed.data_ptr(), threads())
        self.weight, self.live, self.packed = packed, None, True

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        kernel = self._kernel
        if kernel is None:
            return cast(Tensor, l1_conv2d(x, self.weight, self.live, self.stride, self.padding))
        layer, size = self._layer(x)
        images = x.contiguous(memory_format=torch.channels_last)
        y = new_images(x, self.shape[0], size, torch.float32)
        at = images.data_ptr(), self.weight.data_ptr()
        if self.packed:
            kernel.prepared(*at, self.masked, layer, y.data_ptr(), threads())
        else:
            kernel.forward(*at, address(self.live), self.most, layer, y.data_ptr(), threads())
        return y


class PreparedL1Uint8(_Prepared):
    """`l1_conv2d_uint8(x, weight, live, padding_value, stride, padding)`; returns int32.

    Raises WiringError for what does not fit.
    """

    dtype = torch.uint8

    def __init__(
        self,
        weight: Tensor,
        live: Tensor | None = None,
        padding_value: int = 0,
        *,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__(weight, live, stride=stride, padding=padding)
        if not 0 <= padding_value <= 255:
            raise WiringError(f"the padding value must be in 0..255, got {padding_value}")
        self.padding_value = padding_value
        kernel = self._kernel
        if kernel is None:
            return
        layer = self._any_layer()
        packed = self.weight.new_empty(kernel.packed_bytes(layer, self.masked))
        kernel.pack_bytes(
            self.weight.data_ptr(), address(self.live), layer, packed.data_ptr(), threads()
        )
        self.weight, self.live = packed, None

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        kernel = self._kernel
        if kernel is None:
            y: Tensor = l1_conv2d_uint8(
                x, self.weight, self.live, self.padding_value, self.stride, self.padding
            )
            return y
        layer, size = self._layer(x)
        images = x.contiguous(memory_format=torch.channels_last)
        y = new_images(x, self.shape[0], size, torch.int32)
        kernel.forward_bytes(
            images.data_ptr(),
            self.weight.data_ptr(),
            self.masked,
            self.padding_value,
            layer,
            y.data_ptr(),
            threads(),
        )
        return y
