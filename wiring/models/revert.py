"""Turns wired layers back into ordinary convolutions and linear layers.

Where an operator is linear in its inputs, whatever it stores (bits, hashes, factors, centroids,
tied edges), there is one weight [D, S, kh, kw] that computes the same: w[d, s, i, j] is what
destination d receives when source s sends 1 at place (i, j) of the window and everything else
is 0. That weight is checked on random inputs before it is used. Operators that are not linear (they
take signs, or distances) give their float weights, and the report says that the function differs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wiring.graph.edges import EdgeOp
from wiring.models.inputs import check_runs
from wiring.models.install import names_of
from wiring.models.layers import WiredLayer, require_wired
from wiring.models.report import Conversion, LayerRow, network_cost

TOLERANCE = 1e-4  # of the largest value, as for compiled kernels
PROBED_VALUES = 2**24  # of inputs at a time, for memory's sake


@torch.no_grad()
def revert(model: nn.Module, *, example: Tensor | None = None) -> Conversion:
    """Make an ordinary layer of every wired one, in place, with its effective weight.

    In evaluation the function stays what it was where operators are linear in their inputs, norms
    that conversion added included; the report says where it does not. Dead edges get weight 0.
    Raises ConfigError for a model without wired layers.
    """
    layers = require_wired(model)
    check_runs(model, example)
    before = network_cost(model, example)
    made = {name: ordinary(layer) for name, layer in layers.items()}
    rows = []
    for name, layer in layers.items():
        plain, note = made[name]
        for alias in names_of(model, layer):
            model.set_submodule(alias, plain)
        kind = type(plain).__name__
        rows.append(LayerRow(name, f"wired {layer.spec.kind}", layer.spec.shape, kind, note=note))
    return Conversion(tuple(rows), before, network_cost(model, example, again=True))


@torch.no_grad()
def ordinary(layer: WiredLayer) -> tuple[nn.Module, str]:
    """(an ordinary layer, what one should know of it)."""
    spec, op, live = layer.spec, layer.edge_op, layer.live_mask
    weight = linear_weight(op, live)
    note, norm = "", None
    if weight is None:
        weight = torch.where(live, op.weight.detach(), 0.0)
        dropped = " and without its norms" if layer.before or layer.behind else ""
        note = (
            f"ITS FUNCTION DIFFERS: {spec.op.name} is not linear in its inputs; this is its "
            f"float weight{dropped}"
        )
        shift = None if layer.bias is None else layer.bias.detach()
    else:
        shift = torch.zeros(spec.outputs, dtype=weight.dtype, device=weight.device)
        if layer.before is not None:
            if spec.padding:
                norm = layer.before  # its shift is not seen where the padding is
                note = "its norm stands in front of it"
            else:
                scale, moved = affine(layer.before)
                shift = shift + (weight * moved.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
                weight = weight * scale.view(1, -1, 1, 1)
        if layer.behind is not None:
            scale, moved = affine(layer.behind)
            weight = weight * scale.view(-1, 1, 1, 1)
            shift = scale * shift + moved
        if layer.bias is not None:
            shift = shift + layer.bias
        elif layer.before is None and layer.behind is None:
            shift = None
        if (layer.before is not None and norm is None) or layer.behind is not None:
            note = "its norm is folded into it"
    plain = _layer(layer, weight, shift)
    plain.train(layer.training)
    return (plain if norm is None else nn.Sequential(norm, plain)), note


def _layer(layer: WiredLayer, weight: Tensor, shift: Tensor | None) -> nn.Module:
    spec, bias = layer.spec, shift is not None
    plain: nn.Conv2d | nn.Linear
    if spec.kind == "linear":
        plain = nn.Linear(spec.inputs, spec.outputs, bias=bias, device="meta")
        weight = weight[:, :, 0, 0]
    else:
        plain = nn.Conv2d(
            spec.inputs, spec.outputs, spec.kernel, spec.stride, spec.padding,
            bias=bias, device="meta",
        )  # fmt: skip
    trains = any(parameter.requires_grad for parameter in layer.edge_op.parameters())
    plain.weight = nn.Parameter(weight.clone(), requires_grad=trains)
    if shift is not None:
        trains = layer.bias is None or layer.bias.requires_grad
        plain.bias = nn.Parameter(shift.clone(), requires_grad=trains)
    return plain


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(scale, shift) [C] of a batch norm in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


@torch.no_grad()
def linear_weight(op: EdgeOp, live: Tensor) -> Tensor | None:
    """The weight [D, S, kh, kw] of the ordinary convolution that computes what `op` does in
    evaluation; None where there is none, since the operator is not linear in its inputs."""
    training = op.training
    op.eval()
    try:
        x = _random_images(op)
        expected = op.evaluate(live, x)
        stored = op.effective_weight(live)
        if _computes(op, stored, x, expected):
            return stored
        if not torch.allclose(op.evaluate(live, 2 * x), 2 * expected, rtol=TOLERANCE, atol=1e-6):
            return None
        probed = _probe(op, live)
        return probed if _computes(op, probed, x, expected) else None
    finally:
        op.train(training)


def _random_images(op: EdgeOp) -> Tensor:
    """[2, S, H, W] with values well beyond ±1, in which a window fits at least three times."""
    height, width = (size + 2 * op.stride for size in op.shape[2:])
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(2, op.shape[1], height, width, generator=generator)
    like = next(op.parameters(), torch.empty(0))
    return x.to(device=like.device, dtype=like.dtype)


def _computes(op: EdgeOp, weight: Tensor, x: Tensor, expected: Tensor) -> bool:
    y = F.conv2d(x, weight.to(x.dtype), stride=op.stride, padding=op.padding)
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(y, expected, rtol=TOLERANCE, atol=TOLERANCE * largest)


def _probe(op: EdgeOp, live: Tensor) -> Tensor:
    """The weight, read off from what comes out when one source sends 1 at one place."""
    destinations, sources, kh, kw = op.shape
    # Output pixel `at` has a window that lies inside the image and begins at pixel `start`.
    at = -(-op.padding // op.stride)
    start = at * op.stride - op.padding
    height, width = start + kh, start + kw
    places = [(s, i, j) for s in range(sources) for i in range(kh) for j in range(kw)]
    like = _random_images(op)
    columns = []
    step = max(1, PROBED_VALUES // (sources * height * width))
    for begin in range(0, len(places), step):
        chosen = torch.tensor(places[begin : begin + step], device=like.device)
        x = like.new_zeros(len(chosen), sources, height, width)
        rows = torch.arange(len(chosen), device=like.device)
        x[rows, chosen[:, 0], start + chosen[:, 1], start + chosen[:, 2]] = 1
        columns.append(op.evaluate(live, x)[:, :, at, at])
    return torch.cat(columns).T.reshape(destinations, sources, kh, kw)
