"""Which edges of a network live, how each computes, and what it costs.

`build_network(ModelSpec(...))` makes a classifier whose edges an `EdgeRule` chooses and an
`EdgeOp` computes; `attach` lets an optimiser's step drive the wiring. Once trained,
`compile` turns it into its fast form, `wiring.compact.compact` drops what no output depends on,
and `wiring.export.export` writes it down in as many bits as `Cost` says; `load_exported` reads
it back.

Any other PyTorch network becomes wired with `convert`, or with `compress` by methods that follow
one another; `verify` checks what they promise, `save_model` and `load_model` keep it, and `revert`
turns it back.

Importing this package loads nothing heavy: each name below is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wiring.compiled import CompiledNetwork
    from wiring.cost import Cost
    from wiring.errors import WiringError
    from wiring.export import load_exported
    from wiring.graph.build import build_graph
    from wiring.graph.driving import attach
    from wiring.graph.dynamic import ContinuousGraph, DiscreteGraph
    from wiring.graph.edges import EDGE_OPS, EdgeOp
    from wiring.graph.neural import NeuralGraph
    from wiring.graph.node_rules import NODE_RULES, NodeRule
    from wiring.graph.rules import EDGE_RULES, EdgeRule
    from wiring.graph.staged import StagedOp
    from wiring.graph.static import StaticGraph
    from wiring.graph.tied import TiedOp
    from wiring.graph.topology import Topology
    from wiring.models.compiled import compile
    from wiring.models.compress import compress, verify
    from wiring.models.convert import convert
    from wiring.models.files import load_model, save_model
    from wiring.models.layers import WiredConv2d, WiredLinear
    from wiring.models.report import Conversion
    from wiring.models.revert import revert
    from wiring.network import ModelSpec, Network, build_network

_HOMES = {
    "CompiledNetwork": "wiring.compiled",
    "ContinuousGraph": "wiring.graph.dynamic",
    "Conversion": "wiring.models.report",
    "Cost": "wiring.cost",
    "DiscreteGraph": "wiring.graph.dynamic",
    "EDGE_OPS": "wiring.graph.edges",
    "EDGE_RULES": "wiring.graph.rules",
    "EdgeOp": "wiring.graph.edges",
    "EdgeRule": "wiring.graph.rules",
    "ModelSpec": "wiring.network",
    "NODE_RULES": "wiring.graph.node_rules",
    "Network": "wiring.network",
    "NeuralGraph": "wiring.graph.neural",
    "NodeRule": "wiring.graph.node_rules",
    "StagedOp": "wiring.graph.staged",
    "StaticGraph": "wiring.graph.static",
    "TiedOp": "wiring.graph.tied",
    "Topology": "wiring.graph.topology",
    "WiredConv2d": "wiring.models.layers",
    "WiredLinear": "wiring.models.layers",
    "WiringError": "wiring.errors",
    "attach": "wiring.graph.driving",
    "build_graph": "wiring.graph.build",
    "build_network": "wiring.network",
    "compile": "wiring.models.compiled",
    "compress": "wiring.models.compress",
    "convert": "wiring.models.convert",
    "load_exported": "wiring.export",
    "load_model": "wiring.models.files",
    "revert": "wiring.models.revert",
    "save_model": "wiring.models.files",
    "verify": "wiring.models.compress",
}

__all__ = [
    "CompiledNetwork",
    "ContinuousGraph",
    "Conversion",
    "Cost",
    "DiscreteGraph",
    "EDGE_OPS",
    "EDGE_RULES",
    "EdgeOp",
    "EdgeRule",
    "ModelSpec",
    "NODE_RULES",
    "Network",
    "NeuralGraph",
    "NodeRule",
    "StagedOp",
    "StaticGraph",
    "TiedOp",
    "Topology",
    "WiredConv2d",
    "WiredLinear",
    "WiringError",
    "attach",
    "build_graph",
    "build_network",
    "compile",
    "compress",
    "convert",
    "load_exported",
    "load_model",
    "revert",
    "save_model",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'wiring' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
