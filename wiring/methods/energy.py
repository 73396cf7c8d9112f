"""train → (prune → retrain) × rounds, by energy. Live: what pruning leaves of all usable edges;
learn: the live ones.

Each round takes n edges from a scope, after Yang 2017: (1) bundles in the order of the energy of
their live edges, E_b = Σ price, the most hungry first, lose n · (1 + r) edges in proportion to E_b,
those of least magnitude; (2) of these, n · r are restored, those whose loss weighs most against the
energy that they would save: largest d_e / price_e, d_e = mean (w_e · ∂L/∂w_e)² over training steps,
the squared first-order change of the loss when edge e goes; (3) training repairs the rest. The
last round leaves exactly k. A scope with a limit of cost keeps the largest d_e / price_e instead.

The paper's: energy as the criterion, magnitude first, then restoration by damage, then training.
Not the paper's: its damage is the change of a layer's output map and it refits the surviving
weights by least squares; here the gradient measures damage and step (3) refits. It stops at a loss
of accuracy, this at a budget. Prices are those of `wiring.cost`, not of a hardware's data flow.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from wiring.errors import WiringError
from wiring.graph.phased import IterativePruning, PruningOptions
from wiring.graph.rules import EDGE_RULES, ScopeEdges


class Options(PruningOptions):
    """`restore` is r; `memory` how much of its mean damage an edge keeps from step to step."""

    restore: NonNegativeFloat = 0.3
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.99


@EDGE_RULES.register("energy")
class EnergyAwarePruning(IterativePruning):
    """Edges go where most energy is saved for the accuracy that they cost."""

    paper = "Yang, Chen, Sze: Designing Energy-Efficient CNNs using Energy-Aware Pruning, CVPR 2017"
    use = (
        "Where the energy of the operations counts and not the number of edges: edges that "
        "run at many pixels go first. With one price for all edges it is magnitude."
    )
    needs_prices = True
    needs_own_weights = True
    Options = Options
    damage: Tensor

    def allocate(self, edges: int) -> None:
        self.register_buffer("damage", torch.zeros(edges))

    def begin(self) -> None:
        """Raises WiringError where nobody has said what edges cost."""
        super().begin()
        if self.prices is None:
            raise WiringError(
                "rule energy ranks edges by what they cost: call graph.set_prices(...) first"
            )

    def before_step(self, edges: ScopeEdges) -> None:
        damage = (edges.weights() * edges.gradients()).square_()
        self.damage.lerp_(damage.to(self.damage.dtype), 1 - self.options.memory)

    def prune(self, edges: ScopeEdges) -> Tensor:
        assert self.prices is not None
        if self.limit is not None:
            return self.survivors(self.damage, edges)
        count = int(edges.live.sum())
        leave = self.quota(int(edges.allowed.sum()))
        excess = min(int((1 + self.options.restore) * (count - leave)), count)
        kept = self.cut(edges, excess)
        restored = leave - (count - excess)
        if restored:
            gone = edges.live & ~kept
            kept |= self.strongest(self.damage / self.prices, gone, restored)
        return kept

    def cut(self, edges: ScopeEdges, remove: int) -> Tensor:
        """The live edges without `remove` of them, the most from the bundles that take most."""
        assert self.prices is not None
        kept = edges.live.clone()
        lives = edges.bundles(edges.live)
        strengths, kepts = edges.bundles(edges.weights().abs()), edges.bundles(kept)
        energies = [
            float(price[live].double().sum())
            for price, live in zip(edges.bundles(self.prices), lives, strict=True)
        ]
        counts = [int(live.sum()) for live in lives]
        # A bundle keeps its strongest edge, unless there are fewer edges to keep than bundles.
        spared = int(remove <= sum(counts) - sum(count > 0 for count in counts))
        room = [max(count - spared, 0) for count in counts]
        left, energy, behind = remove, sum(energies), sum(room)
        for number in sorted(range(len(energies)), key=lambda n: -energies[n]):
            live, count = lives[number], counts[number]
            behind -= room[number]
            share = energies[number] / energy if energy else 0.0
            gone = min(max(math.ceil(left * share - 1e-9), left - behind), room[number])
            kepts[number][live] = False
            if gone < count:
                strongest = self.strongest(
                    strengths[number].flatten(), live.flatten(), count - gone
                )
                kepts[number][strongest.view_as(live)] = True
            left, energy = left - gone, energy - energies[number]
        return kept
