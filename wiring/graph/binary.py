"""What operators with one-bit weights share: w ≈ α·sign(w), its gradients, projection, packing.

α_v = mean |w_uv| over the live edges of destination v, and sign(0) = +1
(Rastegari et al.: XNOR-Net, ECCV 2016, section 3.1). `UnitWeights` have no α: they are ±H
(Courbariaux et al.: BinaryConnect, NeurIPS 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wiring.config import Config
from wiring.graph.edges import WEIGHT_BITS, EdgeOp, Epilogue, Kernel, Seen, one_at_a_time
from wiring.graph.surrogates import sign as sign
from wiring.graph.topology import Step
from wiring.kernels.bitpack import BITS, pack_bits, pack_signs, words
from wiring.kernels.masked_conv2d import PreparedMasked
from wiring.kernels.xnor_conv2d import (
    PreparedBwn,
    PreparedXnor,
    binary_filters,
    binary_gradient,
    row_scales,
)

WeightGradient = Literal["exact", "paper", "repo"]


class BinaryOptions(Config):
    """Settings of one-bit weights.

    `weight_gradient`: the formula in `binary_gradient`. `center`, `clamp`: the projection after a
    step in `BinaryWeights.after_step`.
    """

    weight_gradient: WeightGradient = "exact"
    center: bool = True
    clamp: bool = True


def row_scale(weight: Tensor, live: Tensor) -> Tensor:
    """α [D, 1, 1, 1]: mean |w| over the live edges of each row, 0 where none lives.

    A row of equal float32 magnitudes gives back that very magnitude: what `pack` stores is what
    `unpack` computes.
    """
    alpha: Tensor = row_scales(weight.detach(), live)
    return alpha


class _BinaryWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, live: Tensor, learn: Tensor, mode: WeightGradient
    ) -> Tensor:
        alpha = row_scales(weight, live)
        ctx.save_for_backward(weight, live, learn, alpha)
        ctx.mode = mode
        filters: Tensor = binary_filters(weight, live, alpha)
        return filters

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return binary_gradient(grad, *ctx.saved_tensors, ctx.mode), None, None, None


def binary_weight(weight: Tensor, live: Tensor, learn: Tensor, mode: WeightGradient) -> Tensor:
    """α·sign(w) on live edges, 0 on dead ones; all arguments and the result [D, S, kh, kw].

    Its gradient is `binary_gradient`: edges in `learn` receive it.
    """
    result: Tensor = _BinaryWeight.apply(weight, live, learn, mode)
    return result


def norm_last(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The norm behind everything but a closing pool; for operators that take signs.

    Signs carry a bit only if values lie around 0. Averaging keeps a normalised channel's mean at
    0, and a norm behind the pool would have but one value per image to work on.
    """
    if "norm" not in steps:
        return steps
    last = max(place for place, step in enumerate(steps) if step == "norm")
    rest = steps[:last] + steps[last + 1 :]
    end = len(rest) - (rest[-1:] == ("pool",))
    return (*rest[:end], "norm", *rest[end:])


def pack_flags(flags: Tensor) -> Tensor:
    """Bool [n] as bits, the first in the highest: uint8 [⌈n/8⌉]."""
    return torch.from_numpy(np.packbits(flags.cpu().numpy())).to(flags.device)


def unpack_flags(stored: Tensor, count: int) -> Tensor:
    """Inverse of `pack_flags`: bool [count]. Raises ValueError where there are not so many."""
    if stored.numel() != (count + 7) // 8:
        raise ValueError(f"{count} flags take {(count + 7) // 8} bytes, got {stored.numel()}")
    bits = np.unpackbits(stored.cpu().numpy(), count=count)
    return torch.from_numpy(bits.astype(bool)).to(stored.device)


def packed_weight(
    weight: Tensor, live: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor | None, int]:
    """(sign words, live words, channels) of weights [D, S, kh, kw], for packed kernels.

    Words int64 [D, kh, kw, words], those of each source group of `sizes` channels filled up to
    whole words; where that leaves gaps, they count as channels that do not live. Live words are
    None where every channel lives.
    """
    rows, channels = weight.detach(), live.shape[1]
    signs = torch.cat([pack_signs(part) for part in torch.split(rows, list(sizes), dim=1)], dim=3)
    gaps = signs.shape[3] != words(channels) or any(size % BITS for size in sizes[:-1])
    if not gaps and bool(live.all()):
        return signs, None, channels
    mask = torch.cat([pack_bits(part) for part in torch.split(live, list(sizes), dim=1)], dim=3)
    return signs, mask, signs.shape[3] * BITS if gaps else channels


