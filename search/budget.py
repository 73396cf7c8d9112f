"""Gives a model the edges that a budget buys, and mixed operators a cost to compete for.

A number of edges is shared out as `wiring.graph.budgets` says. A budget in real units buys the
largest number of edges whose network stays within the amount: stem, norms and head included, all
nodes counted (dead ones only make it cheaper), and a scope's live edges spread evenly over its
usable ones. Operators that train in stages count as what they end as. Mixed operators compete for
what the fixed parts leave of it, in one pool, whatever the scheme; of a latency, which has no price
per edge, each scope gets the energy that as many products would take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from search.config import BudgetConfig
from search.spaces.base import Space
from wiring.config import Component
from wiring.cost import Cost, total
from wiring.errors import BudgetError, ConfigError
from wiring.graph.budgets import distribute, distribute_edges, wired_scopes
from wiring.graph.costs import cost_table, edge_positions
from wiring.graph.mixed import expand, is_mixed, operators
from wiring.graph.rules import EDGE_RULES
from wiring.graph.topology import Limit, Topology
from wiring.network import ModelSpec, Network, build_network

Predict = Callable[[Network], float]
PRODUCTS = Component(name="dense")
COSTS = ("multiplications", "energy", "weight_bits")
OVERRUN = 1.05  # what rows of few edges cost beyond the prices of mixed operators


def replaced_choices(
    space: Space, choices: Collection[str], pinned: Collection[str]
) -> tuple[str, ...]:
    """The choices of a space that a budget takes the place of: those that size its wiring.

    `pinned` are choices the user has set; options count where they were given. Raises ConfigError
    where both would decide.
    """
    replaced = tuple(key for key in choices if key.partition(".")[0] in space.budget_choices)
    both = {*pinned} & {*replaced} | space.options.model_fields_set & {*space.budget_choices}
    if both:
        raise ConfigError(
            f"'{min(both)}' of space {space.name} and the budget both say how many edges live; "
            "give one of them"
        )
    return replaced


def apply_budget(
    model: ModelSpec, budget: BudgetConfig | None, predict: Predict | None = None
) -> ModelSpec:
    """The model with as many edges as the budget buys, and with mixed operators expanded.

    `predict` tells a network's milliseconds; only a budget of latency needs it. Raises BudgetError
    for an amount that buys no edge, ConfigError for a rule or a pool that keeps no budget in real
    units.
    """
    if budget is None:
        return _mixed(model)
    if budget.density is not None:
        topology = distribute(model.topology, budget.density, budget.densities)
    elif budget.edges is not None:
        topology = distribute_edges(model.topology, budget.edges, budget.densities)
    else:
        _check_rule(model, budget)
        if is_mixed(model.op) and budget.unit in COSTS:
            return _shared(model, budget)
        if budget.densities == "pool" and budget.unit != "weight_bits":
            raise ConfigError(
                f"one pool of edges may keep those that cost most, so that it cannot hold a budget "
                f"of {budget.unit}; share it with densities uniform or erk"
            )
        topology = _largest(model, budget, predict)
    return _mixed(_with(model, topology))


def _with(model: ModelSpec, topology: Topology) -> ModelSpec:
    return model.model_copy(update={"topology": topology})


def _check_rule(model: ModelSpec, budget: BudgetConfig) -> None:
    if not EDGE_RULES.get(model.rule.name).keeps_budget:
        raise ConfigError(
            f"rule {model.rule.name} does not keep a number of edges, so that it cannot hold a "
            f"budget of {budget.unit}"
        )


def _mixed(model: ModelSpec, limit: Limit | None = None) -> ModelSpec:
    """The model with one bundle per operator; as it is for a single operator."""
    if not is_mixed(model.op):
        return model
    parts = operators(model.op)
    plain = build_network(model.model_copy(update={"op": parts[0]}))
    return _with(model, expand(model.topology, parts, edge_positions(plain), limit))


def _shared(model: ModelSpec, budget: BudgetConfig) -> ModelSpec:
    """Mixed operators that may spend what the fixed parts leave, shared out among the scopes as
    if all of it went into products."""
    chosen = [scope.name for scope in wired_scopes(model.topology)]
    network = _ended(_mixed(model), budget)
    if budget.unit == "weight_bits":
        _check_prices(network)
    for name in chosen:
        network.graph.scope(name).live.zero_()
    fixed = usage(network, budget)
    if fixed >= budget.amount:
        raise _too_small(budget, fixed)
    left = budget.amount - fixed
    plain = build_network(model.model_copy(update={"op": PRODUCTS}))
    wirings = [plain.graph.scope(name) for name in chosen]
    for wiring in wirings:
        wiring.live.zero_()
    nothing = usage(plain, budget)
    for wiring in wirings:
        wiring.live.copy_(wiring.allowed)
    density = min(1.0, left / (usage(plain, budget) - nothing))
    topology = distribute(model.topology, density, budget.densities)
    limit = Limit.model_validate({"unit": budget.unit, "amount": left})
    mixed = _mixed(_with(model, topology), limit)
    spent = usage(_ended(mixed, budget), budget)  # raises BudgetError where not one edge fits
    if spent > OVERRUN * budget.amount:
        raise ConfigError(
            f"of '{model.op.name}' edges that live share a part that others would need as well, so "
            f"that they have no price and would take {spent:g} of {budget.amount:g} {budget.unit}: "
            "give a number or a share of edges"
        )
    return mixed


def _check_prices(network: Network) -> None:
    for bundle in network.spec.topology.bundles:
        op = network.graph.op(bundle.name)
        if op.tied:
            raise ConfigError(
                f"edges of {type(op).__name__} share parameters, so that one has no bits of its "
                "own to compete with in a budget of weight_bits: give a number or a share of edges"
            )


def _largest(model: ModelSpec, budget: BudgetConfig, predict: Predict | None) -> Topology:
    """The topology with the most edges within the amount, by bisection."""
    wired = wired_scopes(model.topology)
    least = 1 if budget.densities == "pool" else len(wired)
    most = sum(model.topology.usable_edges(scope) for scope in wired)
    edges = _Spread(_ended(model, budget)) if not is_mixed(model.op) else None

    def topology(count: int) -> Topology:
        return distribute_edges(model.topology, count, budget.densities)

    def takes(count: int) -> float:
        if edges is None:
            network = _ended(_mixed(_with(model, topology(count))), budget)
        else:
            network = edges.at(topology(count))
        return usage(network, budget, predict)

    smallest = takes(least)
    if smallest > budget.amount:
        raise _too_small(budget, smallest)
    if takes(most) <= budget.amount:
        return topology(most)
    while most - least > 1:
        middle = (least + most) // 2
        if takes(middle) <= budget.amount:
            least = middle
        else:
            most = middle
    return topology(least)


def _too_small(budget: BudgetConfig, fixed: float) -> BudgetError:
    return BudgetError(
        f"a budget of {budget.amount:g} {budget.unit} is below the {fixed:g} that the network "
        "takes without edges to choose: stem, nodes, head and what edges share"
    )


def _ended(model: ModelSpec, budget: BudgetConfig) -> Network:
    """The untrained network with its operators in their last stage, for what they cost there.

    Raises ConfigError where that depends on trained weights.
    """
    network = build_network(model)
    for op in network.graph.staged:
        if budget.unit == "weight_bits" and not op.bits_by_edges:
            raise ConfigError(
                f"how many bits {type(op).__name__} takes is known only when it is trained, so "
                "that it cannot hold a budget of weight_bits: give a number or a share of edges"
            )
        op.stage = len(op.phases()) - 1
    return network


def usage(network: Network, budget: BudgetConfig, predict: Predict | None = None) -> float:
    """What a network takes of a budget's unit, all of its nodes counted."""
    if budget.unit == "latency_ms":
        assert predict is not None, "a budget of latency needs a prediction"
        return predict(network)
    cost: Cost = total([row.cost for row in cost_table(network, whole=True)])
    return float(getattr(cost, budget.unit))


