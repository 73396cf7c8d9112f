"""Compresses a trained network by methods that follow one another: nodes, then edges, then codes.

1. Node rules remove nodes; what is left is an ordinary, smaller network.
2. An edge rule prunes: its edges are chosen from the trained weights, at once.
3. An operator codes what is left (bits, centroids, factors, …), through all its stages.

Another order makes no sense and is refused: a node cannot be taken out of edges that are coded
already, a rule cannot rank weights that stand for something else, and one operator computes a
layer. After every step what earlier ones promised is checked again (`verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wiring.config import Component
from wiring.errors import WiringError
from wiring.graph.driving import advance
from wiring.graph.node_rules import NODE_RULES
from wiring.graph.phased import IterativePruning
from wiring.graph.rules import EDGE_RULES
from wiring.graph.staged import Progress
from wiring.models.convert import (
    LayerScheme,
    Wiring,
    check_scheme,
    describe,
    wire,
)
from wiring.models.inputs import check_runs, input_batches
from wiring.models.install import names_of, norms_said
from wiring.models.layers import (
    Method,
    WiredLayer,
    build_layer,
    require_wired,
    wired_layers,
)
from wiring.models.methods import check_order, check_settings, find, is_pruning
from wiring.models.report import Conversion, LayerRow, merged, network_cost
from wiring.models.survey import FIRST, LAST, PLAIN, Keep
from wiring.models.undo import all_or_nothing

ONCE = "one-shot"  # the rule of edges that were chosen once and stay


def compress(
    model: nn.Module,
    method: Method | Sequence[Method],
    data: Iterable[Any] | None = None,
    *,
    density: float | None = None,
    keep: Keep = (FIRST, LAST),
    scheme: LayerScheme = "uniform",
    example: Tensor | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    fine_tune: Callable[[nn.Module], None] | None = None,
) -> Conversion:
    """Compress a trained network in place by one method, or by several in order.

    A method is the name of a node rule, an edge rule or an operator, with options where it is a
    component; `node:ssl`, `rule:ssl` and `op:…` say which where several kinds share a name.
    `data` are batches of inputs, or pairs of inputs and targets, some tens of images, all kept in
    memory. Edge rules leave the share `density` of the edges. `fine_tune(model)` is called
    between methods: your loop, with `wiring.attach` on its optimiser. The rest as in `convert`.

    Rules that choose while they train (dnw among those that can be named) go on doing so
    in your own training; those that cannot choose without one are refused. Raises ConfigError for
    an order or a setting that makes no sense, and WiringError where data is missing or a promise is
    broken; the model is then as it was, whatever `fine_tune` has done to it.
    """
    methods = [method] if isinstance(method, (str, Component, dict)) else list(method)
    steps = [find(one) for one in methods]
    batches = input_batches(data, model)
    check_order(model, steps)
    check_settings(steps, density, batches)
    check_scheme(scheme)
    check_runs(model, example, batches)
    before = network_cost(model, example)
    reports: list[Conversion] = []
    with all_or_nothing(model):
        for place, step in enumerate(steps):
            if place and fine_tune is not None:
                fine_tune(model)
                _verify_after(model, "fine-tuning")
            if step.kind == "node":
                rows, said = _remove(model, step.method, batches, keep, seed, progress)
            elif step.kind == "rule":
                rows, said = _prune(model, step.method, density, keep, scheme, seed)
            else:
                wiring = Wiring(step.method, Component(name="complete"), rewire=True)
                rows = wire(
                    model, wiring, keep=keep, example=example, batches=batches, seed=seed,
                    progress=progress,
                )  # fmt: skip
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    advance(model, batches or None, progress=progress)
                rows = [_described(model, row) for row in rows]
                norms = norms_said(model, step.method, measured=bool(batches))
                said = "; ".join((f"{step}: {_counted(rows)}", *norms))
            _verify_after(model, str(step))
            promised = "; every promise so far holds" if place else ""
            reports.append(Conversion(tuple(rows), None, None, (f"{place + 1}. {said}{promised}",)))
    whole = merged(reports)
    return Conversion(whole.rows, before, network_cost(model, example, again=True), whole.steps)


def verify(model: nn.Module) -> None:
    """Check what a converted network promises: live edges within each budget, and the operators'
    own promises (two values a row, so many centroids, …).

    Rules that still train towards their budget are not held to it yet. Raises WiringError, naming
    the layer, for a promise that is broken, and ConfigError for a network without wired layers.
    """
    for name, layer in require_wired(model).items():
        rule, live = layer.wiring.rule, int(layer.wiring.live.sum())
        under_way = rule.scheduled and layer.clock.phase < len(rule.phases()) - 1
        if rule.keeps_budget and rule.limit is None and not under_way and live > rule.budget:
            raise WiringError(f"layer '{name}' has {live} live edges, its budget is {rule.budget}")
        try:
            layer.edge_op.verify(layer.live_mask)
        except WiringError as error:
            raise WiringError(f"layer '{name}': {error}") from None


def _remove(
    model: nn.Module,
    method: Component,
    batches: Sequence[Tensor],
    keep: Keep,
    seed: int,
    progress: Progress | None,
) -> tuple[list[LayerRow], str]:
    """Take nodes out; what every layer was and is."""
    from wiring.models.removal import remove_nodes

    rule = NODE_RULES.get(method.name)(method.options)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    weights = sum(shape.numel() for shape in shapes.values())
    done = remove_nodes(model, rule, batches, keep=keep, seed=seed, progress=progress)
    reasons = {name: group.reason for group in done.groups for name in group.layers}
    rows = []
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or parameter.dim() < 2 or name not in shapes:
            continue
        kind, old = type(model.get_submodule(module)).__name__, tuple(shapes[name])
        smaller = parameter.shape != shapes[name]
        now = "×".join(map(str, parameter.shape))
        became = f"smaller by {method.name}: {now}" if smaller else None
        why = reasons.get(module) or "none of its nodes, and none of those it reads, went"
        rows.append(LayerRow(module, kind, old, became, "" if smaller else why))
    left = sum(parameter.numel() for parameter in model.parameters())
    said = f"{done.removed:,} nodes went, {weights:,} → {left:,} parameters"
    return rows, f"node rule {method.name}: {said}"


def _prune(
    model: nn.Module,
    method: Component,
    density: float | None,
    keep: Keep,
    scheme: LayerScheme,
    seed: int,
) -> tuple[list[LayerRow], str]:
    """Choose the edges that live from the weights that are there."""
    rule = EDGE_RULES.get(method.name)(1, method.options)
    lasting = Component(name=ONCE) if is_pruning(rule) else method
    share = 1.0 if density is None else density
    complete = {id(layer): layer for layer in wired_layers(model).values()}
    dense = Component(name=PLAIN)
    rows: list[LayerRow] = []
    if complete:  # dense edges of the complete graph: wired before, chosen now
        for name, layer in wired_layers(model).items():
            budget = max(1, round(share * layer.wiring.live.numel()))
            _rewire(model, layer, lasting, budget)
            rows.append(LayerRow(name, f"wired {layer.spec.kind}", layer.spec.shape))
    else:
        rows = wire(model, Wiring(dense, lasting, share, scheme), keep=keep, seed=seed)
    if isinstance(rule, IterativePruning):
        for layer in wired_layers(model).values():
            _last_round(model, layer, method)
    rows = [_described(model, row) for row in rows]
    return rows, f"edge rule {method.name}: {_counted(rows)}"


@torch.no_grad()
def _last_round(model: nn.Module, layer: WiredLayer, method: Component) -> None:
    """What an iterative rule leaves in the last of its rounds, which may be a number of its own."""
    wiring = layer.wiring
    rule = EDGE_RULES.get(method.name)(wiring.rule.budget, method.options)
    assert isinstance(rule, IterativePruning)
    rule.allocate(wiring.live.numel())
    rule.to(wiring.live.device)
    wiring.live.copy_(wiring.allowed)
    live = rule.prune(layer.edges(wiring))
    if int(live.sum()) != wiring.rule.budget:
        layer = _rewire(model, layer, Component(name=ONCE), int(live.sum()))
    layer.wiring.live.copy_(live)


@torch.no_grad()
def _rewire(model: nn.Module, layer: WiredLayer, rule: Component, budget: int) -> WiredLayer:
    """The same layer under another rule, which chooses anew."""
    spec = layer.spec.replace(rule=rule.model_dump(), live_edges=budget)
    other = build_layer(spec)
    like = next(layer.parameters())
    other.to(device=like.device, dtype=like.dtype)
    other.ops.load_state_dict(layer.ops.state_dict())
    other.nodes.load_state_dict(layer.nodes.state_dict())
    other.select_anew()
    other.train(layer.training)
    for old, new in zip(layer.parameters(), other.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    for name in names_of(model, layer):
        model.set_submodule(name, other)
    return other


def _described(model: nn.Module, row: LayerRow) -> LayerRow:
    """The row of a layer as it is now."""
    layer = model.get_submodule(row.name)
    if not isinstance(layer, WiredLayer) or row.reason:
        return row
    return LayerRow(row.name, row.kind, row.shape, describe(layer), note=row.note)


def _counted(rows: Sequence[LayerRow]) -> str:
    return f"{sum(row.became is not None for row in rows)} of {len(rows)} layers"


def _verify_after(model: nn.Module, what: str) -> None:
    """Raises WiringError where something broke what was promised before it."""
    if not wired_layers(model):
        return
    try:
        verify(model)
    except WiringError as error:
        raise WiringError(f"after {what}: {error}") from None
