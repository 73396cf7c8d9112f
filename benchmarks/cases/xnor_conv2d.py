"""Packed convolutions against float32 convolution: signs, one-bit weights, bit planes.

Weights are packed before, as at rest; activations are packed inside, from floats in either
memory format, unless a case says `words`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Case, Work
from wiring.kernels.backends import native
from wiring.kernels.bitpack import bit_planes, pack_bits, pack_signs
from wiring.kernels.xnor_conv2d import PreparedBwn, PreparedXnor, bitplane_conv2d

TARGET = 8.0
DENSITY = 0.5
PLANES = ((2, 1), (2, 2), (4, 4))


@dataclass(frozen=True)
class Speed:
    """What a core does in a cycle at most: float32 products with sums, and bits compared and
    counted, all of them or those of live edges; and products of one-bit weights."""

    products: float
    bits: float
    live_bits: float
    signed: float


# From instructions per word over the ports that run them, on Intel's cores since Ice Lake:
# avx512popcnt: 2 ports; two words of 512 bits take 3 vpternlog (4 under a mask), vpopcnt, add.
# avx512: 2 ports; adders of 8 words 25 instructions (29 under a mask), up to 24 words a pixel one
#   vpshufb for 256 bits on the only port that has it; the better of both.
# avx2: 3 ports; vpshufb and add for 128 bits; under a mask adders of 8 words, 58 instructions.
# Signed sums: one permutation, on a single port, adds 4 inputs of 16 destinations (avx2: 32 in 11
#   of 8).
SPEEDS = {
    "avx512popcnt": Speed(32, 2 * 1024 / 5, 2 * 1024 / 6, 64),
    "avx512": Speed(32, 2 * 4096 / 25, 2 * 4096 / 29, 64),
    "avx2": Speed(16, 3 * 128 / 2, 3 * 2048 / 58, 8 * 32 / 11),
}


@dataclass(frozen=True)
class Layer:
    """A square layer; the three with a target are those of the paper's comparison."""

    sources: int
    destinations: int
    side: int
    kernel: int = 3
    target: float | None = TARGET

    def __str__(self) -> str:
        k = self.kernel
        return f"{k}x{k} {self.sources}->{self.destinations} {self.side}x{self.side}"


LAYERS = (
    Layer(256, 256, 14),
    Layer(128, 128, 28),
    Layer(512, 512, 7),
    Layer(64, 64, 56, target=None),
    Layer(512, 512, 14, kernel=1, target=None),
)


def limit() -> Speed | None:
    """Of the instruction set in use; None where none was counted."""
    module = native("xnor_conv2d")()
    return None if module is None else SPEEDS.get(module.instruction_set())


def floats(x: Tensor, weight: Tensor, padding: int) -> list[Work]:
    """PyTorch's convolution in both memory formats."""
    last = torch.channels_last
    pairs = ((x, weight), (x.contiguous(memory_format=last), weight.contiguous(memory_format=last)))
    return [partial(F.conv2d, a, w, padding=padding) for a, w in pairs]


def cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    speed = limit()
    bits = live_bits = signed = None
    if speed is not None:
        bits, live_bits = speed.bits / speed.products, speed.live_bits / speed.products
        signed = speed.signed / speed.products
    for layer in LAYERS:
        padding = layer.kernel // 2
        size = (layer.destinations, layer.sources, layer.kernel, layer.kernel)
        weight = torch.randn(size, generator=generator)
        live = torch.rand(size, generator=generator) < DENSITY
        alpha = torch.rand(layer.destinations, generator=generator)
        words = pack_signs(weight)
        plain = PreparedXnor(words, None, alpha, layer.sources, padding=padding)
        masked = PreparedXnor(words, pack_bits(live), alpha, layer.sources, padding=padding)
        one_bit = PreparedBwn(words, None, alpha, layer.sources, padding=padding)
        for batch in (1, 16):
            x = torch.randn(batch, layer.sources, layer.side, layer.side, generator=generator)
            last = x.contiguous(memory_format=torch.channels_last)
            packed = pack_signs(x)
            torch_ways = floats(x, weight, padding)
            where = f"{layer}, batch {batch}"
            ours: list[tuple[str, str, Work, float | None, float | None]] = [
                ("xnor_conv2d", "from NCHW", partial(plain, x), layer.target, bits),
                ("xnor_conv2d", "from channels_last", partial(plain, last), layer.target, bits),
                ("xnor_conv2d", "from words", partial(plain.packed, packed), None, bits),
                ("xnor_conv2d", "half live", partial(masked, last), None, live_bits),
                (
                    "bwn_conv2d",
                    "float inputs",
                    partial(one_bit, last),
                    None if layer.target is None else 1.0,
                    signed,
                ),
            ]
            for op, name, work, target, best in ours:
                yield Case(op, f"{where}, {name}", work, torch_ways, target, best)
    yield from _planes(generator, bits)


def _planes(generator: torch.Generator, bits: float | None) -> Iterator[Case]:
    """Numbers of a few bits, packed inside; their convolution in float32 is exact, too."""
    sizes = (1, 256, 14, 14), (256, 256, 3, 3)
    for x_bits, w_bits in PLANES:
        x = torch.randint(0, 2**x_bits, sizes[0], generator=generator, dtype=torch.uint8)
        w = torch.randint(0, 2**w_bits, sizes[1], generator=generator, dtype=torch.uint8)
        weight = bit_planes(w, w_bits)

        def ours(x: Tensor = x, weight: Tensor = weight, x_bits: int = x_bits) -> Tensor:
            y: Tensor = bitplane_conv2d(bit_planes(x, x_bits), weight, 1, 1)
            return y

        yield Case(
            "bitplane_conv2d",
            f"3x3 256->256 14x14, batch 1, {x_bits} by {w_bits} bits",
            ours,
            floats(x.float(), w.float(), 1),
            None,
            None if bits is None else bits / (x_bits * w_bits),
        )
