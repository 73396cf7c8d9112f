"""Adder networks in bytes: as accurate as in float32, a quarter of the weights, still a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from small_networks import images, mixed_topology, spec, trained
from torch import Tensor, nn

from wiring.compiled import compile, load
from wiring.config import Component
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.export import export, load_exported
from wiring.graph import Bundle, NodeGroup, Scope, Topology
from wiring.graph.driving import attach
from wiring.methods.adder import Adder
from wiring.network import HeadSpec, ImageShape, ModelSpec, Network, StemSpec, build_network
from wiring.quantize import quantize_adder

LEARNED = 1400


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return pixels[order], torch.tensor(data.target)[order]


@pytest.fixture(scope="module")
def learned(digits: tuple[Tensor, Tensor]) -> Network:
    """An adder network that knows digits, in evaluation."""
    x, y = digits[0][:LEARNED], digits[1][:LEARNED]
    steps = ("norm", "act")
    topology = Topology(
        groups=(
            NodeGroup(name="in", size=16, steps=steps),
            NodeGroup(name="a", size=32, steps=steps, stage=1),
            NodeGroup(name="b", size=32, steps=steps, stage=2),
        ),
        bundles=(
            Bundle(name="in-a", sources=("in",), destination="a", kernel=(3, 3), padding=1),
            Bundle(name="a-b", sources=("a",), destination="b", kernel=(3, 3), stride=2, padding=1),
        ),
        scopes=(Scope(name="all", bundles=("in-a", "a-b")),),
    )
    network = build_network(
        ModelSpec(
            space="test",
            choices={},
            image=ImageShape(channels=1, side=8),
            classes=10,
            stem=StemSpec(),
            topology=topology,
            head=HeadSpec(),
            op=Component(name="adder"),
            rule=Component(name="complete"),
        )
    ).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    attach(network, optimizer)
    for _ in range(8):
        for start in range(0, LEARNED, 64):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x[start : start + 64]), y[start : start + 64])
            torch.autograd.backward(loss)
            optimizer.step()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for start in range(0, LEARNED, 64):
            network(x[start : start + 64])
    return network.eval()


def accuracy(network: Callable[[Tensor], Tensor], digits: tuple[Tensor, Tensor]) -> float:
    x, y = digits[0][LEARNED:], digits[1][LEARNED:]
    with torch.no_grad():
        return float((network(x).argmax(dim=1) == y).float().mean())


def test_digits_are_read_as_well_in_bytes(
    learned: Network, digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    quantised = quantize_adder(learned, digits[0][:LEARNED].split(350))
    before = accuracy(learned, digits)
    assert before > 0.95
    assert accuracy(quantised, digits) > before - 0.01
    compile(quantised, cache=False).save(tmp_path / "digits.wiring")
    loaded = load(tmp_path / "digits.wiring", cache=False)
    assert accuracy(loaded, digits) > before - 0.01


def test_bytes_differ_from_floats_by_rounding_alone(
    learned: Network, digits: tuple[Tensor, Tensor]
) -> None:
    x = digits[0][LEARNED:]
    quantised = quantize_adder(learned, [digits[0][:LEARNED]])
    with torch.no_grad():
        expected, found = learned(x), quantised(x)
    assert not torch.equal(found, expected)
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_weights_beyond_the_inputs_range_cost_nothing() -> None:
    op = Adder(5, 4, kernel=(3, 3), options={"precision": "uint8"}).eval()
    exact = Adder(5, 4, kernel=(3, 3)).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 5, 6, 6), generator=generator) / 255
    weight = torch.randint(-900, 900, (4, 5, 3, 3), generator=generator) / 255
    live = torch.rand(weight.shape, generator=generator) < 0.7
    op.quantise(weight, live, 0.0, 1.0)
    exact.weight.data.copy_(weight)
    with torch.no_grad():
        torch.testing.assert_close(op(x, live, live), exact(x, live, live))


@pytest.mark.parametrize("rule", ["complete", "random"])
def test_an_export_has_a_byte_for_every_weight_and_gives_the_network_back(
    tmp_path: Path, rule: str
) -> None:
    network = trained(spec(mixed_topology(), "adder", rule))
    quantised = quantize_adder(network, [images()])
    export(quantised, tmp_path / "network.wiring")
    loaded = load_exported(tmp_path / "network.wiring")
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(images(seed=5)), quantised(images(seed=5)), rtol=1e-3, atol=1e-3
        )
    live = loaded.graph.live()
    for name, op in loaded.graph.ops.items():
        stored = op.pack(live[name])
        assert stored["weight"].dtype == torch.uint8
        bits = 8 * sum(tensor.nbytes for tensor in stored.values())
        assert op.cost(live[name], 1).weight_bits == bits


def test_other_operators_stay_as_they_are() -> None:
    topology = mixed_topology()
    mixed = topology.model_copy(
        update={"bundles": (topology.bundles[0].replace(op="dense"), *topology.bundles[1:])}
    )
    quantised = quantize_adder(trained(spec(mixed, "adder", "complete")), [images()])
    assert not isinstance(quantised.graph.op("in-a"), Adder)
    assert all(op.in_bytes for op in quantised.graph.ops.values() if isinstance(op, Adder))


def test_the_network_that_was_quantised_does_not_change() -> None:
    network = trained(spec(mixed_topology(), "adder", "complete")).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    quantize_adder(network, [images()])
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_cannot_be_quantised_is_refused_in_a_sentence() -> None:
    network = trained(spec(mixed_topology(), "adder", "complete"))
    with pytest.raises(WiringError, match="at least one image"):
        quantize_adder(network, [])
    with pytest.raises(WiringError, match="no adder edges"):
        quantize_adder(trained(spec(mixed_topology(), "dense", "complete")), [images()])
    quantised = quantize_adder(network, [images()])
    with pytest.raises(WiringError, match="no adder edges in float32"):
        quantize_adder(quantised, [images()])
    with pytest.raises(WiringError, match="do not train"):
        quantised.train()(images())


def test_bytes_cost_a_quarter_of_the_bits_and_two_numbers_and_one_an_output_more() -> None:
    live = torch.ones(4, 6, 1, 1, dtype=torch.bool)
    cost = Adder(6, 4, options={"precision": "uint8"}).cost(live, 10)
    assert cost == Cost(additions=480, weight_bits=8 * 24 + 32 * (4 + 2))
