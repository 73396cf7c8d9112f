"""Topologies and their live edges go to NetworkX, JSON and GraphML and come back the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import mixed_topology, spec

from wiring.errors import TopologyError
from wiring.graph import Bundle, NodeGroup, Scope, Topology
from wiring.graph.convert import (
    from_graphml,
    from_networkx,
    from_node_link,
    live_from_networkx,
    read_graph,
    to_graphml,
    to_networkx,
    to_node_link,
    write_graph,
)
from wiring.network import build_network

SUFFIXES = [".json", ".graphml"]
LABELS = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=5)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Two to four groups with labels, listed or complete bundles, kernels, budgets."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    groups, bundles = [], []
    for stage, size in enumerate(sizes):
        labels = draw(st.none() | st.tuples(*[LABELS] * size))
        groups.append(NodeGroup(name=f"g{stage}", size=size, stage=stage, labels=labels))
    for stage in range(1, len(sizes)):
        sources = draw(st.lists(st.integers(0, stage - 1), min_size=1, unique=True))
        width = sum(sizes[s] for s in sources)
        pairs = st.tuples(st.integers(0, sizes[stage] - 1), st.integers(0, width - 1))
        bundles.append(
            Bundle(
                name=f"e{stage}",
                sources=tuple(f"g{s}" for s in sources),
                destination=f"g{stage}",
                kernel=draw(st.sampled_from([(1, 1), (3, 1), (2, 2)])),
                edges=draw(st.none() | st.sets(pairs, min_size=1).map(tuple)),
            )
        )
    budget = draw(st.sampled_from([None, 1]))
    scope = Scope(name="all", bundles=tuple(b.name for b in bundles), budget=budget)
    return Topology(groups=tuple(groups), bundles=tuple(bundles), scopes=(scope,))


def random_masks(topology: Topology, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for bundle in topology.bundles:
        shape = topology.weight_shape(bundle)
        masks[bundle.name] = torch.rand(shape, generator=generator) < 0.5
        if bundle.edges is not None:
            usable = torch.zeros(shape, dtype=torch.bool)
            for destination, source in bundle.edges:
                usable[destination, source] = True
            masks[bundle.name] &= usable
    return masks


@given(topologies(), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_topology_and_live_edges_survive_every_road(topology: Topology, seed: int) -> None:
    assert from_networkx(to_networkx(topology)) == topology
    live = random_masks(topology, seed)
    weights = {name: torch.randn(mask.shape) for name, mask in live.items()}
    drawn = to_networkx(topology, live, weights)
    roads = (drawn, from_node_link(to_node_link(drawn)), from_graphml(to_graphml(drawn)))
    for graph in roads:
        assert from_networkx(graph) == topology
        assert dict(graph.nodes(data=True)) == dict(drawn.nodes(data=True))
        found = live_from_networkx(graph)
        assert all(torch.equal(live[name], found[name]) for name in live)
        for source, destination, data in drawn.edges(data=True):
            assert graph.edges[source, destination] == data


def test_nodes_and_edges_say_where_they_belong() -> None:
    network = build_network(spec(mixed_topology()))
    topology, live = network.spec.topology, network.graph.live()
    weights = {name: network.graph.op(name).weight for name in live}
    graph = to_networkx(topology, live, weights)
    assert graph.nodes["b:3"] == {"group": "b", "index": 3, "stage": 0, "label": "unit 3"}
    destination, source = live["ina-b"][..., 0, 0].nonzero()[0].tolist()
    name = f"in:{source}" if source < 8 else f"a:{source - 8}"
    assert graph.edges[name, f"b:{destination}"] == {
        "bundle": "ina-b",
        "weight": pytest.approx(weights["ina-b"][destination, source].item()),
    }
    destination, source = live["b-c"].nonzero()[0, :2].tolist()
    kernel = live["b-c"][destination, source]
    edge = graph.edges[f"b:{source}", f"c:{destination}"]
    assert edge["live"] == kernel.sum() == edge["kernel"].count("1")
    mean = weights["b-c"][destination, source][kernel].abs().mean().item()
    assert edge["weight"] == pytest.approx(mean)


def test_without_a_live_mask_every_usable_edge_is_drawn() -> None:
    topology = mixed_topology()
    kernels = sum(math.prod(b.kernel) > 1 for b in topology.bundles)
    assert kernels == 1
    pairs = sum(
        len(b.edges) if b.edges else math.prod(topology.weight_shape(b)[:2])
        for b in topology.bundles
    )
    assert to_networkx(topology).number_of_edges() == pairs
    with pytest.raises(TopologyError, match="does not say which of its 9 positions live"):
        live_from_networkx(to_networkx(topology))


def test_two_bundles_between_the_same_nodes_are_refused() -> None:
    topology = Topology(
        groups=(NodeGroup(name="in", size=1), NodeGroup(name="out", size=1)),
        bundles=tuple(Bundle(name=n, sources=("in",), destination="out") for n in ("e", "f")),
        scopes=(Scope(name="s", bundles=("e", "f")),),
    )
    with pytest.raises(TopologyError, match="'e' and 'f' both join in:0 to out:0"):
        to_networkx(topology)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    topology = mixed_topology()
    weights = {b.name: torch.zeros(topology.weight_shape(b)) for b in topology.bundles}
    weights["c-out"][0, 0] = float("nan")
    with pytest.raises(TopologyError, match="bundle 'c-out' has a weight that is NaN"):
        to_networkx(topology, weights=weights)


def test_a_mask_of_another_graph_is_refused() -> None:
    topology = mixed_topology()
    with pytest.raises(TopologyError, match=r"'in-a' needs a tensor \[7, 8, 1, 1\], got \[2\]"):
        to_networkx(topology, {"in-a": torch.ones(2, dtype=torch.bool)})


def test_an_edited_graph_no_longer_has_its_topology() -> None:
    graph = to_networkx(mixed_topology())
    graph.add_edge("out:0", "in:0", bundle="in-a")
    with pytest.raises(TopologyError, match=r"edge out:0 to in:0 of bundle 'in-a' is not in"):
        from_networkx(graph)
    graph = to_networkx(mixed_topology())
    graph.remove_node("c:2")
    with pytest.raises(TopologyError, match="node c:2 is not both in the graph and in its topo"):
        from_networkx(graph)


def diamond() -> nx.DiGraph:
    """x, y → m → z and x → z, y → early: `early` has no successor and `m` has one."""
    edges = [("x", "m"), ("y", "m"), ("m", "z"), ("x", "z"), ("y", "early")]
    return nx.DiGraph(edges)


def test_a_foreign_graph_becomes_its_generations_with_sinks_last() -> None:
    topology = from_networkx(diamond())
    assert [group.labels for group in topology.groups] == [("x", "y"), ("m",), ("z", "early")]
    assert topology.bundle("e1").sources == ("g0",)
    assert topology.bundle("e1").edges == ((0, 0), (0, 1))
    assert topology.bundle("e2").sources == ("g0", "g1")
    assert topology.bundle("e2").edges == ((0, 0), (0, 2), (1, 1))
    assert topology.scopes == (Scope(name="graph", bundles=("e1", "e2")),)


def test_a_foreign_graph_is_the_same_however_its_edges_are_listed() -> None:
    edges = list(diamond().edges)
    digests = {from_networkx(nx.DiGraph(edges[i:] + edges[:i])).digest() for i in range(5)}
    assert len(digests) == 1


@given(st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda p: p[0] < p[1])))
@settings(max_examples=60, deadline=None)
def test_every_edge_of_a_foreign_graph_is_usable_and_no_other(
    edges: set[tuple[int, int]],
) -> None:
    if not edges:
        return
    topology = from_networkx(nx.DiGraph(sorted(edges)))
    found = set()
    for bundle in topology.bundles:
        sources = [label for n in bundle.sources for label in topology.group(n).labels or ()]
        destinations = topology.group(bundle.destination).labels or ()
        found |= {(int(sources[s]), int(destinations[d])) for d, s in bundle.edges or ()}
    assert found == edges


def test_what_is_no_neural_graph_is_refused() -> None:
    cycle = nx.DiGraph([("a", "b"), ("b", "c"), ("c", "b")])
    with pytest.raises(TopologyError, match="has the cycle b to c to b; a static graph"):
        from_networkx(cycle)
    with pytest.raises(TopologyError, match="has the cycle a to a"):
        from_networkx(nx.DiGraph([("a", "a"), ("a", "b")]))
    with pytest.raises(TopologyError, match="the graph is empty"):
        from_networkx(nx.DiGraph())
    alone = nx.DiGraph([("a", "b")])
    alone.add_node("c")
    with pytest.raises(TopologyError, match="node c is isolated"):
        from_networkx(alone)
    for graph in (nx.Graph([("a", "b")]), nx.MultiDiGraph([("a", "b")])):
        with pytest.raises(TopologyError, match="is directed and has one edge"):
            from_networkx(graph)
    for weight in (float("nan"), float("inf"), "heavy"):
        heavy = nx.DiGraph()
        heavy.add_edge("a", "b", weight=weight)
        with pytest.raises(TopologyError, match="weight of edge a to b must be a finite number"):
            from_networkx(heavy)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_holds_the_graph(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"graph{suffix}"
    write_graph(path, to_networkx(mixed_topology()))
    assert from_networkx(read_graph(path)) == mixed_topology()
    write_graph(path, diamond())
    assert from_networkx(read_graph(path)) == from_networkx(diamond())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("text", ["", "{", "<graphml", "[1, 2]", '{"nodes": 3, "edges": []}'])
def test_a_broken_file_is_refused_by_name(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_text(text)
    with pytest.raises(TopologyError, match=rf"broken{suffix}: this is no "):
        read_graph(path)


def test_files_that_cannot_be_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"missing\.json: cannot be read: No such file"):
        read_graph(tmp_path / "missing.json")
    with pytest.raises(TopologyError, match=r"ends in \.json or \.graphml, got '\.png'"):
        write_graph(tmp_path / "graph.png", diamond())
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyError, match=r"binary\.json: is not UTF-8"):
        read_graph(tmp_path / "binary.json")


def test_a_dangling_edge_in_a_file_is_refused(tmp_path: Path) -> None:
    data = json.loads(to_node_link(diamond()))
    data["nodes"] = [node for node in data["nodes"] if node["id"] != "m"]
    with pytest.raises(TopologyError, match="the edge x to m dangles: there is no node m"):
        from_node_link(json.dumps(data))
    text = to_graphml(diamond()).replace('<node id="m" />', "")
    with pytest.raises(TopologyError, match="the edge x to m dangles: there is no node m"):
        from_graphml(text)


def test_nan_in_a_file_is_refused() -> None:
    graph = diamond()
    nx.set_edge_attributes(graph, 0.5, "weight")
    with pytest.raises(TopologyError, match="numbers of a graph must be finite, got NaN"):
        from_node_link(to_node_link(graph).replace("0.5", "NaN"))
    with pytest.raises(TopologyError, match="must be a finite number, got nan"):
        from_graphml(to_graphml(graph).replace("0.5", "NaN"))


def test_links_is_read_as_edges() -> None:
    text = to_node_link(diamond()).replace('"edges"', '"links"')
    assert from_networkx(from_node_link(text)) == from_networkx(diamond())


def test_a_label_that_xml_cannot_hold_is_refused_before_writing() -> None:
    groups = (NodeGroup(name="in", size=1, labels=("a\x00",)), NodeGroup(name="out", size=1))
    bundle = Bundle(name="e", sources=("in",), destination="out")
    scope = Scope(name="s", bundles=("e",))
    graph = to_networkx(Topology(groups=groups, bundles=(bundle,), scopes=(scope,)))
    with pytest.raises(TopologyError, match="holds a character that XML cannot"):
        to_graphml(graph)
    assert from_networkx(from_node_link(to_node_link(graph))).groups == groups
