"""What the L1 operations share on their way to a kernel."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from wiring.kernels.backends import has_triton

Operation = Callable[..., Tensor]


def new_images(x: Tensor, channels: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Empty [N, channels, *size], channels last in memory."""
    return x.new_empty(x.shape[0], *size, channels, dtype=dtype).permute(0, 3, 1, 2)


def images_last(x: Tensor) -> Tensor:
    """x [N, C, H, W] with its channels last in memory."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def floats_last(x: Tensor) -> Tensor:
    return x.float().contiguous(memory_format=torch.channels_last)


def address(tensor: Tensor | None) -> int:
    """Where its elements lie; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def layer_of(kernel: ModuleType, x: Tensor, weight: Tensor, stride: int, padding: int) -> Any:
    """Sizes as the compiled functions take them."""
    n, s, h, w = x.shape
    d, _, kh, kw = weight.shape
    return kernel.Layer(n, h, w, s, d, kh, kw, stride, padding)


def on_gpu(name: str, define: Operation) -> Operation:
    """The Triton kernel of that name, or the definition where Triton is not installed."""

    def run(*arguments: Any) -> Tensor:
        if not has_triton():
            return define(*arguments)
        from wiring.kernels.l1_conv2d import gpu

        return cast(Tensor, getattr(gpu, name)(*arguments))

    return run


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of `dtype` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
