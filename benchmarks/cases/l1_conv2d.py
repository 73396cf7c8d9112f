"""L1 distances against a float32 convolution of the same size, and against the plain formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Case
from wiring.kernels.backends import native
from wiring.kernels.l1_conv2d import (
    PreparedL1,
    PreparedL1Uint8,
    l1_conv2d,
    l1_input_gradient,
    l1_weight_gradient,
)

# (forward, bytes, bytes where windows slide) against two FMA units, on cores as Intel builds them.
# A float term takes max and add: with 512 bits both run on the ports of the FMAs, with 256 bits
# there is a third port. psadbw and dbsad run on one port: a psadbw has 64 (32) terms where two FMAs
# have 32 (16); a dbsad has twice as many, of which 3 in 4 count in a filter 3 wide.
LIMITS = {"avx2": (0.75, 2.0, 3.0), "avx512": (0.5, 2.0, 3.0), "avx512popcnt": (0.5, 2.0, 3.0)}


def limit(which: int) -> float | None:
    """The limit on the instruction set in use."""
    module = native("l1_conv2d")()
    limits = None if module is None else LIMITS.get(module.instruction_set())
    return None if limits is None else limits[which]


@dataclass(frozen=True)
class Layer:
    """One layer, x and y of the same size."""

    images: int
    sources: int
    destinations: int
    kernel: int
    side: int

    def __str__(self) -> str:
        k = self.kernel
        return (
            f"{k}x{k} {self.sources}→{self.destinations} {self.side}x{self.side} "
            f"batch {self.images}"
        )

    @property
    def padding(self) -> int:
        return self.kernel // 2

    def x(self) -> Tensor:
        x = torch.randn(self.images, self.sources, self.side, self.side)
        return x.contiguous(memory_format=torch.channels_last)

    def weight(self) -> Tensor:
        return torch.randn(self.destinations, self.sources, self.kernel, self.kernel)


LAYERS = [Layer(n, c, c, 3, side) for c, side in ((64, 32), (128, 28), (256, 14)) for n in (1, 16)]
TRAINED = [Layer(1, c, c, 3, side) for c, side in ((64, 32), (128, 28), (256, 14))]
SPARSE = [Layer(1, 64, 64, 3, 32), Layer(1, 512, 512, 1, 14), Layer(8, 256, 1536, 1, 8)]


def convolutions(layer: Layer, x: Tensor, weight: Tensor) -> list[Callable[[], Tensor]]:
    """PyTorch's convolution in both memory formats."""
    return [
        partial(
            F.conv2d,
            x.contiguous(memory_format=form),
            weight.contiguous(memory_format=form),
            padding=layer.padding,
        )
        for form in (torch.contiguous_format, torch.channels_last)
    ]


def plain_training(layer: Layer, x: Tensor, weight: Tensor) -> None:
    """Forward and backward of the formula, every |w - x| in memory."""
    x, weight = x.requires_grad_(), weight.requires_grad_()
    columns = F.unfold(x, layer.kernel, padding=layer.padding)
    y = -(weight.flatten(1)[None, :, :, None] - columns[:, None]).abs().sum(dim=2)
    torch.autograd.backward(y.sum())
    x.grad = weight.grad = None


def training(layer: Layer, x: Tensor, weight: Tensor, grad: Tensor) -> None:
    """AdderNet's forward and both gradients."""
    steps = 1, layer.padding
    l1_conv2d(x, weight, None, *steps)
    l1_input_gradient(grad, x, weight, None, *steps, "clipped")
    l1_weight_gradient(grad, x, weight, None, *steps, "full")


def cases() -> Iterator[Case]:
    """Forward in float32 and in bytes, training, and live edges alone."""
    torch.manual_seed(0)
    for layer in LAYERS:
        x, weight = layer.x(), layer.weight()
        yield Case(
            "l1_conv2d",
            f"forward float32 {layer}",
            partial(l1_conv2d, x, weight, None, 1, layer.padding),
            convolutions(layer, x, weight),
            target=0.6,
            limit_ratio=limit(0),
        )
    for layer in [*LAYERS, Layer(16, 256, 256, 1, 14)]:
        x, weight = layer.x(), layer.weight()
        image = (x * 40 + 128).clamp(0, 255).byte()
        filters = (weight * 40 + 128).clamp(0, 255).byte()
        yield Case(
            "l1_conv2d",
            f"inference uint8, weights packed before, {layer}",
            partial(PreparedL1Uint8(filters, None, 128, stride=1, padding=layer.padding), image),
            convolutions(layer, x, weight),
            target=3.0 if layer.kernel == 3 else None,
            limit_ratio=limit(2 if layer.kernel == 3 else 1),
        )
    for layer in TRAINED:
        x, weight = layer.x(), layer.weight()
        grad = torch.randn_like(l1_conv2d(x, weight, None, 1, layer.padding))
        yield Case(
            "l1_conv2d",
            f"forward + backward float32 {layer}, against the plain formula",
            partial(training, layer, x, weight, grad),
            partial(plain_training, layer, x.clone(), weight.clone()),
            target=50.0,
        )
    for layer in SPARSE:
        x, weight = layer.x(), layer.weight()
        for density in (0.05, 0.2):
            live = torch.rand(weight.shape) < density
            yield Case(
                "l1_conv2d",
                f"forward float32 {layer}, {density:.0%} live, weights packed before",
                partial(PreparedL1(weight, live, stride=1, padding=layer.padding), x),
                convolutions(layer, x, weight * live),
            )
