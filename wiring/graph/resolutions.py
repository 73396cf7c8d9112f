"""Height and width of what every group of a graph receives and computes."""

from __future__ import annotations

from torch import nn

from wiring.errors import TopologyError
from wiring.graph.dynamic import receiver
from wiring.graph.neural import NeuralGraph
from wiring.graph.nodes import KERNEL, step_name
from wiring.graph.topology import Discrete, NodeGroup

Side = tuple[int, int]
WINDOWED = ("maxpool", "avgpool")


def convolved(side: Side, kernel: Side, stride: int, padding: int) -> Side:
    """Height and width after a convolution. Raises TopologyError where nothing is left."""
    height, width = ((s + 2 * padding - k) // stride + 1 for s, k in zip(side, kernel, strict=True))
    if height < 1 or width < 1:
        raise TopologyError(f"a {kernel} kernel with stride {stride} leaves nothing of {side}")
    return height, width


def resolutions(graph: NeuralGraph, side: Side) -> dict[str, tuple[Side, ...]]:
    """Height and width of each group's sum, and after each step of its nodes.

    `side` is what the input nodes receive. Raises TopologyError where sums of different
    resolutions meet.
    """
    topology = graph.topology
    if topology.dynamics is not None:
        rows = isinstance(topology.dynamics, Discrete) and topology.dynamics.feed == "rows"
        side = (1, 1) if rows else side
        return {g.name: (side,) * (1 + len(node_steps(graph, g))) for g in topology.groups}
    sides: dict[str, tuple[Side, ...]] = {}
    for group in topology.groups:
        arriving = {side} if group is topology.input else set()
        for bundle in topology.bundles:
            if bundle.destination == group.name:
                for name in bundle.sources:
                    arriving.add(
                        convolved(sides[name][-1], bundle.kernel, bundle.stride, bundle.padding)
                    )
        for skip in topology.skips:
            if skip.destination == group.name:
                arriving.add(sides[skip.source][0 if skip.carries == "sum" else -1])
        if len(arriving) != 1:
            raise TopologyError(
                f"node group '{group.name}' receives sums of resolutions {sorted(arriving)}"
            )
        steps = [arriving.pop()]
        for step in node_steps(graph, group):
            if step == "depthwise":
                steps.append(
                    convolved(steps[-1], (KERNEL, KERNEL), group.stride, padding=KERNEL // 2)
                )
            elif step in WINDOWED:
                size, stride = group.window.size, group.window.stride
                steps.append(convolved(steps[-1], (size, size), stride, group.window.padding))
            else:
                steps.append((1, 1) if step == "pool" else steps[-1])
        sides[group.name] = tuple(steps)
    return sides


def node_steps(graph: NeuralGraph, group: NodeGroup) -> list[str]:
    """What a group's nodes do in one pass: their steps as their readers arranged them, behind
    those that receive."""
    return [
        step_name(name)
        for module in node_modules(graph, group).values()
        for name, _ in module.named_children()
    ]


def node_modules(graph: NeuralGraph, group: NodeGroup) -> dict[str, nn.Module]:
    """The modules of a group's nodes, by name in `graph.nodes`, in the order in which they run."""
    names = [name for name in (receiver(group.name), group.name) if name in graph.nodes]
    return {name: graph.nodes[name] for name in names}
