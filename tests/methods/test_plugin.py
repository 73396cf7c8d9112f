"""The plug-in package in `examples/plugin`, as pip would install it."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from method_cases import SHAPES, Shape, images, label, make, masks

from wiring.config import Component
from wiring.errors import UnknownNameError, WiringError
from wiring.graph.driving import attach
from wiring.graph.edges import EDGE_OPS
from wiring.graph.static import StaticGraph
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
GROUP = "wiring.edge_ops"


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a plug-in registers is forgotten after the test."""
    monkeypatch.setattr(EDGE_OPS, "_classes", dict(EDGE_OPS._classes))
    monkeypatch.setattr(EDGE_OPS, "_complete", False)
    yield
    sys.modules.pop("wiring_shift", None)


def write_metadata(folder: Path, entry_points: dict[str, str]) -> None:
    """The files that an installer writes for a distribution with these entry points."""
    info = folder / "wiring_shift-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wiring-shift\nVersion: 0.1.0\n")
    lines = [f"{name} = {target}" for name, target in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))


@pytest.fixture
def installed(fresh_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    write_metadata(tmp_path, project["entry-points"][GROUP])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLE)


def network(op: str) -> StaticGraph:
    topology = Topology(
        groups=(NodeGroup(name="in", size=4), NodeGroup(name="out", size=3)),
        bundles=(Bundle(name="edges", sources=("in",), destination="out"),),
        scopes=(Scope(name="all", bundles=("edges",), budget=5),),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StaticGraph(topology, Component(name=op), Component(name="dnw"))


def test_without_the_package_its_operator_is_unknown(fresh_registry: None) -> None:
    with pytest.raises(UnknownNameError, match="unknown edge operator 'shift'"):
        EDGE_OPS.get("shift")


@pytest.mark.usefixtures("installed")
def test_an_installed_operator_is_found_by_name_and_listed() -> None:
    assert EDGE_OPS.get("shift").__module__ == "wiring_shift"
    assert "shift" in EDGE_OPS.names()


@pytest.mark.usefixtures("installed")
def test_a_graph_with_an_installed_operator_trains_a_step() -> None:
    graph = network("shift")
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
    attach(graph, optimizer)
    x = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    loss = (graph(x) - 1).square().mean()
    loss.backward()
    optimizer.step()
    assert (graph(x) - 1).square().mean() < loss
    assert int(graph.live()["edges"].sum()) == 5


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_the_examples_dead_edges_contribute_nothing(shape: Shape) -> None:
    op = make("shift", shape)
    live, learn = masks(shape)
    y = op(images(shape), live, learn)
    op.weight.data[~live] *= 100
    assert torch.equal(op(images(shape), live, learn), y)


@pytest.mark.usefixtures("fresh_registry")
def test_a_broken_plugin_is_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_metadata(tmp_path, {"broken": "no_such_module:Op"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WiringError, match=r"plug-in 'broken' .* cannot be loaded"):
        EDGE_OPS.get("broken")
