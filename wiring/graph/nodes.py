"""What a node does with the sum it receives: norm, activation, 3x3 depthwise, pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from wiring.graph.topology import NodeGroup, Step
from wiring.kernels.instance_norm import instance_norm, instance_norm_depthwise

KERNEL = 3


def depthwise(size: int, stride: int) -> nn.Conv2d:
    """One 3x3 kernel per node, no bias: [N, size, H, W] to [N, size, ⌈H/stride⌉, ⌈W/stride⌉]."""
    return nn.Conv2d(
        size, size, KERNEL, stride=stride, padding=KERNEL // 2, groups=size, bias=False
    )


class NodeOp(nn.Sequential):
    """The steps of one node group, in order; the identity where there are none."""

    def __init__(self, group: NodeGroup, steps: Sequence[Step]) -> None:
        norms: dict[str, type[nn.Module]] = {
            "batch": nn.BatchNorm2d,
            "instance": nn.InstanceNorm2d,
        }
        super().__init__()
        for step in steps:
            if step == "norm":
                self.add_module(step, norms[group.norm](group.size, affine=True))
            elif step == "act":
                self.add_module(step, nn.ReLU())
            elif step == "depthwise":
                self.add_module(step, depthwise(group.size, group.stride))
            else:
                self.add_module(step, nn.AdaptiveAvgPool2d(1))

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
