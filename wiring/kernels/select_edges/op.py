"""The k best of n scores in linear time, instead of a full sort."""

import torch
from torch import Tensor

from wiring.errors import BudgetError, WiringError


def select_edges(scores: Tensor, allowed: Tensor, k: int) -> Tensor:
    """Exactly k allowed edges of largest score; ties go to the lower index.

    scores float [E]; allowed bool [E]; returns bool [E]. Raises BudgetError unless
    1 <= k <= allowed.sum(), WiringError for a NaN among the allowed scores.
    """
    index = allowed.nonzero().squeeze(1)
    candidates = scores[index]
    if not 1 <= k <= index.numel():
        raise BudgetError(f"live edges must be in 1..{index.numel()}, got {k}")
    if candidates.isnan().any():
        raise WiringError("scores of edges must not be NaN")
    threshold = candidates.kthvalue(index.numel() - k + 1).values
    above = candidates > threshold
    ties = candidates == threshold
    ties &= ties.cumsum(0) <= k - above.sum()
    live = torch.zeros_like(allowed)
    live[index[above | ties]] = True
    return live
