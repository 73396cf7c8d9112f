"""Random convolutions with a mask, and their float64 definition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from wiring.kernels.masked_conv2d import op
from wiring.kernels.masked_conv2d.definition import output_size


@contextmanager
def always(sparse: bool) -> Iterator[None]:
    """Take the path of live edges, or the masked dense one, whatever the density."""
    chosen = op.most_edges
    op.most_edges = lambda *_: 1 << 62 if sparse else -1
    try:
        yield
    finally:
        op.most_edges = chosen


@dataclass(frozen=True)
class Problem:
    """Sizes of a convolution, its density, the memory format of its images, and a seed."""

    images: int = 2
    sources: int = 5
    destinations: int = 4
    height: int = 6
    width: int = 5
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int = 1
    density: float = 0.4
    channels_last: bool = False
    seed: int = 0

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x, weight, live, grad) in float32; dead weights are NaN or infinite."""
        g = torch.Generator().manual_seed(self.seed)
        size = (self.destinations, self.sources, *self.kernel)
        live = torch.rand(size, generator=g) < self.density
        weight = torch.randn(size, generator=g)
        weight[~live] = torch.tensor([torch.nan, torch.inf])[torch.arange(int((~live).sum())) % 2]
        x = torch.randn(self.images, self.sources, self.height, self.width, generator=g)
        h = output_size(self.height, self.kernel[0], self.stride, self.padding)
        w = output_size(self.width, self.kernel[1], self.stride, self.padding)
        grad = torch.randn(self.images, self.destinations, h, w, generator=g)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
            grad = grad.contiguous(memory_format=torch.channels_last)
        return x, weight, live, grad

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """(y, dx, dw) in float64, by unfolding."""
        x, weight, live, grad = (t if t.dtype == torch.bool else t.double() for t in self.tensors())
        weight = torch.where(live, weight, 0.0)
        if not (x.numel() and weight.numel()):
            return torch.zeros_like(grad), torch.zeros_like(x), torch.zeros_like(weight)
        columns = F.unfold(x, self.kernel, padding=self.padding, stride=self.stride)
        rows, flat = weight.flatten(1), grad.flatten(2)
        y = (rows @ columns).view_as(grad)
        dx = F.fold(
            rows.t() @ flat, x.shape[2:], self.kernel, padding=self.padding, stride=self.stride
        )
        dw = torch.einsum("ndp,nep->de", flat, columns).view_as(weight)
        return y, dx, torch.where(live, dw, 0.0)

    def fits(self) -> bool:
        return (
            self.height + 2 * self.padding >= self.kernel[0]
            and self.width + 2 * self.padding >= self.kernel[1]
        )


problems = st.builds(
    Problem,
    images=st.integers(0, 3),
    sources=st.sampled_from([1, 2, 7, 16, 17, 33]),
    destinations=st.sampled_from([0, 1, 3, 16, 21, 40]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel=st.sampled_from([(1, 1), (1, 1), (3, 3), (1, 3), (2, 2), (5, 3)]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
).filter(Problem.fits)
