"""Removes nodes (channels) from any PyTorch network by a node rule: physically, in place.

torch_pruning's dependency graph (Fang et al.: DepGraph, CVPR 2023) says which channels hang
together: those of a convolution with its norm and depthwise filters, those that additions join,
and where concatenation puts them. Such a *group* loses nodes as a whole. Its rule sees the weights
of all layers that write it, and what the layers that read it get to see.

With W what a layer weighs its inputs with and T what the rule's `transfer` gives, readers get W·T,
where all that reads the group are ordinary convolutions and linear layers that read all of it. A
group with anything else in it, or that the network hands out, is left whole, with the reason in
the report.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from wiring.errors import WiringError
from wiring.graph.edges import EdgeOp
from wiring.graph.node_rules import NodeRule
from wiring.graph.observe import SAMPLES, draw_rows
from wiring.graph.staged import Progress, evaluating
from wiring.models.channels import (
    Group,
    Part,
    dependencies,
    full_group,
    group_of,
    nodes_of,
    shared_modules,
    weight_of,
)
from wiring.models.survey import Keep, survey
from wiring.removal import GroupRemoval, Removed, hands_on


@dataclass(frozen=True)
class ChannelRemoval(GroupRemoval):
    """One group, named after the `layers` that write it."""

    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChannelReport(Removed):
    """What became of every group, in the order in which the network lists its layers."""

    groups: tuple[ChannelRemoval, ...]


def remove_nodes(
    model: nn.Module,
    rule: NodeRule,
    batches: Sequence[Tensor],
    *,
    keep: Keep = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> ChannelReport:
    """Let a rule remove nodes from every group of a network, in place.

    `batches` are inputs of `model`. `keep` leaves layers all their nodes: `first`, `last`, names,
    patterns and types as `wiring.models.convert` takes them. `seed` is for rules that draw. Make
    the optimiser anew afterwards: parameters are other ones.

    Raises WiringError, with the network as it was, without images, for a network with wired
    layers, and for one that does not run with fewer nodes; ConfigError for a `keep` that matches
    nothing.
    """
    for name, module in model.named_modules():
        if isinstance(module, EdgeOp):
            raise WiringError(
                f"'{name}' is a {type(module).__name__}: nodes are taken out of ordinary layers, "
                "before these are converted to wired ones"
            )
    if not batches or not all(len(batch) for batch in batches):
        raise WiringError(f"{type(rule).__name__} looks at what nodes compute: give it images")
    kept = {one.name: one.why_not for one in survey(model, keep=keep)}
    kept = {name: why for name, why in kept.items() if why.startswith("kept: ")}
    smaller = copy.deepcopy(model)
    learning = {name: p.requires_grad for name, p in model.named_parameters()}
    for parameter in smaller.parameters():
        parameter.requires_grad_(True)  # else nothing can be traced
    with evaluating(smaller):
        report = _remove(smaller, rule, batches, kept, seed, progress)
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(learning[name])
        parameter.grad = None
    _check_runs(model, smaller, batches[0][:1])
    _take_over(model, smaller)
    return report


def _remove(
    model: nn.Module,
    rule: NodeRule,
    batches: Sequence[Tensor],
    kept: dict[str, str],
    seed: int,
    progress: Progress | None,
) -> ChannelReport:
    graph = dependencies(model, batches[0][:1])
    names = {module: name for name, module in model.named_modules()}
    shared = shared_modules(model)
    order = {name: place for place, name in enumerate(names.values())}
    groups = [group_of(found, graph, names, shared, kept, rule) for found in graph.get_all_groups()]
    for group in groups:
        group.writers.sort(key=lambda part: order[part.name])
    groups.sort(key=lambda group: min(order[name] for name in (*group.names, names[group.root])))
    generator = torch.Generator().manual_seed(seed)
    values = _values(model, [g for g in groups if not g.reason], batches, generator)
    rows = []
    for place, before in enumerate(groups):
        if progress:
            progress(place, len(groups), names[before.root])
        after, reason = before.size, before.reason
        if not reason:
            # Concatenations have moved where earlier groups have lost nodes.
            found = full_group(graph, before.root)
            group = group_of(found, graph, names, shared, kept, rule)
            nodes = nodes_of(group, values[before.root], hands_on(rule))
            chosen = rule.select(nodes, generator)
            if chosen.shape != (group.size,) or not bool(chosen.any()):
                raise WiringError(
                    f"node rule {type(rule).__name__} keeps no node of '{nodes.name}', "
                    "or chose from another group"
                )
            if hands_on(rule):
                _fold(group, chosen, rule.transfer(nodes, chosen))
            gone = (~chosen).nonzero().flatten().tolist()
            if gone:
                graph.get_pruning_group(before.root, found[0].dep.handler, gone).prune()
            after = int(chosen.sum())
        name = ", ".join(before.names)
        rows.append(ChannelRemoval(name, before.size, after, reason, before.names))
    if progress:
        progress(len(groups), len(groups), "")
    return ChannelReport(tuple(rows))


@torch.no_grad()
def _fold(group: Group, kept: Tensor, transfer: Tensor) -> None:
    """Give every reader the weights W·T; those of removed nodes are cut away afterwards."""
    for part in group.readers:
        weight = weight_of(part)
        places = part.places.to(weight.device)
        handed = torch.einsum("ds...,st->dt...", weight[:, places], transfer.to(weight))
        weight[:, places[kept.to(places.device)]] = handed


@torch.no_grad()
def _values(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[Tensor],
    generator: torch.Generator,
) -> dict[nn.Module, Tensor]:
    """What the readers of each group get of it, by root: random rows [≤ SAMPLES, size]."""
    found: dict[nn.Module, list[Tensor]] = {group.root: [] for group in groups}
    hooks = []
    for group in groups:
        readers = [part for part in group.readers if part.whole]
        count = -(-SAMPLES // (len(batches) * len(readers)))
        for part in readers:

            def catch(
                module: nn.Module,
                inputs: tuple[Tensor, ...],
                part: Part = part,
                root: nn.Module = group.root,
                count: int = count,
            ) -> None:
                x = inputs[0].detach()
                x = x.movedim(-3, -1) if isinstance(module, nn.Conv2d) else x
                rows = draw_rows(x.flatten(0, -2), count, generator)
                rows = rows[:, part.places.to(rows.device)]  # [rows, size, positions]
                rows = rows.movedim(1, -1).flatten(0, 1)
                found[root].append(draw_rows(rows, count, generator))

            hooks.append(part.module.register_forward_pre_hook(catch))
    try:
        for batch in batches:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {root: torch.cat(parts) for root, parts in found.items()}


def _check_runs(model: nn.Module, smaller: nn.Module, example: Tensor) -> None:
    """Raises WiringError where the smaller network fails, or returns something of another shape."""
    with torch.no_grad(), evaluating(model), evaluating(smaller):
        wanted = list(_shapes(model(example)))
        try:
            found = list(_shapes(smaller(example)))
        except Exception as error:  # whatever a network's own code raises
            reason = " ".join(str(error).split())
            raise WiringError(
                "the network does not run with fewer nodes; name the layers whose nodes it counts "
                f"on in `keep`: {reason}"
            ) from error
    if found != wanted:
        raise WiringError(f"with fewer nodes the network returns {found} instead of {wanted}")


def _shapes(outputs: Any) -> Iterator[list[int]]:
    return (list(leaf.shape) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))


def _take_over(model: nn.Module, smaller: nn.Module) -> None:
    """Give the modules of a network the tensors and sizes of those of its smaller copy."""
    for ours, theirs in zip(model.modules(), smaller.modules(), strict=True):
        for key, value in vars(theirs).items():
            sized = isinstance(value, (int, tuple)) and not isinstance(value, bool)
            if key in ("_parameters", "_buffers") or (sized and not key.startswith("_")):
                vars(ours)[key] = value
