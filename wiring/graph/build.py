"""Which kind of graph runs a topology."""

from __future__ import annotations

from wiring.config import Component
from wiring.graph.dynamic import ContinuousGraph, DiscreteGraph
from wiring.graph.neural import NeuralGraph
from wiring.graph.static import StaticGraph
from wiring.graph.topology import Topology

KINDS: dict[str, type[NeuralGraph]] = {"discrete": DiscreteGraph, "continuous": ContinuousGraph}


def build_graph(topology: Topology, op: Component, rule: Component) -> NeuralGraph:
    """The graph of a topology: static, or running over time as its `dynamics` say."""
    kind = StaticGraph if topology.dynamics is None else KINDS[topology.dynamics.kind]
    return kind(topology, op, rule)
