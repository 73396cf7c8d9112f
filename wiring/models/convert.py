"""Turns the convolutions and linear layers of any network into wired ones, in place.

Every layer's trained weight is taken over as near as the operator can come to it (`approximate`);
the rule then chooses which edges live. Operators that look at data are shown, layer by layer, what
a layer reads in the network as it was and in the network whose earlier layers are wired already.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wiring.config import Component, parse
from wiring.errors import ConfigError, WiringError
from wiring.graph.budgets import apportion
from wiring.graph.edges import EDGE_OPS, EdgeOp
from wiring.graph.staged import Progress, StagedOp
from wiring.models.inputs import check_runs, input_batches
from wiring.models.install import Made, install, measure_norms, norms_said, put
from wiring.models.layers import (
    LayerSpec,
    Method,
    WiredLayer,
    build_layer,
    check_budget,
    component,
    wants_norm_before,
)
from wiring.models.report import Conversion, LayerRow, network_cost
from wiring.models.survey import FIRST, LAST, Found, Keep, padding_of, survey

LayerScheme = Literal["uniform", "erk"]


def convert(
    model: nn.Module,
    op: Method = "dense",
    rule: Method = "complete",
    density: float = 1.0,
    *,
    keep: Keep = (FIRST, LAST),
    scheme: LayerScheme = "uniform",
    example: Tensor | None = None,
    data: Iterable[Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Conversion:
    """Wire every convolution and linear layer that can be wired, in place, with its weights.

    `op` and `rule` are names, or components with options; `density` is the share of the wired
    layers' edges that live, which `scheme` shares out: the same share for each, or by the
    Erdős–Rényi kernel. `keep` leaves layers as they are: `first`, `last`, qualified names and
    patterns (of layers or of modules that hold them), and module types. An `example` batch of
    inputs lets the report count costs. `data` are batches of inputs, or pairs of inputs and
    targets, all kept in memory: operators that look at data need them, and the moments of new
    norms are measured on them. `seed` draws random wirings and weights.

    The report lists every layer with weights, and why those that were left were left. Raises
    WiringError where no layer can be wired or data is missing, ConfigError, BudgetError and
    UnknownNameError for a setting that is wrong; the model is then as it was.
    """
    op, rule = component(op), component(rule)
    check_budget(rule, density)
    check_scheme(scheme)
    batches = input_batches(data, model)
    check_runs(model, example, batches)
    before = network_cost(model, example)
    wiring = Wiring(op, rule, density, scheme)
    rows = wire(
        model, wiring, keep=keep, example=example, batches=batches, seed=seed, progress=progress
    )
    said = norms_said(model, op, measured=bool(batches))
    return Conversion(tuple(rows), before, network_cost(model, example, again=True), said)


@dataclass(frozen=True)
class Wiring:
    """What layers become. With `rewire` layers of dense edges that are wired already get the
    operator too, and keep their rule and their live edges."""

    op: Component
    rule: Component
    density: float = 1.0
    scheme: LayerScheme = "uniform"
    rewire: bool = False


def wire(
    model: nn.Module,
    wiring: Wiring,
    *,
    keep: Keep = (FIRST, LAST),
    example: Tensor | None = None,
    batches: Sequence[Tensor] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[LayerRow]:
    """`convert` without costs; a row for every layer with weights."""
    _check_data(wiring.op, batches)
    probe = example[:1] if example is not None else batches[0][:1] if batches else None
    layers = survey(model, keep=keep, batch=probe, rewire=wiring.rewire)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _build(layers, wiring)
        _check_some(made, layers)
        install(model, made, batches, progress)
    made = {name: pair for name, pair in made.items() if not pair[0].why_not}
    _check_some(made, layers)
    try:
        measure_norms(model, made, batches)
    except BaseException:
        for layer, _ in made.values():
            put(model, layer, layer.module)
        raise
    return [_row(layer, made) for layer in layers]


def _check_some(made: Collection[str], layers: Sequence[Found]) -> None:
    """Raises WiringError where nothing is wired, with the first few reasons."""
    if made:
        return
    # What the operator says weighs more than that first and last layers are kept.
    reasons = sorted(layers, key=lambda layer: layer.why_not.startswith("kept"))[:3]
    told = "; ".join(f"'{layer.name}': {layer.why_not}" for layer in reasons)
    raise WiringError(f"no layer can be wired: {told or 'the model has none'}")


def layer_of(layer: Found, op: Component, rule: Component) -> LayerSpec:
    """The spec of a wired layer in place of an ordinary one, all edges alive; or in place of
    another wired one, whose rule and number of live edges it keeps."""
    module: Any = layer.module
    norms = {
        "before": wants_norm_before(op),
        "behind": EDGE_OPS.get(op.name).needs_norm and layer.norm is None,
    }
    if isinstance(module, WiredLayer):
        live, edges = int(module.wiring.live.sum()), module.wiring.live.numel()
        budget = None if live == edges else live
        return module.spec.replace(op=op.model_dump(), live_edges=budget, **norms)
    sizes: dict[str, Any] = {}
    if isinstance(module, nn.Conv2d):
        sizes = {
            "kind": "conv",
            "inputs": module.in_channels,
            "outputs": module.out_channels,
            "kernel": module.kernel_size,
            "stride": module.stride[0],
            "padding": padding_of(module),
        }
    elif isinstance(module, nn.Linear):
        sizes = {"kind": "linear", "inputs": module.in_features, "outputs": module.out_features}
    methods = {"bias": module.bias is not None, "op": op, "rule": rule}
    return parse(LayerSpec, {**sizes, **methods, **norms}, where=f"layer '{layer.name}'")


def _build(layers: Sequence[Found], wiring: Wiring) -> Made:
    """The wired layers by name, their weights new; notes in `why_not` which cannot be built."""
    op, rule = wiring.op, wiring.rule
    kind = EDGE_OPS.get(op.name)
    looks = kind.looks_at_data(kind.parse_options(op.options))
    built: Made = {}
    specs: dict[str, LayerSpec] = {}
    for layer in layers:
        if not layer.why_not and looks and _is_shared(layer):
            layer.why_not = (
                f"it runs more than once, and operator {op.name} fits a layer to one input"
            )
        if layer.why_not:
            continue
        spec = layer_of(layer, op, rule)
        if wiring.density == 1 or _takes(kind, spec, layer):
            specs[layer.name] = spec
    plain = {layer.name for layer in layers if not isinstance(layer.module, WiredLayer)}
    chosen = {name: spec for name, spec in specs.items() if name in plain}
    for name, live in _budgets(chosen, wiring.density, wiring.scheme).items():
        if live is not None:
            specs[name] = specs[name].replace(live_edges=live)
    for layer in layers:
        if layer.name not in specs:
            continue
        like = next(layer.module.parameters())
        try:
            wired = build_layer(specs[layer.name]).to(device=like.device, dtype=like.dtype)
        except WiringError as error:
            layer.why_not = f"operator {op.name} cannot: {error}"
            continue
        built[layer.name] = (layer, wired)
    return built


def _takes(kind: type[EdgeOp], spec: LayerSpec, layer: Found) -> bool:
    """Whether an operator takes a layer's shape, asked before edges are shared out; notes why not.
    It does not depend on how many of the edges live."""
    sizes: dict[str, Any] = {"stride": spec.stride, "padding": spec.padding}
    try:
        kind(spec.inputs, spec.outputs, kernel=spec.kernel, options=spec.op.options, **sizes)
    except WiringError as error:
        layer.why_not = f"operator {spec.op.name} cannot: {error}"
    return not layer.why_not


def _is_shared(layer: Found) -> bool:
    return bool(layer.aliases) or (layer.calls or 0) > 1


def check_scheme(scheme: str) -> None:
    """Raises ConfigError for a scheme that is none."""
    if scheme not in ("uniform", "erk"):
        raise ConfigError(f"scheme must be uniform or erk, got {scheme!r}")


def _budgets(
    specs: dict[str, LayerSpec], density: float, scheme: LayerScheme
) -> dict[str, int | None]:
    """Live edges by layer; None keeps all."""
    if density == 1 or not specs:
        return dict.fromkeys(specs)
    shapes = [torch.Size(spec.shape) for spec in specs.values()]
    usable = [shape.numel() for shape in shapes]
    # ERK: a density in proportion to (D + S + kh + kw) / (D·S·kh·kw), times the edges.
    weights = usable if scheme == "uniform" else [sum(shape) for shape in shapes]
    total = max(len(specs), round(density * sum(usable)))
    return dict(zip(specs, apportion(total, weights, usable), strict=True))


def _check_data(op: Component, batches: Sequence[Tensor]) -> None:
    """Raises ConfigError for wrong options, and where an operator must look at data now and there
    is none."""
    kind = EDGE_OPS.get(op.name)
    looks = kind.looks_at_data(kind.parse_options(op.options))
    if looks and not issubclass(kind, StagedOp) and not batches:
        raise ConfigError(
            f"operator {op.name} looks at what layers read: give data, some batches of inputs"
        )


def _note(layer: Found, spec: LayerSpec) -> str:
    """What one should know of a converted layer."""
    notes = []
    if spec.before:
        notes.append("a batch norm was put in front")
    if spec.behind:
        notes.append("a batch norm was put behind")
    elif EDGE_OPS.get(spec.op.name).needs_norm:
        notes.append(f"its sums go to the norm '{layer.norm}'")
    if layer.aliases:
        notes.append(f"is also {', '.join(layer.aliases)}")
    return "; ".join(notes)


def _row(layer: Found, made: Made) -> LayerRow:
    if layer.name not in made:
        return LayerRow(layer.name, layer.kind, layer.shape, reason=layer.why_not)
    wired = made[layer.name][1]
    return LayerRow(
        layer.name, layer.kind, layer.shape, describe(wired), note=_note(layer, wired.spec)
    )


def describe(layer: WiredLayer) -> str:
    """Operator, rule, and the share of edges that live."""
    live, edges = int(layer.wiring.live.sum()), layer.wiring.live.numel()
    if live == edges and not layer.wiring.rule.keeps_budget:
        return f"{layer.spec.op.name}, every edge alive"
    return f"{layer.spec.op.name}, {layer.spec.rule.name}, {live / edges:.3g} of its edges live"
