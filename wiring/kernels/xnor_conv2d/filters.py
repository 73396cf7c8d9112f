"""One-bit filters in training: their scales, the filters as floats, and the weights' gradient.

alpha_v = mean |w_uv| over the live edges of destination v, and sign(0) = +1
(Rastegari et al.: XNOR-Net, ECCV 2016, section 3.1). A mask has a byte an edge, which PyTorch's
own `where` and reductions read slowly on a CPU: here a row is read once.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads

ROW = (1, 2, 3)
MODES = ("exact", "paper", "repo")
_native = native("xnor_conv2d")


def _check(weight: Tensor, masks: tuple[Tensor, ...], others: tuple[Tensor, ...] = ()) -> None:
    if weight.dim() != 4 or not weight.is_floating_point():
        raise WiringError(
            f"weights must be float [D, S, kh, kw], got {weight.dtype} {list(weight.shape)}"
        )
    for tensor, dtype in [(m, torch.bool) for m in masks] + [(o, weight.dtype) for o in others]:
        if tensor.shape != weight.shape or tensor.dtype != dtype:
            raise WiringError(
                f"of weights {list(weight.shape)} a mask or gradient must be {dtype} and of that "
                f"shape, got {tensor.dtype} {list(tensor.shape)}"
            )


def _check_scales(weight: Tensor, alpha: Tensor) -> None:
    if alpha.numel() != len(weight) or alpha.dtype != weight.dtype:
        raise WiringError(
            f"scales must be {weight.dtype} [{len(weight)}, 1, 1, 1], one per destination, "
            f"got {alpha.dtype} {list(alpha.shape)}"
        )


def _kernel(weight: Tensor) -> ModuleType | None:
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32
    return _native() if fits else None


def _sizes(weight: Tensor) -> tuple[int, int]:
    return len(weight), weight[0].numel() if len(weight) else 0


def _signs(weight: Tensor) -> Tensor:
    # Seven times faster on a CPU than torch.where.
    return torch.ge(weight, 0, out=torch.empty_like(weight)).mul_(2).sub_(1)


@custom_op("wiring::row_scales", mutates_args=())
def row_scales(weight: Tensor, live: Tensor) -> Tensor:
    """alpha [D, 1, 1, 1]: mean |w| over the live edges of each row, 0 where none lives.

    weight float, live bool [D, S, kh, kw]. Summed in float64, so that a row of equal float32
    magnitudes gives back that very magnitude. Raises WiringError for what does not fit.
    """
    _check(weight, (live,))
    kernel = _kernel(weight)
    if kernel is not None:
        weight, live = weight.contiguous(), live.contiguous()
        alpha = weight.new_empty(len(weight), 1, 1, 1)
        addresses = (weight.data_ptr(), live.data_ptr())
        kernel.row_scales(*addresses, *_sizes(weight), alpha.data_ptr(), threads())
        return alpha
    magnitude = torch.where(live, weight.abs(), 0.0)
    total = magnitude.sum(dim=ROW, keepdim=True, dtype=torch.float64)
    count = live.sum(dim=ROW, keepdim=True)
    return (total / count.clamp(min=1)).to(weight.dtype)


@row_scales.register_fake
def _(weight: Tensor, live: Tensor) -> Tensor:
    return weight.new_empty(len(weight), 1, 1, 1)


@custom_op("wiring::binary_filters", mutates_args=())
def binary_filters(weight: Tensor, live: Tensor, alpha: Tensor) -> Tensor:
    """alpha · sign(w) on live edges, 0 on dead ones.

    weight float, live bool [D, S, kh, kw]; alpha [D, 1, 1, 1]; returns the weight's shape and
    type, contiguous. Raises WiringError for what does not fit.
    """
    _check(weight, (live,))
    _check_scales(weight, alpha)
    kernel = _kernel(weight)
    weight, live, alpha = weight.contiguous(), live.contiguous(), alpha.contiguous()
    if kernel is not None:
        filters = torch.empty_like(weight)
        addresses = (weight.data_ptr(), live.data_ptr())
        ends = (alpha.data_ptr(), filters.data_ptr(), threads())
        kernel.binary_filters(*addresses, *_sizes(weight), *ends)
        return filters
    return torch.where(live, alpha.view(-1, 1, 1, 1) * _signs(weight), 0.0)


@binary_filters.register_fake
def _(weight: Tensor, live: Tensor, alpha: Tensor) -> Tensor:
    return weight.new_empty(weight.shape)


@custom_op("wiring::binary_gradient", mutates_args=())
def binary_gradient(
    grad: Tensor, weight: Tensor, live: Tensor, learn: Tensor, alpha: Tensor, mode: str
) -> Tensor:
    """The gradient of the weights, from that of their binary filters.

    With g = grad and n the live edges of a row, the gradient of w_i is

    - `exact`: sign(w_i)/n · Σ_live g_j sign(w_j) + alpha·g_i·1[|w_i| < 1];
    - `paper`: g_i·(1/n + alpha·1[|w_i| < 1]);
    - `repo`: the paper's · (1 - 1/S) · n, as in the released code; WiringError if S is 1.

    A dead edge that learns gets what it would get if it lived, except for the first term of
    `exact`: alpha is a mean over live edges only. In a row without live edges it would be the
    only one, alpha = |w_i| and n = 1. Edges outside `learn` get 0. All [D, S, kh, kw] but alpha
    [D, 1, 1, 1]; returns the weight's shape and type, contiguous. Raises WiringError for what
    does not fit.
    """
    _check(weight, (live, learn), (grad,))
    _check_scales(weight, alpha)
    if mode not in MODES:
        raise WiringError(f"weight_gradient must be one of {', '.join(MODES)}, got '{mode}'")
    sources = weight.shape[1]
    if mode == "repo" and sources < 2:
        raise WiringError(
            "weight_gradient 'repo' has the factor 1 - 1/sources and needs at least "
            f"2 sources to learn, got {sources}"
        )
    kernel = _kernel(weight)
    if kernel is None:
        return _gradient(grad, weight, live, learn, alpha, mode)
    grad, weight, alpha = grad.contiguous(), weight.contiguous(), alpha.contiguous()
    live, learn = live.contiguous(), learn.contiguous()
    result = torch.empty_like(weight)
    kernel.binary_gradient(
        weight.data_ptr(),
        live.data_ptr(),
        *_sizes(weight),
        alpha.data_ptr(),
        grad.data_ptr(),
        learn.data_ptr(),
        MODES.index(mode),
        sources,
        result.data_ptr(),
        threads(),
    )
    return result


def _gradient(
    grad: Tensor, weight: Tensor, live: Tensor, learn: Tensor, alpha: Tensor, mode: str
) -> Tensor:
    magnitude = weight.abs()
    live_edges = live.sum(dim=ROW, keepdim=True)
    count = live_edges.clamp(min=1)
    alpha = torch.where(live_edges > 0, alpha.view(-1, 1, 1, 1), magnitude)
    straight = grad * alpha * (magnitude < 1)
    if mode == "exact":
        signs = _signs(weight)
        through_scale = torch.where(live, grad * signs, 0.0).sum(dim=ROW, keepdim=True)
        result = straight + torch.where(live, signs * through_scale / count, 0.0)
    else:
        result = grad / count + straight
    if mode == "repo":
        result = result * (1 - 1 / weight.shape[1]) * count
    return torch.where(learn, result, 0.0).contiguous()


@binary_gradient.register_fake
def _(
    grad: Tensor, weight: Tensor, live: Tensor, learn: Tensor, alpha: Tensor, mode: str
) -> Tensor:
    return weight.new_empty(weight.shape)
