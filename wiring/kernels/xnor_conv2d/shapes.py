"""What packed convolutions share: checks of shapes, and weights in the kernel's order."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.bitpack import words


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Output pixels along one axis. Raises WiringError unless there is at least one."""
    if stride < 1 or padding < 0:
        raise WiringError(
            f"stride must be at least 1 and padding at least 0, got {stride} and {padding}"
        )
    if kernel < 1 or kernel > size + 2 * padding:
        raise WiringError(
            f"a kernel must have 1..{size + 2 * padding} pixels a side, as the padded image "
            f"has, got {kernel}"
        )
    return (size + 2 * padding - kernel) // stride + 1


def check_packed(name: str, packed: Tensor, last: int, channels: int) -> None:
    """Raises WiringError unless `packed` is int64 [·, ·, ·, last] for `channels` channels."""
    if packed.dtype != torch.int64 or packed.dim() != 4 or packed.shape[3] != last:
        raise WiringError(
            f"{name} of {channels} channels must be int64 [·, ·, ·, {last}], "
            f"got {packed.dtype} {list(packed.shape)}"
        )


def check_weights(weight: Tensor, live: Tensor | None, alpha: Tensor, channels: int) -> None:
    """Raises WiringError for weight words, live words or scales that do not fit."""
    if channels < 1:
        raise WiringError(f"channels must be at least 1, got {channels}")
    check_packed("weight words", weight, words(channels), channels)
    if live is not None and (live.shape != weight.shape or live.dtype != torch.int64):
        raise WiringError(
            f"live words must be int64 {list(weight.shape)} like the weight words, "
            f"got {live.dtype} {list(live.shape)}"
        )
    if alpha.dtype != torch.float32 or list(alpha.shape) != [weight.shape[0]]:
        raise WiringError(
            f"alpha must be float32 [{weight.shape[0]}], one per destination, "
            f"got {alpha.dtype} {list(alpha.shape)}"
        )


def check_scale(scale: Tensor | None, n: int, height: int, width: int) -> None:
    """Raises WiringError unless scale is None or float32 [n, 1, height, width]."""
    if scale is None:
        return
    if scale.dtype != torch.float32 or list(scale.shape) != [n, 1, height, width]:
        raise WiringError(
            f"scale must be float32 [{n}, 1, {height}, {width}], one per output pixel, "
            f"got {scale.dtype} {list(scale.shape)}"
        )


@dataclass(frozen=True)
class Panels:
    """Packed weights in the kernel's own order; a layer keeps nothing else of them."""

    sign: Tensor
    live: Tensor | None
    live_bits: Tensor | None
    alpha: Tensor

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """Where the kernel finds them; valid while this object lives."""
        live, bits = self.live, self.live_bits
        return (
            self.sign.data_ptr(),
            0 if live is None else live.data_ptr(),
            0 if bits is None else bits.data_ptr(),
            self.alpha.data_ptr(),
        )

    def words(self, filters: tuple[int, int, int]) -> tuple[Tensor, Tensor | None, Tensor]:
        """(weight words, live words, alpha) again; filters are D, kh, kw."""
        live = None if self.live is None else _rows(self.live, filters)
        return _rows(self.sign, filters), live, self.alpha


def _rows(panels: Tensor, filters: tuple[int, int, int]) -> Tensor:
    """Panels → words [D, kh, kw, words]."""
    rows = panels.transpose(1, 2).flatten(0, 1)[: filters[0]]
    return rows.reshape(*filters, -1)


def panels(kernel: ModuleType, packed: Tensor) -> Tensor:
    """Words [D, ...] → int64 [⌈D/16⌉, words of a row, 16]."""
    packed = packed.contiguous()
    rows, width = packed.shape[0], packed[0].numel() if packed.shape[0] else 0
    result = packed.new_empty((rows + kernel.PANEL - 1) // kernel.PANEL, width, kernel.PANEL)
    kernel.panels(packed.data_ptr(), rows, width, result.data_ptr())
    return result


def prepare(
    kernel: ModuleType, weight: Tensor, live: Tensor | None, alpha: Tensor, channels: int
) -> Panels:
    """Weight and live words [D, kh, kw, words] and alpha [D] in the kernel's order."""
    sign = panels(kernel, weight)
    alpha = alpha.contiguous()
    if live is None:
        return Panels(sign, None, None, alpha)
    live = live.contiguous()
    d, kh, kw, _ = live.shape
    bits = live.new_empty(kh * kw, sign.shape[0] * kernel.PANEL, dtype=torch.int32)
    sizes = (1, kh, kw, channels, d, kh, kw, 1, 0)
    if kernel.live_bits(live.data_ptr(), sizes, bits.data_ptr()):
        return Panels(sign, None, None, alpha)
    return Panels(sign, panels(kernel, live), bits, alpha)
