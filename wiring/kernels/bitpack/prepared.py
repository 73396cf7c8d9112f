"""Packing for evaluation: thresholds put in the kernel's order once, no dispatcher on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.backends import native
from wiring.kernels.bitpack.layout import new_words, run
from wiring.kernels.bitpack.op import pack_bits, pack_signs, pack_thresholds

_native = native("bitpack")


class PreparedSigns:
    """`pack_thresholds(x, threshold, flip)`, or `pack_signs(x)` where there are no thresholds.

    x float32 [N, C, H, W]; returns int64 [N, H, W, ⌈C/64⌉].
    """

    def __init__(self, threshold: Tensor | None = None, flip: Tensor | None = None) -> None:
        if (threshold is None) != (flip is None):
            raise WiringError("thresholds and flips come together, got one of them")
        self.threshold = None if threshold is None else threshold.contiguous()
        self.flip = flip
        self._flips = None if flip is None else pack_bits(flip.view(1, -1, 1, 1))

    def __call__(self, x: Tensor) -> Tensor:
        kernel = _native()
        if kernel is None or x.dtype != torch.float32 or x.dim() != 4:
            return self._definition(x)
        if self.threshold is None or self._flips is None:
            return run("pack_signs", kernel, x, new_words(x))
        if len(self.threshold) != x.shape[1]:
            return self._definition(x)  # says what does not fit
        addresses = (self.threshold.data_ptr(), self._flips.data_ptr())
        return run("pack_thresholds", kernel, x, new_words(x), *addresses)

    def _definition(self, x: Tensor) -> Tensor:
        packed: Tensor
        if self.threshold is None:
            packed = pack_signs(x)
        else:
            packed = pack_thresholds(x, self.threshold, self.flip)
        return packed
