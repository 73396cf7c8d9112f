"""Layers for evaluation: weights packed and put in the kernel's order once."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import cast

import torch
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads
from wiring.kernels.bitpack import pack_signs, words
from wiring.kernels.bitpack.layout import layout
from wiring.kernels.xnor_conv2d.bwn import bwn_conv2d, check_image, signed_sums
from wiring.kernels.xnor_conv2d.op import xnor_conv2d
from wiring.kernels.xnor_conv2d.shapes import (
    Panels,
    check_packed,
    check_scale,
    check_weights,
    output_size,
    prepare,
)

_native = native("xnor_conv2d")


class PreparedXnor:
    """y = alpha · Σ_live sign(w) sign(x) [· scale] of float inputs or of packed ones.

    Takes what `xnor_conv2d` takes; on a CPU it calls the compiled kernel directly, and keeps the
    weights in that kernel's order alone.
    """

    def __init__(
        self,
        weight: Tensor,
        live: Tensor | None,
        alpha: Tensor,
        channels: int,
        *,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        check_weights(weight, live, alpha, channels)
        self.channels, self.stride, self.padding = channels, stride, padding
        self.filters = (weight.shape[0], weight.shape[1], weight.shape[2])
        kernel = _native() if weight.device.type == "cpu" else None
        self._weights: Panels | tuple[Tensor, Tensor | None, Tensor] = (weight, live, alpha)
        if kernel is not None:
            self._weights = prepare(kernel, weight, live, alpha, channels)
            self._addresses = self._weights.addresses

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """x float [N, channels, H, W], any memory format; returns float32 [N, D, H', W'],
        channels_last. Raises WiringError for another shape."""
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise WiringError(f"this layer takes [N, {self.channels}, H, W], got {list(x.shape)}")
        kernel = self._kernel()
        if kernel is None or x.dtype != torch.float32:
            return self.packed(pack_signs(x), scale)
        x, planes = layout(x)
        return self._run(kernel.xnor_floats, (x.data_ptr(), planes), x.shape[0], x.shape[2:], scale)

    def packed(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """The same from int64 words [N, H, W, ⌈channels/64⌉]."""
        kernel = self._kernel()
        if kernel is None:
            kept = self._weights
            words_ = kept.words(self.filters) if isinstance(kept, Panels) else kept
            settings = (self.channels, self.stride, self.padding)
            return cast(Tensor, xnor_conv2d(x, *words_, scale, *settings))
        check_packed("input words", x, words(self.channels), self.channels)
        x = x.contiguous()
        return self._run(kernel.xnor, (x.data_ptr(),), x.shape[0], x.shape[1:3], scale)

    def _kernel(self) -> ModuleType | None:
        return _native() if isinstance(self._weights, Panels) else None

    def _run(
        self,
        function: Callable[..., None],
        inputs: tuple[int, ...],
        n: int,
        size: torch.Size,
        scale: Tensor | None,
    ) -> Tensor:
        (h, w), (d, kh, kw) = size, self.filters
        height = output_size(h, kh, self.stride, self.padding)
        width = output_size(w, kw, self.stride, self.padding)
        check_scale(scale, n, height, width)
        result = torch.empty(n, height, width, d)
        factors = None if scale is None else scale.contiguous()
        function(
            *inputs,
            *self._addresses,
            0 if factors is None else factors.data_ptr(),
            result.data_ptr(),
            (n, h, w, self.channels, d, kh, kw, self.stride, self.padding),
            threads(),
        )
        return result.permute(0, 3, 1, 2)


class PreparedBwn:
    """y = alpha · Σ_live sign(w) x with weights of one bit.

    Takes what `bwn_conv2d` takes, and keeps nothing but the words and the scales.
    """

    def __init__(
        self,
        weight: Tensor,
        live: Tensor | None,
        alpha: Tensor,
        channels: int,
        *,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        check_weights(weight, live, alpha, channels)
        self.channels, self.stride, self.padding = channels, stride, padding
        self.filters = (weight.shape[0], weight.shape[1], weight.shape[2])
        kernel = _native() if weight.device.type == "cpu" else None
        self._weights: Panels | tuple[Tensor, Tensor | None, Tensor] = (weight, live, alpha)
        if kernel is not None and live is None:
            self._weights = prepare(kernel, weight, None, alpha, channels)

    def __call__(self, x: Tensor) -> Tensor:
        """x float [N, channels, H, W], any memory format; returns its type [N, D, H', W'],
        channels_last. Raises WiringError for another shape."""
        check_image(x)
        if x.shape[1] != self.channels:
            raise WiringError(f"this layer takes [N, {self.channels}, H, W], got {list(x.shape)}")
        kept, settings = self._weights, (self.stride, self.padding)
        if isinstance(kept, Panels):
            run = signed_sums(_native(), x, self.filters, *settings)
            if run is not None:
                return run(kept.sign.data_ptr(), kept.alpha.data_ptr())
            kept = kept.words(self.filters)
        with torch.no_grad():
            return cast(Tensor, bwn_conv2d(x, *kept, *settings))
