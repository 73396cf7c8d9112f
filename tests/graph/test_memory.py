"""A wired stage holds its weight, gradient, momentum and one byte an edge, and nothing else."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn

from wiring.config import Component
from wiring.graph import Bundle, NodeGroup, Scope, Topology
from wiring.graph.driving import attach
from wiring.graph.static import StaticGraph

NODES = 192
EDGES = 3 * NODES**2
FLOAT = 4


def stage(rule: str) -> StaticGraph:
    """Three layers of 192 nodes, two of them wired to all layers before them."""
    groups = tuple(NodeGroup(name=f"g{i}", size=NODES) for i in range(3))
    bundles = (
        Bundle(name="a", sources=("g0",), destination="g1"),
        Bundle(name="b", sources=("g0", "g1"), destination="g2"),
    )
    scope = Scope(name="s", bundles=("a", "b"), budget=EDGES // 20)
    topology = Topology(groups=groups, bundles=bundles, scopes=(scope,))
    return StaticGraph(topology, Component(name="dense"), Component(name=rule))


def sizes(tensors: list[Tensor]) -> dict[int, int]:
    """Bytes by storage: views of one storage count once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def alive() -> dict[int, int]:
    """Every tensor's storage of at least a byte for each edge of the smaller bundle."""
    gc.collect()
    found = sizes([o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)])
    return {place: size for place, size in found.items() if size >= NODES**2}


@pytest.mark.parametrize("rule", ["dnw", "dnw-no-update"])
@pytest.mark.usefixtures("seeded")
def test_between_steps_a_stage_holds_13_bytes_an_edge(rule: str) -> None:
    before = alive()
    graph = stage(rule).train()
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1, momentum=0.9, fused=True)
    attach(graph, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        graph(torch.randn(1, NODES, 2, 2)).sum().backward()
        optimizer.step()
    held = {place: size for place, size in alive().items() if place not in before}
    # Weight, gradient and momentum as floats, and the live edges as bytes.
    assert sum(held.values()) == EDGES * (3 * FLOAT + 1)


@pytest.mark.usefixtures("seeded")
def test_the_forward_pass_saves_nothing_of_the_edges_but_what_is_held() -> None:
    graph, saved = stage("dnw").train(), list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = graph(torch.randn(1, NODES, 2, 2))
    assert y.requires_grad
    held = sizes([*graph.parameters(), *graph.buffers()])
    others = {place: size for place, size in sizes(saved).items() if place not in held}
    assert all(size < NODES**2 for size in others.values())


def test_edges_that_are_all_usable_take_one_byte_together() -> None:
    for graph in (stage("dnw"), copy.deepcopy(stage("dnw"))):
        allowed = graph.scope("s").allowed
        assert allowed.shape == (EDGES,)
        assert allowed.all()
        assert allowed.untyped_storage().nbytes() == 1


def test_a_scope_lists_its_usable_edges_where_a_bundle_does() -> None:
    groups = tuple(NodeGroup(name=name, size=2) for name in ("in", "mid", "out"))
    bundles = (
        Bundle(name="a", sources=("in",), destination="mid"),
        Bundle(name="b", sources=("in",), destination="out", edges=((0, 1), (1, 0))),
        Bundle(name="c", sources=("mid",), destination="out", edges=()),
    )
    scope = Scope(name="s", bundles=("a", "b", "c"))
    topology = Topology(groups=groups, bundles=bundles, scopes=(scope,))
    graph = StaticGraph(topology, Component(name="dense"), Component(name="complete"))
    expected = [True] * 4 + [False, True, True, False] + [False] * 4
    assert graph.scope("s").allowed.tolist() == expected
