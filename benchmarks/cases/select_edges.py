"""Exact selection of the k best edges, against a mask from a full sort."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Case
from wiring.kernels.select_edges import select_edges

TARGET = 20.0
# Scores, and the ratio to reach: the target's, the largest stage of mobilenet-graph, all of tiny.
SIZES = ((8_650_000, TARGET), (4_718_592, None), (264_960, None))


def by_sorting(scores: Tensor, allowed: Tensor, k: int) -> Tensor:
    """The obvious formula: sort everything, keep the first k."""
    ranked = torch.where(allowed, scores, -torch.inf)
    order = torch.sort(ranked, descending=True, stable=True).indices
    live = torch.zeros_like(allowed)
    live[order[:k]] = True
    return live


def cases() -> Iterator[Case]:
    """Normal weights' magnitudes, 5% of which live; the limit is one comparison of all."""
    generator = torch.Generator().manual_seed(0)
    for edges, target in SIZES:
        scores = torch.randn(edges, generator=generator).abs()
        most = torch.rand(edges, generator=generator) < 0.9
        for allowed, share in ((torch.ones_like(most), "all"), (most, "90%")):
            k = edges // 20
            yield Case(
                "select_edges",
                f"{edges / 1e6:.3g} M scores, {share} allowed, k = 5%",
                partial(select_edges, scores, allowed, k),
                partial(by_sorting, scores, allowed, k),
                target=target,
                limit_ratio=partial(torch.ge, scores, 2.0, out=torch.empty_like(allowed)),
            )
