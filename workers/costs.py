"""Costs as tables: of one network, and of a network beside the ordinary one in its place.

The ordinary one has the same layers with every edge alive and computed in floating point. Its
operations over the found network's are the speed-up that theory promises; what either takes on
this machine, compiled, is the one that there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from wiring.config import Component
from wiring.cost import Cost, total
from wiring.graph.costs import CostRow, cost_table
from wiring.graph.topology import Bundle, Topology
from wiring.network import ModelSpec, Network, build_network

COUNTS = (
    "multiplications",
    "additions",
    "xnor_words",
    "lookups",
    "transforms",
    "weight_bits",
    "index_bits",
    "activation_bits",
    "energy",
    "memory_energy",
)
FOUND, DENSE, TOTAL = "found", "dense", "total"


def counts(cost: Cost) -> dict[str, int | float]:
    """The columns of a table: `energy` and `memory_energy` in picojoule, XNORs in words of 64."""
    return {name: getattr(cost, name) for name in COUNTS}


def operations(cost: Cost) -> int:
    """What a processor does: a word of XNORs is two operations, the comparison and the count."""
    return cost.multiplications + cost.additions + 2 * cost.xnor_words + cost.lookups


def table(rows: Sequence[CostRow]) -> list[dict[str, Any]]:
    """A line for every row and one for all of them, as plain data."""
    lines: list[dict[str, Any]] = [
        {"layer": row.name, "kind": row.kind, **counts(row.cost)} for row in rows
    ]
    whole = total([row.cost for row in rows])
    return [*lines, {"layer": TOTAL, "kind": TOTAL, **counts(whole)}]


def network_table(network: Network, spec: ModelSpec | None = None) -> list[dict[str, Any]]:
    """The lines of a found network, and those of the dense one in its place, by `form`.

    `spec` is what the network was made of, where nodes have been removed from it since.
    """
    dense = build_network(dense_equivalent(spec or network.spec)[0])
    forms = {FOUND: cost_table(network), DENSE: cost_table(dense, whole=True)}
    return [{"form": form, **line} for form, rows in forms.items() for line in table(rows)]


def as_columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Lines as `columns` and `data`, the form in which MLflow keeps tables."""
    columns = list(lines[0])
    return {"columns": columns, "data": [[line[name] for name in columns] for line in lines]}


def dense_equivalent(spec: ModelSpec) -> tuple[ModelSpec, dict[str, str]]:
    """The ordinary network in a network's place; and for each of its bundles, whose place is
    taken in which bundle of the other: {found: dense}.

    Every usable edge lives and multiplies. Bundles of several operators between the same nodes
    (`mixed:`) are one.
    """
    topology = spec.topology
    places: dict[str, str] = {}
    bundles: dict[tuple[object, ...], Bundle] = {}
    for bundle in topology.bundles:
        first = bundles.setdefault(_place(bundle), bundle.replace(op=None))
        places[bundle.name] = first.name
    kept = {bundle.name for bundle in bundles.values()}
    scopes = [
        scope.replace(bundles=inside, budget=None, limit=None, unusable=0)
        for scope in topology.scopes
        if (inside := [name for name in scope.bundles if name in kept])
    ]
    plain = topology.replace(
        bundles=[bundle.to_dict() for bundle in bundles.values()],
        scopes=[scope.to_dict() for scope in scopes],
    )
    update = {
        "topology": Topology.model_validate(plain.to_dict()),
        "op": Component(name="dense"),
        "rule": Component(name="complete"),
        "pretrained": None,
    }
    return spec.model_copy(update=update), places


def _place(bundle: Bundle) -> tuple[object, ...]:
    edges = bundle.edges
    return (
        bundle.sources,
        bundle.destination,
        bundle.kernel,
        bundle.stride,
        bundle.padding,
        None if edges is None else tuple(edges),
    )


class Compared(NamedTuple):
    """One layer before (dense, uncut) and after (found), in cost and in measured µs.

    The times are None where a layer is no bundle, or was not measured.
    """

    layer: str
    kind: str
    before: Cost
    after: Cost
    before_us: float | None = None
    after_us: float | None = None

    @property
    def theory(self) -> float | None:
        """Operations before over operations after; None where there are none left."""
        left = operations(self.after)
        return operations(self.before) / left if left else None

    @property
    def measured(self) -> float | None:
        """Time before over time after."""
        if self.before_us is None or not self.after_us:
            return None
        return self.before_us / self.after_us

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `slower` says that measured time has grown."""
        times = {"before_us": self.before_us, "after_us": self.after_us}
        return {
            "layer": self.layer,
            "kind": self.kind,
            **{f"{name}_before": value for name, value in counts(self.before).items()},
            **{f"{name}_after": value for name, value in counts(self.after).items()},
            "theory": self.theory,
            **times,
            "measured": self.measured,
            "slower": None if self.measured is None else self.measured < 1,
        }


def compare(
    before: Iterable[CostRow],
    after: Iterable[CostRow],
    places: Mapping[str, str],
    times: tuple[Mapping[str, float], Mapping[str, float]] | None = None,
) -> list[Compared]:
    """Layer by layer, in the order of `before`, and both in total.

    `places` as `dense_equivalent` gives them; `times` µs by bundle, before and after, with those
    of the whole networks under `total`.
    """
    costs: dict[str, tuple[str, Cost, Cost]] = {}
    for row in before:
        kind, first, second = costs.get(row.name, (row.kind, Cost(), Cost()))
        costs[row.name] = (kind, first + row.cost, second)
    for row in after:
        name = places.get(row.name, row.name)
        kind, first, second = costs.get(name, (row.kind, Cost(), Cost()))
        costs[name] = (kind, first, second + row.cost)
    costs[TOTAL] = (
        TOTAL,
        total([first for _, first, _ in costs.values()]),
        total([second for _, _, second in costs.values()]),
    )
    first_us, second_us = (dict(some) for some in times) if times else ({}, {})
    joined: dict[str, float] = {}
    for name, us in second_us.items():
        joined[places.get(name, name)] = joined.get(places.get(name, name), 0.0) + us
    return [
        Compared(name, *cost, first_us.get(name), joined.get(name)) for name, cost in costs.items()
    ]
