"""Graph files: node-link JSON and GraphML, read and written by NetworkX and checked here."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree

import networkx as nx

from wiring.errors import TopologyError
from wiring.files import write_atomic

# What XML 1.0 cannot hold, not even escaped, and the carriage return, which it normalises.
_NO_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_GRAPHML = "{http://graphml.graphdrawing.org/xmlns}"


def check_weights(graph: nx.DiGraph) -> None:
    """Raises TopologyError for a weight that is no number, NaN or infinite."""
    for source, destination, weight in graph.edges(data="weight", default=0.0):
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight):
            raise TopologyError(
                f"the weight of edge {source} to {destination} must be a finite number, "
                f"got {weight!r}"
            )


def to_node_link(graph: nx.DiGraph) -> str:
    """Node-link JSON. Raises TopologyError for a weight that is NaN or infinite."""
    check_weights(graph)
    try:
        return json.dumps(nx.node_link_data(graph, edges="edges"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TopologyError(f"the graph cannot be written as JSON: {error}") from None


def from_node_link(text: str) -> nx.DiGraph:
    """Inverse of `to_node_link`. Raises TopologyError for anything that is no such graph."""

    def refuse(constant: str) -> NoReturn:
        raise TopologyError(f"numbers of a graph must be finite, got {constant}")

    try:
        data = json.loads(text, parse_constant=refuse)
        # NetworkX before 3.4, and D3, call the edges links.
        key = "edges" if "edges" in data else "links"
        _check_dangling(
            [node["id"] for node in data["nodes"]],
            [(edge["source"], edge["target"]) for edge in data[key]],
        )
        graph = nx.node_link_graph(data, directed=True, multigraph=False, edges=key)
    except (AttributeError, KeyError, TypeError, ValueError, nx.NetworkXError) as error:
        raise TopologyError(f"this is no node-link JSON of a graph: {_reason(error)}") from None
    return _checked(graph)


def to_graphml(graph: nx.DiGraph) -> str:
    """GraphML. Raises TopologyError for what GraphML cannot hold and for non-finite weights."""
    check_weights(graph)
    for node, data in graph.nodes(data=True):
        for text in (node, *data.values()):
            if isinstance(text, str) and _NO_XML.search(text):
                raise TopologyError(f"node {node!r} holds a character that XML cannot: {text!r}")
    try:
        return "\n".join(nx.generate_graphml(graph))
    except (KeyError, TypeError, nx.NetworkXError) as error:
        raise TopologyError(f"the graph cannot be written as GraphML: {_reason(error)}") from None


def from_graphml(text: str) -> nx.DiGraph:
    """Inverse of `to_graphml`. Raises TopologyError for anything that is no such graph."""
    try:
        root = ElementTree.fromstring(text)
        _check_dangling(
            [node.get("id") for node in root.iter(_GRAPHML + "node")],
            [(e.get("source"), e.get("target")) for e in root.iter(_GRAPHML + "edge")],
        )
        graph = nx.parse_graphml(text)
    except (ElementTree.ParseError, KeyError, ValueError, nx.NetworkXError) as error:
        raise TopologyError(f"this is no GraphML: {_reason(error)}") from None
    return _checked(graph)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)


def _check_dangling(nodes: list[Any], edges: list[tuple[Any, Any]]) -> None:
    known = set(nodes)
    for source, destination in edges:
        for end in (source, destination):
            if end not in known:
                raise TopologyError(
                    f"the edge {source} to {destination} dangles: there is no node {end}"
                )


def _checked(graph: nx.Graph) -> nx.DiGraph:
    if not isinstance(graph, nx.DiGraph) or graph.is_multigraph():
        raise TopologyError("a neural graph is directed and has one edge between two nodes")
    if not isinstance(graph.graph, dict):
        raise TopologyError(f"the graph's attributes must be a mapping, got {graph.graph!r}")
    check_weights(graph)
    return graph


def write_graph(path: Path, graph: nx.DiGraph) -> None:
    """Write a .json or .graphml file. Raises TopologyError naming the path."""
    formats = {".json": to_node_link, ".graphml": to_graphml}
    try:
        write_atomic(path, formats[_suffix(path)](graph).encode())
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None
    except OSError as error:
        raise TopologyError(f"{path}: cannot be written: {error.strerror}") from None


def read_graph(path: Path) -> nx.DiGraph:
    """Read a .json or .graphml file. Raises TopologyError naming the path."""
    formats = {".json": from_node_link, ".graphml": from_graphml}
    try:
        return formats[_suffix(path)](path.read_text(encoding="utf-8"))
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None
    except OSError as error:
        raise TopologyError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TopologyError(f"{path}: is not UTF-8: {error.reason}") from None


def _suffix(path: Path) -> str:
    if path.suffix not in (".json", ".graphml"):
        raise TopologyError(f"a graph file ends in .json or .graphml, got '{path.suffix}'")
    return path.suffix
