"""y_v = Σ_live w_uv x_u: a convolution in which only live edges act and cost.

dx_u = Σ_live w_uv dy_v; dw_uv = ⟨x_u, dy_v⟩ on the edges of `learn`, 0 elsewhere. A dead edge adds
exactly 0 whatever weight it stores, infinity and NaN included.

Few live edges are gathered one by one; from the densities below on, a masked weight and PyTorch's
own convolution are faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, impl

from wiring.errors import WiringError
from wiring.kernels.backends import has_triton, native, threads
from wiring.kernels.masked_conv2d.definition import (
    check_edges,
    check_gradient,
    check_image,
    check_same,
    check_weight_gradient,
    check_window,
    dense,
    dense_input_gradient,
    dense_weight_gradient,
    last,
)

# Near the median of the densities at which both ways take the same time, over nine shapes (1x1 and
# 3x3, 49 to 8192 positions), one thread, AVX-512: 0.34, 0.26 and 0.19. The spread is wide: 64
# channels meet at 0.12 or before, 512 channels 7x7 under 3x3 behind 0.4 (forward), and the weight
# gradient of 49 positions, 1x1, below 0.05. With AVX2 the medians are over 0.4, 0.40 and 0.34.
FORWARD_DENSITY = 0.3
INPUT_GRADIENT_DENSITY = 0.25
WEIGHT_GRADIENT_DENSITY = 0.2
_native = native("masked_conv2d")

Sizes = tuple[int, int, int, int, int, int, int, int, int, int, int]


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


def most_edges(mask: Tensor, density: float) -> int:
    """The most edges of a mask that are worth gathering one by one."""
    return int(density * mask.numel())


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
    return dense(x, weight, live, stride, padding)


@custom_op("wiring::masked_conv2d_input_gradient", mutates_args=())
def masked_conv2d_input_gradient(
    grad: Tensor, weight: Tensor, live: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    """dx_u = Σ_live w_uv dy_v: grad [N, D, H', W'] → [N, S, height, width], channels_last."""
    check_edges(weight, ("live", live))
    check_same(grad, weight)
    check_gradient(grad, weight, check_window(height, width, weight, stride, padding))
    return dense_input_gradient(grad, weight, live, height, width, stride, padding)


@custom_op("wiring::masked_conv2d_weight_gradient", mutates_args=())
def masked_conv2d_weight_gradient(
    grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int
) -> Tensor:
    """dw_uv = ⟨x_u, dy_v⟩ on `learn`, exactly 0 elsewhere: [D, S, kh, kw], contiguous."""
    check_weight_gradient(grad, x, learn, stride, padding)
    return dense_weight_gradient(grad, x, learn, stride, padding)


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


@impl("wiring::masked_conv2d", "cpu")
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
            most_edges(live, FORWARD_DENSITY), threads(),
        ):  # fmt: skip
            return y
    return dense(x, weight, live, stride, padding)


@impl("wiring::masked_conv2d_input_gradient", "cpu")
def _(
    grad: Tensor, weight: Tensor, live: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    check_edges(weight, ("live", live))
    check_same(grad, weight)
    check_gradient(grad, weight, check_window(height, width, weight, stride, padding))
    kernel = _native()
    if kernel is not None and _is_float32(grad, weight):
        grad, grad_last = readable(grad)
        weight, live = weight.contiguous(), live.contiguous()
        dx = last(grad.shape[0], weight.shape[1], height, width, grad)
        shape = sizes(dx.shape, weight.shape, stride, padding, True, grad_last)
        if kernel.input_gradient(
            shape, grad.data_ptr(), weight.data_ptr(), live.data_ptr(), dx.data_ptr(),
            most_edges(live, INPUT_GRADIENT_DENSITY), threads(),
        ):  # fmt: skip
            return dx
    return dense_input_gradient(grad, weight, live, height, width, stride, padding)


@impl("wiring::masked_conv2d_weight_gradient", "cpu")
def _(grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int) -> Tensor:
    check_weight_gradient(grad, x, learn, stride, padding)
    kernel = _native()
    if kernel is not None and _is_float32(grad, x):
        (grad, grad_last), (x, x_last) = readable(grad), readable(x)
        learn = learn.contiguous()
        dw = x.new_empty(learn.shape)
        shape = sizes(x.shape, learn.shape, stride, padding, x_last, grad_last)
        if kernel.weight_gradient(
            shape, grad.data_ptr(), x.data_ptr(), learn.data_ptr(), dw.data_ptr(),
            most_edges(learn, WEIGHT_GRADIENT_DENSITY), threads(),
        ):  # fmt: skip
            return dw
    return dense_weight_gradient(grad, x, learn, stride, padding)


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
            y = op(*folded)
            return y.view(*moved.shape[:2], *y.shape[1:]), 0
        results = [
            op(
                *(
                    a if d is None else a.select(d, i)
                    for a, d in zip(arguments, in_dims, strict=True)
                )
            )
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
    if not has_triton():
        return dense(x, weight, live, stride, padding)
    from wiring.kernels.masked_conv2d import gpu

    return gpu.masked_conv2d(x, weight, live, learn, stride, padding)


@masked_conv2d_input_gradient.register_kernel("cuda")
def _(
    grad: Tensor, weight: Tensor, live: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    check_edges(weight, ("live", live))
    check_same(grad, weight)
    check_gradient(grad, weight, check_window(height, width, weight, stride, padding))
    if not has_triton():
        return dense_input_gradient(grad, weight, live, height, width, stride, padding)
    from wiring.kernels.masked_conv2d import gpu

    return gpu.masked_conv2d_input_gradient(grad, weight, live, height, width, stride, padding)


@masked_conv2d_weight_gradient.register_kernel("cuda")
def _(grad: Tensor, x: Tensor, learn: Tensor, stride: int, padding: int) -> Tensor:
    check_weight_gradient(grad, x, learn, stride, padding)
    if not has_triton():
        return dense_weight_gradient(grad, x, learn, stride, padding)
    from wiring.kernels.masked_conv2d import gpu

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
