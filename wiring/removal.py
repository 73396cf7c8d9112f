"""Removes nodes from a network by a node rule: physically, group by group, input side first.

A rule sees one group at a time (`Nodes`): its weights in the network whose earlier groups have lost
their nodes already, and what its nodes compute, on calibration images, in the network as it was.
With W the outgoing live weights and T what the rule's `transfer` gives, readers get W·T.

Groups that take the input or are read out keep their nodes, and so do those that a skip couples
with others and those whose edges share parameters. Operators that are not linear in their weights
cannot take over anything: rules that hand weights on leave what these read whole. The report says
so for each group. In a sparse scope an edge that inherits weight comes to life in place of those
that go; a bundle never ends with more live edges than it had.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.compact import Kept, cut_nodes
from wiring.errors import WiringError
from wiring.graph.edges import EdgeOp
from wiring.graph.measure import cut
from wiring.graph.neural import NeuralGraph
from wiring.graph.node_rules import NodeRule
from wiring.graph.observe import arriving, columns_of, nodes_of, values_of
from wiring.graph.staged import Progress, StagedOp
from wiring.graph.topology import Bundle, NodeGroup
from wiring.kernels.select_edges import select_edges
from wiring.network import Network


@dataclass(frozen=True)
class GroupRemoval:
    """One group's nodes `before` and `after`; where nothing went, `reason` may say why."""

    name: str
    before: int
    after: int
    reason: str = ""


@dataclass(frozen=True)
class Removed:
    """What became of every group, in order."""

    groups: tuple[GroupRemoval, ...]

    @property
    def removed(self) -> int:
        """How many nodes went."""
        return sum(group.before - group.after for group in self.groups)

    def lines(self) -> list[str]:
        """A line per group: `mid: 16 → 8`, or `out: 16, is read out`."""
        return [
            f"{one.name}: {one.before}, {one.reason}"
            if one.reason
            else f"{one.name}: {one.before} → {one.after}"
            for one in self.groups
        ]


@dataclass(frozen=True)
class RemovalReport(Removed):
    """What became of a neural graph; `kept` are the nodes that stayed, bool by group."""

    kept: Kept


def hands_on(rule: NodeRule) -> bool:
    """Whether a rule gives what leaves removed nodes to those that stay."""
    return type(rule).transfer is not NodeRule.transfer


def left_whole(network: Network, rule: NodeRule) -> dict[str, str]:
    """Why each group must keep its nodes, by name; empty text for those that may lose some."""
    return {
        group.name: _reason(network.graph, group, rule) for group in network.spec.topology.groups
    }


def _reason(graph: NeuralGraph, group: NodeGroup, rule: NodeRule) -> str:
    topology = graph.topology
    if group is topology.input or group.name == topology.input.name:
        return "takes the input"
    if group.name == topology.output.name:
        return "is read out"
    for skip in topology.skips:
        if group.name in (skip.source, skip.destination):
            other = skip.destination if group.name == skip.source else skip.source
            return f"a skip couples its nodes with those of '{other}'"
    for bundle in topology.bundles:
        op, reads = graph.op(bundle.name), group.name in bundle.sources
        if op.tied and (reads or bundle.destination == group.name):
            return f"the edges of {type(op).__name__} in bundle '{bundle.name}' share parameters"
        if reads and hands_on(rule) and not _linear(op, graph.live()[bundle.name]):
            return (
                f"{type(rule).__name__} hands outgoing weights on, and {type(op).__name__} in "
                f"bundle '{bundle.name}' is not linear in its weights"
            )
    return ""


@torch.no_grad()
def _linear(op: EdgeOp, live: Tensor) -> bool:
    """Whether an operator is, as it stands, the convolution with its weights, and no stage has
    settled these."""
    if op.tied or (isinstance(op, StagedOp) and op.stage > 0):
        return False
    weight = op.weight.detach()
    # Without live edges anything is 0: such an operator is asked with all of them.
    mask = live if bool(live.any()) else torch.ones_like(live)
    side = 2 * max(op.shape[2:])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, op.shape[1], side, side, generator=generator).to(weight)
    plain = F.conv2d(x, weight * mask, stride=op.stride, padding=op.padding)
    difference = (op.evaluate(mask, x) - plain).abs().max()
    return float(difference) <= 1e-4 * float(plain.abs().max())


