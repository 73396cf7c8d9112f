"""How large a decomposition of a weight may be, and what a layer's inputs say about its weight.

Fits on data minimise ‖W X − M X̃‖² over the weights M that a method can hold, X the windows that
the layer read in the network as it was and X̃ those that it reads now. All that they need to know of
the images is G = X̃X̃ᵀ and Q = X X̃ᵀ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.config import Config
from wiring.errors import WiringError
from wiring.graph.edges import EdgeOp, Seen

# λ in multiples of the mean of G's diagonal.
DAMPING = 1e-6
# Numbers of one block of windows: 64 MB.
BLOCK = 8_000_000

C = TypeVar("C", bound=Config)


def one_size(options: C, *names: str) -> C:
    """The options, of which these say how large the factors are. Raises ValueError where several
    do."""
    said = [name for name in names if getattr(options, name) is not None]
    if len(said) > 1:
        raise ValueError(f"{' and '.join(said)} both say how large the factors are: take one")
    return options


def largest_rank(count: Callable[[int], int], limit: float, most: int) -> int:
    """The largest rank in 1..most of which `count(rank)`, which never falls, is at most `limit`.

    1 where there is none: nothing is smaller.
    """
    low, high = 1, max(1, most)
    while low < high:
        middle = (low + high + 1) // 2
        if count(middle) <= limit:
            low = middle
        else:
            high = middle - 1
    return low


@torch.no_grad()
def second_moments(op: EdgeOp, seen: Seen | None) -> tuple[Tensor, Tensor]:
    """(G, Q) float64 [n, n] of an operator's windows, n = S·kh·kw in the weight's order.

    Both have λI added, as if each weight were seen alone with a small input: what the images leave
    open is fitted to the weight itself. Raises WiringError without `seen`.
    """
    if seen is None:
        raise WiringError(
            f"{type(op).__name__} with fit = data looks at what the layer reads: give it images"
        )
    n = op.shape[1:].numel()
    moments = torch.zeros(2, n, n, dtype=torch.float64, device=seen.here.device)
    images = max(1, BLOCK // max(1, n * seen.here.shape[2] * seen.here.shape[3]))
    for full, here in zip(
        torch.split(seen.full, images), torch.split(seen.here, images), strict=True
    ):
        now = _windows(op, here)
        moments[0].addmm_(now, now.T)
        moments[1].addmm_(now if full is here else _windows(op, full), now.T)
    mean = float(moments[0].trace()) / n
    moments.diagonal(dim1=1, dim2=2).add_(DAMPING * mean or 1.0)
    return moments[0], moments[1]


def _windows(op: EdgeOp, x: Tensor) -> Tensor:
    """[n, N·P] float64: what each output pixel reads, padding as 0."""
    kernel = (op.shape[2], op.shape[3])
    windows = F.unfold(x.double(), kernel, padding=op.padding, stride=op.stride)
    return windows.transpose(0, 1).flatten(1)
