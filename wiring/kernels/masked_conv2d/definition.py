"""Masked convolution in plain PyTorch, and what its arguments must be."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads

_native = native("masked_conv2d")


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Output pixels along one side."""
    return (size + 2 * padding - kernel) // stride + 1


def check_edges(weight: Tensor, *masks: tuple[str, Tensor]) -> None:
    """Raise WiringError unless weight is [D, S, kh, kw] and the masks are bool of its shape."""
    if weight.dim() != 4:
        raise WiringError(f"weights must be [D, S, kh, kw], got {list(weight.shape)}")
    for name, mask in masks:
        if mask.dtype != torch.bool:
            raise WiringError(f"'{name}' must be bool, got {mask.dtype}")
        if mask.shape != weight.shape:
            raise WiringError(
                f"'{name}' must have the weight's shape {list(weight.shape)}, got "
                f"{list(mask.shape)}"
            )
        if mask.device != weight.device:
            raise WiringError(f"'{name}' is on {mask.device}, the weight on {weight.device}")


def check_image(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    """(H', W') of x [N, S, H, W] under weight [D, S, kh, kw]; raises WiringError."""
    if x.dim() != 4:
        raise WiringError(f"images must be [N, S, H, W], got {list(x.shape)}")
    if x.dtype != weight.dtype or not x.is_floating_point():
        raise WiringError(
            f"images and weights must share a floating-point type, got {x.dtype} and {weight.dtype}"
        )
    if x.device != weight.device:
        raise WiringError(f"the image is on {x.device}, the weight on {weight.device}")
    if x.shape[1] != weight.shape[1]:
        raise WiringError(
            f"the weight takes {weight.shape[1]} channels, the image has {x.shape[1]}"
        )
    return check_window(x.shape[2], x.shape[3], weight, stride, padding)


def check_window(
    height: int, width: int, weight: Tensor, stride: int, padding: int
) -> tuple[int, int]:
    """(H', W') of an image of this size; raises WiringError for a window that does not fit."""
    if stride < 1:
        raise WiringError(f"stride must be at least 1, got {stride}")
    if padding < 0:
        raise WiringError(f"padding must be at least 0, got {padding}")
    kernel = (weight.shape[2], weight.shape[3])
    if min(kernel) < 1:
        raise WiringError(f"a kernel has at least one tap, got {list(kernel)}")
    padded = (height + 2 * padding, width + 2 * padding)
    if height < 1 or width < 1 or padded[0] < kernel[0] or padded[1] < kernel[1]:
        raise WiringError(
            f"a kernel of {list(kernel)} does not fit an image of {[height, width]} with padding "
            f"{padding}"
        )
    return (
        output_size(height, kernel[0], stride, padding),
        output_size(width, kernel[1], stride, padding),
    )


def check_gradient(grad: Tensor, weight: Tensor, size: tuple[int, int]) -> None:
    """Raise WiringError unless grad is [N, D, H', W'] for weight [D, S, kh, kw]."""
    expected = [weight.shape[0], *size]
    if grad.dim() != 4 or list(grad.shape[1:]) != expected:
        raise WiringError(
            f"the gradient must be [N, {', '.join(map(str, expected))}], got {list(grad.shape)}"
        )


def check_same(a: Tensor, b: Tensor) -> None:
    """Raise WiringError unless both are of one floating-point type, on one device."""
    if a.dtype != b.dtype or not a.is_floating_point():
        raise WiringError(
            f"gradients share the floating-point type of the rest, got {a.dtype} and {b.dtype}"
        )
    if a.device != b.device:
        raise WiringError(f"the gradient is on {a.device}, its partner on {b.device}")


def last(n: int, c: int, h: int, w: int, like: Tensor) -> Tensor:
    """An uninitialised [n, c, h, w] whose memory is [n, h, w, c]."""
    return like.new_empty(n, h, w, c).permute(0, 3, 1, 2)


def as_last(x: Tensor) -> Tensor:
    """x [N, C, H, W] with memory [N, H, W, C], copied unless it is so already."""
    n, c, h, w = x.shape
    if x.stride() == (h * w * c, 1, w * c, c):
        return x
    return last(n, c, h, w, x).copy_(x)


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight where the mask is true, exactly 0 elsewhere; contiguous."""
    kernel = _native() if weight.device.type == "cpu" else None
    if kernel is None or weight.dtype != torch.float32:
        return torch.where(mask, weight, 0.0).contiguous()
    return _mask(kernel, weight.contiguous(), mask, torch.empty(weight.shape))


def _masked_in_place(weight: Tensor, mask: Tensor) -> Tensor:
    kernel = _native() if weight.device.type == "cpu" else None
    if kernel is None or weight.dtype != torch.float32 or not weight.is_contiguous():
        return masked(weight, mask)
    return _mask(kernel, weight, mask, weight)


def _mask(kernel: ModuleType, weight: Tensor, mask: Tensor, result: Tensor) -> Tensor:
    mask = mask.contiguous()
    kernel.mask(weight.data_ptr(), mask.data_ptr(), weight.numel(), result.data_ptr(), threads())
    return result


def _is_product(kernel: torch.Size, stride: int, padding: int, *images: Tensor) -> bool:
    """Whether a convolution is a matrix product of images as they lie in memory."""
    pointwise = kernel == (1, 1) and stride == 1 and padding == 0
    return pointwise and all(
        image.device.type == "cpu" and image.is_contiguous(memory_format=torch.channels_last)
        for image in images
    )


def _rows(image: Tensor) -> Tensor:
    """channels_last [N, C, H, W] as [N·H·W, C]."""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """[N·H·W, C] as channels_last [N, C, H, W], with the batch and the size of another image."""
    n, _, h, w = like.shape
    return rows.view(n, h, w, rows.shape[1]).permute(0, 3, 1, 2)


def dense(x: Tensor, weight: Tensor, live: Tensor, stride: int, padding: int) -> Tensor:
    """The definition: PyTorch's convolution with a masked weight."""
    if not (x.numel() and weight.numel()):
        h, w = check_image(x, weight, stride, padding)
        return last(x.shape[0], weight.shape[0], h, w, x).zero_()
    weight = masked(weight, live)
    if _is_product(weight.shape[2:], stride, padding, x):
        return _image(_rows(x) @ weight.flatten(1).t(), x)
    x = x.contiguous(memory_format=torch.channels_last)
    return as_last(F.conv2d(x, weight, stride=stride, padding=padding))


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, *, to_x: bool
) -> Tensor:
    to_input, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
        [to_x, not to_x, False],
    )  # fmt: skip
    result: Tensor = to_input if to_x else to_weight
    return result