@torch.no_grad()
def remove_nodes(
    network: Network,
    rule: NodeRule,
    batches: Sequence[Tensor],
    *,
    seed: int = 0,
    trains: bool = False,
    progress: Progress | None = None,
) -> tuple[Network, RemovalReport]:
    """A new, smaller network, and what became of each group; `network` stays as it is.

    `batches` are images [N, channels, side, side]; `seed` is for rules that draw. With `trains`
    budgets are set for more training, else to the edges that live. Raises WiringError without
    images, for a rule that keeps no node, and for state that cannot be cut.
    """
    if not batches or not all(len(batch) for batch in batches):
        raise WiringError(f"{type(rule).__name__} looks at what nodes compute: give it images")
    generator = torch.Generator().manual_seed(seed)
    reasons = left_whole(network, rule)
    values = values_of(
        network, network.graph, [name for name, why in reasons.items() if not why], batches, seed
    )
    network = copy.deepcopy(network)
    graph, topology = network.graph, network.spec.topology
    device = next(network.parameters()).device
    kept: Kept = {
        g.name: torch.ones(g.size, dtype=torch.bool, device=device) for g in topology.groups
    }
    rows: list[GroupRemoval] = []
    for place, group in enumerate(topology.groups):
        if progress:
            progress(place, len(topology.groups), group.name)
        reason = reasons[group.name]
        if not reason:
            reason = _remove(graph, group, rule, values[group.name], kept, generator)
        rows.append(GroupRemoval(group.name, group.size, int(kept[group.name].sum()), reason))
    if progress:
        progress(len(topology.groups), len(topology.groups), "")
    return cut_nodes(network, kept, trains=trains), RemovalReport(tuple(rows), kept)


def _remove(
    graph: NeuralGraph,
    group: NodeGroup,
    rule: NodeRule,
    values: Tensor,
    kept: Kept,
    generator: torch.Generator,
) -> str:
    """Let the rule choose of one group, and fold what it hands on; returns why nothing went."""
    nodes = nodes_of(graph, group, values, changeable=hands_on(rule))
    chosen = rule.select(nodes, generator)
    if chosen.shape != kept[group.name].shape or not bool(chosen.any()):
        raise WiringError(
            f"node rule {type(rule).__name__} keeps no node of group '{group.name}', "
            "or chose from another group"
        )
    if bool(chosen.all()):
        return ""
    emptied = _emptied(graph, {**kept, group.name: chosen})
    if emptied:
        return f"scope '{emptied}' would be left without a live edge"
    kept[group.name] = chosen
    if hands_on(rule):
        transfer = rule.transfer(nodes, chosen)
        for bundle in graph.topology.bundles:
            if group.name in bundle.sources:
                _fold(graph, bundle, group, chosen, transfer)
    return ""


def _emptied(graph: NeuralGraph, kept: Kept) -> str:
    """A scope that would have no live edge between kept nodes; empty text where there is none."""
    topology, live = graph.topology, graph.live()
    for scope in topology.scopes:
        bundles = [topology.bundle(name) for name in scope.bundles]
        if not any(cut(live[b.name], topology, b, kept).any() for b in bundles):
            return scope.name
    return ""


def _fold(
    graph: NeuralGraph, bundle: Bundle, group: NodeGroup, kept: Tensor, transfer: Tensor
) -> None:
    """Give a reader the weights W·T; edges that so come to carry one live, the strongest of them,
    as many as lived."""
    op, live = graph.op(bundle.name), graph.live()[bundle.name]
    columns = columns_of(graph, bundle, group)
    weight, mask = op.weight.detach().clone(), live.clone()
    part, alive = weight[:, columns], mask[:, columns]
    wanted = torch.einsum("dshw,st->dthw", part * alive, transfer.to(part))
    usable = _allowed(graph, bundle)[:, columns][:, kept]
    # Least squares leaves roundings where a node inherits nothing.
    inherits = wanted.abs() > 1e-6 * wanted.abs().max()
    carries = (alive[:, kept] | inherits) & usable
    count = min(int(carries.sum()), int(alive.sum()))
    if count < int(carries.sum()):
        chosen = select_edges(wanted.abs().flatten(), carries.flatten(), count)
        carries = chosen.view(carries.shape)
    new = torch.where(carries, wanted, part[:, kept])
    places = columns[kept]
    weight[:, places], mask[:, places] = new, carries
    op.approximate(weight)
    live.copy_(mask)
    if not torch.allclose(op.weight[:, places], new, rtol=1e-4, atol=1e-6):
        raise WiringError(
            f"{type(op).__name__} in bundle '{bundle.name}' does not keep the weights that a node "
            "rule hands to it"
        )


def _allowed(graph: NeuralGraph, bundle: Bundle) -> Tensor:
    for _, wiring in graph.wirings():
        if bundle.name in wiring.shapes:
            return wiring.split(wiring.allowed.clone())[bundle.name]
    raise AssertionError(f"bundle '{bundle.name}' belongs to no scope")


@torch.no_grad()
def shrink_nodes(network: Network, rule: NodeRule, lr: float) -> None:
    """After an optimiser step at rate `lr`: what a rule that trains does to the incoming weights
    of the groups that may lose nodes."""
    graph = network.graph
    names = [name for name, why in left_whole(network, rule).items() if not why]
    groups = [graph.topology.group(name) for name in names]
    weights = [arriving(graph, group) for group in groups]
    rule.shrink(weights, lr)
    live = graph.live()
    for group, changed in zip(groups, weights, strict=True):
        first = 0
        for bundle in graph.topology.bundles:
            if bundle.destination == group.name:
                op = graph.op(bundle.name)
                size = op.shape[1:].numel()
                part = changed[:, first : first + size].view(op.shape)
                op.weight.copy_(torch.where(live[bundle.name], part, op.weight))
                first += size
