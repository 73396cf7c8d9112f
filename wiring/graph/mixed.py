"""Operators and wiring learned together: candidate edges of several operators, one budget of cost.

`mixed:dense,xnor,adder` turns every bundle into one bundle per operator between the same nodes.
All of them share the scope of the first, which is limited by a cost and no longer by a number of
edges: an edge's score is divided by what its operator costs, and the network itself decides where
a full multiplication is worth it.

The price of an edge is its share of a bundle in which all live. XNOR edges also pay for a scale
per destination, so that rows of few edges come to cost more than their price: around 1% of a
network. Rules that move a number of edges, or prune by thresholds, cannot hold a cost and say so.

All operators' sums are added before the node's steps. Nodes that adders feed begin with a norm,
for such sums are negative; where XNOR edges read them they end with one too, right before the
signs. A norm for each operator's sums by itself costs as much as an edge and trained no better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wiring.config import Component
from wiring.cost import ENERGY_PJ
from wiring.errors import ConfigError
from wiring.graph.budgets import wired_scopes
from wiring.graph.edges import EDGE_OPS
from wiring.graph.topology import Bundle, Limit, Scope, Topology

PREFIX = "mixed:"
# Picojoule of one edge of an ordinary convolution at one position: multiply and add.
PRODUCT_PJ = ENERGY_PJ["multiplications"] + ENERGY_PJ["additions"]


def is_mixed(op: Component) -> bool:
    """Whether the name stands for several operators."""
    return op.name.startswith(PREFIX)


def operators(op: Component) -> tuple[Component, ...]:
    """The operators of `mixed:a,b`, with options by name: {"b": {"input_scale": true}}.

    Of any other component itself. Raises ConfigError for fewer than two operators, one named
    twice and options of one that is not there, UnknownNameError for an unknown one.
    """
    parts: tuple[Component, ...] = (op,)
    if is_mixed(op):
        names = [name.strip() for name in op.name.removeprefix(PREFIX).split(",")]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(f"{PREFIX} takes several operators, each once, got '{op.name}'")
        stray = set(op.options) - set(names)
        if stray:
            raise ConfigError(f"'{op.name}' has no operator '{min(stray)}' to take options")
        parts = tuple(Component(name=name, **_options(op, name)) for name in names)
    for part in parts:
        EDGE_OPS.get(part.name).parse_options(part.options)
    return parts


def _options(op: Component, name: str) -> dict[str, Any]:
    options = op.options.get(name, {})
    if not isinstance(options, dict):
        raise ConfigError(f"options of '{name}' in '{op.name}' are a table, got {options!r}")
    return options


def expand(
    topology: Topology,
    parts: Sequence[Component],
    positions: Mapping[str, int],
    limit: Limit | None = None,
) -> Topology:
    """The topology in which every bundle without an operator of its own is one per operator.

    `positions`: pixels at which an edge of each bundle is computed. A scope may spend the energy
    that its budget of edges (all usable ones where it has none) takes in multiplications and
    additions. A `limit` is shared out in proportion to that among the scopes that choose edges.
    Raises ConfigError for a scope that counts unusable entries.
    """
    split = {bundle.name for bundle in topology.bundles if bundle.op is None}
    energies = {one.name: _energy(topology, one, positions) for one in wired_scopes(topology)}
    scopes: list[Scope] = []
    for scope in topology.scopes:
        if scope.unusable:
            raise ConfigError(
                f"scope '{scope.name}' has {scope.unusable} unusable entries, which compete for "
                "a number of edges; mixed operators compete for a cost"
            )
        bundles = [name for one in scope.bundles for name in _names(one, one in split, parts)]
        if limit is not None and scope.name in energies:
            share = energies[scope.name] / sum(energies.values())
            spend = limit.replace(amount=share * limit.amount)
        elif split & set(scope.bundles):
            spend = Limit(unit="energy", amount=_energy(topology, scope, positions))
        else:
            scopes.append(scope)
            continue
        scopes.append(scope.replace(bundles=bundles, budget=None, limit=spend))
    return topology.replace(
        bundles=[one for bundle in topology.bundles for one in _parallel(bundle, parts)],
        scopes=scopes,
    )


def _names(bundle: str, split: bool, parts: Sequence[Component]) -> Iterator[str]:
    if not split:
        yield bundle
    else:
        yield from (f"{bundle}-{part.name}" for part in parts)


def _parallel(bundle: Bundle, parts: Sequence[Component]) -> Iterator[Bundle]:
    """A bundle as one per operator; as it is where it has an operator of its own."""
    names = _names(bundle.name, bundle.op is None, parts)
    if bundle.op is not None:
        yield bundle
    else:
        for name, part in zip(names, parts, strict=True):
            yield bundle.replace(name=name, op=part.model_dump())


def _energy(topology: Topology, scope: Scope, positions: Mapping[str, int]) -> float:
    """Picojoule of the scope's budget in products, its edges spread evenly over its bundles."""
    weights = {
        name: topology.usable_edges(Scope(name="one", bundles=(name,))) for name in scope.bundles
    }
    products = sum(count * positions[name] for name, count in weights.items())
    share = topology.live_edges(scope) / sum(weights.values())
    return PRODUCT_PJ * products * share
