"""What a wiring is worth: its used nodes, its depth, its swaps, and what a forward pass costs.

A node is *used* if a path of live edges, or a skip, leads from it to an output node. A node that
is not used is dead. A used node that no input reaches is constant: its norm still has a bias.

In a graph over time paths are walks, as `walks` has them, and every edge counts once per pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from wiring.cost import Cost, total
from wiring.errors import BudgetError, TopologyError
from wiring.graph.dynamic import ContinuousGraph, receiver
from wiring.graph.edges import WEIGHT_BITS
from wiring.graph.neural import NeuralGraph
from wiring.graph.nodes import KERNEL, step_name
from wiring.graph.topology import Bundle, Discrete, NodeGroup, Topology
from wiring.graph.walks import longest_walks, used_in_time

Side = tuple[int, int]
WINDOWED = ("maxpool", "avgpool")


class _Image(Protocol):
    @property
    def side(self) -> int: ...


class _Spec(Protocol):
    @property
    def image(self) -> _Image: ...


class Classifier(Protocol):
    """Stem, neural graph and head, and the side of the image: what a network is measured by."""

    @property
    def spec(self) -> _Spec: ...
    @property
    def stem(self) -> nn.Sequential: ...
    @property
    def graph(self) -> NeuralGraph: ...
    @property
    def head(self) -> nn.Sequential: ...


class CostRow(NamedTuple):
    """One line of a cost table.

    `kind` is stem, edges, gate, norm, bias, depthwise, pool, avgpool, index or head; `name` begins
    with the group, bundle or scope it stands for.
    """

    name: str
    kind: str
    cost: Cost


def source_sizes(topology: Topology, bundle: Bundle) -> list[int]:
    """Sizes of a bundle's source groups, in the order of its weight's columns."""
    return [topology.group(name).size for name in bundle.sources]


@torch.no_grad()
def used_nodes(graph: NeuralGraph) -> dict[str, Tensor]:
    """Nodes from which live edges or skips lead to an output node; bool [size] by group."""
    if graph.topology.dynamics is not None:
        return used_in_time(graph)
    topology, live = graph.topology, graph.live()
    device = next(iter(live.values())).device
    used = {g.name: torch.zeros(g.size, dtype=torch.bool, device=device) for g in topology.groups}
    used[topology.output.name].fill_(True)
    for group in reversed(topology.groups):
        wanted = used[group.name]
        if not wanted.any():
            continue
        for bundle in topology.bundles:
            if bundle.destination == group.name:
                mask = live[bundle.name] & wanted.view(-1, 1, 1, 1)
                reads = graph.op(bundle.name).used_sources(mask)
                parts = torch.split(reads, source_sizes(topology, bundle))
                for name, part in zip(bundle.sources, parts, strict=True):
                    used[name] |= part
        for skip in topology.skips:
            if skip.destination == group.name:
                read = torch.tensor(skip.reads(group.size), device=device)
                used[skip.source][read[wanted]] = True
    return used


def kept_nodes(network: Classifier) -> dict[str, Tensor]:
    """Nodes that remain when a network is compacted; bool [size] by group.

    The used ones. Besides, an image's own channels stay, a scope keeps a live edge with both
    its nodes, and a group keeps one node: a topology has no empty parts. Edges that share
    parameters cannot be cut, so all their nodes stay.
    """
    graph, topology = network.graph, network.graph.topology
    kept = used_nodes(graph)
    for bundle in topology.bundles:
        if graph.op(bundle.name).tied:
            for name in (bundle.destination, *bundle.sources):
                kept[name].fill_(True)
    if len(network.stem) == 0:
        kept[topology.input.name].fill_(True)
    live = graph.live()
    for scope in topology.scopes:
        bundles = [topology.bundle(name) for name in scope.bundles]
        if any(cut(live[b.name], topology, b, kept).any() for b in bundles):
            continue
        bundle = next(b for b in bundles if live[b.name].any())
        destination, source = live[bundle.name].nonzero()[0, :2].tolist()
        kept[bundle.destination][destination] = True
        for name, size in zip(bundle.sources, source_sizes(topology, bundle), strict=True):
            if 0 <= source < size:
                kept[name][source] = True
            source -= size
    for mask in kept.values():
        if not mask.any():
            mask[0] = True
    return kept


def cut(mask: Tensor, topology: Topology, bundle: Bundle, kept: Mapping[str, Tensor]) -> Tensor:
    """The part [D', S', kh, kw] of a bundle's tensor [D, S, kh, kw] between kept nodes."""
    sources = torch.cat([kept[name] for name in bundle.sources])
    return mask[kept[bundle.destination]][:, sources]


