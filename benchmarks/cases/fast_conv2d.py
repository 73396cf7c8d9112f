"""Exact convolutions by Fourier transforms and Winograd tiles, against PyTorch's own.

`op` transforms image and filters in a call and, with `gradients`, computes both gradients too, as
a training step must; `prepared` has transformed the filters before, as in inference. The limit
counts the multiplications that transforms leave of the direct ones, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Case, Work
from wiring.kernels.fft_conv2d import PreparedFft, fast_size, fft_conv2d
from wiring.kernels.winograd_conv2d import TILES, PreparedWinograd, winograd_conv2d

Convolve = Callable[[], Tensor]
# (batch, sources, destinations, side, kernel)
FOURIER = (
    (1, 64, 64, 64, 5),
    (1, 64, 64, 64, 7),
    (1, 64, 64, 64, 11),
    (8, 64, 64, 64, 11),
    (1, 64, 64, 64, 15),
    (8, 64, 64, 64, 15),
    (8, 16, 16, 64, 11),
)
WINOGRAD = (
    (1, 64, 64, 56),
    (8, 64, 64, 32),
    (1, 256, 256, 14),
    (8, 256, 256, 14),
    (1, 512, 512, 28),
)


def _step(convolve: Convolve, x: Tensor, weight: Tensor, grad: Tensor) -> None:
    """A convolution and both its gradients."""
    torch.autograd.grad(convolve(), (x, weight), grad)


def _convolutions(x: Tensor, weight: Tensor, padding: int) -> list[Work]:
    """PyTorch's own in both memory formats."""
    last = torch.channels_last
    return [
        partial(F.conv2d, x, weight, padding=padding),
        partial(
            F.conv2d,
            x.detach().contiguous(memory_format=last),
            weight.detach().contiguous(memory_format=last),
            padding=padding,
        ),
    ]


def _case(op: str, shape: str, way: str, ours: Work, direct: list[Work], limit: float) -> Case:
    return Case(op, f"{shape}, {way}", ours, direct, limit_ratio=limit)


def _training(x: Tensor, weight: Tensor, padding: int, ours: Convolve) -> tuple[Work, list[Work]]:
    y = F.conv2d(x, weight, padding=padding)
    grad = torch.ones_like(y)
    direct = partial(F.conv2d, x, weight, padding=padding)
    return partial(_step, ours, x, weight, grad), [partial(_step, direct, x, weight, grad)]


def cases() -> Iterator[Case]:
    """Prepared forward passes, the whole operation, and training steps."""
    generator = torch.Generator().manual_seed(0)
    for n, s, d, side, k in FOURIER:
        x = torch.randn(n, s, side, side, generator=generator)
        weight = torch.randn(d, s, k, k, generator=generator)
        p, points = k // 2, fast_size(side + k // 2)
        limit = side**2 * k**2 / (4 * points * (points // 2 + 1))
        shape = f"{k}x{k} {s}->{d} {side}x{side} batch {n}"
        direct = _convolutions(x, weight, p)
        for name, tile in (("prepared", None), ("prepared, tiles of 32", 32)):
            ours = PreparedFft(weight, padding=p, tile=tile)
            yield _case("fft_conv2d", shape, name, partial(ours, x), direct, limit)
        yield _case("fft_conv2d", shape, "op", partial(fft_conv2d, x, weight, 1, p), direct, limit)
        x, weight = x.requires_grad_(), weight.requires_grad_()
        step, rival = _training(x, weight, p, partial(fft_conv2d, x, weight, 1, p))
        yield _case("fft_conv2d", shape, "op and gradients", step, rival, limit)
    for n, s, d, side in WINOGRAD:
        for tile in TILES:
            x = torch.randn(n, s, side, side, generator=generator)
            weight = torch.randn(d, s, 3, 3, generator=generator)
            limit = 9 * tile**2 / (tile + 2) ** 2
            shape = f"3x3 {s}->{d} {side}x{side} batch {n}, tiles of {tile}"
            direct = _convolutions(x, weight, 1)
            last = x.contiguous(memory_format=torch.channels_last)
            tiled = PreparedWinograd(weight, padding=1, tile=tile)
            for name, image in (("prepared", last), ("prepared, NCHW", x)):
                yield _case("winograd_conv2d", shape, name, partial(tiled, image), direct, limit)
            x, weight = last.requires_grad_(), weight.requires_grad_()
            step, rival = _training(x, weight, 1, partial(winograd_conv2d, x, weight, 1, tile))
            yield _case("winograd_conv2d", shape, "op and gradients", step, rival, limit)
