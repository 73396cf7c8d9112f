"""Small networks of the kinds that are converted, and inputs for them."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from functools import cache
from unittest.mock import patch

import torch
from torch import Tensor, nn

import wiring
from wiring.graph.edges import EDGE_OPS
from wiring.graph.structured import StructuredOp

# Projections that are fixed by a seed take over no trained weights.
FIXED = ("feature-hash", "fly-hash")
OPS = [name for name in EDGE_OPS.names() if name not in FIXED]


class Block(nn.Module):
    """A residual block whose second convolution has no bias and no norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.short = nn.Conv2d(8, 16, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn1(self.conv1(x)).relu()) + self.short(x)


def tiny(seed: int = 0) -> nn.Sequential:
    """Images [N, 3, 8, 8] to 5 scores; its norms have moments."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        Block(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model.eval()


WIRED = ("2.conv1", "2.conv2", "2.short", "6")


def images(count: int = 4, seed: int = 1, side: int = 8) -> Tensor:
    """x [count, 3, side, side]."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def quick_fits() -> AbstractContextManager[object]:
    """Inside, operators that are fitted to weights by optimisation take a few steps only."""
    return patch.object(StructuredOp.fit, "__defaults__", (3,))


@cache
def _converted(op: str) -> nn.Module:
    model = tiny()
    with quick_fits():
        wiring.convert(model, op, "random", 0.5, data=[images()])
    return model


def converted(op: str) -> nn.Module:
    """The network with an operator on half of its edges, drawn at random; a copy."""
    return copy.deepcopy(_converted(op))