def dead_nodes(graph: NeuralGraph) -> int:
    """How many nodes do not matter to any output."""
    return sum(int((~used).sum()) for used in used_nodes(graph).values())


def constant_nodes(graph: NeuralGraph) -> int:
    """How many nodes are used though no path of live edges leads to them from an input."""
    over_time = graph.topology.dynamics is not None
    lengths = longest_walks(graph)[1] if over_time else _longest_paths(graph)
    used = used_nodes(graph)
    return sum(int((used[name] & (lengths[name] < 0)).sum()) for name in used)


def depth(graph: NeuralGraph) -> int:
    """Edges on the longest live path from an input to an output node; 0 where there is none."""
    over_time = graph.topology.dynamics is not None
    lengths = longest_walks(graph)[0] if over_time else _longest_paths(graph)
    longest = lengths[graph.topology.output.name]
    return max(0, int(longest.max()))


def _longest_paths(graph: NeuralGraph) -> dict[str, Tensor]:
    """Live edges on the longest path from an input to each node, -1 for none; int64 [size]."""
    topology, live = graph.topology, graph.live()
    device = next(iter(live.values())).device
    longest: dict[str, Tensor] = {}
    for group in topology.groups:
        first = 0 if group is topology.input else -1
        best = torch.full((group.size,), first, device=device)
        for bundle in topology.bundles:
            if bundle.destination == group.name:
                sources = torch.cat([longest[name] for name in bundle.sources])
                joined = live[bundle.name].any(3).any(2) & (sources >= 0)
                lengths = torch.where(joined, sources + 1, -1).amax(dim=1)
                best = torch.maximum(best, lengths)
        for skip in topology.skips:
            if skip.destination == group.name:
                read = torch.tensor(skip.reads(group.size), device=device)
                best = torch.maximum(best, longest[skip.source][read])
        longest[group.name] = best
    return longest


def live_edges(graph: NeuralGraph) -> int:
    """How many edges live, over all scopes."""
    return sum(int(scope.live.sum()) for _, scope in graph.wirings())


