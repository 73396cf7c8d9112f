"""Cases of masked convolutions and of L1 distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from tests.gpu.cases import LARGE_TILES, LAYERS, Case, Layer, image, mask, weight

Make = Callable[[], Sequence[Any]]
# The bounds that lead to each path; a small share cuts rows in parts.
MASKED_PATHS = {
    "rows": {"ROW_PIXELS": 1 << 30, "TILE_PIXELS": 1 << 30},
    "tiles": {"ROW_PIXELS": -1, "TILE_PIXELS": 1 << 30, "LEAST_SHARE": 32},
    "convolution": {"TILE_PIXELS": -1},
}


def _masked(layer: Layer, density: float, dtype: torch.dtype) -> Sequence[Any]:
    live = mask(layer, density)
    return image(layer, dtype), weight(layer, live, dtype), live, live, *layer.steps


def _masked_input(layer: Layer, density: float, dtype: torch.dtype) -> Sequence[Any]:
    live = mask(layer, density)
    grad = torch.randn(layer.out).to(dtype)
    return grad, weight(layer, live, dtype), live, layer.h, layer.w, *layer.steps


def _masked_weight(layer: Layer, density: float) -> Sequence[Any]:
    return torch.randn(layer.out), image(layer), mask(layer, density), *layer.steps


def masked_cases() -> Iterator[Case]:
    for path, settings in MASKED_PATHS.items():
        for layer in LAYERS if path == "tiles" else (LAYERS[0], LAYERS[3]):
            for density in (0.3, 0.0):
                label = f"{path}, {layer}, density {density}"
                make: Make = partial(_masked, layer, density, torch.float32)
                yield Case("masked_conv2d", "masked_conv2d", label, make, settings)
                make = partial(_masked_input, layer, density, torch.float32)
                name = "masked_conv2d_input_gradient"
                yield Case("masked_conv2d", name, label, make, settings)
    for path, settings in (("rows", MASKED_PATHS["rows"]), ("tiles", MASKED_PATHS["tiles"])):
        make = partial(_masked, LAYERS[0], 0.3, torch.float16)
        yield Case("masked_conv2d", "masked_conv2d", f"{path}, float16", make, settings)
        make = partial(_masked_input, LAYERS[0], 0.3, torch.float16)
        name = "masked_conv2d_input_gradient"
        yield Case("masked_conv2d", name, f"{path}, float16", make, settings)
    for layer in LAYERS:
        make = partial(_masked_weight, layer, 0.5)
        yield Case("masked_conv2d", "masked_conv2d_weight_gradient", str(layer), make)


def _l1(layer: Layer, density: float | None, dtype: torch.dtype, last: bool) -> Sequence[Any]:
    live = mask(layer, density)
    return image(layer, dtype, last=last), weight(layer, live, dtype), live, *layer.steps


def _l1_input(layer: Layer, density: float | None, dtype: torch.dtype, mode: str) -> Sequence[Any]:
    x, w, live, *steps = _l1(layer, density, dtype, False)
    return torch.randn(layer.out).to(dtype), x, w, live, *steps, mode


def _l1_weight(layer: Layer, density: float | None, mode: str) -> Sequence[Any]:
    learn = mask(layer, density)
    grad, w = torch.randn(layer.out), torch.randn(layer.filters)
    return grad, image(layer), w, learn, *layer.steps, mode


def _l1_bytes(layer: Layer, density: float | None, outside: int) -> Sequence[Any]:
    x = torch.randint(0, 256, layer.shape, dtype=torch.uint8)
    w = torch.randint(0, 256, layer.filters, dtype=torch.uint8)
    return x, w, mask(layer, density), outside, *layer.steps


def l1_cases() -> Iterator[Case]:
    for layer in LAYERS:
        for density in (None, 0.5, 0.0):
            label = f"{layer}, density {density}"
            make: Make = partial(_l1, layer, density, torch.float32, False)
            yield Case("l1_conv2d", "l1_conv2d", label, make)
            for mode in ("clipped", "sign", "full"):
                make = partial(_l1_input, layer, density, torch.float32, mode)
                yield Case("l1_conv2d", "l1_input_gradient", f"{mode}, {label}", make)
            for mode in ("full", "sign"):
                make = partial(_l1_weight, layer, density, mode)
                yield Case("l1_conv2d", "l1_weight_gradient", f"{mode}, {label}", make)
            make = partial(_l1_bytes, layer, density, 7 if layer.stride == 1 else 200)
            yield Case("l1_conv2d", "l1_conv2d_uint8", label, make, exact=True)
    layer = LAYERS[0]
    make = partial(_l1, layer, 0.5, torch.float32, True)
    yield Case("l1_conv2d", "l1_conv2d", "large tiles, channels last", make, LARGE_TILES)
    make = partial(_l1_bytes, layer, 0.5, 0)
    yield Case("l1_conv2d", "l1_conv2d_uint8", "large tiles", make, LARGE_TILES, exact=True)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        make = partial(_l1, layer, 0.5, dtype, False)
        yield Case("l1_conv2d", "l1_conv2d", str(dtype), make)
        for mode in ("clipped", "sign"):
            make = partial(_l1_input, layer, 0.5, dtype, mode)
            yield Case("l1_conv2d", "l1_input_gradient", f"{mode}, {dtype}", make)
    make = partial(_l1_input, layer, 0.5, torch.float32, "clipped")
    yield Case("l1_conv2d", "l1_input_gradient", "large tiles", make, LARGE_TILES)
