"""Layers for evaluation: weights packed and put in the kernel's order once."""

from __future__ import annotations

import torch
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads
from wiring.kernels.bitpack import pack_signs, words
from wiring.kernels.bitpack.op import layout
from wiring.kernels.xnor_conv2d.bwn import bwn_conv2d
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

    Takes what `xnor_conv2d` takes; on a CPU it calls the compiled kernel directly. Keeps the
    words themselves only where there is no such kernel.
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
        self._panels: Panels | None = None
        self._words: tuple[Tensor, Tensor | None, Tensor] | None = None
        kernel = _native() if weight.device.type == "cpu" else None
        if kernel is None:
            self._words = (weight, live, alpha)
        else:
            self._panels = prepare(kernel, weight, live, alpha, channels)
            self._addresses = self._panels.addresses

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """x float32 [N, channels, H, W], any memory format; returns [N, D, H', W'],
        channels_last. Raises WiringError for another shape."""
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise WiringError(f"this layer takes [N, {self.channels}, H, W], got {list(x.shape)}")
        if self._panels is None or x.dtype != torch.float32:
            return self.packed(pack_signs(x), scale)
        x, planes = layout(x)
        return self._run("xnor_floats", (x.data_ptr(), planes), x, x.shape[2:], scale)

    def packed(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """The same from int64 words [N, H, W, ⌈channels/64⌉]."""
        check_packed("input words", x, words(self.channels), self.channels)
        if self._words is not None:
            weight, live, alpha = self._words
            settings = (self.channels, self.stride, self.padding)
            return xnor_conv2d(x, weight, live, alpha, scale, *settings)
        x = x.contiguous()
        return self._run("xnor", (x.data_ptr(),), x, x.shape[1:3], scale)

    def _run(
        self,
        name: str,
        inputs: tuple[int, ...],
        x: Tensor,
        size: torch.Size,
        scale: Tensor | None,
    ) -> Tensor:
        kernel = _native()
        n, (h, w), (d, kh, kw) = x.shape[0], size, self.filters
        height = output_size(h, kh, self.stride, self.padding)
        width = output_size(w, kw, self.stride, self.padding)
        result = torch.empty(n, height, width, d)
        check_scale(scale, n, height, width)
        factors = None if scale is None else scale.contiguous()
        getattr(kernel, name)(
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
        self._words = (weight, live, alpha)

    def __call__(self, x: Tensor) -> Tensor:
        """x float32 [N, channels, H, W], any memory format; returns [N, D, H', W'],
        channels_last. Raises WiringError for another shape."""
        with torch.no_grad():
            return bwn_conv2d(x, *self._words, self.stride, self.padding)
