"""Adder networks in bytes, after training: the same network, its distances in 8-bit integers.

Every bundle of adder edges gets one grid of 256 levels for its inputs and its weights, over the
range its inputs take on calibration images. What rounding shifts an output by on average goes
into a constant of that output; scales and shifts of norms stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wiring.config import Component
from wiring.errors import WiringError
from wiring.methods.adder import Adder
from wiring.network import Network, build_network

Hook = Callable[[Adder, tuple[Tensor, Tensor, Tensor], Tensor], None]


@dataclass
class _Range:
    low: float = 0.0
    high: float = 0.0


@torch.no_grad()
def quantize_adder(network: Network, batches: Iterable[Tensor]) -> Network:
    """A copy of a trained network whose adder edges compute in uint8, in evaluation mode.

    batches: calibration images float32 [N, channels, H, W], as the network takes them. It can be
    exported, compiled and loaded like any other. Raises WiringError for a network without adder
    edges in float32, and without images.
    """
    images = list(batches)
    if not images or any(len(batch) == 0 for batch in images):
        raise WiringError("quantising a network takes at least one image to calibrate on")
    source = _adders(network)
    if not source:
        raise WiringError("the network has no adder edges in float32 to quantise")
    mode = network.training
    network.eval()
    try:
        ranges = _ranges(network, source, images)
        result = _in_bytes(network, source, ranges)
        _correct(network, source, _adders(result, in_bytes=True), images)
    finally:
        network.train(mode)
    return result


def _adders(network: Network, *, in_bytes: bool = False) -> dict[str, Adder]:
    """Adder operators by bundle."""
    return {
        name: op
        for name, op in network.graph.ops.items()
        if isinstance(op, Adder) and op.in_bytes == in_bytes
    }


def _ranges(network: Network, ops: dict[str, Adder], images: list[Tensor]) -> dict[str, _Range]:
    """The range of every operator's inputs."""
    ranges = {name: _Range() for name in ops}

    def watch(name: str) -> Hook:
        def hook(op: Adder, inputs: tuple[Tensor, Tensor, Tensor], y: Tensor) -> None:
            seen, x = ranges[name], inputs[0]
            seen.low = min(seen.low, float(x.min()))
            seen.high = max(seen.high, float(x.max()))

        return hook

    _run(network, {name: (op, watch(name)) for name, op in ops.items()}, images)
    return ranges


def _in_bytes(network: Network, ops: dict[str, Adder], ranges: dict[str, _Range]) -> Network:
    """The network with quantised weights."""
    spec = network.spec

    def quantised(component: Component) -> Component:
        if component.name != "adder":
            return component
        return Component(name="adder", **(component.options | {"precision": "uint8"}))

    bundles = tuple(
        bundle if bundle.op is None else bundle.replace(op=quantised(bundle.op).model_dump())
        for bundle in spec.topology.bundles
    )
    topology = spec.topology.model_copy(update={"bundles": bundles})
    small = spec.model_copy(update={"op": quantised(spec.op), "topology": topology})
    result = build_network(small).to(next(network.parameters()).device)
    result.load_state_dict(network.state_dict(), strict=False)
    live = network.graph.live()
    for name, op in _adders(result, in_bytes=True).items():
        seen = ranges[name]
        op.quantise(ops[name].weight, live[name], seen.low, seen.high)
    return result.eval()


def _correct(
    network: Network, ops: dict[str, Adder], quantised: dict[str, Adder], images: list[Tensor]
) -> None:
    """Add to every output what quantised sums lack on average."""
    lack = {name: torch.zeros_like(op.offset) for name, op in quantised.items()}
    outputs = dict.fromkeys(ops, 0)

    def watch(name: str) -> Hook:
        def hook(op: Adder, inputs: tuple[Tensor, Tensor, Tensor], y: Tensor) -> None:
            lack[name] += (y - quantised[name](*inputs)).sum(dim=(0, 2, 3))
            outputs[name] += y.numel() // y.shape[1]

        return hook

    _run(network, {name: (op, watch(name)) for name, op in ops.items()}, images)
    for name, op in quantised.items():
        op.offset += lack[name] / outputs[name]


def _run(
    network: nn.Module, watched: dict[str, tuple[Adder, Hook]], images: Iterable[Tensor]
) -> None:
    """Evaluate images while hooks see what goes through their operators."""
    handles: list[Any] = [op.register_forward_hook(hook) for op, hook in watched.values()]
    try:
        for batch in images:
            network(batch)
    finally:
        for handle in handles:
            handle.remove()
