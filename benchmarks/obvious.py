"""Training as the formulas say it, in plain PyTorch: what the kernels are measured against.

Edges are chosen by a full sort of all scores in every step, masked weights go through dense
convolutions, and adders write out every difference |w - x| (K·D·M numbers) forwards and backwards.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wiring.graph import NodeGroup, Topology


class _KeepLargest(torch.autograd.Function):
    """The weights of largest magnitude, 0 for the others; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, k: int) -> Tensor:
        order = weight.abs().sort(descending=True, stable=True).indices
        mask = torch.zeros_like(weight)
        mask[order[:k]] = 1
        return weight * mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _node(group: NodeGroup) -> nn.Sequential:
    norms = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}
    node = nn.Sequential()
    for step in group.steps:
        if step == "norm":
            node.add_module(step, norms[group.norm](group.size, affine=True))
        elif step == "act":
            node.add_module(step, nn.ReLU())
        elif step == "depthwise":
            node.add_module(
                step,
                nn.Conv2d(
                    group.size, group.size, 3, group.stride, 1, groups=group.size, bias=False
                ),
            )
        else:
            node.add_module(step, nn.AdaptiveAvgPool2d(1))
    return node


class MaskedGraph(nn.Module):
    """The k edges of largest |w| of every scope, found by sorting; x [N, inputs, H, W].

    Parameters have the names and shapes of `wiring.graph.static.StaticGraph`'s.
    """

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.topology = topology
        self.nodes = nn.ModuleDict({group.name: _node(group) for group in topology.groups})
        self.ops = nn.ModuleDict()
        for bundle in topology.bundles:
            destinations, sources, *kernel = topology.weight_shape(bundle)
            shape = (kernel[0], kernel[1])
            self.ops[bundle.name] = nn.Conv2d(sources, destinations, shape, bias=False)

    def _masked(self) -> dict[str, Tensor]:
        """The weights of all bundles with 0 for dead edges."""
        masked: dict[str, Tensor] = {}
        for scope in self.topology.scopes:
            weights = [self.ops[name].get_parameter("weight") for name in scope.bundles]
            flat = torch.cat([weight.flatten() for weight in weights])
            kept: Tensor = _KeepLargest.apply(flat, self.topology.live_edges(scope))
            parts = torch.split(kept, [weight.numel() for weight in weights])
            for name, part, weight in zip(scope.bundles, parts, weights, strict=True):
                masked[name] = part.view_as(weight)
        return masked

    def forward(self, x: Tensor) -> Tensor:
        masked = self._masked()
        sums, values = {self.topology.input.name: x}, dict[str, Tensor]()
        for group in self.topology.groups:
            parts = [sums[group.name]] if group.name in sums else []
            for bundle in self.topology.bundles:
                if bundle.destination == group.name:
                    joined = torch.cat([values[name] for name in bundle.sources], dim=1)
                    parts.append(
                        F.conv2d(joined, masked[bundle.name], None, bundle.stride, bundle.padding)
                    )
            for skip in self.topology.skips:
                if skip.destination == group.name:
                    parts.append(sums[skip.source][:, list(skip.reads(group.size))])
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            sums[group.name] = total
            values[group.name] = self.nodes[group.name](total)
        return values[self.topology.output.name]


class _Distances(torch.autograd.Function):
    """-Σ |w - x|; rows [D, K], columns [K, M]; returns [D, M]. Gradients of AdderNet, eq. 5-6."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns)
        return -(rows[:, :, None] - columns[None]).abs().sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = ctx.saved_tensors
        difference = columns[None] - rows[:, :, None]
        to_rows = (difference * grad[:, None]).sum(dim=2)
        to_columns = (-difference.clamp(-1, 1) * grad[:, None]).sum(dim=0)
        return to_rows, to_columns


class AdderLayer(nn.Module):
    """An adder convolution over unfolded windows; x [N, S, H, W]."""

    def __init__(self, sources: int, destinations: int, kernel: int, eta: float = 0.2) -> None:
        super().__init__()
        self.eta = eta
        self.weight = nn.Parameter(torch.randn(destinations, sources, kernel, kernel))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[2]
        height, width = (side - kernel + 1 for side in x.shape[2:])
        columns = F.unfold(x, kernel).transpose(0, 1).flatten(1)
        sums: Tensor = _Distances.apply(self.weight.flatten(1), columns)
        return sums.view(-1, len(x), height, width).transpose(0, 1)

    @torch.no_grad()
    def scale_gradient(self) -> None:
        """AdderNet's adaptive rate, eq. 12-13."""
        grad = self.weight.grad
        assert grad is not None
        grad.mul_(self.eta * math.sqrt(grad.numel()) / grad.norm().clamp(min=1e-12))
