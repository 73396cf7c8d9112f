"""Puts wired layers into a network in place of ordinary ones, with their weights, and norms.

All of them or none: where one step fails, the network is as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wiring.config import Component
from wiring.errors import WiringError
from wiring.graph.edges import EDGE_OPS, EdgeOp, Seen
from wiring.graph.staged import Progress, evaluating, in_order
from wiring.models.layers import EDGES, LayerSpec, WiredLayer, build_layer, wired_layers
from wiring.models.survey import Found


def norms_said(model: nn.Module, op: Component, *, measured: bool) -> tuple[str, ...]:
    """What became of norms, for the report; nothing where an operator asks for none."""
    layers = [layer for layer in wired_layers(model).values() if layer.spec.op.name == op.name]
    moments = "measured on data" if measured else "not measured, so train before you evaluate"
    said = []
    if any(layer.before is not None for layer in layers):
        said.append(
            f"batch norms were put in front of {op.name} edges: it sees the signs of its inputs, "
            f"which must lie around 0; their moments are {moments}"
        )
    if EDGE_OPS.get(op.name).needs_norm:
        said.append(
            f"the sums of {op.name} edges need a batch norm behind them: one was put there unless "
            f"one follows; their moments are {moments}"
        )
    return tuple(said)


Made = dict[str, tuple[Found, WiredLayer]]


@torch.no_grad()
def install(
    model: nn.Module,
    made: Made,
    batches: Sequence[Tensor],
    progress: Progress | None,
) -> None:
    """Put the wired layers into the model, with its weights; all of them or none."""
    originals = {name: layer.module for name, (layer, _) in made.items()}
    weights = {name: _weight(layer.module) for name, (layer, _) in made.items()}

    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise WiringError(f"layer '{name}' has weights that are not finite")

    def replace_one(layer: Found, wired: WiredLayer, seen: Seen | None) -> None:
        try:
            _take_over(wired, layer.module, weights[layer.name], seen)
        except WiringError as error:
            layer.why_not = f"operator {wired.spec.op.name} cannot: {error}"
            wired = originals[layer.name]  # type: ignore[assignment]
        put(model, layer, wired)

    try:
        needy = {
            f"{name}.ops.{EDGES}": wired.edge_op
            for name, (_, wired) in made.items()
            if wired.edge_op.needs_data and batches
        }
        if needy:
            # Wired as dense edges first, so that operators have the same names before and after.
            for layer, wired in made.values():
                if not isinstance(layer.module, WiredLayer):
                    put(model, layer, _plain_twin(layer, wired.spec))

            def change(name: str, op: EdgeOp, seen: Seen | None) -> None:
                layer, wired = made[name.removesuffix(f".ops.{EDGES}")]
                replace_one(layer, wired, seen)

            in_order(model, needy, batches, change, progress)
        else:
            for place, (layer, wired) in enumerate(made.values()):
                if progress:
                    progress(place, len(made), layer.name)
                replace_one(layer, wired, None)
    except BaseException:
        for name, (layer, _) in made.items():
            put(model, layer, originals[name])
        raise


def _weight(module: nn.Module) -> Tensor:
    """The weight as [D, S, kh, kw]. Of dense edges that a rule has pruned for good the dead are 0;
    where dead edges learn, they keep what they have learned."""
    if isinstance(module, WiredLayer):
        learned = module.edge_op.weight.detach()
        learns = module.wiring.rule.learns_dead_edges
        return learned.clone() if learns else torch.where(module.live_mask, learned, 0.0)
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach() if weight.dim() == 4 else weight.detach()[:, :, None, None]


def _plain_twin(layer: Found, spec: LayerSpec) -> WiredLayer:
    """The layer as dense edges, which compute the very function that it did."""
    plain = {"op": {"name": "dense"}, "rule": {"name": "complete"}, "live_edges": None}
    twin = build_layer(spec.replace(**plain, before=False, behind=False))
    weight = _weight(layer.module)
    twin.to(device=weight.device, dtype=weight.dtype)
    _take_over(twin, layer.module, weight, None)
    return twin


def _take_over(wired: WiredLayer, module: nn.Module, weight: Tensor, seen: Seen | None) -> None:
    """Give a wired layer the weight, bias, mode and trainability of an ordinary one."""
    wired.edge_op.approximate(weight, seen)
    if wired.bias is not None:
        assert isinstance(module.bias, Tensor)
        wired.bias.copy_(module.bias)
        wired.bias.requires_grad_(module.bias.requires_grad)
    old = module.edge_op if isinstance(module, WiredLayer) else module
    trained = next(parameter for name, parameter in old.named_parameters() if name != "bias")
    if not trained.requires_grad:
        wired.edge_op.requires_grad_(False)
    if isinstance(module, WiredLayer):
        wired.wiring.load_state_dict(module.wiring.state_dict())
        wired.set_extra_state(module.get_extra_state())
    else:
        wired.select_anew()
    wired.train(module.training)


def put(model: nn.Module, layer: Found, module: nn.Module) -> None:
    for name in (layer.name, *layer.aliases):
        model.set_submodule(name, module)


@torch.no_grad()
def measure_norms(model: nn.Module, made: Made, batches: Sequence[Tensor]) -> None:
    """Running moments of new norms, and of norms that now receive other sums, from data."""
    norms: list[_BatchNorm] = []
    for layer, wired in made.values():
        norms += [norm for norm in (wired.before, wired.behind) if norm is not None]
        if wired.edge_op.needs_norm and layer.norm is not None:
            found = model.get_submodule(layer.norm)
            assert isinstance(found, _BatchNorm)
            norms.append(found)
    if norms and batches:
        measure_moments(model, norms, batches)


@torch.no_grad()
def measure_moments(
    model: nn.Module, norms: Sequence[_BatchNorm], batches: Sequence[Tensor]
) -> None:
    """Set the running moments of some norms to those of what reaches them on `batches`; the rest
    of the model is in evaluation mode. Raises WiringError, with the norms as they were, for a batch
    that leaves a norm one value a channel, which is no measure."""
    momenta = [norm.momentum for norm in norms]
    states = [copy.deepcopy(norm.state_dict()) for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        try:
            for batch in batches:
                model(batch)
        except BaseException as error:
            for norm, state in zip(norms, states, strict=True):
                norm.load_state_dict(state)
            if isinstance(error, ValueError):  # PyTorch's, of one value a channel
                raise WiringError(f"the moments of norms cannot be measured: {error}") from None
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def names_of(model: nn.Module, layer: nn.Module) -> list[str]:
    """All names of a module inside a model."""
    return [n for n, part in model.named_modules(remove_duplicate=False) if part is layer]
