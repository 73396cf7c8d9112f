"""A node rule's part in one training: it trains, nodes go, the smaller network trains on.

train (the rule shrinks after every step, if it trains) → remove → train what is left

The phases of the edge rule and of the operators lie over the whole training as they always do; the
removal divides the one it falls into, and the rate's schedule starts anew with it. The nodes go
before the first step of the new phase, so that a checkpoint of that moment holds the whole network
and leads to the same smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from wiring.compact import cut_scope
from wiring.errors import WiringError
from wiring.graph import telemetry
from wiring.graph.node_rules import NODE_RULES, NodeRule
from wiring.graph.phases import Phase, phase_ends
from wiring.network import Network
from wiring.removal import left_whole, remove_nodes, shrink_nodes
from workers.spec import TrainConfig, TrialSpec

PHASE = "fewer nodes"


class Removal:
    """When nodes go, and how: `rule`, the `phases` of the whole training, and `step`, the number
    of optimiser steps before it.

    Raises WiringError for a network of which no node can go, too few steps, and edge rules or
    operators that cannot go on with a smaller network.
    """

    def __init__(self, spec: TrialSpec, network: Network, steps: int | None) -> None:
        assert spec.node_rule is not None
        name = spec.node_rule.name
        self.rule: NodeRule = NODE_RULES.get(name)(spec.node_rule.options)
        self.seed = spec.seed
        self._check(name, network, spec.train)
        self.phases, number = divided(network.graph.phases(), spec.train.removal)
        self.step = 0
        if steps is not None:
            if steps < len(self.phases):
                raise WiringError(
                    f"node rule {name} divides training into {len(self.phases)} phases, for which "
                    f"{steps} optimiser steps are too few"
                )
            self.step = phase_ends(steps, self.phases)[number - 1]

    def _check(self, name: str, network: Network, train: TrainConfig) -> None:
        reasons = left_whole(network, self.rule)
        if all(reasons.values()):
            listed = "; ".join(f"{group}: {why}" for group, why in reasons.items())
            raise WiringError(f"node rule {name} can remove no node of this network: {listed}")
        graph = network.graph
        for scope, wiring in graph.wirings():
            if wiring.rule.limit is not None:
                raise WiringError(
                    f"scope '{scope}' has a budget of cost, which a node rule cannot share out "
                    f"anew when {name} removes nodes: give it a number or a share of edges"
                )
        phases = graph.phases()
        if any(phase.rewind for phase in phases):
            rule = type(graph.wirings()[0][1].rule).__name__
            raise WiringError(
                f"rule {rule} goes back to first weights, and node rule {name} removes nodes "
                "that had some: take one of them"
            )
        if graph.staged:
            first = graph.staged[0].phases()[0].share / sum(phase.share for phase in phases)
            if train.removal >= first:
                raise WiringError(
                    f"node rule {name} removes nodes after {train.removal:g} of training, when "
                    f"operator {type(graph.staged[0]).__name__} has entered its second stage, "
                    f"after {first:g}: set train.removal lower"
                )

    def shrink(self, network: Network, lr: float) -> None:
        """After an optimiser step at rate `lr`, while all nodes are there."""
        if self.rule.trains:
            shrink_nodes(network, self.rule, lr)

    def remove(
        self,
        network: Network,
        batches: Sequence[Tensor],
        births: dict[str, Tensor],
        epoch: int,
    ) -> tuple[Network, dict[str, Tensor]]:
        """The smaller network, and the births of its edges; those that inherited weight from
        removed nodes are born in `epoch`."""
        small, report = remove_nodes(network, self.rule, batches, seed=self.seed, trains=True)
        cut = {name: cut_scope(network, name, born, report.kept) for name, born in births.items()}
        masks = {name: wiring.live for name, wiring in small.graph.wirings()}
        return small, telemetry.next_births(cut, masks, epoch)


def divided(phases: Sequence[Phase], share: float) -> tuple[tuple[Phase, ...], int]:
    """Phases with a border after the share of the whole, and the number of the phase after it."""
    whole, begin = sum(phase.share for phase in phases), 0.0
    for place, phase in enumerate(phases):
        inside = share * whole - begin
        if abs(inside) < 1e-9 * whole:
            return tuple(phases), place
        if inside < phase.share:
            parts = (
                replace(phase, share=inside),
                replace(phase, name=PHASE, share=phase.share - inside),
            )
            return (*phases[:place], *parts, *phases[place + 1 :]), place + 1
        begin += phase.share
    raise AssertionError(f"a share lies inside of training, got {share}")
