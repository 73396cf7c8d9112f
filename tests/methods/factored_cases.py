"""What the tests of factored weights share: operators, weights, images, errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from wiring.graph.edges import EDGE_OPS, EdgeOp, Seen


def make(
    name: str,
    sources: int = 5,
    destinations: int = 12,
    *,
    kernel: tuple[int, int] = (3, 3),
    stride: int = 1,
    padding: int = 1,
    **options: Any,
) -> Any:
    """A float64 operator."""
    torch.manual_seed(0)
    op = EDGE_OPS.get(name)(
        sources, destinations, kernel=kernel, stride=stride, padding=padding, options=options
    )
    return op.double()


def drawn(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def alive(op: EdgeOp) -> Tensor:
    """Every edge, bool [D, S, kh, kw]."""
    return torch.ones(op.shape, dtype=torch.bool)


def run(op: EdgeOp, x: Tensor) -> Tensor:
    """The outputs with every edge alive."""
    y: Tensor = op(x, alive(op), alive(op))
    return y


def error(op: Any, weight: Tensor) -> float:
    """Squared distance of the operator's weights from `weight`."""
    return float((op.expand().detach() - weight).square().sum())


def seen(op: EdgeOp, images: int = 12) -> Seen:
    """Images whose channels go together, and what the layer reads now in place of them."""
    mix = drawn(op.shape[1], op.shape[1], seed=2) * 2.0 ** -torch.arange(op.shape[1]).double()
    full = torch.einsum("ts,nshw->nthw", mix, drawn(images, op.shape[1], 7, 7, seed=3))
    return Seen(full, full + 0.3 * drawn(*full.shape, seed=4))


def data_error(op: Any, weight: Tensor, images: Seen) -> float:
    """Squared distance of the outputs now from those that `weight` gave before."""
    wanted = conv2d(images.full, weight, stride=op.stride, padding=op.padding)
    return float((run(op, images.here).detach() - wanted).square().sum())
