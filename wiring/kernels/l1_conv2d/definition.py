"""What the L1 operations compute, in plain PyTorch: tap by tap, a few destinations at a time.

No array of edges times pixels is ever held. The compiled kernels are tested against these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 18  # elements of the largest temporary: it stays in a core's cache
Term = Callable[[Tensor], Tensor]


def clipped(gap: Tensor) -> Tensor:
    return gap.clamp(-1, 1)


def full(gap: Tensor) -> Tensor:
    return gap


TERMS: dict[str, Term] = {"clipped": clipped, "sign": torch.sign, "full": full}


def output_size(side: int, kernel: int, stride: int, padding: int) -> int:
    return (side + 2 * padding - kernel) // stride + 1


def _taps(padded: Tensor, weight: Tensor, stride: int) -> Iterator[tuple[int, int, Tensor]]:
    """(row, column, the pixels [N, S, H', W'] which that tap reads), views of a padded image."""
    kh, kw = weight.shape[2:]
    height = output_size(padded.shape[2], kh, stride, 0)
    width = output_size(padded.shape[3], kw, stride, 0)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i, i + (height - 1) * stride + 1, stride)
            columns = slice(j, j + (width - 1) * stride + 1, stride)
            yield i, j, padded[:, :, rows, columns]


def _blocks(destinations: int, pixels: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, pixels))
    for start in range(0, destinations, step):
        yield slice(start, start + step)


def _pad(x: Tensor, padding: int, value: float = 0) -> Tensor:
    return F.pad(x, (padding,) * 4, value=value) if padding else x


def _gap(weight: Tensor, pixels: Tensor) -> Tensor:
    """w - x: weight [D, S], pixels [N, S, H', W'] → [N, D, S, H', W']."""
    return weight[None, :, :, None, None] - pixels[:, None]


def _keep(values: Tensor, mask: Tensor | None) -> Tensor:
    """`values` [N, D, S, H', W'] where `mask` [D, S] says so, else 0."""
    return values if mask is None else values.where(mask[None, :, :, None, None], 0)


def sums(
    x: Tensor, weight: Tensor, live: Tensor | None, stride: int, padding: int, outside: float = 0
) -> Tensor:
    """-Σ_live |w - x|, [N, D, H', W']."""
    padded = _pad(x, padding, outside)
    n, _, height, width = padded.shape
    kh, kw = weight.shape[2:]
    y = x.new_zeros(
        n, len(weight), output_size(height, kh, stride, 0), output_size(width, kw, stride, 0)
    )
    for i, j, pixels in _taps(padded, weight, stride):
        for d in _blocks(len(weight), pixels.numel()):
            gap = _gap(weight[d, :, i, j], pixels).abs()
            y[:, d] -= _keep(gap, None if live is None else live[d, :, i, j]).sum(dim=2)
    return y


def input_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    live: Tensor | None,
    stride: int,
    padding: int,
    mode: str,
) -> Tensor:
    """Σ_live grad · term(w - x), [N, S, H, W]."""
    padded = _pad(x, padding)
    result = torch.zeros_like(padded)
    views = _taps(result, weight, stride)
    for (i, j, pixels), (_, _, into) in zip(_taps(padded, weight, stride), views, strict=True):
        for d in _blocks(len(weight), pixels.numel()):
            term = TERMS[mode](_gap(weight[d, :, i, j], pixels))
            term = _keep(term, None if live is None else live[d, :, i, j])
            into += (grad[:, d, None] * term).sum(dim=1)
    height, width = x.shape[2:]
    return result[:, :, padding : padding + height, padding : padding + width]


def weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    learn: Tensor | None,
    stride: int,
    padding: int,
    mode: str,
) -> Tensor:
    """Σ over pixels of grad · term(x - w) where `learn`, else 0; [D, S, kh, kw]."""
    result = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    for i, j, pixels in _taps(_pad(x, padding), weight, stride):
        for d in _blocks(len(weight), pixels.numel()):
            term = TERMS[mode](-_gap(weight[d, :, i, j], pixels))
            result[d, :, i, j] = (grad[:, d, None] * term).sum(dim=(0, 3, 4))
    return result if learn is None else result.where(learn, 0)
