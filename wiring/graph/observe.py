"""What a node rule is shown of a neural graph: weights that arrive and leave, and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wiring.graph.measure import source_sizes
from wiring.graph.neural import NeuralGraph
from wiring.graph.node_rules import Nodes
from wiring.graph.nodes import Bias
from wiring.graph.resolutions import node_modules
from wiring.graph.staged import evaluating
from wiring.graph.topology import Bundle, NodeGroup

SAMPLES = 4096


def columns_of(graph: NeuralGraph, bundle: Bundle, group: NodeGroup) -> Tensor:
    """Where a group's nodes stand among a bundle's sources, int64 [size]."""
    sizes = source_sizes(graph.topology, bundle)
    first = sum(sizes[: bundle.sources.index(group.name)])
    device = graph.op(bundle.name).weight.device
    return torch.arange(first, first + group.size, device=device)


def nodes_of(graph: NeuralGraph, group: NodeGroup, values: Tensor, *, changeable: bool) -> Nodes:
    """The nodes of one group as a rule sees them; `values` [M, size]."""
    weights, live = arriving(graph, group), graph.live()
    biases = [
        module.bias.detach()[:, None]
        for op in node_modules(graph, group).values()
        for module in op.children()
        if isinstance(module, Bias)
    ]
    outgoing = None
    if changeable:
        leaving = []
        for bundle in graph.topology.bundles:
            if group.name in bundle.sources:
                weight = graph.op(bundle.name).weight.detach() * live[bundle.name]
                leaving.append(weight[:, columns_of(graph, bundle, group)])
        if len({part.shape[2:] for part in leaving}) > 1:
            leaving = [p.transpose(1, 3).flatten(0, 2)[..., None, None] for p in leaving]
        outgoing = torch.cat(leaving) if leaving else None
    return Nodes(
        group.name,
        torch.cat([weights, *biases], dim=1),
        outgoing,
        values,
        effective(
            weights, [m for op in node_modules(graph, group).values() for m in op.children()]
        ),
    )


def arriving(graph: NeuralGraph, group: NodeGroup) -> Tensor:
    """The live incoming weights of a group's nodes [size, fan_in], bundle after bundle."""
    live = graph.live()
    parts = [
        (graph.op(bundle.name).weight.detach() * live[bundle.name]).flatten(1)
        for bundle in graph.topology.bundles
        if bundle.destination == group.name
    ]
    some = next(graph.parameters())
    return torch.cat(parts, dim=1) if parts else some.new_zeros(group.size, 0).detach()


def effective(weights: Tensor, behind: Sequence[nn.Module]) -> Tensor:
    """Weights [size, fan_in] with what lies behind them, [size, features]: a batch norm's scale
    and shift taken in, as evaluation has them, and whatever else each node has of its own."""
    size = len(weights)
    shift = weights.new_zeros(size)
    features: list[Tensor] = []
    linear = True
    for module in behind:
        if linear and isinstance(module, Bias):
            shift = shift + module.bias.detach()
        elif linear and isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            assert module.running_mean is not None
            scale = (module.running_var + module.eps).rsqrt()
            gamma = scale if module.weight is None else scale * module.weight.detach()
            beta = 0.0 if module.bias is None else module.bias.detach()
            weights = weights * gamma[:, None]
            shift = (shift - module.running_mean) * gamma + beta
        else:
            linear = False
            features += [
                tensor.detach().reshape(size, -1)
                for tensor in (*module.parameters(), *module.buffers())
                if tensor.dim() and len(tensor) == size
            ]
    return torch.cat([weights, shift[:, None], *features], dim=1)


def values_of(
    network: nn.Module,
    graph: NeuralGraph,
    names: Sequence[str],
    batches: Sequence[Tensor],
    seed: int,
) -> dict[str, Tensor]:
    """What the nodes of groups hand on, in evaluation mode, on random pixels; [≤ SAMPLES, size]."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    caught: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = []
    for name in names:

        def catch(_: nn.Module, __: object, y: Tensor, name: str = name) -> None:
            caught[name].append(y.detach().movedim(1, -1).flatten(0, -2))

        hooks.append(graph.nodes[name].register_forward_hook(catch))
    try:
        with evaluating(network):
            for batch in batches:
                network(batch)
                for name, parts in caught.items():
                    rows = torch.cat(parts)
                    found[name].append(draw_rows(rows, -(-SAMPLES // len(batches)), generator))
                    parts.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def draw_rows(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random rows of [M, size], or all where there are no more."""
    if len(rows) <= count:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:count].to(rows.device)]
