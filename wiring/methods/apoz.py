"""APoZ_j = share of samples on which node j is 0 behind its ReLU; node j goes where

APoZ_j > mean(APoZ) + deviations · σ(APoZ),  over the nodes of its group     (Hu 2016, eq. 1)

The paper trims where its networks have the most zeros and retrains, in several rounds; a round is
what this does to every group. σ is the deviation of the group's nodes, correction 0. With `share`
the nodes of the most zeros go. Where pooling or a depthwise filter lies between the ReLU and the
next layer, what counts is the zeros that this layer reads.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from wiring.config import Config, Share
from wiring.graph.node_rules import (
    NODE_RULES,
    NodeRule,
    Nodes,
    remaining,
    strongest_nodes,
)


class Options(Config):
    """`deviations` above the mean is where trimming begins; with `share` that share of each
    group's nodes goes instead."""

    deviations: NonNegativeFloat = 1.0
    share: Share | None = None


@NODE_RULES.register("apoz")
class AveragePercentageOfZeros(NodeRule):
    """Nodes that are mostly zero behind their ReLU go."""

    paper = "Hu, Peng, Tai, Tang: Network Trimming, arXiv 2016"
    use = (
        "For networks with ReLUs that were given too many nodes: it needs some images and no "
        "labels. Take ssl where training can still shape the nodes, dpp where many are alike."
    )
    Options = Options

    def select(self, nodes: Nodes, generator: torch.Generator) -> Tensor:
        zeros = (nodes.values == 0).double().mean(dim=0)
        if self.options.share is not None:
            return strongest_nodes(-zeros, remaining(nodes.size, self.options.share))
        bar = zeros.mean() + self.options.deviations * zeros.std(correction=0)
        # A mean of equal numbers may come out a rounding below them.
        kept: Tensor = zeros <= bar + 1e-12
        return kept