class _Spread:
    """One network whose live edges are spread evenly, as many as a topology says."""

    def __init__(self, network: Network) -> None:
        self.network = network
        graph = network.graph
        generator = torch.Generator().manual_seed(0)
        self.order: dict[str, Tensor] = {}
        for _, wiring in graph.wirings():
            for name, usable in wiring.split(wiring.allowed).items():
                places = usable.flatten().nonzero().flatten()
                # A drawn order of which the first k live: more edges never cost less.
                self.order[name] = places[torch.randperm(len(places), generator=generator)]

    def at(self, topology: Topology) -> Network:
        """The network with the live edges of a topology's budgets."""
        live = {name: torch.zeros_like(m) for name, m in self.network.graph.live().items()}
        for scope in topology.scopes:
            usable = sum(len(self.order[name]) for name in scope.bundles)
            share, seen, given = topology.live_edges(scope) / usable, 0, 0
            for name in scope.bundles:
                seen += len(self.order[name])
                count = math.floor(share * seen + 0.5) - given
                given += count
                live[name].view(-1)[self.order[name][:count]] = True
        _show(self.network, live)
        return self.network


def _show(network: Network, live: Mapping[str, Tensor]) -> None:
    """Make these the live edges."""
    for _, wiring in network.graph.wirings():
        wiring.live.copy_(torch.cat([live[name].flatten() for name in wiring.shapes]))


def budget_of(model: ModelSpec) -> dict[str, Any]:
    """What is recorded of a budget among a model's choices: the edges it bought."""
    scopes = model.topology.scopes
    limits = [scope.limit for scope in scopes if scope.limit is not None]
    if limits:
        return {f"budget.{limits[0].unit}": sum(limit.amount for limit in limits)}
    return {"budget.edges": sum(model.topology.live_edges(scope) for scope in scopes)}
