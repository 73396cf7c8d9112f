"""What the tests of operators with few bits share: sums and gradients written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from method_cases import Shape, windows
from torch import Tensor

from wiring.graph.edges import EdgeOp

F64 = torch.float64
LAYER = Shape("layer", sources=7, destinations=5, kernel=(3, 3), stride=2, padding=1, density=0.6)


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64).view(1, -1, 1, 1)


def every(op: EdgeOp) -> Tensor:
    return torch.ones(op.shape, dtype=torch.bool)


def summed(op: EdgeOp, x: Tensor, weight: Tensor) -> Tensor:
    """Σ w x over windows, [N, D, P]; weight [D, S, kh, kw]."""
    return (weight.flatten(1)[None, :, :, None] * windows(x, op)).sum(dim=2)


def gradients(op: EdgeOp, x: Tensor, live: Tensor, learn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(g, dx, dw) of a backward pass with gradient g of the sums."""
    x = x.clone().requires_grad_()
    op.weight.grad = None
    y = op(x, live, learn)
    g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    y.backward(g)
    assert x.grad is not None
    assert op.weight.grad is not None
    return g, x.grad, op.weight.grad


def convolved(op: EdgeOp, g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dw) of an ordinary convolution of x with a weight."""
    x, weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    F.conv2d(x, weight, stride=op.stride, padding=op.padding).backward(g)
    assert x.grad is not None
    assert weight.grad is not None
    return x.grad, weight.grad
