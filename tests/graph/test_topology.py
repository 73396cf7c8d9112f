"""Topologies refuse what no static graph can be, and survive JSON."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from small_networks import mixed_topology

from wiring.config import parse
from wiring.errors import BudgetError, ConfigError, TopologyError
from wiring.graph import Bundle, NodeGroup, Scope, Skip, Topology

NODES = (NodeGroup(name="in", size=3), NodeGroup(name="mid", size=4), NodeGroup(name="out", size=2))


def chain(**changes: Any) -> Topology:
    parts: dict[str, Any] = {
        "groups": NODES,
        "bundles": (
            Bundle(name="e1", sources=("in",), destination="mid"),
            Bundle(name="e2", sources=("in", "mid"), destination="out"),
        ),
        "scopes": (Scope(name="all", bundles=("e1", "e2"), budget=5),),
    }
    return Topology(**{**parts, **changes})


def test_a_topology_survives_json() -> None:
    topology = mixed_topology()
    again = parse(Topology, json.loads(json.dumps(topology.to_dict())))
    assert again == topology
    assert again.digest() == topology.digest()


def test_the_digest_ignores_the_order_in_which_edges_are_listed() -> None:
    edges = [(d, s) for d in range(4) for s in range(3) if d != s]
    digests = set()
    for seed in range(4):
        random.Random(seed).shuffle(edges)
        first = Bundle(name="e1", sources=("in",), destination="mid", edges=tuple(edges))
        digests.add(chain(bundles=(first, chain().bundles[1])).digest())
    assert len(digests) == 1


def test_the_digest_sees_every_change() -> None:
    smaller = (Scope(name="all", bundles=("e1", "e2"), budget=4),)
    skips = (Skip(source="mid", destination="out"),)
    digests = {chain().digest(), chain(scopes=smaller).digest(), chain(skips=skips).digest()}
    assert len(digests) == 3


def test_usable_edges_count_every_position_of_a_kernel() -> None:
    topology = mixed_topology()
    early, kernels, late = topology.scopes
    listed = sum((d + s) % 3 > 0 for d in range(5) for s in range(15))
    assert topology.usable_edges(early) == 7 * 8 + listed
    assert topology.usable_edges(kernels) == 6 * 5 * 9
    assert topology.live_edges(late) == 6
    assert topology.live_edges(late.replace(budget=None)) == 24


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"bundles": (Bundle(name="e1", sources=("out",), destination="mid"),)},
            "bundle 'e1' runs backwards: from 'out' into 'mid'",
        ),
        (
            {"bundles": (Bundle(name="e1", sources=("mid",), destination="mid"),)},
            "bundle 'e1' runs backwards: from 'mid' into 'mid'",
        ),
        (
            {"bundles": (Bundle(name="e1", sources=("nowhere",), destination="mid"),)},
            "there is no node group 'nowhere'",
        ),
        (
            {"bundles": (Bundle(name="e1", sources=("in",), destination="mid", edges=((4, 0),)),)},
            r"bundle 'e1' has a dangling edge \(4, 0\)",
        ),
        ({"groups": (*NODES, NODES[0])}, "node group 'in' appears twice"),
        ({"skips": (Skip(source="out", destination="in"),)}, "a skip runs backwards"),
        ({"skips": (Skip(source="in", destination="out", start=2),)}, "nodes up to 4 of 'in'"),
        ({"skips": (Skip(source="in", destination="out", nodes=(0, 3)),)}, "nodes up to 4 of 'in'"),
        ({"skips": (Skip(source="in", destination="out", nodes=(0,)),)}, "needs 2 nodes of 'in'"),
        (
            {"groups": (NODES[0], NODES[1].replace(labels=("a",)), NODES[2])},
            "node group 'mid' has 4 nodes, got 1 labels",
        ),
    ],
)
def test_a_graph_that_breaks_a_rule_is_refused_by_name(
    changes: dict[str, Any], sentence: str
) -> None:
    if "bundles" in changes:
        changes["scopes"] = (Scope(name="all", bundles=("e1",)),)
    with pytest.raises(TopologyError, match=sentence):
        chain(**changes)


def test_every_bundle_belongs_to_exactly_one_scope() -> None:
    with pytest.raises(TopologyError, match="bundle 'e2' belongs to no scope"):
        chain(scopes=(Scope(name="s", bundles=("e1",)),))
    twice = (Scope(name="s", bundles=("e1", "e2")), Scope(name="t", bundles=("e2",)))
    with pytest.raises(TopologyError, match="scoped bundle 'e2' appears twice"):
        chain(scopes=twice)


def test_an_edge_listed_twice_is_refused() -> None:
    with pytest.raises(TopologyError, match="bundle 'e' lists an edge twice"):
        Bundle(name="e", sources=("in",), destination="mid", edges=((0, 1), (0, 1)))


@pytest.mark.parametrize("budget", [0, -1, 27])
def test_a_budget_outside_the_usable_edges_is_refused(budget: int) -> None:
    with pytest.raises(BudgetError, match=rf"scope 'all' must be in 1\.\.26, got {budget}"):
        chain(scopes=(Scope(name="all", bundles=("e1", "e2"), budget=budget),))


def test_a_wrong_type_is_one_sentence_that_names_the_place() -> None:
    data = chain().to_dict()
    data["groups"][1]["size"] = "many"
    with pytest.raises(ConfigError, match=r"groups\.1\.size: .*integer.*got 'many'"):
        parse(Topology, data)