def dense_input_gradient(
    grad: Tensor, weight: Tensor, live: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    """The gradient of `dense` for its image, channels_last."""
    if not (grad.numel() and weight.numel()):
        return last(grad.shape[0], weight.shape[1], height, width, grad).zero_()
    weight = masked(weight, live)
    if _is_product(weight.shape[2:], stride, padding, grad):
        return _image(_rows(grad) @ weight.flatten(1), grad)
    x = last(grad.shape[0], weight.shape[1], height, width, grad)
    return as_last(_gradients(grad, x, weight, stride, padding, to_x=True))


def dense_weight_gradient(
    grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int
) -> Tensor:
    """The gradient of `dense` for its weight on the edges of `learn`, 0 elsewhere."""
    if not (grad.numel() and x.numel()):
        return torch.zeros(learn.shape, dtype=x.dtype, device=x.device)
    if _is_product(learn.shape[2:], stride, padding, grad, x):
        return _masked_in_place((_rows(grad).t() @ _rows(x)).view(learn.shape), learn)
    weight = torch.empty(learn.shape, dtype=x.dtype, device=x.device)
    return _masked_in_place(_gradients(grad, x, weight, stride, padding, to_x=False), learn)


def check_weight_gradient(
    grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int
) -> None:
    """Raise WiringError unless grad and x fit one another and the mask [D, S, kh, kw]."""
    check_edges(learn, ("learn", learn))
    check_same(grad, x)
    if x.dim() != 4 or x.shape[1] != learn.shape[1]:
        raise WiringError(f"images must be [N, {learn.shape[1]}, H, W], got {list(x.shape)}")
    check_gradient(grad, learn, check_window(x.shape[2], x.shape[3], learn, stride, padding))
    if len(grad) != len(x):
        raise WiringError(f"the gradient must be of {len(x)} images, got {len(grad)}")
