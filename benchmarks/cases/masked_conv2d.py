"""Convolutions of which a few edges live, against PyTorch's with every edge.

`op` does everything in a call: it lists the live edges from the mask, as a training step must.
`prepared` has listed them before, as in inference. The limit is 1/density: all products, and
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Case, Work
from wiring.kernels.masked_conv2d import (
    PreparedMasked,
    masked_conv2d,
    masked_conv2d_input_gradient,
    masked_conv2d_weight_gradient,
)

# (batch, sources, destinations, side, kernel), and whether the target is stated for it.
SHAPES = (
    ((1, 512, 512, 14, 1), True),
    ((8, 256, 1536, 8, 1), True),
    ((1, 256, 256, 14, 3), False),
    ((1, 64, 64, 56, 3), False),
)
TARGETS = {0.05: 6.0, 0.1: 3.5, 0.2: 1.5}


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _gradient(grad: Tensor, x: Tensor, weight: Tensor, padding: int, to_x: bool) -> Tensor:
    """One of the two gradients of PyTorch's convolution."""
    wanted = [to_x, not to_x, False]
    results = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, wanted
    )
    result: Tensor = results[0] if to_x else results[1]
    return result


def cases() -> Iterator[Case]:
    """Forward, prepared forward and both gradients, images in both memory formats for PyTorch."""
    generator = torch.Generator().manual_seed(0)
    for (n, s, d, side, k), stated in SHAPES:
        p = k // 2
        for density, target in TARGETS.items():
            x = torch.randn(n, s, side, side, generator=generator)
            grad = torch.randn(n, d, side, side, generator=generator)
            weight = torch.randn(d, s, k, k, generator=generator)
            live = torch.rand(weight.shape, generator=generator) < density
            xl, gl, wl = _last(x), _last(grad), _last(weight)
            conv: list[Work] = [
                partial(F.conv2d, x, weight, padding=p),
                partial(F.conv2d, xl, weight, padding=p),
                partial(F.conv2d, xl, wl, padding=p),
            ]
            ways: list[tuple[str, Work, list[Work], float | None]] = [
                ("op", partial(masked_conv2d, xl, weight, live, live, 1, p), conv, target),
                ("op, NCHW", partial(masked_conv2d, x, weight, live, live, 1, p), conv, None),
                (
                    "prepared",
                    partial(PreparedMasked(weight, live, stride=1, padding=p), xl),
                    conv,
                    target,
                ),
                (
                    "prepared, NCHW",
                    partial(PreparedMasked(weight, live, stride=1, padding=p), x),
                    conv,
                    None,
                ),
            ]
            to_x = partial(masked_conv2d_input_gradient, gl, weight, live, side, side, 1, p)
            to_weight = partial(masked_conv2d_weight_gradient, gl, xl, live, 1, p)
            for wanted, gradient in ((True, to_x), (False, to_weight)):
                dense: list[Work] = [
                    partial(_gradient, grad, x, weight, p, wanted),
                    partial(_gradient, gl, xl, weight, p, wanted),
                ]
                ways.append(("dx" if wanted else "dw", gradient, dense, None))
            for name, ours, theirs, goal in ways:
                yield Case(
                    "masked_conv2d",
                    f"{k}x{k} {s}->{d} {side}x{side} batch {n}, {density:.0%} live, {name}",
                    ours,
                    theirs,
                    target=goal if stated else None,
                    limit_ratio=1 / density,
                )
