"""Winograd's convolution for inference: filters transformed once."""

from __future__ import annotations

import torch
from torch import Tensor

from wiring.kernels.winograd_conv2d.op import convolve
from wiring.kernels.winograd_conv2d.tiles import check, filter_tiles


class PreparedWinograd:
    """Σ w_uv x_u for fixed weights [D, S, 3, 3] at stride 1; keeps 16 (tile 2) or 36 (tile 4)
    numbers per pair of channels. May be called by several threads."""

    def __init__(self, weight: Tensor, *, padding: int = 0, tile: int = 4) -> None:
        """weight float32 or float64 [D, S, 3, 3]. Raises WiringError."""
        # The smallest image that fits shows whether the rest does.
        check(weight.new_empty(0, weight.shape[1], 3, 3), weight, padding, tile)
        self._like = weight.new_empty(()).expand(weight.shape)
        self.padding, self.tile = padding, tile
        self._filters = filter_tiles(weight.detach(), tile).contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return self._filters.nbytes

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """x [N, S, H, W] → [N, D, H', W'], channels_last. Raises WiringError."""
        size = check(x, self._like, self.padding, self.tile)
        return convolve(x, self._filters, size, self.padding, self.tile)
