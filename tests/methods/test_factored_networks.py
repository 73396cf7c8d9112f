"""Factored weights inside whole networks: first weights, saving, compacting, exporting, fitting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factored_cases import drawn, make
from small_networks import images, spec
from torch import Tensor

from wiring.compact import compact
from wiring.config import Component
from wiring.export import export, load_exported
from wiring.graph.costs import total_cost
from wiring.graph.edges import EdgeOp, Seen
from wiring.graph.staged import in_order
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology
from wiring.network import Network, build_network

FACTORED: dict[str, dict[str, Any]] = {
    "low-rank": {},
    "low-rank energy": {"energy": 0.6},
    "low-rank binary": {"factors": "binary", "energy": 0.6},
    "separable": {},
    "bicluster": {},
    "bicluster outer": {"kind": "outer", "input_clusters": 3},
    "monochromatic": {},
    "tensor-train": {},
}
every_kind = pytest.mark.parametrize("kind", FACTORED)


def component(kind: str, **options: Any) -> Component:
    return Component(name=kind.split()[0], **FACTORED[kind], **options)


def network(op: Component) -> Network:
    """Two 3x3 layers, all of whose edges live."""
    topology = Topology(
        groups=(
            NodeGroup(name="in", size=10, steps=("norm", "act")),
            NodeGroup(name="mid", size=12, steps=("norm", "act"), stage=1),
            NodeGroup(name="out", size=9, stage=2),
        ),
        bundles=(
            Bundle(name="a", sources=("in",), destination="mid", kernel=(3, 3), padding=1),
            Bundle(name="b", sources=("mid",), destination="out", kernel=(3, 3), padding=1),
        ),
        scopes=(Scope(name="all", bundles=("a", "b"), budget=12 * 10 * 9 + 9 * 12 * 9),),
    )
    return build_network(spec(topology, op, "complete")).eval()


def weights(net: Network) -> dict[str, Tensor]:
    """A weight for each layer whose singular values fall."""
    falling = {}
    for name in ("a", "b"):
        shape = net.graph.op(name).shape
        left, values, right = torch.linalg.svd(
            drawn(*shape).flatten(1).float(), full_matrices=False
        )
        fall = 0.6 ** torch.arange(len(values))
        falling[name] = (left * values * fall @ right).view(shape)
    return falling


@every_kind
def test_first_weights_have_the_variance_of_pytorch_s_layers(kind: str) -> None:
    op = make(kind.split()[0], 24, 40, **FACTORED[kind])
    spread = float(op.expand().detach().square().mean())
    assert spread == pytest.approx(1 / (3 * 24 * 9), rel=0.35)


@every_kind
def test_a_network_that_took_over_weights_survives_saving_compacting_and_export(
    tmp_path: Path, kind: str
) -> None:
    net = network(component(kind))
    for name, weight in weights(net).items():
        net.graph.op(name).approximate(weight)
    fresh = network(component(kind))
    if "energy" in FACTORED[kind]:
        assert net.graph.op("a").rank < fresh.graph.op("a").rank
    y = net(images())
    assert not torch.allclose(fresh(images()), y)
    again = network(component(kind))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(images()), y)
    torch.testing.assert_close(compact(net)(images()), y)
    export(net, tmp_path / "net.safetensors")
    loaded = load_exported(tmp_path / "net.safetensors")
    torch.testing.assert_close(loaded(images()), y, rtol=1e-4, atol=1e-5)
    assert total_cost(loaded) == total_cost(net)
    for name, clusters in (("bicluster", "output_cluster"), ("monochromatic", "colour")):
        if kind.startswith(name):  # the network above would not come back without its clusters
            found, first = (getattr(n.graph.op("a"), clusters) for n in (net, fresh))
            assert not torch.equal(found, first)


@every_kind
def test_a_weight_of_zeros_is_taken_over_as_zeros(kind: str) -> None:
    op = make(kind.split()[0], 6, 9, **FACTORED[kind])
    op.approximate(torch.zeros(op.shape))
    assert not op.expand().any()


@pytest.mark.parametrize("name", ["low-rank", "separable"])
def test_layers_fitted_one_after_the_other_on_images_come_nearer(name: str) -> None:
    dense = network(Component(name="dense"))
    given, x = weights(dense), images(24, seed=7)
    for bundle, weight in given.items():
        dense.graph.op(bundle).approximate(weight)
    read = {}

    def note(_: object, seen: Tensor) -> None:
        read[bundle] = seen

    for bundle in given:
        hook = dense.graph.op(bundle).register_forward_pre_hook(lambda _, args: note(_, args[0]))
        wanted = dense.graph(dense.stem(x)).detach()
        hook.remove()
    errors = {}
    for fit in ("weights", "data"):
        net = network(Component(name=name, parameters=0.3, fit=fit))
        others = {k: v for k, v in dense.state_dict().items() if ".ops." not in k}
        net.load_state_dict({**net.state_dict(), **others})

        def change(place: str, op: EdgeOp, seen: Seen | None) -> None:
            assert seen is not None
            bundle = place.rpartition(".")[2]
            op.approximate(given[bundle], Seen(read[bundle].detach(), seen.here))

        ops = {f"graph.ops.{bundle}": net.graph.op(bundle) for bundle in given}
        in_order(net, ops, [x], change)
        errors[fit] = float((net.graph(net.stem(x)) - wanted).detach().square().sum())
    assert errors["data"] < 0.9 * errors["weights"]
