"""AdderNet's sums by blocks that stay in a core's cache.

Everywhere x is [S, M], M pixels of S sources; weight and masks are [D, S]; grad is [D, M].
Where all edges live, `cdist` (forward) and a loop over destinations (backward) do the least
work. Otherwise live edges are gathered a block at a time: time goes with their number, and dead
ones are never touched. On one x86 core the two meet near 65% (forward) and 45% (backward).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

EDGE_BLOCK = 1 << 16  # floats: with the rows read and written beside it, it fits a 1 MiB L2
DENSE_BLOCK = 1 << 17


def adder_sums(x: Tensor, weight: Tensor, live: Tensor) -> Tensor:
    """-Σ_live |w_vu - x_u|; returns [D, M]."""
    if live.all():
        return -torch.cdist(x.t().contiguous(), weight.contiguous(), p=1.0).t()
    x = x.contiguous()
    result = x.new_zeros(weight.shape[0], x.shape[1])
    for destination, source, w in _edge_blocks(live, weight, x.shape[1]):
        distance = x.index_select(0, source).sub_(w).abs_()
        result.index_add_(0, destination, distance, alpha=-1)
    return result


def adder_input_gradient(grad: Tensor, x: Tensor, weight: Tensor, live: Tensor) -> Tensor:
    """Σ_live grad_v · clamp(w_vu - x_u, -1, 1); returns [S, M]."""
    if live.all():
        return _complete_input_gradient(grad, x, weight)
    x, grad = x.contiguous(), grad.contiguous()
    result = torch.zeros_like(x)
    for source, destination, w in _edge_blocks(live.t(), weight.t(), x.shape[1]):
        pull = x.index_select(0, source)
        torch.sub(w, pull, out=pull).clamp_(-1, 1)
        result.index_add_(0, source, pull.mul_(grad.index_select(0, destination)))
    return result


def adder_sign_gradient(grad: Tensor, x: Tensor, weight: Tensor, learn: Tensor) -> Tensor:
    """Σ over pixels of grad_v · sign(x_u - w_vu) on edges of `learn`, 0 elsewhere; [D, S]."""
    x, grad = x.contiguous(), grad.contiguous()
    result = torch.zeros_like(weight)
    for destination, source, w in _edge_blocks(learn, weight, x.shape[1]):
        side = x.index_select(0, source).sub_(w).sign_()
        side.mul_(grad.index_select(0, destination))
        result[destination, source] = side.sum(dim=1)
    return result


def _complete_input_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    sources, pixels = x.shape
    result = x.new_empty(sources, pixels)
    step = max(1, DENSE_BLOCK // sources)
    for start in range(0, pixels, step):
        block = x[:, start : start + step].contiguous()
        part = torch.zeros_like(block)
        pull = torch.empty_like(block)
        rows = grad[:, start : start + step].contiguous()
        for w, row in zip(weight.unbind(0), rows.unbind(0), strict=True):
            torch.sub(w[:, None], block, out=pull)
            part.addcmul_(pull.clamp_(-1, 1), row)
        result[:, start : start + step] = part
    return result


def _edge_blocks(
    mask: Tensor, weight: Tensor, pixels: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(row, column, weight [n, 1]) of the mask's edges, row by row, n of them at a time."""
    rows, columns = mask.nonzero(as_tuple=True)
    size = max(1, EDGE_BLOCK // max(1, pixels))
    parts = (torch.split(part, size) for part in (rows, columns, weight[rows, columns, None]))
    yield from zip(*parts, strict=True)
