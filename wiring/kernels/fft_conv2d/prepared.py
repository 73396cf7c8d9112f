"""The Fourier convolution for inference: filters transformed once for each size of image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.fft_conv2d.definition import (
    check,
    coefficients,
    filter_spectrum,
    forward,
    images,
    points,
    spectrum,
)

LIMIT_BYTES = 1 << 28  # of the filters' coefficients
TILE = 32


class PreparedFft:
    """Σ w_uv x_u for fixed weights, over whole images or over tiles that overlap.

    Tiles of t x t pixels give (t - kh + 1)(t - kw + 1) results each ("overlap-save"); filters
    then have the coefficients of a tile only, and need not be transformed anew for other images.
    Without `tile` an image is transformed as a whole, unless its filters would take more than
    256 MiB: then it is cut into tiles of 32, or of twice the kernel where that is more. One object
    serves one thread at a time.
    """

    def __init__(
        self, weight: Tensor, *, stride: int = 1, padding: int = 0, tile: int | None = None
    ) -> None:
        """weight float32 or float64 [D, S, kh, kw]. Raises WiringError for a tile that is smaller
        than the kernel."""
        if tile is not None and tile < max(weight.shape[2:]):
            raise WiringError(
                f"a tile must hold the kernel {list(weight.shape[2:])}, got one of {tile} pixels"
            )
        self.weight = weight.detach().clone()
        self.stride, self.padding, self.tile = stride, padding, tile
        self._size: tuple[int, int] | None = None
        self._tiled = tile is not None
        self._filters = weight.new_empty(0)

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return self.weight.nbytes + self._filters.nbytes

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """x [N, S, H, W] → [N, D, H', W'], contiguous. Raises WiringError."""
        size = check(x, self.weight, self.stride, self.padding)
        if not (x.numel() and self.weight.numel()):
            return x.new_zeros(x.shape[0], self.weight.shape[0], *size)
        n = self._prepare(x.shape[2], x.shape[3])
        if self._tiled:
            return self._in_tiles(x, size, n)
        return forward(x, self._filters, size, self.stride, n)[0]

    def _prepare(self, height: int, width: int) -> tuple[int, int]:
        """The points of a transform; transforms the filters where these are not of that size."""
        kernel = (self.weight.shape[2], self.weight.shape[3])
        n = points(height, width, kernel, self.padding)
        one = self.weight.shape[0] * self.weight.shape[1] * 2 * self.weight.element_size()
        self._tiled = self.tile is not None or coefficients(n) * one > LIMIT_BYTES
        if self._tiled:
            n = (self.tile or max(TILE, 2 * max(kernel)),) * 2
        if self._size != n:
            self._filters = filter_spectrum(self.weight, 0 if self._tiled else self.padding, n)
            self._size = n
        return n

    def _in_tiles(self, x: Tensor, size: tuple[int, int], n: tuple[int, int]) -> Tensor:
        """Tiles of n pixels, whose first n - k + 1 results of the circular convolution hold."""
        (kh, kw), p, stride = self.weight.shape[2:], self.padding, self.stride
        mh, mw = n[0] - kh + 1, n[1] - kw + 1
        h, w = ((side - 1) * stride + 1 for side in size)
        down, right = -(-h // mh), -(-w // mw)
        bottom = (down - 1) * mh + n[0] - x.shape[2] - p
        side = (right - 1) * mw + n[1] - x.shape[3] - p
        # Rows and columns that no result needs are cut off where the padding is negative.
        tiles = F.pad(x, (p, side, p, bottom)).unfold(2, n[0], mh).unfold(3, n[1], mw)
        rows = tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1], *n)
        y = images(torch.bmm(spectrum(rows, n), self._filters), n)[:, :, :mh, :mw]
        y = y.reshape(len(x), down, right, -1, mh, mw).permute(0, 3, 1, 4, 2, 5)
        y = y.reshape(len(x), -1, down * mh, right * mw)
        return y[:, :, :h:stride, :w:stride].contiguous()
