"""What the L1 operations take, checked before an address leaves Python."""

from __future__ import annotations

import torch
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.l1_conv2d.definition import output_size

INPUT_MODES = ("clipped", "sign", "full")
WEIGHT_MODES = ("full", "sign")


def check_mask(weight: Tensor, mask: Tensor | None, stride: int, padding: int) -> None:
    """Raises WiringError for a mask that is not the weight's, or steps that make no sense."""
    if weight.dim() != 4:
        raise WiringError(f"the weight must be [D, S, kh, kw], got {list(weight.shape)}")
    if stride < 1 or padding < 0:
        raise WiringError(
            f"stride must be at least 1 and padding at least 0, got {stride} and {padding}"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != weight.shape):
        raise WiringError(
            f"a mask is bool and has the weight's shape {list(weight.shape)}, got {mask.dtype} "
            f"{list(mask.shape)}"
        )


def check_shapes(
    x: Tensor, weight: Tensor, mask: Tensor | None, stride: int, padding: int
) -> tuple[int, int]:
    """(H', W'). Raises WiringError for shapes, masks or steps that do not fit."""
    if x.dim() != 4 or weight.dim() != 4:
        raise WiringError(
            "an L1 convolution takes x [N, S, H, W] and weight [D, S, kh, kw], got "
            f"{list(x.shape)} and {list(weight.shape)}"
        )
    if x.shape[1] != weight.shape[1]:
        raise WiringError(f"x has {x.shape[1]} channels where the weight takes {weight.shape[1]}")
    check_mask(weight, mask, stride, padding)
    kh, kw = weight.shape[2:]
    height = output_size(x.shape[2], kh, stride, padding)
    width = output_size(x.shape[3], kw, stride, padding)
    if kh < 1 or kw < 1 or height < 1 or width < 1:
        raise WiringError(
            f"a kernel of {kh}x{kw} does not fit an image of {x.shape[2]}x{x.shape[3]} "
            f"with padding {padding}"
        )
    return height, width


def check_floats(x: Tensor, *others: Tensor) -> None:
    """Raises WiringError unless all are of one floating type."""
    for tensor in (x, *others):
        if not tensor.is_floating_point() or tensor.dtype != x.dtype:
            raise WiringError(
                f"an L1 convolution takes one floating type, got {x.dtype} and {tensor.dtype}"
            )


def check_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, stride: int, padding: int
) -> None:
    """Raises WiringError unless grad is of the output's shape and the others fit."""
    check_floats(x, weight, grad)
    size = check_shapes(x, weight, mask, stride, padding)
    expected = [x.shape[0], weight.shape[0], *size]
    if list(grad.shape) != expected:
        raise WiringError(f"the gradient must be of shape {expected}, got {list(grad.shape)}")


def check_mode(mode: str, modes: tuple[str, ...]) -> None:
    if mode not in modes:
        raise WiringError(f"mode must be one of {', '.join(modes)}, got '{mode}'")


def check_bytes(x: Tensor, weight: Tensor, padding_value: int) -> None:
    """Raises WiringError for other types, or a padding value that is no byte."""
    if x.dtype != torch.uint8 or weight.dtype != torch.uint8:
        raise WiringError(f"x and weight must be uint8, got {x.dtype} and {weight.dtype}")
    if not 0 <= padding_value <= 255:
        raise WiringError(f"the padding value must be in 0..255, got {padding_value}")
