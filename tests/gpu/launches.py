"""Problems as large as they come, whose launches are compiled for a GPU that is not there.

What must be in the machine code: an instruction that the kernel's speed rests on, and its share
of the loop. The shares are below what was measured by a tenth; a lower one means that the layout
of the tile changed, and a thread loads what it should hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

HALF, FLOAT, BFLOAT, WORD = torch.float16, torch.float32, torch.bfloat16, torch.int64
SATURATED = r"F(ADD|FMA)\.(\w+\.)*SAT"
# int8 and half-precision products of each architecture.
INT8 = {80: r"IMMA", 90: r"IGMMA"}
HALVES = {80: r"HMMA", 90: r"HGMMA"}


@dataclass(frozen=True)
class Launch:
    """`call` launches `kernel`, among others. `needs`: a pattern of instructions, by architecture
    or for all; `share`: their least part of the loop; `registers`: the most they may take."""

    family: str
    kernel: str
    label: str
    call: Callable[[], object]
    registers: int = 255
    needs: str | dict[int, str] = ""
    share: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.family}.{self.kernel}: {self.label}"

    def instruction(self, architecture: int) -> str:
        return self.needs if isinstance(self.needs, str) else self.needs[architecture]


def _zeros(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def _l1(dtype: torch.dtype, masked: bool, part: str, n: int = 16) -> object:
    from wiring.kernels.l1_conv2d import gpu

    x, w = _zeros(n, 64, 32, 32, dtype=dtype), _zeros(128, 64, 3, 3, dtype=dtype)
    live = torch.ones(w.shape, dtype=torch.bool) if masked else None
    if part == "sums":
        return gpu.l1_conv2d(x, w, live, 1, 1)
    if part == "bytes":
        return gpu.l1_conv2d_uint8(x.byte(), w.byte(), live, 0, 1, 1)
    grad = _zeros(n, 128, 32, 32, dtype=dtype)
    if part == "side":
        return gpu.l1_weight_gradient(grad, x, w, live, 1, 1, "sign")
    return gpu.l1_input_gradient(grad, x, w, live, 1, 1, part)


def l1_launches() -> Iterator[Launch]:
    launch = partial(Launch, "l1_conv2d")
    for masked in (False, True):
        label = "masked" if masked else "all live"
        call = partial(_l1, FLOAT, masked)
        yield launch("sums_kernel", label, partial(call, "sums"), 190, r"FADD\|\.\|", 0.27)
        yield launch("pull_kernel", label, partial(call, "clipped"), 245, SATURATED, 0.26)
        signs = f"{label}, sign"
        yield launch("pull_kernel", signs, partial(call, "sign"), 210, r"FSETP", 0.22)
        share = 0.25 if masked else 0.41
        yield launch("bytes_kernel", label, partial(call, "bytes"), 190, "VABSDIFF4", share)
    half = partial(_l1, HALF, True)
    yield launch("sums_kernel", "half", partial(half, "sums"), 190, r"FADD\|\.\|", 0.26)
    yield launch("pull_kernel", "half", partial(half, "clipped"), 245, SATURATED, 0.27)
    small = partial(_l1, FLOAT, True, n=1)
    yield launch("sums_kernel", "one image", partial(small, "sums"), 128, r"FADD\|\.\|", 0.2)
    yield launch("pull_kernel", "one image", partial(small, "clipped"), 160, SATURATED, 0.2)
    yield launch("side_kernel", "sign", partial(_l1, FLOAT, True, "side"), 128, "FSETP", 0.15)


def _words(*shape: int) -> Tensor:
    return _zeros(*shape, dtype=WORD)


def _xnor(n: int, side: int, channels: int, rows: int, masked: bool, tensor_pixels: int) -> object:
    from wiring.kernels.xnor_conv2d import gpu

    live = _words(rows, 3, 3, channels // 64) if masked else None
    x, w = _words(n, side, side, channels // 64), _words(rows, 3, 3, channels // 64)
    scale = _zeros(n, 1, side, side) if masked else None
    usual = gpu.TENSOR_PIXELS
    gpu.TENSOR_PIXELS = tensor_pixels
    try:
        return gpu.xnor_conv2d(x, w, live, _zeros(rows), scale, channels, 1, 1)
    finally:
        gpu.TENSOR_PIXELS = usual


def _bwn(masked: bool) -> object:
    from wiring.kernels.xnor_conv2d import gpu

    live = _words(256, 3, 3, 4) if masked else None
    x = _zeros(1, 256, 4, 4)
    return gpu.bwn_conv2d(x, _words(256, 3, 3, 4), live, _zeros(256), 1, 1)


def _bitplane(n: int) -> object:
    from wiring.kernels.xnor_conv2d import gpu

    return gpu.bitplane_conv2d(_words(2, n, 14, 14, 4), _words(2, 256, 3, 3, 4), 1, 1)


def xnor_launches() -> Iterator[Launch]:
    launch = partial(Launch, "xnor_conv2d")
    never = 1 << 30
    for masked in (False, True):
        label = "masked, scaled" if masked else "all live"
        call = partial(_xnor, 1, 4, 256, 256, masked, never)
        yield launch("row_kernel", label, call, 64, "POPC")
        call = partial(_xnor, 1, 14, 256, 256, masked, never)
        yield launch("tile_kernel", f"{label}, one image", call, 96, "POPC", 0.12)
        call = partial(_xnor, 64, 14, 256, 256, masked, never)
        yield launch("tile_kernel", f"{label}, large tiles", call, 210, "POPC", 0.14)
        yield launch("real_kernel", label, partial(_bwn, masked), 64, "FADD")
        call = partial(_xnor, 64, 14, 256, 256, masked, 0)
        yield launch("signs_kernel", label, call, 210, INT8)
    call = partial(_xnor, 2, 14, 256, 256, False, 0)
    yield launch("signs_kernel", "small", call, 210, INT8)
    call = partial(_xnor, 64, 14, 64, 64, False, 0)
    yield launch("signs_kernel", "64 channels", call, 128, INT8)
    yield launch("planes_kernel", "one image", partial(_bitplane, 1), 96, "POPC", 0.15)
    yield launch("planes_kernel", "large tiles", partial(_bitplane, 64), 225, "POPC", 0.17)


def _masked(side: int, kernel: int, dtype: torch.dtype, backward: bool) -> object:
    from wiring.kernels.masked_conv2d import gpu

    x, w = _zeros(1, 256, side, side, dtype=dtype), _zeros(256, 256, kernel, kernel, dtype=dtype)
    live = torch.ones(w.shape, dtype=torch.bool)
    pad = kernel // 2
    if backward:
        return gpu.masked_conv2d_input_gradient(x, w, live, side, side, 1, pad)
    return gpu.masked_conv2d(x, w, live, live, 1, pad)


def masked_launches() -> Iterator[Launch]:
    launch = partial(Launch, "masked_conv2d")
    for backward in (False, True):
        way = "input gradient" if backward else "forward"
        for kernel in (1, 3):
            call = partial(_masked, 4, kernel, FLOAT, backward)
            yield launch("row_kernel", f"{way}, {kernel}x{kernel}", call, 64, "FFMA")
            call = partial(_masked, 14, kernel, HALF, backward)
            label = f"{way}, {kernel}x{kernel}, half"
            yield launch("tile_kernel", label, call, 180, HALVES)
        call = partial(_masked, 14, 3, FLOAT, backward)
        yield launch("tile_kernel", f"{way}, float", call, 200, HALVES)
    call = partial(_masked, 14, 3, BFLOAT, False)
    yield launch("tile_kernel", "forward, bfloat16", call, 180, HALVES)


def _pack(op: str, last: bool) -> object:
    from wiring.kernels.bitpack import gpu

    x = _zeros(16, 256, 14, 14)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    packed = _words(16, 14, 14, 4)
    calls: dict[str, Callable[[], object]] = {
        "pack_signs": lambda: gpu.pack_signs(x),
        "pack_thresholds": lambda: gpu.pack_thresholds(x, x[0, :, 0, 0], x[0, :, 0, 0] > 0),
        "bit_planes": lambda: gpu.bit_planes(x.byte(), 2),
        "unpack_signs": lambda: gpu.unpack_signs(packed, 256),
        "keep_bits": lambda: gpu.keep_bits(x, packed),
    }
    return calls[op]()


def bitpack_launches() -> Iterator[Launch]:
    launch = partial(Launch, "bitpack")
    for last in (False, True):
        for op in ("pack_signs", "pack_thresholds", "bit_planes"):
            label = f"{op}{', channels last' if last else ''}"
            yield launch("pack_kernel", label, partial(_pack, op, last), 144, "LDG")
    for op in ("unpack_signs", "keep_bits"):
        yield launch("unpack_kernel", op, partial(_pack, op, True), 64, "LDG")


def launches() -> Iterator[Launch]:
    yield from bitpack_launches()
    yield from xnor_launches()
    yield from masked_launches()
    yield from l1_launches()