def swaps(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    """How many edges live after and did not before; flat bool masks [E] by scope.

    Raises TopologyError where the two belong to different graphs.
    """
    shapes = [{name: mask.shape for name, mask in masks.items()} for masks in (before, after)]
    if shapes[0] != shapes[1]:
        raise TopologyError(f"swaps compares one graph with itself, got scopes of {shapes}")
    return sum(int((after[name] & ~before[name]).sum()) for name in after)


def index_bits(live: int, usable: int) -> int:
    """Bits that say which `live` of `usable` edges live: the cheaper of a plane and a list.

    One bit per usable edge, or ⌈log2(usable)⌉ per live edge; 0 where all of them live.
    """
    return 0 if live == usable else min(usable, live * (usable - 1).bit_length())


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
        return {g.name: (side,) * (1 + len(_steps(graph, g))) for g in topology.groups}
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
        for step in _steps(graph, group):
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


def _steps(graph: NeuralGraph, group: NodeGroup) -> list[str]:
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


def passes(network: Classifier) -> int:
    """How often a forward pass runs every edge.

    Where nothing has been solved yet, an adaptive solver's evaluations for one standard normal
    image are taken.
    """
    graph, image = network.graph, network.spec.image.side
    if graph.passes or not isinstance(graph, ContinuousGraph):
        return graph.passes
    inputs = graph.topology.input.size
    _, side = _stem_rows(network.stem, (image, image), inputs)
    x = torch.randn(1, inputs, *side, generator=torch.Generator().manual_seed(0))
    return graph.count_passes(x.to(next(graph.parameters())))


def total_cost(network: Classifier) -> Cost:
    """The sum of `cost_table`."""
    return total([row.cost for row in cost_table(network)])


@torch.no_grad()
def cost_table(network: Classifier, *, whole: bool = False) -> list[CostRow]:
    """What one image costs in the network as it would run compacted, part by part.

    With `whole` nodes that no output depends on count like all others: what it costs uncut.

    Edges as their operators count them; a batch norm one multiplication and one addition per
    value (its reader may be no product that it folds into) and an instance norm two and three,
    since its moments belong to the image; 3x3 depthwise nine of each per value; a bias an
    addition per value; a skip's gate a multiplication and an addition per value; pooling by the
    mean additions only. Comparisons are not counted, be it in a ReLU or in pooling by the maximum,
    nor are dropout, which evaluation has none of, and the additions that join what several
    bundles and skips bring. Norms weigh 64 bits a node, scale and shift.

    In a graph over time all of that counts in every pass, and weighs once; a solver's own sums
    are not counted.
    """
    graph, topology = network.graph, network.graph.topology
    live = graph.live()
    every = {group.name: torch.ones(group.size, dtype=torch.bool) for group in topology.groups}
    kept = every if whole else kept_nodes(network)
    image = network.spec.image.side
    rows, side = _stem_rows(network.stem, (image, image), int(kept[topology.input.name].sum()))
    sides, times = resolutions(graph, side), passes(network)
    for group in topology.groups:
        for bundle in topology.bundles:
            if bundle.destination == group.name:
                mask = cut(live[bundle.name], topology, bundle, kept)
                cost = graph.op(bundle.name).cost(mask, math.prod(sides[group.name][0]))
                rows.append(CostRow(bundle.name, "edges", cost.repeated(times)))
        nodes = int(kept[group.name].sum())
        for skip in topology.skips:
            if skip.destination == group.name and skip.gate:
                values = nodes * math.prod(sides[group.name][0])
                cost = Cost(values, values, weight_bits=WEIGHT_BITS)
                rows.append(CostRow(f"{group.name}.{skip.source}", "gate", cost))
        for step, (before, after) in zip(
            _steps(graph, group),
            zip(sides[group.name], sides[group.name][1:], strict=False),
            strict=True,
        ):
            if step == "norm":
                cost = _norm_cost(nodes, math.prod(before), batch=group.norm == "batch")
            elif step == "depthwise":
                cost = _products(nodes * KERNEL**2, math.prod(after))
            elif step == "bias":
                cost = _bias(nodes, math.prod(before))
            elif step == "pool":
                cost = Cost(additions=nodes * (math.prod(before) - 1))
            elif step == "avgpool":
                cost = Cost(additions=nodes * math.prod(after) * (group.window.size**2 - 1))
            else:
                continue
            rows.append(CostRow(f"{group.name}.{step}", step, cost.repeated(times)))
    for name, wiring in graph.wirings():
        living, allowed = wiring.split(wiring.live), wiring.split(wiring.allowed)
        counts = [
            sum(int(cut(masks[b], topology, topology.bundle(b), kept).sum()) for b in masks)
            for masks in (living, allowed)
        ]
        rows.append(CostRow(f"{name}.index", "index", Cost(index_bits=index_bits(*counts))))
    return rows + _head_rows(network.head, sides[topology.output.name][-1], topology.output.size)


@torch.no_grad()
def edge_positions(network: Classifier) -> dict[str, int]:
    """The number of pixels at which an edge of each bundle is computed, in all passes together."""
    graph, topology = network.graph, network.graph.topology
    image = network.spec.image.side
    _, side = _stem_rows(network.stem, (image, image), topology.input.size)
    sides = resolutions(graph, side)
    times = passes(network)
    return {b.name: times * math.prod(sides[b.destination][0]) for b in topology.bundles}


@torch.no_grad()
def edge_prices(network: Classifier) -> dict[str, float]:
    """What one live edge of each bundle costs on average where all of them live.

    In the unit of the scope's limit; in picojoule where it has none, and there for one pass of an
    adaptive solver. Raises BudgetError for a limit of operations that such a solver may pass.
    """
    graph, topology = network.graph, network.graph.topology
    image = network.spec.image.side
    _, side = _stem_rows(network.stem, (image, image), topology.input.size)
    sides = resolutions(graph, side)
    prices: dict[str, float] = {}
    for scope in topology.scopes:
        unit = "energy" if scope.limit is None else scope.limit.unit
        if scope.limit is not None and unit != "weight_bits" and not graph.passes:
            raise BudgetError(
                f"scope '{scope.name}' has a limit of {unit}, which an adaptive solver cannot "
                "hold: take one with fixed steps, or a limit of weight_bits"
            )
        for name in scope.bundles:
            bundle = topology.bundle(name)
            all_live = torch.ones(topology.weight_shape(bundle), dtype=torch.bool)
            positions = math.prod(sides[bundle.destination][0])
            cost = graph.op(name).cost(all_live, positions).repeated(max(1, graph.passes))
            prices[name] = float(getattr(cost, unit)) / all_live.numel()
    return prices


def _products(weights: int, positions: int) -> Cost:
    """Each weight multiplies and adds once per position, in full precision."""
    operations = weights * positions
    return Cost(operations, operations, weight_bits=weights * WEIGHT_BITS)


def _norm_cost(nodes: int, positions: int, *, batch: bool) -> Cost:
    values = nodes * positions
    multiplications, additions = (values, values) if batch else (2 * values, 3 * values)
    return Cost(multiplications, additions, weight_bits=2 * nodes * WEIGHT_BITS)


def _bias(nodes: int, positions: int) -> Cost:
    return Cost(additions=nodes * positions, weight_bits=nodes * WEIGHT_BITS)


def _stem_rows(stem: nn.Sequential, side: Side, inputs: int) -> tuple[list[CostRow], Side]:
    """Rows of the stem that feeds `inputs` nodes, and the resolution at which it does."""
    rows: list[CostRow] = []
    last = last_convolution(stem)
    for position, module in enumerate(stem):
        if isinstance(module, nn.Conv2d):
            assert isinstance(module.padding[0], int)
            kernel = (module.kernel_size[0], module.kernel_size[1])
            side = convolved(side, kernel, module.stride[0], module.padding[0])
            channels = inputs if position >= last else module.out_channels
            window = module.in_channels // module.groups * math.prod(kernel)
            cost = _products(channels * window, math.prod(side))
            if module.bias is not None:
                cost += _bias(channels, math.prod(side))
            rows.append(CostRow(f"stem.{position}", "stem", cost))
        elif isinstance(module, nn.BatchNorm2d):
            channels = inputs if position >= last else module.num_features
            cost = _norm_cost(channels, math.prod(side), batch=True)
            rows.append(CostRow(f"stem.{position}", "stem", cost))
    return rows, side


def last_convolution(stem: nn.Sequential) -> int:
    """Where the part of the stem begins that has one channel per input node."""
    convolutions = [i for i, module in enumerate(stem) if isinstance(module, nn.Conv2d)]
    return convolutions[-1] if convolutions else 0


def _head_rows(head: nn.Sequential, side: Side, width: int) -> list[CostRow]:
    rows: list[CostRow] = []
    parameter = next(head.parameters(), torch.empty(0))
    x = parameter.new_zeros(1, width, *side)
    for position, module in enumerate(head):
        if isinstance(module, nn.AdaptiveAvgPool2d):
            cost = Cost(additions=width * (math.prod(x.shape[-2:]) - 1))
            rows.append(CostRow(f"head.{position}", "head", cost))
        elif isinstance(module, nn.Linear):
            cost = _products(module.weight.numel(), 1) + _bias(module.out_features, 1)
            rows.append(CostRow(f"head.{position}", "head", cost))
        x = module(x)
    return rows
