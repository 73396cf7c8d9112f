"""What a forward pass of a network costs, part by part, and what an edge of it does.

In a graph over time every edge counts once per pass.

Activation traffic: a part reads every value it needs once, and writes its results once, both in
float32. Edges read the sources that a live edge leads from, in as many bits as their operator
takes (`EdgeOp.input_bits`), and write a sum for every destination that a live edge leads to. What
changes values one by one and has no row of its own (ReLU, tanh, the addition of what several
bundles and skips bring) is taken to be done on the way, as compiled networks do it: it moves
nothing. Nor do crops and flattening.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wiring.cost import Cost, total
from wiring.errors import BudgetError
from wiring.graph.dynamic import ContinuousGraph
from wiring.graph.edges import WEIGHT_BITS, EdgeOp
from wiring.graph.measure import Classifier, cut, kept_nodes
from wiring.graph.neural import NeuralGraph
from wiring.graph.nodes import KERNEL
from wiring.graph.resolutions import Side, convolved, node_steps, resolutions
from wiring.graph.topology import Bundle, Topology


class CostRow(NamedTuple):
    """One line of a cost table.

    `kind` is stem, edges, gate, norm, bias, depthwise, pool, avgpool, maxpool, index or head;
    `name` begins with the group, bundle or scope it stands for. Tables of other models
    (`wiring.models.cost`) have other kinds; `note` says what such a row leaves out.
    """

    name: str
    kind: str
    cost: Cost
    note: str = ""


def index_bits(live: int, usable: int) -> int:
    """Bits that say which `live` of `usable` edges live: the cheaper of a plane and a list.

    One bit per usable edge, or ⌈log2(usable)⌉ per live edge; 0 where all of them live.
    """
    return 0 if live == usable else min(usable, live * (usable - 1).bit_length())


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
    whose row has nothing but its traffic, nor are dropout, which evaluation has none of, and the
    additions that join what several bundles and skips bring. Norms weigh 64 bits a node, scale
    and shift.

    In a graph over time all of that counts in every pass, and weighs once; a solver's own sums
    are not counted.
    """
    graph, topology = network.graph, network.graph.topology
    live = graph.live()
    kept = all_nodes(graph) if whole else kept_nodes(network)
    image = network.spec.image.side
    rows, side = _stem_rows(network.stem, (image, image), int(kept[topology.input.name].sum()))
    sides, times = resolutions(graph, side), passes(network)
    for group in topology.groups:
        for bundle in topology.bundles:
            if bundle.destination == group.name:
                mask = cut(live[bundle.name], topology, bundle, kept)
                cost = edge_cost(
                    _kept_part(graph.op(bundle.name), topology, bundle, kept),
                    mask,
                    math.prod(sides[bundle.sources[0]][-1]),
                    math.prod(sides[group.name][0]),
                )
                rows.append(CostRow(bundle.name, "edges", cost.repeated(times)))
        nodes = int(kept[group.name].sum())
        for skip in topology.skips:
            if skip.destination == group.name and skip.gate:
                values = nodes * math.prod(sides[group.name][0])
                cost = Cost(values, values, weight_bits=WEIGHT_BITS) + moved(2 * values)
                rows.append(CostRow(f"{group.name}.{skip.source}", "gate", cost))
        for step, (before, after) in zip(
            node_steps(graph, group),
            zip(sides[group.name], sides[group.name][1:], strict=False),
            strict=True,
        ):
            values = nodes * math.prod(after)
            if step == "norm":
                cost = norm_cost(nodes, math.prod(before), batch=group.norm == "batch")
            elif step == "depthwise":
                cost = products(nodes * KERNEL**2, math.prod(after))
            elif step == "bias":
                cost = bias_cost(nodes, math.prod(before))
            elif step == "pool":
                cost = Cost(additions=nodes * (math.prod(before) - 1))
            elif step == "avgpool":
                cost = Cost(additions=values * (group.window.size**2 - 1))
            elif step == "maxpool":
                cost = Cost()
            else:
                continue
            cost += moved(nodes * math.prod(before) + values)
            rows.append(CostRow(f"{group.name}.{step}", step, cost.repeated(times)))
    rows.extend(index_rows(graph, kept))
    return rows + _head_rows(network.head, sides[topology.output.name][-1], topology.output.size)


def all_nodes(graph: NeuralGraph) -> dict[str, Tensor]:
    """Every node; bool [size] by group."""
    return {g.name: torch.ones(g.size, dtype=torch.bool) for g in graph.topology.groups}


