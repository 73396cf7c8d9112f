"""Layers of every kind for the L1 operations, and what they must return, written out plainly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import deterministic

from wiring.kernels import backends
from wiring.kernels.l1_conv2d import gradients, op

F64 = torch.float64
TERMS: dict[str, Callable[[Tensor], Tensor]] = {
    "clipped": lambda gap: gap.clamp(-1, 1),
    "sign": torch.sign,
    "full": lambda gap: gap,
}


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer; `density` None stands for no mask at all."""

    images: int = 2
    sources: int = 5
    destinations: int = 7
    height: int = 6
    width: int = 5
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int = 1
    density: float | None = None
    offset: float = 0.0

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None]:
        """(x, weight, live)."""
        generator = torch.Generator().manual_seed(self.sources)
        x = torch.randn(
            self.images, self.sources, self.height, self.width, generator=generator, dtype=F64
        )
        weight = torch.randn(self.destinations, self.sources, *self.kernel, generator=generator)
        live = None
        if self.density is not None:
            live = torch.rand(weight.shape, generator=generator) < self.density
        return (x + self.offset).to(dtype), (weight.double() + self.offset).to(dtype), live

    def bytes(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(x, weight, live) in uint8, with 0 and 255 among them."""
        x, weight, live = self.tensors()
        return (x * 100 + 128).clamp(0, 255).byte(), (weight * 100 + 128).clamp(0, 255).byte(), live

    @property
    def steps(self) -> tuple[int, int]:
        return self.stride, self.padding

    def gradient(self) -> Tensor:
        size = [
            (side + 2 * self.padding - k) // self.stride + 1
            for side, k in zip((self.height, self.width), self.kernel, strict=True)
        ]
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.images, self.destinations, *size, generator=generator)

    def gaps(self, x: Tensor, weight: Tensor, outside: float = 0.0) -> Tensor:
        """w - x in float64, [N, D, S·kh·kw, H'·W']."""
        padded = F.pad(x.double(), (self.padding,) * 4, value=outside)
        columns = F.unfold(padded, self.kernel, stride=self.stride)
        return weight.double().flatten(1)[None, :, :, None] - columns[:, None]

    def forward(
        self, x: Tensor, weight: Tensor, live: Tensor | None, outside: float = 0.0
    ) -> Tensor:
        """-Σ_live |w - x|."""
        distance = self.gaps(x, weight, outside).abs()
        if live is not None:
            distance = distance.where(live.flatten(1)[None, :, :, None], 0)
        return -distance.sum(dim=2).view_as(self.gradient().to(F64))

    def input_gradient(
        self, grad: Tensor, x: Tensor, weight: Tensor, live: Tensor | None, mode: str
    ) -> Tensor:
        pull = TERMS[mode](self.gaps(x, weight)) * grad.double().flatten(2)[:, :, None]
        if live is not None:
            pull = pull * live.flatten(1)[None, :, :, None]
        return F.fold(
            pull.sum(dim=1),
            (self.height, self.width),
            self.kernel,
            padding=self.padding,
            stride=self.stride,
        )

    def weight_gradient(
        self, grad: Tensor, x: Tensor, weight: Tensor, learn: Tensor | None, mode: str
    ) -> Tensor:
        side = TERMS[mode](-self.gaps(x, weight)) * grad.double().flatten(2)[:, :, None]
        result = side.sum(dim=(0, 3)).view(weight.shape)
        return result if learn is None else result * learn


LAYERS = [
    Layer(),
    Layer(kernel=(1, 1), padding=0, sources=64, destinations=64),
    Layer(images=1, sources=17, destinations=33, stride=2),
    Layer(images=1, sources=20, destinations=70, height=5, width=4),
    Layer(images=1, sources=64, destinations=130, height=4, width=4),
    Layer(sources=1, destinations=6, kernel=(5, 5), height=12, width=12, padding=2),
    Layer(sources=3, destinations=20, kernel=(2, 3), stride=3, padding=2),
    Layer(images=1, sources=9, destinations=1, kernel=(1, 1), stride=3, padding=0),
    Layer(images=1, sources=40, destinations=16, kernel=(5, 5), stride=3, padding=2, height=11),
    Layer(images=3, sources=130, destinations=8, height=1, width=1),
    Layer(images=1, sources=2, destinations=3, height=3, width=3, padding=0),
]
DENSITIES = [None, 0.0, 0.1, 0.6, 1.0]


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Any small layer whose kernel fits."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = draw(st.integers(0, max(kernel)))
    least = [max(1, k - 2 * padding) for k in kernel]
    return Layer(
        images=draw(st.integers(0, 3)),
        sources=draw(st.integers(1, 40)),
        destinations=draw(st.integers(1, 70)),
        height=draw(st.integers(least[0], least[0] + 9)),
        width=draw(st.integers(least[1], least[1] + 12)),
        kernel=kernel,
        stride=draw(st.integers(1, 3)),
        padding=padding,
        density=draw(st.sampled_from(DENSITIES)),
        offset=draw(st.sampled_from([0.0, 1.0, -20.0])),
    )


def sets() -> list[str]:
    """The instruction sets that run here, after the definition."""
    return backends.instruction_sets()


@contextmanager
def running(name: str, *, sparse: float | None = None, threads: int = 1) -> Iterator[None]:
    """On one instruction set; outputs are poisoned with NaN before they are written.

    `sparse` is the density up to which edges are taken one by one.
    """
    before = torch.get_num_threads()
    with ExitStack() as stack:
        stack.enter_context(backends.use(name))
        if sparse is not None:
            for module in (op, gradients):
                stack.enter_context(mock.patch.object(module, "SPARSE", sparse))
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        filled, deterministic.fill_uninitialized_memory = (
            deterministic.fill_uninitialized_memory,
            True,
        )
        try:
            yield
        finally:
            deterministic.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(False)
            torch.set_num_threads(before)
