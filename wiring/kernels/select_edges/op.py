"""The k best of n scores in linear time, instead of a full sort."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.errors import BudgetError, WiringError
from wiring.kernels.backends import native, threads

# Every value of these is a float32, so neither order nor ties change.
EXACT_IN_FLOAT = (torch.float32, torch.float16, torch.bfloat16)
_native = native("select_edges")


def _check(scores: Tensor, allowed: Tensor) -> None:
    if scores.dim() != 1 or allowed.shape != scores.shape:
        raise WiringError(
            "selection takes scores [E] and allowed [E], "
            f"got {list(scores.shape)} and {list(allowed.shape)}"
        )
    if allowed.dtype != torch.bool:
        raise WiringError(f"allowed edges are marked by a bool tensor, got {allowed.dtype}")


def _check_outcome(usable: int, nan: bool, k: int) -> None:
    if not 1 <= k <= usable:
        raise BudgetError(f"live edges must be in 1..{usable}, got {k}")
    if nan:
        raise WiringError("scores of edges must not be NaN")


def _all(allowed: Tensor) -> bool:
    """Whether one byte says for all edges that they are allowed: it need not be written out."""
    return allowed.stride() == (0,) and allowed.numel() > 0 and bool(allowed[0])


def _select(scores: Tensor, allowed: Tensor, k: int) -> Tensor:
    index = allowed.nonzero().squeeze(1)
    candidates = scores[index]
    _check_outcome(index.numel(), bool(candidates.isnan().any()), k)
    threshold = candidates.kthvalue(index.numel() - k + 1).values
    above = candidates > threshold
    ties = candidates == threshold
    ties &= ties.cumsum(0) <= k - above.sum()
    live = torch.zeros_like(allowed, memory_format=torch.contiguous_format)
    live[index[above | ties]] = True
    return live


@custom_op("wiring::select_edges", mutates_args=())
def select_edges(scores: Tensor, allowed: Tensor, k: int) -> Tensor:
    """Exactly k allowed edges of largest score; ties go to the lower index, and -0 equals 0.

    scores float [E]; allowed bool [E]; returns bool [E], which carries no gradient. Raises
    BudgetError unless 1 <= k <= allowed.sum(), WiringError for a NaN among the allowed scores
    and for tensors of other shapes or types.
    """
    _check(scores, allowed)
    return _select(scores, allowed, k)


@select_edges.register_fake
def _(scores: Tensor, allowed: Tensor, k: int) -> Tensor:
    # Whether k edges are usable, and no score NaN, is known only with the values.
    _check(scores, allowed)
    return torch.empty_like(allowed, memory_format=torch.contiguous_format)


@select_edges.register_kernel("cpu")
def _(scores: Tensor, allowed: Tensor, k: int) -> Tensor:
    _check(scores, allowed)
    kernel = _native()
    if kernel is None or scores.dtype not in EXACT_IN_FLOAT:
        return _select(scores, allowed, k)
    scores = scores.to(torch.float32).contiguous()
    live = torch.empty_like(allowed, memory_format=torch.contiguous_format)
    flags = None if _all(allowed) else allowed.contiguous()
    usable, nan = kernel.select_edges(
        scores.data_ptr(), 0 if flags is None else flags.data_ptr(), len(scores), k,
        live.data_ptr(), threads(),
    )  # fmt: skip
    _check_outcome(usable, nan, k)
    return live


@select_edges.register_vmap
def _(
    info: object, in_dims: tuple[int | None, ...], scores: Tensor, allowed: Tensor, k: int
) -> tuple[Tensor, int]:
    """Scope by scope: each has a threshold of its own."""
    size = next(
        t.shape[d] for t, d in zip((scores, allowed), in_dims, strict=False) if d is not None
    )
    rows = [
        t.unbind(d) if d is not None else (t,) * size
        for t, d in zip((scores, allowed), in_dims, strict=False)
    ]
    return torch.stack([select_edges(*row, k) for row in zip(*rows, strict=True)]), 0
