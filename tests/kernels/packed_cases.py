"""Layers of every kind for the packed operations, and what they must return, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import deterministic

from wiring.kernels import backends
from wiring.kernels.bitpack import pack_bits, pack_signs

SETS = pytest.mark.parametrize("instructions", backends.instruction_sets())


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer; `density` None stands for no mask at all."""

    images: int = 2
    channels: int = 70
    destinations: int = 19
    height: int = 6
    width: int = 5
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int = 1
    density: float | None = None

    def output(self) -> tuple[int, int]:
        """H' and W'."""
        h = (self.height + 2 * self.padding - self.kernel[0]) // self.stride + 1
        return h, (self.width + 2 * self.padding - self.kernel[1]) // self.stride + 1


@dataclass(frozen=True)
class Tensors:
    """Of one layer: floats, and what a mask leaves of them."""

    x: Tensor
    weight: Tensor
    live: Tensor | None
    alpha: Tensor
    scale: Tensor

    @property
    def words(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """(weight words, live words, alpha), as the operations take them."""
        live = None if self.live is None else pack_bits(self.live)
        return pack_signs(self.weight), live, self.alpha


def tensors(layer: Layer, seed: int = 0) -> Tensors:
    """Random ones; some values are exactly 0, and some rows of a sparse mask are empty."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(layer.images, layer.channels, layer.height, layer.width, generator=generator)
    x[x.abs() < 0.1] = 0.0
    weight = torch.randn(layer.destinations, layer.channels, *layer.kernel, generator=generator)
    live = None
    if layer.density is not None:
        live = torch.rand(weight.shape, generator=generator) < layer.density
        live[::5] = False
    return Tensors(
        x,
        weight,
        live,
        torch.rand(layer.destinations, generator=generator),
        torch.rand(layer.images, 1, *layer.output(), generator=generator),
    )


def signs(x: Tensor) -> Tensor:
    """±1 in float64, +1 for 0."""
    return torch.where(x >= 0, 1.0, -1.0).double()


def live_signs(case: Tensors) -> Tensor:
    """±1 on live edges, 0 on dead ones, in float64."""
    weight = signs(case.weight)
    return weight if case.live is None else weight * case.live


def exact_sums(case: Tensors, layer: Layer) -> Tensor:
    """Σ_live sign(w) sign(x) in float64, border pixels over the taps inside."""
    settings = {"stride": layer.stride, "padding": layer.padding}
    return F.conv2d(signs(case.x), live_signs(case), **settings)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Layers whose kernel fits the padded image."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (4, 2), (5, 5)]))
    padding = draw(st.integers(0, max(kernel)))
    least = [max(1, k - 2 * padding) for k in kernel]
    return Layer(
        images=draw(st.integers(0, 3)),
        channels=draw(st.sampled_from([1, 3, 31, 64, 65, 128, 200, 576])),
        destinations=draw(st.sampled_from([1, 5, 16, 17, 48, 64, 80])),
        height=draw(st.integers(least[0], least[0] + 6)),
        width=draw(st.integers(least[1], least[1] + 6)),
        kernel=kernel,
        stride=draw(st.integers(1, 3)),
        padding=padding,
        density=draw(st.sampled_from([None, 0.0, 0.1, 0.6, 1.0])),
    )


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, new memory is full of NaN or of the largest integers."""
    before = deterministic.fill_uninitialized_memory
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = before  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(was)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Inside, operations take that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shifted(x: Tensor) -> Tensor:
    """The same values at an address that no vector is aligned to."""
    flat = x.new_empty(x.numel() + 1)[1:]
    return flat.copy_(x.flatten()).view(x.shape)
