"""Every family of Triton kernels against PyTorch's own operation, on a GPU.

python -m benchmarks.gpu [--op OP] [--json] [--repetitions N]

Times are medians between events on the device, ours and PyTorch's by turns, after a warm-up in
which kernels are compiled. Weights of inference operations are packed beforehand, activations
inside. A layer is channels x side x batch to channels, kernel 3x3.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad as gradients

from benchmarks.harness import Case, _positive

LAYERS = ((256, 14, 256, 256), (256, 14, 256, 1), (512, 4, 512, 1), (64, 32, 64, 64))
DENSITY = 0.1


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _times(works: Sequence[Callable[[], object]], repetitions: int) -> list[float]:
    """Milliseconds of one call of each."""
    for work in works:
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    samples: list[list[float]] = [[] for _ in works]
    for _ in range(repetitions):
        for work, times in zip(works, samples, strict=True):
            begin, end = _event(), _event()
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return [statistics.median(times) for times in samples]


def cases(device: str = "cuda") -> Iterator[Case]:
    """Forward and gradients of every family, layer by layer."""
    for channels, side, rows, batch in LAYERS:
        x = torch.randn(batch, channels, side, side, device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randn(rows, channels, 3, 3, device=device)
        live = torch.rand(weight.shape, device=device) < DENSITY
        label = f"{channels}x{side}x{batch} to {rows}"
        yield from _binary(label, x, weight, live)
        yield from _masked(label, x, weight, live)
        yield from _l1(label, x, weight, live)


def _convolution(x: Tensor, weight: Tensor) -> Callable[[], object]:
    return lambda: F.conv2d(x, weight, padding=1)


def _binary(label: str, x: Tensor, weight: Tensor, live: Tensor) -> Iterator[Case]:
    from wiring.kernels.bitpack import bit_planes, pack_bits, pack_signs
    from wiring.kernels.xnor_conv2d import bitplane_conv2d, bwn_conv2d, xnor_conv2d

    words, flags = pack_signs(weight), pack_bits(live)
    alpha = torch.ones(len(weight), device=x.device)
    channels = x.shape[1]
    float_, half = _convolution(x, weight), _convolution(x.half(), weight.half())
    for name, mask in (("all live", None), ("masked", flags)):

        def xnor(mask: Tensor | None = mask) -> object:
            return xnor_conv2d(pack_signs(x), words, mask, alpha, None, channels, 1, 1)

        yield Case("xnor_conv2d", f"{label}, {name}", xnor, [float_, half])
    packed = pack_signs(x)
    yield Case(
        "xnor_conv2d",
        f"{label}, packed inputs",
        lambda: xnor_conv2d(packed, words, None, alpha, None, channels, 1, 1),
        [float_, half],
    )
    yield Case("bwn_conv2d", label, lambda: bwn_conv2d(x, words, None, alpha, 1, 1), float_)
    numbers = (x.abs() * 85).clamp(max=3).byte()
    planes = bit_planes((weight.abs() * 85).clamp(max=3).byte(), 2)
    yield Case(
        "bitplane_conv2d",
        f"{label}, 2 by 2 bits",
        lambda: bitplane_conv2d(bit_planes(numbers, 2), planes, 1, 1),
        [float_, half],
    )


def _masked(label: str, x: Tensor, weight: Tensor, live: Tensor) -> Iterator[Case]:
    from wiring.kernels import masked_conv2d as ours

    side, grad = x.shape[2], torch.randn_like(F.conv2d(x, weight, padding=1))
    label = f"{label}, {DENSITY:.0%} live"
    for dtype in (torch.float32, torch.float16):
        images, w, g = x.to(dtype), weight.to(dtype), grad.to(dtype)
        name = f"{label}, {dtype}".replace("torch.", "")

        def forward(images: Tensor = images, w: Tensor = w) -> object:
            return ours.masked_conv2d(images, w, live, live, 1, 1)

        def dense(images: Tensor = images, w: Tensor = w) -> object:
            return F.conv2d(images, torch.where(live, w, 0.0), padding=1)

        def backward(g: Tensor = g, w: Tensor = w) -> object:
            return ours.masked_conv2d_input_gradient(g, w, live, side, side, 1, 1)

        def dense_backward(g: Tensor = g, w: Tensor = w, images: Tensor = images) -> object:
            masked = torch.where(live, w, 0.0)
            return gradients.conv2d_input(images.shape, masked, g, padding=1)

        yield Case("masked_conv2d", name, forward, dense)
        yield Case("masked_conv2d_input_gradient", name, backward, dense_backward)


def _l1(label: str, x: Tensor, weight: Tensor, live: Tensor) -> Iterator[Case]:
    """Against a convolution: PyTorch has no L1 distance that does not hold every term."""
    from wiring.kernels.l1_conv2d import (
        l1_conv2d,
        l1_conv2d_uint8,
        l1_input_gradient,
        l1_weight_gradient,
    )

    conv = _convolution(x, weight)
    grad = torch.randn_like(F.conv2d(x, weight, padding=1))
    shape = list(x.shape)
    for name, mask in (("all live", None), ("masked", live)):

        def forward(mask: Tensor | None = mask) -> object:
            return l1_conv2d(x, weight, mask, 1, 1)

        yield Case("l1_conv2d", f"{label}, {name}", forward, conv)

    def to_x() -> object:
        return gradients.conv2d_input(shape, weight, grad, padding=1)

    def to_weight() -> object:
        return gradients.conv2d_weight(x, list(weight.shape), grad, padding=1)

    for mode in ("clipped", "sign"):

        def pull(mode: str = mode) -> object:
            return l1_input_gradient(grad, x, weight, None, 1, 1, mode)

        yield Case("l1_input_gradient", f"{label}, {mode}", pull, to_x)
    for mode in ("full", "sign"):

        def push(mode: str = mode) -> object:
            return l1_weight_gradient(grad, x, weight, None, 1, 1, mode)

        yield Case("l1_weight_gradient", f"{label}, {mode}", push, to_weight)
    numbers, filters = ((t * 32 + 128).clamp(0, 255).byte() for t in (x, weight))
    yield Case(
        "l1_conv2d_uint8",
        label,
        lambda: l1_conv2d_uint8(numbers, filters, None, 128, 1, 1),
        conv,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 1 where there is no GPU."""
    parser = argparse.ArgumentParser(description="Time the Triton kernels against PyTorch's own.")
    parser.add_argument("--op", help="one operation")
    parser.add_argument("--json", action="store_true", help="one JSON line per case")
    parser.add_argument("--repetitions", type=_positive, default=21)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("there is no GPU to measure: PyTorch finds no CUDA device", file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}", file=sys.stderr)
    measured = False
    for case in cases():
        if options.op not in (None, case.op):
            continue
        measured = True
        rivals = list(case.torch) if isinstance(case.torch, Sequence) else [case.torch]
        ours, *others = _times([case.ours, *rivals], options.repetitions)
        row = {"op": case.op, "case": case.case, "ours_ms": ours, "torch_ms": min(others)}
        row["ratio"] = min(others) / ours
        if options.json:
            print(json.dumps(row), flush=True)
        else:
            figures = f"{ours:9.4f} {min(others):9.4f} {row['ratio']:7.2f}"
            print(f"{case.op:30} {case.case:52} {figures}", flush=True)
    if not measured:
        print(f"no case is of operation '{options.op}'", file=sys.stderr)
    return 0 if measured else 2


if __name__ == "__main__":
    sys.exit(main())
