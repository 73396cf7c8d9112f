"""Which methods may follow one another on a network, and what each of them needs.

Nodes, then edges, then codes: another order is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from wiring.config import Component
from wiring.errors import ConfigError, UnknownNameError
from wiring.graph.edges import EDGE_OPS
from wiring.graph.node_rules import NODE_RULES
from wiring.graph.phased import CompleteFirst, IterativePruning
from wiring.graph.rules import EDGE_RULES, EdgeRule
from wiring.models.layers import Method, WiredLayer, check_budget, component, is_share, wired_layers
from wiring.models.survey import PLAIN

Kind = Literal["node", "rule", "op"]
KINDS: dict[Kind, Any] = {"node": NODE_RULES, "rule": EDGE_RULES, "op": EDGE_OPS}
WORDS: dict[Kind, str] = {"node": "node rule", "rule": "edge rule", "op": "operator"}


@dataclass(frozen=True)
class Step:
    """A method and what kind it is of."""

    kind: Kind
    method: Component

    def __str__(self) -> str:
        return f"{WORDS[self.kind]} {self.method.name}"


def find(method: Method) -> Step:
    """Which kind of method a name stands for. Raises UnknownNameError, and ConfigError for a name
    that several kinds share."""
    chosen = component(method)
    prefix, colon, rest = chosen.name.partition(":")
    for kind, known in KINDS.items():
        if colon and prefix == kind:
            known.get(rest)
            return Step(kind, Component(name=rest, **chosen.options))
    kinds: list[Kind] = [kind for kind, known in KINDS.items() if chosen.name in known.names()]
    if len(kinds) > 1:
        raise ConfigError(
            f"'{chosen.name}' names {' and '.join(f'the {WORDS[kind]}' for kind in kinds)}; say "
            f"{' or '.join(f'{kind}:{chosen.name}' for kind in kinds)}"
        )
    if not kinds:
        for known in KINDS.values():
            try:
                known.get(chosen.name)
            except UnknownNameError as error:
                nearest = error if "did you mean" in str(error) else None
                if nearest is not None:
                    raise nearest from None
        raise UnknownNameError(f"unknown method '{chosen.name}'; 'wiring list ops' and the like")
    return Step(kinds[0], chosen)


def check_order(model: nn.Module, steps: Sequence[Step]) -> None:
    """Raises ConfigError for an order of methods that makes no sense, with the reason."""
    if not steps:
        raise ConfigError("compress takes at least one method")
    layers = wired_layers(model).values()
    coded = next((f"operator {w.spec.op.name}" for w in layers if w.spec.op.name != PLAIN), None)
    pruned = next((f"edge rule {w.spec.rule.name}" for w in layers if not _is_complete(w)), None)
    wired = "wired layers" if layers else None
    for step in steps:
        if step.kind == "node" and (coded or pruned or wired):
            raise ConfigError(
                f"{step} cannot come after {coded or pruned or wired}: nodes are taken out of "
                "ordinary layers, whose edges are neither chosen nor coded yet; put it first"
            )
        if step.kind == "rule" and coded:
            raise ConfigError(
                f"{step} cannot come after {coded}: it would rank weights that {coded} has "
                "replaced by a code; prune first"
            )
        if step.kind == "rule" and pruned:
            raise ConfigError(
                f"{step} cannot come after {pruned}: one rule chooses the edges of a layer"
            )
        if step.kind == "op" and coded:
            raise ConfigError(
                f"{step} cannot come after {coded}: one operator computes a layer, and the second "
                "would throw away what the first has made (low-rank has binary factors as an "
                "option of its own)"
            )
        if step.kind == "rule":
            pruned = str(step)
        elif step.kind == "op":
            coded = str(step)


def _is_complete(layer: WiredLayer) -> bool:
    return layer.wiring.rule.fixed and not layer.wiring.rule.keeps_budget


def check_settings(steps: Sequence[Step], density: float | None, batches: Sequence[Tensor]) -> None:
    """Raises ConfigError for a density or data that is missing, and for rules and options that
    cannot be used."""
    for step in steps:
        name = step.method.name
        if step.kind == "node" and not batches:
            raise ConfigError(f"{step} looks at what nodes compute: give data")
        if step.kind == "op":
            kind = EDGE_OPS.get(name)
            if kind.fixed:
                raise ConfigError(f"{step} is fixed and takes over no trained weights")
            if kind.looks_at_data(kind.parse_options(step.method.options)) and not batches:
                raise ConfigError(f"{step} looks at what layers read: give data")
        if step.kind == "rule":
            rule = EDGE_RULES.get(name)(1, step.method.options)
            if not _chooses_at_once(rule):
                raise ConfigError(
                    f"{step} chooses its edges while it trains: say wiring.convert(model, "
                    f"rule='{name}', density=…), and train with wiring.attach"
                )
            if rule.keeps_budget and (density == 1 or not is_share(density)):
                raise ConfigError(f"{step} needs a density above 0 and below 1, got {density}")
            check_budget(step.method, 0.5)


def _chooses_at_once(rule: EdgeRule) -> bool:
    return is_pruning(rule) or not (rule.scheduled or rule.drops)


def is_pruning(rule: EdgeRule) -> bool:
    """Whether a rule trains the complete graph first and then ranks its weights: on a trained
    network the ranking is all that is left to do."""
    if rule.needs_prices or rule.learns_dead_edges:
        return False
    kind = type(rule)
    ranks = kind.select is CompleteFirst.select and kind.update is EdgeRule.update
    return isinstance(rule, IterativePruning) or (isinstance(rule, CompleteFirst) and ranks)
