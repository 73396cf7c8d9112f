"""Cases of packing and of packed convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.gpu.cases import LARGE_TILES, LAYERS, Case, Layer, flags, image, mask, planes, signs

SHAPES = ((2, 5, 3, 4), (1, 70, 9, 8), (3, 130, 2, 2), (1, 64, 1, 1), (0, 5, 2, 2))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PACKED_LAYERS = (*LAYERS, Layer(1, 70, 4, 4, 5, (3, 3), 1, 1), Layer(2, 32, 6, 5, 9, (3, 3), 2, 2))
# The bounds on pixels that lead to each path of xnor_conv2d.
PATHS = {
    "rows": {"STREAM_PIXELS": 1 << 30},
    "tiles": {"STREAM_PIXELS": -1, "TENSOR_PIXELS": 1 << 30},
    "large tiles": {"STREAM_PIXELS": -1, "TENSOR_PIXELS": 1 << 30, **LARGE_TILES},
    "int8": {"STREAM_PIXELS": -1, "TENSOR_PIXELS": -1},
    "large int8": {"STREAM_PIXELS": -1, "TENSOR_PIXELS": -1, **LARGE_TILES},
}


def _values(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> Tensor:
    """Of both signs, with zeros and a NaN among them."""
    x = torch.randn(shape) * 1.2
    x = torch.where(x.abs() < 0.1, 0.0, x).to(dtype)
    x.flatten()[:1] = float("nan")
    return x.contiguous(memory_format=torch.channels_last) if last else x


def _pack(shape: tuple[int, ...], dtype: torch.dtype, last: bool, op: str) -> Sequence[Any]:
    x = _values(shape, dtype, last)
    if op == "pack_bits":
        return [x > 0]
    if op == "pack_thresholds":
        return x, torch.randn(shape[1]).to(dtype), torch.rand(shape[1]) < 0.5
    if op == "keep_bits":
        return x, signs(shape)
    return [x]


def bitpack_cases() -> Iterator[Case]:
    floats = ("pack_signs", "pack_clipped_signs", "pack_thresholds", "keep_bits")
    for op in (*floats, "pack_bits"):
        for shape in SHAPES:
            for last in (False, True):
                make = partial(_pack, shape, torch.float32, last, op)
                label = f"{list(shape)}{' channels last' if last else ''}"
                yield Case("bitpack", op, label, make, exact=True)
    for op in floats:
        for dtype in DTYPES[1:]:
            make = partial(_pack, SHAPES[0], dtype, False, op)
            yield Case("bitpack", op, str(dtype), make, exact=True)
    for shape in SHAPES:
        for last in (False, True):
            cut = partial(_bytes, shape, last)
            yield Case("bitpack", "bit_planes", f"{list(shape)} {last=}", cut, exact=True)
        unpack = partial(_words, shape)
        yield Case("bitpack", "unpack_signs", str(list(shape)), unpack, exact=True)


def _bytes(shape: tuple[int, ...], last: bool) -> Sequence[Any]:
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    return (x.contiguous(memory_format=torch.channels_last) if last else x), 3


def _words(shape: tuple[int, ...]) -> Sequence[Any]:
    return signs(shape), shape[1]


def _xnor(layer: Layer, density: float | None, scaled: bool) -> Sequence[Any]:
    scale = torch.rand(layer.n, 1, *layer.out[2:]) if scaled else None
    live = flags(mask(layer, density))
    words = signs(layer.shape), signs(layer.filters), live
    return *words, torch.rand(layer.d), scale, layer.c, *layer.steps


def _bwn(layer: Layer, density: float | None, dtype: torch.dtype) -> Sequence[Any]:
    live = flags(mask(layer, density))
    return image(layer, dtype), signs(layer.filters), live, torch.rand(layer.d), *layer.steps


def _bitplane(layer: Layer, x_bits: int, w_bits: int) -> Sequence[Any]:
    return planes(layer.shape, x_bits), planes(layer.filters, w_bits), *layer.steps


def xnor_cases() -> Iterator[Case]:
    for path, settings in PATHS.items():
        # One pixel a program: interpreted, that is one pixel after the other.
        layers = PACKED_LAYERS[:1] + PACKED_LAYERS[4:5] if path == "rows" else PACKED_LAYERS
        for layer in layers:
            for density, scaled in ((None, False), (0.5, True), (0.0, False)):
                make: Callable[[], Sequence[Any]] = partial(_xnor, layer, density, scaled)
                label = f"{path}, {layer}, density {density}, {scaled=}"
                yield Case("xnor_conv2d", "xnor_conv2d", label, make, settings, exact=True)
    for layer in LAYERS:
        for density in (None, 0.5, 0.0):
            make = partial(_bwn, layer, density, torch.float32)
            stream = {"STREAM_PIXELS": 1 << 30}
            label = f"{layer}, density {density}"
            yield Case("xnor_conv2d", "bwn_conv2d", label, make, stream)
        make = partial(_bitplane, layer, 3, 2)
        yield Case("xnor_conv2d", "bitplane_conv2d", str(layer), make, exact=True)
    make = partial(_bwn, LAYERS[0], 0.5, torch.float16)
    yield Case("xnor_conv2d", "bwn_conv2d", "float16", make, {"STREAM_PIXELS": 1 << 30})
    make = partial(_bwn, LAYERS[0], 0.5, torch.float32)
    yield Case("xnor_conv2d", "bwn_conv2d", "by convolution", make, {"STREAM_PIXELS": -1})
    make = partial(_bitplane, LAYERS[0], 1, 8)
    yield Case("xnor_conv2d", "bitplane_conv2d", "1 by 8 bits", make, LARGE_TILES, exact=True)
