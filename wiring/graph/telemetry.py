"""How a wiring changes, and how much two wirings have in common.

Masks are the live edges by scope, flat bool [E], as `ScopeWiring.live` holds them. Births say
since which epoch each edge has lived without a break, int16 [E], and -1 for a dead one; epoch 0
is before training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wiring.errors import TopologyError
from wiring.graph.measure import swaps

DEAD = -1
Masks = Mapping[str, Tensor]
Births = Mapping[str, Tensor]


def first_births(masks: Masks) -> dict[str, Tensor]:
    """The births in a wiring that has not trained yet."""
    return {name: mask.to(torch.int16) + DEAD for name, mask in masks.items()}


def next_births(births: Births, masks: Masks, epoch: int) -> dict[str, Tensor]:
    """The births after an epoch that left the edges of `masks` alive."""
    return {
        name: torch.where(mask, torch.where(births[name] == DEAD, epoch, births[name]), DEAD).to(
            torch.int16
        )
        for name, mask in masks.items()
    }


def living(births: Births) -> dict[str, Tensor]:
    """The masks that births stand for."""
    return {name: born != DEAD for name, born in births.items()}


def age_counts(births: Births, epoch: int) -> Tensor:
    """How many live edges have lived 0, 1, … `epoch` epochs without a break, int64 [epoch + 1].

    An edge that began to live in this epoch has age 0.
    """
    ages = [epoch - born[born != DEAD].to(torch.int64) for born in births.values()]
    return torch.bincount(torch.cat(ages), minlength=epoch + 1)


def age_summary(births: Births, epoch: int) -> dict[str, float]:
    """`mean_age`, and the quartiles `age_q1`, `median_age`, `age_q3` (lower ones), in epochs.

    All are 0 where no edge lives.
    """
    counts = age_counts(births, epoch)
    total, below = int(counts.sum()), counts.cumsum(0)
    ages = torch.arange(len(counts), device=counts.device)
    row = {"mean_age": float((ages * counts).sum()) / max(total, 1)}
    for name, quarter in (("age_q1", 1), ("median_age", 2), ("age_q3", 3)):
        row[name] = float((below * 4 < quarter * total).sum())
    return row


def swap_rate(before: Masks, after: Masks) -> float:
    """The share of the live edges that did not live before, 0..1; 0 where none lives.

    Raises TopologyError where the two belong to different graphs.
    """
    return swaps(before, after) / max(1, sum(int(mask.sum()) for mask in after.values()))


def jaccard(one: Masks, other: Masks) -> float:
    """Edges that live in both wirings over edges that live in either, over all scopes, 0..1.

    1 where nothing lives. Raises TopologyError where the two belong to different graphs.
    """
    if {k: m.shape for k, m in one.items()} != {k: m.shape for k, m in other.items()}:
        raise TopologyError("only wirings of graphs with the same usable edges have an overlap")
    both = sum(int((mask & other[name]).sum()) for name, mask in one.items())
    either = sum(int((mask | other[name]).sum()) for name, mask in one.items())
    return both / either if either else 1.0


def random_jaccard(one: Masks, other: Masks, usable: Mapping[str, int]) -> float:
    """What `jaccard` is to be expected of random wirings with as many live edges in each scope.

    `usable` edges of a scope, of which k and m live: k·m/usable are expected to live in both.
    """
    both = either = 0.0
    for name, mask in one.items():
        k, m = int(mask.sum()), int(other[name].sum())
        both += k * m / usable[name]
        either += k + m - k * m / usable[name]
    return both / either if either else 1.0
