"""Small problems on which a Triton kernel must give what the definition gives.

Each runs interpreted on a CPU and, where there is one, compiled on a GPU. Shapes are odd, masks
and strides of all kinds; a case counts about 1.6 ms for every step of a kernel's inner loop.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from wiring.kernels.bitpack import bit_planes, pack_bits, pack_signs

FLOATS = torch.float32
# Absolute and relative; half types are summed in float32 and rounded once.
TOLERANCE = {
    torch.float32: 1e-4,
    torch.float64: 1e-10,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


@dataclass(frozen=True)
class Case:
    """`op` of wiring.kernels.<family> on the tensors of `make`.

    `settings` are put into the family's gpu module meanwhile: they choose a path that the size
    of the problem would not. Integers, and floats where `exact`, must be equal.
    """

    family: str
    op: str
    label: str
    make: Callable[[], Sequence[Any]]
    settings: dict[str, int] = field(default_factory=dict)
    exact: bool = False

    @property
    def name(self) -> str:
        return f"{self.op}: {self.label}"

    def arguments(self, device: str = "cpu") -> list[Any]:
        """The same numbers every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = self.make()
        return [a.to(device) if isinstance(a, Tensor) else a for a in made]

    def function(self) -> Callable[..., Tensor]:
        """The custom op."""
        module = importlib.import_module(f"wiring.kernels.{self.family}")
        return cast(Callable[..., Tensor], getattr(module, self.op))

    def kernel(self) -> Callable[..., Tensor]:
        """The Triton function of that name."""
        return cast(Callable[..., Tensor], getattr(self.gpu(), self.op))

    def gpu(self) -> Any:
        return importlib.import_module(f"wiring.kernels.{self.family}.gpu")


@dataclass(frozen=True)
class Layer:
    """x [n, c, h, w] under filters [d, c, *kernel]."""

    n: int
    c: int
    h: int
    w: int
    d: int
    kernel: tuple[int, int]
    stride: int
    padding: int

    def __str__(self) -> str:
        kernel = "x".join(map(str, self.kernel))
        return (
            f"{self.n}x{self.c}x{self.h}x{self.w} to {self.d}, {kernel}, "
            f"stride {self.stride}, padding {self.padding}"
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def filters(self) -> tuple[int, int, int, int]:
        return self.d, self.c, *self.kernel

    @property
    def out(self) -> tuple[int, int, int, int]:
        height, width = (
            (side + 2 * self.padding - k) // self.stride + 1
            for side, k in zip((self.h, self.w), self.kernel, strict=True)
        )
        return self.n, self.d, height, width

    @property
    def steps(self) -> tuple[int, int]:
        return self.stride, self.padding


LAYERS = (
    Layer(2, 5, 4, 3, 7, (3, 2), 1, 1),
    Layer(1, 3, 5, 6, 4, (3, 3), 2, 1),
    Layer(1, 4, 7, 7, 3, (2, 2), 3, 2),
    Layer(1, 37, 2, 3, 33, (1, 1), 1, 0),
)
LARGE_TILES = {"FEW_PROGRAMS": 1}


def mask(layer: Layer, density: float | None) -> Tensor | None:
    """Bool of the filters' shape, None for None."""
    return None if density is None else torch.rand(layer.filters) < density


def weight(layer: Layer, live: Tensor | None, dtype: torch.dtype = FLOATS) -> Tensor:
    """Normal; NaN where dead."""
    w = torch.randn(layer.filters)
    return (w if live is None else w.masked_fill(~live, float("nan"))).to(dtype)


def image(layer: Layer, dtype: torch.dtype = FLOATS, *, last: bool = False) -> Tensor:
    x = torch.randn(layer.shape).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def cases() -> Iterator[Case]:
    """All of them."""
    from tests.gpu import binary_cases, float_cases

    yield from binary_cases.bitpack_cases()
    yield from binary_cases.xnor_cases()
    yield from float_cases.masked_cases()
    yield from float_cases.l1_cases()


def signs(shape: Sequence[int]) -> Tensor:
    """Packed signs of an image or of filters."""
    return cast(Tensor, pack_signs(torch.randn(*shape)))


def flags(live: Tensor | None) -> Tensor | None:
    return None if live is None else pack_bits(live)


def planes(shape: Sequence[int], bits: int) -> Tensor:
    numbers = torch.randint(0, 256, tuple(shape), dtype=torch.uint8)
    return cast(Tensor, bit_planes(numbers, bits))