def index_rows(graph: NeuralGraph, kept: Mapping[str, Tensor]) -> list[CostRow]:
    """The bits that say which edges of each scope live, of those between kept nodes, bool [size]
    by group."""
    topology, rows = graph.topology, []
    for name, wiring in graph.wirings():
        living, allowed = (
            {b: cut(mask, topology, topology.bundle(b), kept) for b, mask in masks.items()}
            for masks in (wiring.split(wiring.live), wiring.split(wiring.allowed))
        )
        told = [b for b in living if not graph.op(b).stores_live(living[b])]
        counts = [sum(int(masks[b].sum()) for b in told) for masks in (living, allowed)]
        rows.append(CostRow(f"{name}.index", "index", Cost(index_bits=index_bits(*counts))))
    return rows


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
    """What one live edge of each bundle costs on average where all of them live; of edges that
    share parameters, where one is dead, for then the others are computed by themselves.

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
            if graph.op(name).tied and all_live.numel() > 1:
                all_live.view(-1)[0] = False
            cost = graph.op(name).cost(all_live, positions).repeated(max(1, graph.passes))
            prices[name] = float(getattr(cost, unit)) / int(all_live.sum())
    return prices


def edge_cost(op: EdgeOp, live: Tensor, read: int, written: int) -> Cost:
    """What an operator counts for its live edges [D, S, kh, kw], and their traffic: `read` pixels
    of every source that is read, `written` pixels of every destination. No index bits."""
    sources = int(op.used_sources(live).sum())
    destinations = int(live.flatten(1).any(1).sum())
    return (
        op.cost(live, written)
        + moved(sources * read, op.input_bits)
        + moved(destinations * written)
    )


def _kept_part(
    op: EdgeOp, topology: Topology, bundle: Bundle, kept: Mapping[str, Tensor]
) -> EdgeOp:
    """The operator that is asked what the edges between kept nodes cost."""
    if not op.cost_of_part:
        return op
    sources = torch.cat([kept[name] for name in bundle.sources])
    destinations = kept[bundle.destination]
    if sources.all() and destinations.all():
        return op
    return op.part(destinations.nonzero().flatten(), sources.nonzero().flatten())


def moved(values: int, bits: int = WEIGHT_BITS) -> Cost:
    """The traffic of so many values."""
    return Cost(activation_bits=values * bits)


def products(weights: int, positions: int) -> Cost:
    """Each weight multiplies and adds once per position, in full precision."""
    operations = weights * positions
    return Cost(operations, operations, weight_bits=weights * WEIGHT_BITS)


def norm_cost(nodes: int, positions: int, *, batch: bool) -> Cost:
    """A norm with scale and shift: by known moments, or (not `batch`) by the image's own."""
    values = nodes * positions
    multiplications, additions = (values, values) if batch else (2 * values, 3 * values)
    return Cost(multiplications, additions, weight_bits=2 * nodes * WEIGHT_BITS)


def bias_cost(nodes: int, positions: int) -> Cost:
    """A constant per node, added at every position."""
    return Cost(additions=nodes * positions, weight_bits=nodes * WEIGHT_BITS)


def _stem_rows(stem: nn.Sequential, side: Side, inputs: int) -> tuple[list[CostRow], Side]:
    """Rows of the stem that feeds `inputs` nodes, and the resolution at which it does."""
    rows: list[CostRow] = []
    last = last_convolution(stem)
    for position, module in enumerate(stem):
        if isinstance(module, nn.Conv2d):
            assert isinstance(module.padding[0], int)
            kernel = (module.kernel_size[0], module.kernel_size[1])
            arriving = module.in_channels * math.prod(side)
            side = convolved(side, kernel, module.stride[0], module.padding[0])
            channels = inputs if position >= last else module.out_channels
            window = module.in_channels // module.groups * math.prod(kernel)
            cost = products(channels * window, math.prod(side))
            if module.bias is not None:
                cost += bias_cost(channels, math.prod(side))
            cost += moved(arriving + channels * math.prod(side))
            rows.append(CostRow(f"stem.{position}", "stem", cost))
        elif isinstance(module, nn.BatchNorm2d):
            channels = inputs if position >= last else module.num_features
            cost = norm_cost(channels, math.prod(side), batch=True)
            cost += moved(2 * channels * math.prod(side))
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
            cost += moved(x.numel() + width)
            rows.append(CostRow(f"head.{position}", "head", cost))
        elif isinstance(module, nn.Linear):
            cost = products(module.weight.numel(), 1) + bias_cost(module.out_features, 1)
            cost += moved(module.in_features + module.out_features)
            rows.append(CostRow(f"head.{position}", "head", cost))
        x = module(x)
    return rows
