"""The sign of a channel behind monotone steps is one comparison before them.

A batch norm and a ReLU act on every value of a channel alike and never turn the order of two
values round, or always do; rounding keeps that. So there is one float32 per channel at which the
sign changes, and bisection over the ordered bit patterns finds it with the very steps that
evaluation runs: bits by comparison are bits by computation, for all finite values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wiring.graph.nodes import Bias

SIGN_BIT = -(2**31)
LARGEST = 0x7F7FFFFF  # the bits of the largest finite float32


def is_monotone(module: nn.Module) -> bool:
    """Whether a step of evaluation is monotone in each value and looks at nothing else."""
    return isinstance(module, nn.BatchNorm2d | nn.ReLU | Bias)


def sign_thresholds(
    steps: Callable[[Tensor], Tensor], example: Tensor
) -> tuple[Tensor, Tensor] | None:
    """(threshold float32 [C], flip bool [C]): steps(x) >= 0 is (x >= threshold) xor flip.

    `example` [N, C, H, W] gives shape and memory format. None where the steps treat the
    positions of a channel differently.
    """
    channels = example.shape[1]
    low = torch.full((channels,), -LARGEST, dtype=torch.int64)
    high = -low
    filled = torch.empty_like(example[:1])
    agree = True

    def positive(keys: Tensor) -> Tensor:
        nonlocal agree
        bits = steps(filled.copy_(_value(keys).view(1, -1, 1, 1))) >= 0
        first = bits[0, :, 0, 0]
        agree = agree and torch.equal(bits, first.view(1, -1, 1, 1).expand_as(bits))
        return first

    at_low, at_high = positive(low), positive(high)
    constant = at_low == at_high
    while agree and int((high - low).max()) > 1:
        middle = torch.div(low + high, 2, rounding_mode="floor")
        same = positive(middle) == at_low
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    if not agree:
        return None
    threshold = torch.where(constant, -torch.inf, _value(high))
    # A constant channel passes x >= -inf always; any other changes at `high`, to `at_high`.
    return threshold, ~at_high


def _value(keys: Tensor) -> Tensor:
    """The float32 at each place of their order; 0 stands for both zeros."""
    bits = torch.where(keys >= 0, keys, SIGN_BIT - keys)
    return bits.to(torch.int32).view(torch.float32)
