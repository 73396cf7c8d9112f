"""Random graphs made directed and acyclic: every edge runs from the lower to the higher index.

The generators are NetworkX's own; the orientation is that of Xie et al.: Exploring Randomly Wired
Neural Networks, ICCV 2019, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx

from wiring.errors import TopologyError


def erdos_renyi(nodes: int, p: float, *, seed: int) -> nx.DiGraph:
    """Each pair of nodes is joined with probability `p` (Erdős & Rényi 1959)."""
    return _oriented(nx.erdos_renyi_graph, nodes, p, seed=seed)


def barabasi_albert(nodes: int, m: int, *, seed: int) -> nx.DiGraph:
    """Each new node is joined to `m` others, preferring those of high degree (1999)."""
    return _oriented(nx.barabasi_albert_graph, nodes, m, seed=seed)


def watts_strogatz(nodes: int, k: int, p: float, *, seed: int) -> nx.DiGraph:
    """A ring joined to `k` neighbours, each edge rewired with probability `p` (1998)."""
    return _oriented(nx.watts_strogatz_graph, nodes, k, p, seed=seed)


def _oriented(generate: Callable[..., nx.Graph], *settings: float, seed: int) -> nx.DiGraph:
    """Raises TopologyError for settings that the generator refuses."""
    try:
        graph = generate(*settings, seed=seed)
    except nx.NetworkXError as error:
        raise TopologyError(f"no random graph with settings {settings}: {error}") from None
    directed = nx.DiGraph()
    directed.add_nodes_from(sorted(graph))
    directed.add_edges_from((min(edge), max(edge)) for edge in sorted(graph.edges))
    return directed
