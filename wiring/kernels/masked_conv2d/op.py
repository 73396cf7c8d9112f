"""y_v = Σ_live w_uv x_u: a convolution in which only live edges act and cost.

dx_u = Σ_live w_uv dy_v; dw_uv = ⟨x_u, dy_v⟩ on the edges of `learn`, 0 elsewhere. A dead edge adds
exactly 0 whatever weight it stores, infinity and NaN included.

Few live edges are gathered one by one; from the densities below on, a masked weight and PyTorch's
own convolution are faster. Measured by `python -m benchmarks.kernels --op masked_conv2d`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads

FORWARD_DENSITY = 0.25
INPUT_GRADIENT_DENSITY = 0.25
WEIGHT_GRADIENT_DENSITY = 0.15
_native = native("masked_conv2d")

Sizes = tuple[int, int, int, int, int, int, int, int, int, int, int]


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


def _check_gradient(
    grad: Tensor, batch: int | None, weight: Tensor, size: tuple[int, int]
) -> None:
    expected = [grad.shape[0] if batch is None else batch, weight.shape[0], *size]
    if list(grad.shape) != expected:
        raise WiringError(f"the gradient must be {expected}, got {list(grad.shape)}")


def last(n: int, c: int, h: int, w: int, like: Tensor) -> Tensor:
    """An uninitialised [n, c, h, w] whose memory is [n, h, w, c]."""
    return like.new_empty(n, h, w, c).permute(0, 3, 1, 2)


def as_last(x: Tensor) -> Tensor:
    """x [N, C, H, W] with memory [N, H, W, C], copied unless it is so already."""
    n, c, h, w = x.shape
    if x.stride() == (h * w * c, 1, w * c, c):
        return x
    return last(n, c, h, w, x).copy_(x)


def readable(x: Tensor) -> tuple[Tensor, bool]:
    """x, copied unless its memory is [N, H, W, C] or [N, C, H, W], and whether it is the first."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x, True
    return x.contiguous(), False


def sizes(
    x_shape: torch.Size, weight: torch.Size, stride: int, padding: int, x_last: bool, y_last: bool
) -> Sizes:
    """What the compiled kernels take as sizes."""
    n, s, h, w = x_shape
    d, _, kh, kw = weight
    return n, s, h, w, d, kh, kw, stride, padding, int(x_last), int(y_last)


def _is_float32(*tensors: Tensor) -> bool:
    return all(t.dtype == torch.float32 for t in tensors)


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight where the mask is true, exactly 0 elsewhere."""
    kernel = _native() if weight.device.type == "cpu" else None
    if kernel is None or weight.dtype != torch.float32:
        return torch.where(mask, weight, 0.0)
    weight, mask = weight.contiguous(), mask.contiguous()
    result = torch.empty_like(weight)
    kernel.mask(weight.data_ptr(), mask.data_ptr(), weight.numel(), result.data_ptr(), threads())
    return result


def _dense(x: Tensor, weight: Tensor, live: Tensor, stride: int, padding: int) -> Tensor:
    """The definition: PyTorch's convolution with a masked weight."""
    if not (x.numel() and weight.numel()):
        h, w = check_image(x, weight, stride, padding)
        return last(x.shape[0], weight.shape[0], h, w, x).zero_()
    return as_last(F.conv2d(x, masked(weight, live), stride=stride, padding=padding))


def _dense_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, *, to_x: bool
) -> Tensor:
    to_input, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
        [to_x, not to_x, False],
    )  # fmt: skip
    result: Tensor = to_input if to_x else to_weight
    return result