class BinaryWeights(EdgeOp):
    """An operator whose live weights are one bit each and one float32 scale per row."""

    Options: ClassVar[type[Config]] = BinaryOptions

    def weight_bits(self, live: Tensor) -> int:
        """One bit per live edge and a float32 per destination that has one."""
        return int(live.sum()) + WEIGHT_BITS * self.rows(live)

    @staticmethod
    def rows(live: Tensor) -> int:
        """Destinations with at least one live edge."""
        return int(live.any(dim=3).any(dim=2).any(dim=1).sum())

    @torch.no_grad()
    def after_step(self, live: Tensor, learn: Tensor, lr: float = 0.0) -> None:
        """Centre over the sources, then clamp to ±1, as the released code does after a step.

        Only edges in `learn` move. A mean over sources is subtracted only where all sources of
        a destination learn at that kernel position, and there are at least two: centring a
        whole filter balances its signs, but centring the few learning edges of a sparse row
        would tie them to one another, and set a single one to 0.
        """
        weight = self.weight
        if self.options.center and weight.shape[1] > 1:
            whole = learn.all(dim=1, keepdim=True)
            weight.sub_(torch.where(whole, weight.mean(dim=1, keepdim=True), 0.0))
        if self.options.clamp:
            weight.copy_(torch.where(learn, weight.clamp(-1, 1), weight))

    def scales(self, live: Tensor) -> Tensor:
        """α [D, 1, 1, 1]."""
        return row_scale(self.weight, live)

    def prepared(self, live: Tensor, sizes: Sequence[int]) -> PreparedXnor:
        """A kernel for the signs of inputs from source groups of `sizes` channels."""
        signs, mask, channels = packed_weight(self.weight, live, sizes)
        steps = {"stride": self.stride, "padding": self.padding}
        return PreparedXnor(signs, mask, self.scales(live).flatten().float(), channels, **steps)

    @torch.no_grad()
    def signed_sums(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """For real inputs: the weight as bits and scales; unpacked once; or the live edges alone,
        unpacked."""
        signs, mask, channels = packed_weight(self.weight, live, [live.shape[1]])
        steps = {"stride": self.stride, "padding": self.padding}
        scales = self.scales(live)
        alpha = epilogue.scaled(scales.flatten())
        weight = epilogue.scaled(binary_filters(self.weight.detach(), live, scales))
        shift, relu = epilogue.shift, epilogue.relu
        convolve = partial(F.conv2d, weight=weight, bias=shift, **steps)
        sparse = PreparedMasked(weight, live, shift=shift, relu=relu, **steps)
        packed = PreparedBwn(signs, mask, alpha, channels, **steps)
        return {
            "packed": epilogue.unscaled().after(packed, fresh=True),
            "conv": Epilogue(relu=relu).after(convolve, fresh=True),
            "sparse": one_at_a_time(sparse),
        }

    @torch.no_grad()
    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """`signs`: bits of the live edges in order, 1 for +, first bit highest, uint8
        [⌈edges/8⌉]; `alpha`: float32, one per row with a live edge."""
        alpha = row_scale(self.weight, live)[live.flatten(1).any(dim=1)].flatten()
        return {"signs": pack_flags(self.weight[live] >= 0), "alpha": alpha.to(torch.float32)}

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        per_row = live.flatten(1).sum(dim=1)
        alpha = stored["alpha"].repeat_interleave(per_row[per_row > 0])
        self._take_signs(stored["signs"], live, alpha)

    def _take_signs(self, stored: Tensor, live: Tensor, magnitude: Tensor | float) -> None:
        """Weights ±magnitude on live edges, 0 on dead ones."""
        signs = sign(unpack_flags(stored, int(live.sum())).to(torch.float32) - 0.5)
        self.weight.zero_()
        self.weight[live] = (magnitude * signs).to(self.weight.dtype)


class UnitOptions(Config):
    """`scale_gradient`: multiply the weights' gradient by 1/√(1.5/(fan in + fan out)), as the
    released code does with the step: plain SGD moves the weights of wide layers too slowly for
    the borders ±H."""

    scale_gradient: bool = True


class UnitWeights(BinaryWeights):
    """An operator whose live weights are one bit each, ±`size`, and nothing else."""

    Options: ClassVar[type[Config]] = UnitOptions
    # Sums grow with the square root of the number of edges, and nothing scales them down.
    needs_norm: ClassVar[bool] = True

    @property
    def size(self) -> float:
        """H, the magnitude of every weight."""
        return 1.0

    def reset_parameters(self, fan_in: int) -> None:
        """Uniform in ±H, as in the released code: only signs act."""
        nn.init.uniform_(self.weight, -self.size, self.size)

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """The signs of `weight`. Its magnitudes are scaled until the largest is H, so that they
        say how far each weight is from the other sign."""
        largest = weight.abs().max() if weight.numel() else weight.new_zeros(())
        self.weight.copy_(weight * (self.size / largest) if largest > 0 else weight)

    def scales(self, live: Tensor) -> Tensor:
        """H [D, 1, 1, 1]."""
        return self.weight.new_full((len(live), 1, 1, 1), self.size)

    def weight_bits(self, live: Tensor) -> int:
        """One bit per live edge: H belongs to the operator, not to the weights."""
        return int(live.sum())

    @torch.no_grad()
    def scale_gradient(self, learn: Tensor) -> None:
        """The factor of `UnitOptions`; fan in and out as of the whole bundle."""
        if self.weight.grad is not None and self.options.scale_gradient:
            destinations, sources, *window = self.shape
            fans = (destinations + sources) * window[0] * window[1]
            self.weight.grad.mul_((fans / 1.5) ** 0.5)

    @torch.no_grad()
    def after_step(self, live: Tensor, learn: Tensor, lr: float = 0.0) -> None:
        """Clamp what learns to ±H: further out a weight could not change its sign any more."""
        clamped = self.weight.clamp(-self.size, self.size)
        self.weight.copy_(torch.where(learn, clamped, self.weight))

    @torch.no_grad()
    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """`signs`: bits of the live edges in order, 1 for +, first bit highest, uint8
        [⌈edges/8⌉]."""
        return {"signs": pack_flags(self.weight[live] >= 0)}

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        self._take_signs(stored["signs"], live, self.size)
