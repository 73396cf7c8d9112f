"""How many edges each scope of a topology gets, when all of them together get so many.

uniform: every scope the same density. erk (Erdős–Rényi kernel): the density of a bundle is
ε·(n_in + n_out + kh + kw) / (n_in·n_out·kh·kw), and a scope that would pass 1 becomes dense, which
raises ε for the rest (Evci 2020, section 3). pool: all bundles compete in one scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from wiring.errors import BudgetError
from wiring.graph.topology import Scope, Topology

Scheme = Literal["uniform", "erk", "pool"]
POOL = "pool"


def distribute(topology: Topology, density: float, scheme: Scheme = "uniform") -> Topology:
    """The topology whose wired scopes keep round(density · usable) edges together.

    Scopes without a budget stay dense and do not count, unless no scope has one: then all are
    wired. Raises BudgetError for a density outside 0..1, and where a scope would get no edge.
    """
    if not 0 < density <= 1:
        raise BudgetError(f"density must be above 0 and at most 1, got {density:g}")
    usable = sum(topology.usable_edges(scope) for scope in wired_scopes(topology))
    return distribute_edges(topology, round(density * usable), scheme)


def distribute_edges(topology: Topology, edges: int, scheme: Scheme = "uniform") -> Topology:
    """The same with the number of `edges` that the wired scopes keep together."""
    wired = wired_scopes(topology)
    usable = [topology.usable_edges(scope) for scope in wired]
    least = 1 if scheme == "pool" else len(wired)
    if not least <= edges <= sum(usable):
        raise BudgetError(
            f"live edges of {len(wired)} scopes together must be in {least}..{sum(usable)}, "
            f"got {edges}"
        )
    if scheme == "pool":
        pool = Scope(
            name=POOL,
            bundles=tuple(bundle for scope in wired for bundle in scope.bundles),
            budget=edges,
            fan_in="bundle",
            unusable=sum(scope.unusable for scope in wired),
        )
        kept = [scope for scope in topology.scopes if scope not in wired]
        return topology.replace(scopes=[pool, *kept])
    weights = usable if scheme == "uniform" else [_kernel_weight(topology, s) for s in wired]
    shares = apportion(edges, weights, usable)
    budgets = dict(zip([scope.name for scope in wired], shares, strict=True))
    return topology.replace(
        scopes=[
            scope.replace(budget=budgets[scope.name], limit=None)
            if scope.name in budgets
            else scope
            for scope in topology.scopes
        ]
    )


def wired_scopes(topology: Topology) -> list[Scope]:
    """The scopes whose edges are chosen: those with a budget or a limit, or all if none has."""
    chosen = [s for s in topology.scopes if s.budget is not None or s.limit is not None]
    return chosen or list(topology.scopes)


def _kernel_weight(topology: Topology, scope: Scope) -> float:
    """Edges of a scope in the Erdős–Rényi-kernel graph with ε = 1."""
    weight = 0.0
    for name in scope.bundles:
        destinations, sources, height, width = topology.weight_shape(topology.bundle(name))
        pairs = destinations * sources * height * width
        density = (sources + destinations + height + width) / pairs
        weight += density * topology.usable_edges(Scope(name="one", bundles=(name,)))
    return weight


def apportion(
    total: int, weights: Sequence[float], capacities: Sequence[int], *, least: int = 1
) -> list[int]:
    """Whole numbers in least..capacity that are near ε·weight and sum to `total`.

    Those that would pass their capacity get it, and ε grows for the rest. What rounding leaves
    goes to the largest remainders; of equals, to the earlier.
    """
    full: set[int] = set()
    while True:
        rest = [i for i in range(len(weights)) if i not in full]
        left = total - sum(capacities[i] for i in full)
        scale = left / sum(weights[i] for i in rest) if rest else 0.0
        over = {i for i in rest if scale * weights[i] > capacities[i]}
        if not over:
            break
        full |= over
    ideal = [float(c) if i in full else scale * weights[i] for i, c in enumerate(capacities)]
    shares = [min(max(int(x), least), c) for x, c in zip(ideal, capacities, strict=True)]
    while (missing := total - sum(shares)) != 0:
        step = 1 if missing > 0 else -1
        movable = [i for i, share in enumerate(shares) if least <= share + step <= capacities[i]]
        shares[max(movable, key=lambda i: step * (ideal[i] - shares[i]))] += step
    return shares
