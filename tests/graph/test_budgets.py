"""Budgets of scopes from one density: uniform, Erdős–Rényi kernel, and one pool."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_networks import mixed_topology

from wiring.errors import BudgetError
from wiring.graph.budgets import apportion, distribute, distribute_edges
from wiring.graph.topology import Bundle, Limit, NodeGroup, Scope, Topology

SCHEMES = ("uniform", "erk", "pool")
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def layers(widths: tuple[int, ...] = (4, 100, 200, 10), kernel: int = 3) -> Topology:
    """A layered network: one scope per layer, all with a budget but the first."""
    groups = tuple(NodeGroup(name=f"g{i}", size=size) for i, size in enumerate(widths))
    bundles = tuple(
        Bundle(name=f"l{i}", sources=(f"g{i - 1}",), destination=f"g{i}", kernel=(kernel, kernel))
        for i in range(1, len(widths))
    )
    scopes = tuple(
        Scope(name=b.name, bundles=(b.name,), budget=None if b.name == "l1" else 5) for b in bundles
    )
    return Topology(groups=groups, bundles=bundles, scopes=scopes)


def budgets(topology: Topology) -> dict[str, int | None]:
    return {scope.name: scope.budget for scope in topology.scopes}


@every_scheme
@pytest.mark.parametrize("density", [0.02, 0.1, 1 / 3, 0.9, 1.0])
def test_budgets_add_up_to_the_rounded_share_of_usable_edges(scheme: str, density: float) -> None:
    topology = mixed_topology()
    usable = sum(topology.usable_edges(scope) for scope in topology.scopes)
    spread = distribute(topology, density, scheme)
    assert sum(scope.budget or 0 for scope in spread.scopes) == round(density * usable)


def test_uniform_gives_every_scope_the_same_density() -> None:
    spread = distribute(layers(), 0.1)
    assert budgets(spread) == {"l1": None, "l2": 18_000, "l3": 1_800}


def test_erk_gives_a_layer_edges_by_its_nodes_and_kernel() -> None:
    # l2: 100 + 200 + 3 + 3 = 306; l3: 200 + 10 + 3 + 3 = 216; ε = 5220 / 522 = 10.
    spread = distribute_edges(layers(), 5_220, "erk")
    assert budgets(spread) == {"l1": None, "l2": 3_060, "l3": 2_160}


def test_a_layer_that_erk_would_overfill_becomes_dense_and_the_rest_gets_more() -> None:
    # ε = 100 would ask for 21,600 of l3's 18,000 edges.
    spread = distribute_edges(layers(), 52_200, "erk")
    assert budgets(spread) == {"l1": None, "l2": 34_200, "l3": 18_000}


def test_a_pool_joins_all_wired_bundles_and_scales_weights_by_bundle() -> None:
    spread = distribute(layers(), 0.1, "pool")
    pool, kept = spread.scopes
    assert (pool.bundles, pool.budget, pool.fan_in) == (("l2", "l3"), 19_800, "bundle")
    assert kept == layers().scopes[0]


def test_scopes_without_a_budget_are_wired_where_no_scope_has_one() -> None:
    topology = layers()
    dense = topology.replace(scopes=[scope.replace(budget=None) for scope in topology.scopes])
    assert all(budget is not None for budget in budgets(distribute(dense, 0.5)).values())


def test_a_budget_of_edges_replaces_a_limit_of_cost() -> None:
    topology = layers()
    limited = topology.replace(
        scopes=[
            scope.replace(budget=None, limit=Limit(unit="energy", amount=9))
            for scope in topology.scopes
        ]
    )
    spread = distribute(limited, 0.5)
    assert all(scope.limit is None and scope.budget for scope in spread.scopes)


@every_scheme
def test_a_density_out_of_range_is_refused(scheme: str) -> None:
    with pytest.raises(BudgetError, match=r"density must be above 0 and at most 1, got 1\.5"):
        distribute(layers(), 1.5, scheme)


def test_fewer_edges_than_scopes_are_refused() -> None:
    with pytest.raises(BudgetError, match=r"2 scopes together must be in 2\.\.198000, got 1"):
        distribute_edges(layers(), 1)


@given(
    st.lists(st.tuples(st.floats(0.01, 1e4), st.integers(1, 300)), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_whole_shares_fit_their_capacities_and_sum_exactly(
    parts: list[tuple[float, int]], fullness: float
) -> None:
    weights, capacities = [w for w, _ in parts], [c for _, c in parts]
    total = max(len(parts), round(fullness * sum(capacities)))
    shares = apportion(total, weights, capacities)
    assert sum(shares) == total
    assert all(1 <= share <= capacity for share, capacity in zip(shares, capacities, strict=True))
