"""Live: k random edges; every ΔT steps the fraction ζ of smallest |w| goes and as many come,
drawn uniformly from all edges that do not live; learn: the live ones.

Grown edges begin with weight 0 and no momentum. ζ = 0.3; ΔT = 100 and the cosine that takes ζ to 0
are those of the comparison in Evci 2020; the paper has a constant ζ (`anneal = "constant"`) and
moves edges once an epoch. Its Erdős–Rényi densities are those of `wiring.graph.budgets`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wiring.graph.regrow import Regrowing
from wiring.graph.rules import EDGE_RULES, ScopeEdges


@EDGE_RULES.register("set")
class SparseEvolutionaryTraining(Regrowing):
    """The weakest edges move to random places, again and again."""

    paper = "Mocanu et al.: Scalable Training of Artificial Neural Networks with Adaptive Sparse "
    use = (
        "The simplest rule that rewires while it trains sparsely: grown edges are random. "
        "rigl grows better ones for the gradient of one step in many."
    )
    paper += "Connectivity, Nature Communications 2018"

    def growth(self, edges: ScopeEdges) -> Tensor:
        return torch.rand(edges.live.shape, device=edges.live.device)
