"""Walks in graphs that run over time: an edge or a skip takes a value on by one evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from wiring.graph.neural import NeuralGraph
from wiring.graph.topology import Continuous, Discrete

Masks = dict[str, Tensor]


@torch.no_grad()
def used_in_time(graph: NeuralGraph) -> Masks:
    """Nodes from which live edges or skips lead to an output node in time; bool [size] by group.

    In discrete time a walk has at most T edges, in continuous time any number.
    """
    topology, live = graph.topology, graph.live()
    device = next(iter(live.values())).device
    used = {g.name: torch.zeros(g.size, dtype=torch.bool, device=device) for g in topology.groups}
    used[topology.output.name].fill_(True)
    dynamics = topology.dynamics
    rounds = dynamics.steps if isinstance(dynamics, Discrete) else sum(map(len, used.values()))
    for _ in range(rounds):
        more = {name: mask.clone() for name, mask in used.items()}
        for bundle in topology.bundles:
            mask = live[bundle.name] & used[bundle.destination].view(-1, 1, 1, 1)
            reads = graph.op(bundle.name).used_sources(mask)
            sizes = [topology.group(name).size for name in bundle.sources]
            for name, part in zip(bundle.sources, torch.split(reads, sizes), strict=True):
                more[name] |= part
        for skip in topology.skips:
            read = skip.reads(topology.group(skip.destination).size)
            wanted = used[skip.destination]
            more[skip.source][torch.tensor(read, device=device)[wanted]] = True
        if all(torch.equal(mask, used[name]) for name, mask in more.items()):
            break
        used = more
    return used


@torch.no_grad()
def longest_walks(graph: NeuralGraph) -> tuple[Masks, Masks]:
    """(live edges on the longest walk by which an input is in each node's state at the end, those
    at any time), int64 [size] by group, -1 for none.

    An input that is there at the start takes exactly T edges and skips in discrete time; rows
    take fewer. In continuous time a state stays, so walks have at most as many as the solver
    evaluates: none before an adaptive one has solved anything.
    """
    topology, live = graph.topology, graph.live()
    device = next(iter(live.values())).device
    dynamics, start = topology.dynamics, topology.input.name
    now = {g.name: torch.full((g.size,), -1, device=device) for g in topology.groups}
    rows = isinstance(dynamics, Discrete) and dynamics.feed == "rows"
    if not rows:
        now[start].zero_()
    ever = dict(now)
    linked = {name: mask.any(3).any(2) for name, mask in live.items()}
    for _ in range(graph.passes):
        stays = isinstance(dynamics, Continuous)
        new = {n: v if stays else torch.full_like(v, -1) for n, v in now.items()}
        if rows:
            new[start] = torch.zeros_like(new[start])
        for bundle in topology.bundles:
            sources = torch.cat([now[name] for name in bundle.sources])
            lengths = torch.where(linked[bundle.name] & (sources >= 0), sources + 1, -1)
            new[bundle.destination] = torch.maximum(new[bundle.destination], lengths.amax(dim=1))
        for skip in topology.skips:
            size = topology.group(skip.destination).size
            carried = now[skip.source][torch.tensor(skip.reads(size), device=device)]
            new[skip.destination] = torch.maximum(new[skip.destination], carried)
        now = new
        ever = {name: torch.maximum(ever[name], lengths) for name, lengths in now.items()}
    return now, ever
