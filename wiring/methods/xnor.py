"""y_v = α_v Σ_live sign(w_uv) sign(x_u) [· K]; dx = g·1[|x| < 1], g the gradient of sign(x).

α_v = mean |w| over live edges, K = box filter of mean_u |x_u| (XNOR-Net 2016, eq. 11);
dw by one of three formulas, see `binary_weight`. Padding is 0, not a sign: it adds nothing.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.binary import BinaryOptions, BinaryWeights, binary_weight, row_scale, sign
from wiring.graph.edges import EDGE_OPS
from wiring.graph.topology import Step


class XnorOptions(BinaryOptions):
    """`input_scale`: multiply by K, which the paper has and the released code has not.

    `block_order`: `norm-last` normalises directly before the sign; `as-is` keeps the space's
    order, in which ReLU often comes last and every sign is +1.
    """

    input_scale: bool = False
    block_order: Literal["norm-last", "as-is"] = "norm-last"


class _ClippedSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return sign(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        clipped: Tensor = torch.ops.aten.hardtanh_backward(grad, x, -1.0, 1.0)
        return clipped


class _ScaledSum(torch.autograd.Function):
    """α · (signs * weight/α): the sum of ±1 is exact, and so equal to a packed kernel's, while
    the gradients are those of a convolution with the binarised weight α·sign(w)."""

    @staticmethod
    def forward(
        ctx: Any, signs: Tensor, weight: Tensor, alpha: Tensor, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(signs, weight)
        ctx.stride, ctx.padding = stride, padding
        with torch.autocast(signs.device.type, enabled=False):
            total = F.conv2d(signs, weight.sign(), stride=stride, padding=padding)
        return total.mul_(alpha.view(1, -1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        signs, weight = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        stride, padding = [ctx.stride] * 2, [ctx.padding] * 2
        to_signs, to_weight, _ = torch.ops.aten.convolution_backward(
            grad, signs, weight, None, stride, padding, [1, 1], False, [0, 0], 1, wanted
        )
        return to_signs, to_weight, None, None, None


@EDGE_OPS.register("xnor")
class Xnor(BinaryWeights):
    """One-bit weights and one-bit inputs: XNOR and count, one scale per destination."""

    paper = "Rastegari et al.: XNOR-Net, ECCV 2016"
    Options: ClassVar[type[Config]] = XnorOptions

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        weight = binary_weight(self.weight, live, learn, self.options.weight_gradient)
        alpha = row_scale(self.weight.detach(), live)
        signs = _ClippedSign.apply(x).to(weight.dtype)
        y: Tensor = _ScaledSum.apply(signs, weight, alpha, self.stride, self.padding)
        return y * self._input_scale(x) if self.options.input_scale else y

    def _input_scale(self, x: Tensor) -> Tensor:
        """K [N, 1, H', W'], over all sources of the bundle, live or not."""
        mean = x.abs().mean(dim=1, keepdim=True)
        window = self.weight.shape[2:]
        box = torch.full((1, 1, *window), 1 / math.prod(window), dtype=x.dtype, device=x.device)
        return F.conv2d(mean, box, stride=self.stride, padding=self.padding)

    def used_sources(self, live: Tensor) -> Tensor:
        """With K, every source reaches every destination that has a live edge."""
        if self.options.input_scale:
            return live.any().expand(live.shape[1]).clone()
        return super().used_sources(live)

    @classmethod
    def arrange(cls, steps: tuple[Step, ...], options: Any) -> tuple[Step, ...]:
        """`norm-last`: the norm goes behind everything but a closing pool.

        Signs carry a bit only if values lie around 0. Averaging keeps a normalised channel's
        mean at 0, and a norm behind the pool would have but one value per image to work on.
        """
        if options.block_order == "as-is" or "norm" not in steps:
            return steps
        rest = tuple(step for step in steps if step != "norm")
        end = len(rest) - (rest[-1:] == ("pool",))
        return (*rest[:end], "norm", *rest[end:])

    def cost(self, live: Tensor, positions: int) -> Cost:
        """K counts its mean over sources at positions·stride² inputs, its box filter, the
        division, and a product per value."""
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
