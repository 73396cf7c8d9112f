"""Loss + λ Σ_g ‖g‖₂ over groups of weights; after every step at rate η

g ← g · max(0, 1 − η λ / ‖g‖₂)                                       (Wen 2016, eq. 3 and 4)

which is the proximal step of the penalty: weak groups become exactly 0. As a *node rule* a group
is what arrives at one node, and nodes go. As an *edge rule* it is a filter (all edges into one
node), a channel (all that leave one), a shape (one position of one channel's kernel) or a layer,
of one bundle; after the share `pretrain` of training whole groups go. Groups that are 0 go in any
case, then the weakest, by ‖g‖₂ / √(edges), until what is left fits the budget.

The edge rule keeps whole groups: as a rule fewer edges than the budget, and one group where not
even that fits. λ is ours: the paper chose its own for every network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from wiring.config import Config, Share
from wiring.graph.node_rules import (
    NODE_RULES,
    NodeRule,
    Nodes,
    remaining,
    strongest_nodes,
)
from wiring.graph.phased import CompleteFirst, PretrainOptions
from wiring.graph.phases import Phase
from wiring.graph.rules import EDGE_RULES, ScopeEdges

PAPER = "Wen, Wu, Wang, Chen, Li: Learning Structured Sparsity in Deep Networks, NeurIPS 2016"
Kind = Literal["filter", "channel", "shape", "layer"]
# The dimensions of [D, S, kh, kw] that a group runs over.
OVER: dict[Kind, tuple[int, ...]] = {
    "filter": (1, 2, 3),
    "channel": (0, 2, 3),
    "shape": (0,),
    "layer": (0, 1, 2, 3),
}


def shrunk(norms: Tensor, pull: float) -> Tensor:
    """max(0, 1 − pull / ‖g‖): what the proximal step multiplies groups of these norms with."""
    return (1 - pull / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)


class NodeOptions(Config):
    """`penalty` is λ. `share` of each group's nodes goes, the weakest; None: only those whose
    weights the penalty made 0."""

    penalty: NonNegativeFloat = 1e-3
    share: Share | None = 0.5


@NODE_RULES.register("ssl")
class StructuredNodes(NodeRule):
    """A penalty on whole nodes while the network trains; the nodes it weakened most go."""

    paper = PAPER
    use = (
        "For networks that are trained anyway: training itself says which nodes are not needed. "
        "On a network that is trained already take apoz, merge or dpp."
    )
    Options = NodeOptions
    trains = True

    def select(self, nodes: Nodes, generator: torch.Generator) -> Tensor:
        norms = nodes.incoming.norm(dim=1)
        alive = norms > 0
        if self.options.share is not None:
            alive &= strongest_nodes(norms, remaining(nodes.size, self.options.share))
        return alive if bool(alive.any()) else strongest_nodes(norms, 1)

    @torch.no_grad()
    def shrink(self, groups: Sequence[Tensor], lr: float) -> None:
        for weights in groups:
            norms = weights.norm(dim=1, keepdim=True)
            weights.mul_(shrunk(norms, lr * self.options.penalty))


class Options(PretrainOptions):
    """`groups` says what goes together, `penalty` is λ; what is left after the share `pretrain`
    trains on at `lr` times the rate."""

    groups: Kind = "filter"
    penalty: NonNegativeFloat = 1e-3
    lr: PositiveFloat = 0.1


@EDGE_RULES.register("ssl")
class StructuredSparsity(CompleteFirst):
    """A penalty on filters, channels, shapes or layers; whole ones go, and the rest trains on."""

    paper = PAPER
    use = (
        "For wirings that ordinary dense kernels run fast, since whole filters or channels go. "
        "Single edges chosen by magnitude or dnw reach higher accuracy at as many edges."
    )
    needs_own_weights = True
    keeps_budget = False
    Options = Options

    def phases(self) -> tuple[Phase, ...]:
        share = self.options.pretrain
        return (Phase("shrink", share), Phase("retrain", 1 - share, self.options.lr))

    def update(self, edges: ScopeEdges) -> Tensor | None:
        if self.limit is None and self.budget >= int(edges.allowed.sum()):
            return None  # a scope that keeps all its edges has nothing to choose
        if self.clock.phase == 0:
            self._shrink(edges)
            return None
        return self.survivors(edges) if self.clock.begins_phase else None

    def _shrink(self, edges: ScopeEdges) -> None:
        """The proximal step on the usable edges of every group."""
        weights, over = edges.weights(), OVER[self.options.groups]
        parts = zip(edges.bundles(weights), edges.bundles(edges.allowed), strict=True)
        for part, allowed in parts:
            norms = torch.linalg.vector_norm(part * allowed, dim=over, keepdim=True)
            factor = shrunk(norms, edges.lr * self.options.penalty)
            part.copy_(torch.where(allowed, part * factor, part))
        edges.put_weights(weights)

    def survivors(self, edges: ScopeEdges) -> Tensor:
        """The live edges [E]: whole groups, strongest first, as many as the budget takes."""
        over = OVER[self.options.groups]
        places, strengths, prices = [], [], []
        each = torch.ones(edges.live.shape, device=edges.live.device)
        price = each if self.limit is None or self.prices is None else self.prices
        flat = edges.weights() * edges.allowed
        first = 0
        for weight, allowed, cost in zip(
            edges.bundles(flat),
            edges.bundles(edges.allowed),
            edges.bundles(price.double() * edges.allowed),
            strict=True,
        ):
            norms = torch.linalg.vector_norm(weight, dim=over, keepdim=True)
            sizes = allowed.sum(dim=over, keepdim=True)
            strengths.append((norms / sizes.clamp(min=1).sqrt()).flatten())
            prices.append(cost.sum(dim=over, keepdim=True).flatten())
            numbers = torch.arange(norms.numel(), device=flat.device).view(norms.shape)
            places.append((numbers + first).expand(weight.shape).flatten())
            first += norms.numel()
        strength, cost_of = torch.cat(strengths), torch.cat(prices).tolist()
        chosen = self._taken(strength, cost_of)
        return chosen[torch.cat(places)] & edges.allowed

    def _taken(self, strength: Tensor, costs: Sequence[float]) -> Tensor:
        """Bool [groups]: in order of strength all that are not 0 and still fit; at least one."""
        bound = self.budget if self.limit is None else self.limit
        order = strength.sort(descending=True, stable=True).indices.tolist()
        usable = [group for group in order if costs[group] > 0]
        taken, spent = [], 0.0
        for group in usable:
            if float(strength[group]) > 0 and spent + costs[group] <= bound:
                taken.append(group)
                spent += costs[group]
        chosen = torch.zeros(strength.shape, dtype=torch.bool, device=strength.device)
        chosen[taken or usable[:1]] = True
        return chosen
