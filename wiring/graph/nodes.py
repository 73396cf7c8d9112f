"""What a node does with the sum it receives: norm, activation, 3x3 depthwise, pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wiring.graph.topology import NodeGroup
from wiring.kernels.instance_norm import instance_norm, instance_norm_depthwise

KERNEL = 3


class Bias(nn.Module):
    """A constant per node: [N, size, H, W] to the same."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.view(1, -1, 1, 1)


class Gate(nn.Module):
    """x · σ(weight), one number for all of x (Xie 2019, section 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.sigmoid()


def depthwise(size: int, stride: int) -> nn.Conv2d:
    """One 3x3 kernel per node, no bias: [N, size, H, W] to [N, size, ⌈H/stride⌉, ⌈W/stride⌉]."""
    return nn.Conv2d(
        size, size, KERNEL, stride=stride, padding=KERNEL // 2, groups=size, bias=False
    )


def _norm(group: NodeGroup) -> nn.Module:
    kind = nn.BatchNorm2d if group.norm == "batch" else nn.InstanceNorm2d
    return kind(group.size, affine=True)


STEPS: dict[str, Callable[[NodeGroup], nn.Module]] = {
    "norm": _norm,
    "bias": lambda group: Bias(group.size),
    "act": lambda group: nn.ReLU(),
    "tanh": lambda group: nn.Tanh(),
    "depthwise": lambda group: depthwise(group.size, group.stride),
    "maxpool": lambda group: nn.MaxPool2d(*_window(group)),
    "avgpool": lambda group: nn.AvgPool2d(*_window(group)),
    "pool": lambda group: nn.AdaptiveAvgPool2d(1),
    "dropout": lambda group: nn.Dropout(group.dropout),
}


def _window(group: NodeGroup) -> tuple[int, int, int]:
    return group.window.size, group.window.stride, group.window.padding


def step_name(module: str) -> str:
    """The step that a module of a NodeOp stands for: "norm" of "norm" and "norm2"."""
    return module.rstrip("0123456789")


class NodeOp(nn.Sequential):
    """The steps of one node group, in order; the identity where there are none.

    A step's module has its name; that of a second one, "norm2".
    """

    def __init__(self, group: NodeGroup, steps: Sequence[str]) -> None:
        super().__init__()
        for place, step in enumerate(steps):
            count = steps[: place + 1].count(step)
            self.add_module(step if count == 1 else f"{step}{count}", STEPS[step](group))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, size, H, W]. On a CPU an instance norm takes the ReLU and the depthwise filter
        behind it along, and keeps channels_last, which PyTorch's own does not."""
        parts = list(self)
        while parts:
            part, *parts = parts
            if isinstance(part, nn.InstanceNorm2d) and x.is_cpu:
                x, parts = normalise(part, x, parts)
            else:
                x = part(x)
        return x


def normalise(
    norm: nn.InstanceNorm2d, x: Tensor, behind: list[nn.Module]
) -> tuple[Tensor, list[nn.Module]]:
    """The norm of x with as much of what lies behind it as goes in one pass; and the rest."""
    relu = bool(behind) and isinstance(behind[0], nn.ReLU)
    y: Tensor
    if relu and len(behind) > 1 and isinstance(behind[1], nn.Conv2d):
        filters, stride = behind[1].weight, behind[1].stride[0]
        y = instance_norm_depthwise(x, norm.weight, norm.bias, filters, norm.eps, stride)
        return y, behind[2:]
    y = instance_norm(x, norm.weight, norm.bias, norm.eps, relu)
    return y, behind[relu:]
