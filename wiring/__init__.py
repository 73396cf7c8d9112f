"""Which edges of a network live, how each computes, and what it costs.

`build_network(ModelSpec(...))` makes a classifier whose edges an `EdgeRule` chooses and an
`EdgeOp` computes; `attach` lets an optimiser's step drive the wiring. Once trained,
`compile` turns it into its fast form, `wiring.compact.compact` drops what no output depends on,
and `wiring.export.export` writes it down in as many bits as `Cost` says; `load_exported` reads
it back.

Importing this package loads nothing heavy: each name below is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wiring.compiled import CompiledNetwork, compile
    from wiring.cost import Cost
    from wiring.errors import WiringError
    from wiring.export import load_exported
    from wiring.graph.build import build_graph
    from wiring.graph.dynamic import ContinuousGraph, DiscreteGraph
    from wiring.graph.edges import EDGE_OPS, EdgeOp
    from wiring.graph.neural import NeuralGraph, attach
    from wiring.graph.rules import EDGE_RULES, EdgeRule
    from wiring.graph.static import StaticGraph
    from wiring.graph.topology import Topology
    from wiring.network import ModelSpec, Network, build_network

_HOMES = {
    "CompiledNetwork": "wiring.compiled",
    "ContinuousGraph": "wiring.graph.dynamic",
    "Cost": "wiring.cost",
    "DiscreteGraph": "wiring.graph.dynamic",
    "EDGE_OPS": "wiring.graph.edges",
    "EDGE_RULES": "wiring.graph.rules",
    "EdgeOp": "wiring.graph.edges",
    "EdgeRule": "wiring.graph.rules",
    "ModelSpec": "wiring.network",
    "Network": "wiring.network",
    "NeuralGraph": "wiring.graph.neural",
    "StaticGraph": "wiring.graph.static",
    "Topology": "wiring.graph.topology",
    "WiringError": "wiring.errors",
    "attach": "wiring.graph.neural",
    "build_graph": "wiring.graph.build",
    "build_network": "wiring.network",
    "compile": "wiring.compiled",
    "load_exported": "wiring.export",
}

__all__ = [
    "CompiledNetwork",
    "ContinuousGraph",
    "Cost",
    "DiscreteGraph",
    "EDGE_OPS",
    "EDGE_RULES",
    "EdgeOp",
    "EdgeRule",
    "ModelSpec",
    "Network",
    "NeuralGraph",
    "StaticGraph",
    "Topology",
    "WiringError",
    "attach",
    "build_graph",
    "build_network",
    "compile",
    "load_exported",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'wiring' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
