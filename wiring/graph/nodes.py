"""What a node does with the sum it receives: norm, activation, 3x3 depthwise, pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from wiring.graph.topology import NodeGroup, Step

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