def _dense_input_gradient(
    grad: Tensor, weight: Tensor, live: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    x = last(grad.shape[0], weight.shape[1], height, width, grad)
    if not (grad.numel() and weight.numel()):
        return x.zero_()
    dx = _dense_gradients(grad, x, masked(weight, live), stride, padding, to_x=True)
    return as_last(dx)


def _dense_weight_gradient(
    grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int
) -> Tensor:
    weight = torch.empty(learn.shape, dtype=x.dtype, device=x.device)
    if not (grad.numel() and x.numel()):
        return weight.zero_()
    dw = _dense_gradients(grad, x, weight, stride, padding, to_x=False)
    return masked(dw, learn).contiguous()


@custom_op("wiring::masked_conv2d", mutates_args=())
def masked_conv2d(
    x: Tensor, weight: Tensor, live: Tensor, learn: Tensor, stride: int = 1, padding: int = 0
) -> Tensor:
    """Sum over live edges; the weight gradient reaches the edges of `learn`.

    x [N, S, H, W]; weight [D, S, kh, kw]; live, learn bool of its shape. Returns [N, D, H', W'],
    channels_last. Raises WiringError where types, shapes or sizes do not fit.
    """
    check_edges(weight, ("live", live), ("learn", learn))
    check_image(x, weight, stride, padding)
    return _dense(x, weight, live, stride, padding)


@custom_op("wiring::masked_conv2d_input_gradient", mutates_args=())
def masked_conv2d_input_gradient(
    grad: Tensor, weight: Tensor, live: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    """dx_u = Σ_live w_uv dy_v: grad [N, D, H', W'] → [N, S, height, width], channels_last."""
    check_edges(weight, ("live", live))
    _check_gradient(grad, None, weight, check_window(height, width, weight, stride, padding))
    return _dense_input_gradient(grad, weight, live, height, width, stride, padding)


@custom_op("wiring::masked_conv2d_weight_gradient", mutates_args=())
def masked_conv2d_weight_gradient(
    grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int
) -> Tensor:
    """dw_uv = ⟨x_u, dy_v⟩ on `learn`, exactly 0 elsewhere: [D, S, kh, kw], contiguous."""
    _check_weight_gradient(grad, x, learn, stride, padding)
    return _dense_weight_gradient(grad, x, learn, stride, padding)


def _check_weight_gradient(
    grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int
) -> None:
    check_edges(learn, ("learn", learn))
    if x.dim() != 4 or x.shape[1] != learn.shape[1]:
        raise WiringError(f"images must be [N, {learn.shape[1]}, H, W], got {list(x.shape)}")
    _check_gradient(grad, len(x), learn, check_window(*x.shape[2:], learn, stride, padding))


@masked_conv2d.register_fake
def _(
    x: Tensor, weight: Tensor, live: Tensor, learn: Tensor, stride: int = 1, padding: int = 0
) -> Tensor:
    check_edges(weight, ("live", live), ("learn", learn))
    h, w = check_image(x, weight, stride, padding)
    return last(x.shape[0], weight.shape[0], h, w, x)


@masked_conv2d_input_gradient.register_fake
def _(
    grad: Tensor, weight: Tensor, live: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    return last(grad.shape[0], weight.shape[1], height, width, grad)


@masked_conv2d_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int) -> Tensor:
    return x.new_empty(learn.shape)


def _most(mask: Tensor, density: float) -> int:
    return int(density * mask.numel())


@masked_conv2d.register_kernel("cpu")
def _(
    x: Tensor, weight: Tensor, live: Tensor, learn: Tensor, stride: int = 1, padding: int = 0
) -> Tensor:
    check_edges(weight, ("live", live), ("learn", learn))
    h, w = check_image(x, weight, stride, padding)
    kernel = _native()
    if kernel is not None and _is_float32(x, weight):
        x, x_last = readable(x)
        weight, live = weight.contiguous(), live.contiguous()
        y = last(x.shape[0], weight.shape[0], h, w, x)
        shape = sizes(x.shape, weight.shape, stride, padding, x_last, True)
        if kernel.forward(
            shape, x.data_ptr(), weight.data_ptr(), live.data_ptr(), y.data_ptr(),
            _most(live, FORWARD_DENSITY), threads(),
        ):  # fmt: skip
            return y
    return _dense(x, weight, live, stride, padding)


@masked_conv2d_input_gradient.register_kernel("cpu")
def _(
    grad: Tensor, weight: Tensor, live: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    check_edges(weight, ("live", live))
    _check_gradient(grad, None, weight, check_window(height, width, weight, stride, padding))
    kernel = _native()
    if kernel is not None and _is_float32(grad, weight):
        grad, grad_last = readable(grad)
        weight, live = weight.contiguous(), live.contiguous()
        dx = last(grad.shape[0], weight.shape[1], height, width, grad)
        shape = sizes(dx.shape, weight.shape, stride, padding, True, grad_last)
        if kernel.input_gradient(
            shape, grad.data_ptr(), weight.data_ptr(), live.data_ptr(), dx.data_ptr(),
            _most(live, INPUT_GRADIENT_DENSITY), threads(),
        ):  # fmt: skip
            return dx
    return _dense_input_gradient(grad, weight, live, height, width, stride, padding)


@masked_conv2d_weight_gradient.register_kernel("cpu")
def _(grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int) -> Tensor:
    _check_weight_gradient(grad, x, learn, stride, padding)
    kernel = _native()
    if kernel is not None and _is_float32(grad, x):
        (grad, grad_last), (x, x_last) = readable(grad), readable(x)
        learn = learn.contiguous()
        dw = x.new_empty(learn.shape)
        shape = sizes(x.shape, learn.shape, stride, padding, x_last, grad_last)
        if kernel.weight_gradient(
            shape, grad.data_ptr(), x.data_ptr(), learn.data_ptr(), dw.data_ptr(),
            _most(learn, WEIGHT_GRADIENT_DENSITY), threads(),
        ):  # fmt: skip
            return dw
    return _dense_weight_gradient(grad, x, learn, stride, padding)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, live, learn, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight, live, learn)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, live, learn = ctx.saved_tensors
    dx = dw = None
    if ctx.needs_input_grad[0]:
        dx = masked_conv2d_input_gradient(
            grad, weight, live, x.shape[2], x.shape[3], ctx.stride, ctx.padding
        )
    if ctx.needs_input_grad[1]:
        dw = masked_conv2d_weight_gradient(grad, x, learn, ctx.stride, ctx.padding)
    return dx, dw, None, None, None, None


masked_conv2d.register_autograd(_backward, setup_context=_setup)
masked_conv2d.register_autocast("cpu", torch.float32)
masked_conv2d.register_autocast("cuda", torch.float16)


def _batched(op: Callable[..., Tensor], image: int) -> Callable[..., tuple[Tensor, int]]:
    """The rule of vmap: fold the mapped images of argument `image` into their batch where nothing
    else is mapped (image >= 0), and run one call after another otherwise."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        mapped = [i for i, dim in enumerate(in_dims) if dim is not None]
        if mapped == [image]:
            moved = arguments[image].movedim(in_dims[image], 0)
            folded = (*arguments[:image], moved.flatten(0, 1), *arguments[image + 1 :])
            return op(*folded).unflatten(0, moved.shape[:2]), 0
        results = [
            op(*(a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims)))
            for i in range(info.batch_size)
        ]
        return torch.stack(results), 0

    return rule


masked_conv2d.register_vmap(_batched(masked_conv2d, 0))
masked_conv2d_input_gradient.register_vmap(_batched(masked_conv2d_input_gradient, 0))
masked_conv2d_weight_gradient.register_vmap(_batched(masked_conv2d_weight_gradient, -1))


@masked_conv2d.register_kernel("cuda")
def _(
    x: Tensor, weight: Tensor, live: Tensor, learn: Tensor, stride: int = 1, padding: int = 0
) -> Tensor:
    check_edges(weight, ("live", live), ("learn", learn))
    check_image(x, weight, stride, padding)
    try:
        from wiring.kernels.masked_conv2d import gpu
    except ImportError:
        return _dense(x, weight, live, stride, padding)
    return gpu.masked_conv2d(x, weight, live, learn, stride, padding)


@masked_conv2d_input_gradient.register_kernel("cuda")
def _(
    grad: Tensor, weight: Tensor, live: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    check_edges(weight, ("live", live))
    _check_gradient(grad, None, weight, check_window(height, width, weight, stride, padding))
    try:
        from wiring.kernels.masked_conv2d import gpu
    except ImportError:
        return _dense_input_gradient(grad, weight, live, height, width, stride, padding)
    return gpu.masked_conv2d_input_gradient(grad, weight, live, height, width, stride, padding)


@masked_conv2d_weight_gradient.register_kernel("cuda")
def _(grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int) -> Tensor:
    _check_weight_gradient(grad, x, learn, stride, padding)
    try:
        from wiring.kernels.masked_conv2d import gpu
    except ImportError:
        return _dense_weight_gradient(grad, x, learn, stride, padding)
    return gpu.masked_conv2d_weight_gradient(grad, x, learn, stride, padding)


def masked_linear(x: Tensor, weight: Tensor, live: Tensor, learn: Tensor) -> Tensor:
    """The same sum without positions: x [..., S]; weight, live, learn [D, S]; returns [..., D]."""
    if x.dim() < 1 or weight.dim() != 2:
        raise WiringError(
            f"a linear sum takes x [..., S] and weight [D, S], got {list(x.shape)} and "
            f"{list(weight.shape)}"
        )
    rows = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    y: Tensor = masked_conv2d(rows, *(t[:, :, None, None] for t in (weight, live, learn)))
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])
