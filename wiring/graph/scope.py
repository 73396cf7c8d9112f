"""The wiring of one scope: which of its edges live, and the rule that chooses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from wiring.errors import WiringError
from wiring.graph.rules import EdgeRule, ScopeEdges
from wiring.graph.topology import Scope, Topology

Select = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class ScopeWiring(nn.Module):
    """The live and the usable edges of one scope, flat [E], and the rule that chooses.

    `acting`, for rules that drop edges in training, are those of the next step.
    """

    live: Tensor
    usable: Tensor
    acting: Tensor

    def __init__(self, topology: Topology, scope: Scope, rule: EdgeRule) -> None:
        super().__init__()
        self.rule = rule
        self.shapes = {
            name: torch.Size(topology.weight_shape(topology.bundle(name))) for name in scope.bundles
        }
        self._edges = sum(shape.numel() for shape in self.shapes.values())
        self.register_buffer("usable", self._usable(topology), persistent=False)
        self.register_buffer("live", torch.zeros(self.allowed.shape, dtype=torch.bool))
        rule.allocate(len(self.live))
        if rule.drops:
            self.register_buffer("acting", torch.zeros(self.allowed.shape, dtype=torch.bool))
        self.unusable: nn.Parameter | None = None
        if scope.unusable:
            if type(rule).update is not EdgeRule.update:
                raise WiringError(
                    f"rule {type(rule).__name__} chooses by more than `select`: the pool of "
                    f"scope '{scope.name}' cannot have {scope.unusable} unusable entries"
                )
            bound = topology.fan_in(scope, topology.bundle(scope.bundles[0])) ** -0.5
            self.unusable = nn.Parameter(torch.empty(scope.unusable).uniform_(-bound, bound))

    @property
    def allowed(self) -> Tensor:
        """The usable edges, bool [E]."""
        return self.usable.expand(self._edges)

    def _usable(self, topology: Topology) -> Tensor:
        """Bool [E]. Where every edge is usable, one byte says so for all of them, bool [1]."""
        bundles = [topology.bundle(name) for name in self.shapes]
        if all(bundle.edges is None for bundle in bundles):
            return torch.ones(1, dtype=torch.bool)
        masks = []
        for bundle in bundles:
            mask = torch.full(self.shapes[bundle.name], bundle.edges is None)
            if bundle.edges:
                destination, source = torch.tensor(bundle.edges).T
                mask[destination, source] = True
            masks.append(mask.flatten())
        return torch.cat(masks)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views [D, S, kh, kw] of a flat mask or score, one per bundle."""
        parts = torch.split(flat, [shape.numel() for shape in self.shapes.values()])
        return {n: p.view(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}

    def learn(self) -> Tensor:
        """The edges that receive the weight gradient, bool [E]."""
        return self.rule.learn(self.live, self.allowed)

    def set_prices(self, prices: Mapping[str, float]) -> None:
        """What a live edge of each bundle costs, for rules that ask."""
        flat = torch.empty(self.live.shape, device=self.live.device)
        for name, part in self.split(flat).items():
            part.fill_(prices[name])
        self.rule.prices = flat

    def select_first(self, edges: ScopeEdges) -> Tensor:
        """The edges that live before any training."""
        return self._chosen(self.rule.select, edges, None)

    def _chosen(self, select: Select, edges: ScopeEdges, live: Tensor | None) -> Tensor:
        """What a rule selects, with the unusable entries in its pool where the scope has some."""
        if self.unusable is None:
            return select(edges.scores(), self.allowed, live)
        usable = self._edges
        never = torch.zeros(len(self.unusable), dtype=torch.bool, device=self.live.device)
        scores = torch.cat([edges.scores(), self.unusable.detach().abs()])
        allowed = torch.cat([self.allowed, ~never])
        return select(scores, allowed, None if live is None else torch.cat([live, never]))[:usable]

    def update(self, edges: ScopeEdges) -> Tensor | None:
        """The edges that live after an optimiser step; None for no change."""
        if self.unusable is None:
            return self.rule.update(edges)
        return None if self.rule.fixed else self._chosen(self.rule.select, edges, self.live)
