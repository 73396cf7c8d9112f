"""y_v = α_v Σ_live sign(w_uv) sign(x_u) [· K]; dx = g·1[|x| < 1], g the gradient of sign(x).

α_v = mean |w| over live edges, K = box filter of mean_u |x_u| (XNOR-Net 2016, eq. 11);
dw by one of three formulas, see `binary_gradient`. Padding is 0, not a sign: it adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.binary import BinaryOptions, BinaryWeights, binary_weight, norm_last, row_scale
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, Epilogue, Kernel
from wiring.graph.surrogates import clipped_sign, convolution_gradients, exact_sum
from wiring.graph.topology import Step
from wiring.kernels.bitpack import (
    keep_bits,
    pack_bits,
    pack_clipped_signs,
    pack_signs,
    unpack_signs,
)
from wiring.kernels.xnor_conv2d import (
    binary_filters,
    binary_gradient,
    packs_inputs,
    xnor_conv2d,
)


class XnorOptions(BinaryOptions):
    """`input_scale`: multiply by K, which the paper has and the released code has not.

    `block_order`: `norm-last` normalises directly before the sign; `as-is` keeps the space's
    order, in which ReLU often comes last and every sign is +1.
    """

    input_scale: bool = False
    block_order: Literal["norm-last", "as-is"] = "norm-last"


class _PackedSum(torch.autograd.Function):
    """`exact_sum` of signs, packed. Of x it keeps two bits a value, and unpacks them backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        live: Tensor,
        learn: Tensor,
        scale: Tensor | None,
        mode: str,
        stride: int,
        padding: int,
    ) -> Tensor:
        ctx.mode, ctx.stride, ctx.padding = mode, stride, padding
        clipped = ctx.needs_input_grad[0]
        planes = pack_clipped_signs(x) if clipped else pack_signs(x).unsqueeze(0)
        alpha = row_scale(weight, live)
        ctx.save_for_backward(planes, weight, live, learn, alpha, scale)
        return _packed_sum(planes[0], weight, live, alpha, scale, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        planes, weight, live, learn, alpha, scale = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        to_x = to_weight = to_scale = None
        if wanted[4]:
            settings = (ctx.stride, ctx.padding)
            sums = _packed_sum(planes[0], weight, live, alpha, None, *settings)
            to_scale = (grad * sums).sum(dim=1, keepdim=True)
        if scale is not None:
            grad = grad * scale
        signs = unpack_signs(planes[0], weight.shape[1])
        filters = binary_filters(weight, live, alpha)
        steps = ctx.stride, ctx.padding
        to_signs, to_filters = convolution_gradients(
            grad, signs, filters, *steps, (wanted[0], wanted[1])
        )
        if to_signs is not None:
            to_x = keep_bits(to_signs, planes[1])
        if to_filters is not None:
            to_weight = binary_gradient(to_filters, weight, live, learn, alpha, ctx.mode)
        return to_x, to_weight, None, None, to_scale, None, None, None


def _packed_sum(
    signs: Tensor,
    weight: Tensor,
    live: Tensor,
    alpha: Tensor,
    scale: Tensor | None,
    stride: int,
    padding: int,
) -> Tensor:
    """α Σ_live sign(w) sign(x) · scale; signs are words of x."""
    filters = (pack_signs(weight), pack_bits(live), alpha.flatten())
    y: Tensor = xnor_conv2d(signs, *filters, scale, weight.shape[1], stride, padding)
    return y


class _MeanMagnitude(torch.autograd.Function):
    """mean_u |x_u|, which keeps the signs of x and where it is not 0: two bits a value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(pack_signs(x), pack_bits(x != 0))
        ctx.sources = x.shape[1]
        return x.abs().mean(dim=1, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        signs, other = ctx.saved_tensors
        result: Tensor = keep_bits(unpack_signs(signs, ctx.sources) * (grad / ctx.sources), other)
        return result


def _box_filter(mean: Tensor, window: torch.Size, stride: int, padding: int) -> Tensor:
    """K: the mean of a map [N, 1, H, W] over every window; [N, 1, H', W']."""
    share = 1 / math.prod(window)
    box = torch.full((1, 1, *window), share, dtype=mean.dtype, device=mean.device)
    return F.conv2d(mean, box, stride=stride, padding=padding)


@EDGE_OPS.register("xnor")
class Xnor(BinaryWeights):
    """One-bit weights and one-bit inputs: XNOR and count, one scale per destination."""

    paper = "Rastegari et al.: XNOR-Net, ECCV 2016"
    use = (
        "Take it where speed and size count most: 64 edges are one instruction, and a weight is "
        "one bit. It loses the most accuracy of the operators with scales; bwn keeps real inputs, "
        "dorefa gives them a few bits."
    )
    Options: ClassVar[type[Config]] = XnorOptions
    sensitive: ClassVar[bool] = True

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        packs = packs_inputs(x) and self.weight.dtype == x.dtype
        scale = self._input_scale(x, packs) if self.options.input_scale else None
        mode = self.options.weight_gradient
        y: Tensor
        if packs:
            settings = (scale, mode, self.stride, self.padding)
            y = _PackedSum.apply(x, self.weight, live, learn, *settings)
            return y
        weight = binary_weight(self.weight, live, learn, mode)
        alpha = row_scale(self.weight, live)
        signs = clipped_sign(x).to(weight.dtype)
        levels = signs.detach(), weight.detach().sign()
        y = exact_sum(signs, weight, levels, alpha, self.stride, self.padding)
        return y if scale is None else y * scale

    def _input_scale(self, x: Tensor, packs: bool) -> Tensor:
        """K [N, 1, H', W'], over all sources of the bundle, live or not."""
        mean = _MeanMagnitude.apply(x) if packs else x.abs().mean(dim=1, keepdim=True)
        return _box_filter(mean, self.weight.shape[2:], self.stride, self.padding)

    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """Signs of the inputs packed on the way, K beside them where the paper's form has it."""
        kernel = self.prepared(live, [live.shape[1]])
        if not self.options.input_scale:
            return {"packed": epilogue.after(kernel, fresh=True)}
        window, stride, padding = self.weight.shape[2:], self.stride, self.padding

        def scaled(x: Tensor) -> Tensor:
            mean = x.abs().mean(dim=1, keepdim=True)
            return kernel(x, _box_filter(mean, window, stride, padding))

        return {"packed": epilogue.after(scaled, fresh=True)}

    def packed_candidates(
        self, live: Tensor, sizes: Sequence[int], epilogue: Epilogue
    ) -> dict[str, Kernel]:
        """Words in, where K does not ask for more than signs."""
        if self.options.input_scale:
            return {}
        return {"packed words": epilogue.after(self.prepared(live, sizes).packed, fresh=True)}

    @property
    def input_bits(self) -> int:
        """1, or 32 where K reads the magnitudes too."""
        return WEIGHT_BITS if self.options.input_scale else 1

    def used_sources(self, live: Tensor) -> Tensor:
        """With K, every source reaches every destination that has a live edge."""
        if self.options.input_scale:
            return live.any().expand(live.shape[1]).clone()
        return super().used_sources(live)

    @classmethod
    def arrange(cls, steps: tuple[Step, ...], options: Any) -> tuple[Step, ...]:
        """`norm-last` or as the space has them."""
        return steps if options.block_order == "as-is" else norm_last(steps)

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For E live edges in R rows at P positions: E·P XNORs and R·P multiplications, by the
        scales; E + 32·R bits. K adds its mean over sources at P·stride² inputs, its box filter,
        the division, and a product per value."""
        rows, edges = self.rows(live), int(live.sum())
        cost = Cost(
            multiplications=rows * positions,
            xnors=edges * positions,
            weight_bits=self.weight_bits(live),
        )
        if not (self.options.input_scale and edges):
            return cost
        _, sources, *window = live.shape
        inputs = positions * self.stride**2
        return cost + Cost(
            multiplications=positions + rows * positions,
            additions=(sources - 1) * inputs + (math.prod(window) - 1) * positions,
        )
