"""y_v = Σ_live w̄_uv x̄_u with weights of W bits, inputs of A bits and gradients of G bits.

With q_k(x) = round((2^k - 1)·x) / (2^k - 1), whose gradient is taken for 1 (Zhou et al. 2016,
sections 2.2 to 2.5):

- x̄ = q_A(clip(x, 0, 1)), dx = g·1[0 <= x <= 1];
- W = 1: w̄ = E·sign(w), E = mean |w| over the live edges of the layer, dw = g;
- W > 1: w̄ = 2·q_W(tanh(w) / 2m + 1/2) - 1, m = max |tanh w| over the live edges of the layer;
- in training, what reaches the sums from behind is 2M·[q_G(clip(dr / 2M + 1/2 + n, 0, 1)) - 1/2],
  M = max |dr| of each sample, n uniform in ±1/2 / (2^G - 1), drawn anew.

32 bits leave values as they are. E and m are taken after every step, over the edges that acted in
it, and stay as they are in between: a forward pass is a function of what the network stores. No
gradient passes through them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.binary import BinaryWeights, pack_flags, unpack_flags
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp, Epilogue, Kernel, Seen, mask_weight
from wiring.graph.surrogates import exact_sum, sign, straight
from wiring.kernels.bitpack import bit_planes
from wiring.kernels.xnor_conv2d import bitplane_conv2d

Bits = Literal[1, 2, 3, 4, 5, 6, 7, 8, 32]
FULL = 32


class DorefaOptions(Config):
    """`weight_bits`, `activation_bits`, `gradient_bits`: W, A and G, each 1 to 8, or 32 for float.

    The default is the paper's row 1, 2, 32. Of gradients in few bits nothing is gained but noise
    unless the backward pass runs on bit planes too, which it does on no machine here; the paper's
    own choice for such a machine is 1, 2, 6.
    """

    weight_bits: Bits = 1
    activation_bits: Bits = 2
    gradient_bits: Bits = 32


def largest(bits: int) -> int:
    """2^bits - 1, the highest level."""
    return (1 << bits) - 1


class _Quantised(torch.autograd.Function):
    """q_k(clip(x, 0, 1)), straight through where x lies in 0..1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x)
        return levels_of(x, bits).div_(largest(bits))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where((x >= 0) & (x <= 1), grad, 0.0), None


class _QuantisedGradient(torch.autograd.Function):
    """y, whose gradient comes in k bits."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        levels = largest(ctx.bits)
        doubled = 2 * grad.abs().amax(dim=(1, 2, 3), keepdim=True)
        noise = (torch.rand_like(grad) - 0.5) / levels
        shifted = grad / torch.where(doubled > 0, doubled, 1.0) + 0.5 + noise
        return doubled * (levels_of(shifted, ctx.bits) / levels - 0.5), None


def levels_of(x: Tensor, bits: int) -> Tensor:
    """round((2^bits - 1)·clip(x, 0, 1)): whole numbers, a new tensor of x's type."""
    return x.detach().clamp(0, 1).mul_(largest(bits)).round_()


@EDGE_OPS.register("dorefa")
class Dorefa(EdgeOp):
    """Weights, inputs and gradients of as many bits each as asked for."""

    paper = "Zhou et al.: DoReFa-Net, 2016"
    use = (
        "Take it between xnor and dense: two bits of input cost twice the work of one and win back "
        "most of what signs lose. Its inputs are best left in 0..1 by a ReLU; where they lie "
        "around 0, xnor reads more of them."
    )
    Options: ClassVar[type[Config]] = DorefaOptions
    # Inputs are rounded, unless the options leave them as they are.
    sensitive: ClassVar[bool] = True
    extent: Tensor

    def make_parameters(self) -> None:
        """A weight for each edge, and E or m."""
        super().make_parameters()
        self.register_buffer("extent", torch.ones(()))
        if self.activation_bits == FULL:
            self.sensitive = False  # type: ignore[misc]

    def reset_parameters(self, fan_in: int) -> None:
        """Uniform in ±1/√(fan in), and their extent."""
        super().reset_parameters(fan_in)
        self._take_extent(torch.ones(self.shape, dtype=torch.bool))

    @property
    def weight_bits(self) -> int:
        """W."""
        return int(self.options.weight_bits)

    @property
    def activation_bits(self) -> int:
        """A."""
        return int(self.options.activation_bits)

    @property
    def input_bits(self) -> int:
        """A."""
        return self.activation_bits

    @torch.no_grad()
    def _take_extent(self, live: Tensor) -> None:
        """E or m of the live edges; as it was where none lives or all of them are 0."""
        weight = self.weight.detach()[live].double()
        if weight.any():
            one_bit = self.weight_bits == 1
            self.extent.copy_(weight.abs().mean() if one_bit else weight.tanh().abs().max())

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """Take over the weights, and their extent."""
        super().approximate(weight)
        self._take_extent(torch.ones(self.shape, dtype=torch.bool, device=weight.device))

    @torch.no_grad()
    def after_step(self, live: Tensor, learn: Tensor, lr: float = 0.0) -> None:
        """E or m anew."""
        self._take_extent(live)

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        steps = self.stride, self.padding
        bits, x = self.activation_bits, x.to(self.weight.dtype)
        if bits < FULL:
            x = _Quantised.apply(x, bits)
        weight = self.quantised(live, learn)
        if FULL in (bits, self.weight_bits):
            y = F.conv2d(x, weight, None, *steps)
        else:
            levels = levels_of(x, bits), self.whole_numbers(live)
            y = exact_sum(x, weight, levels, self.unit(), *steps)
        if self.training and self.options.gradient_bits < FULL:
            y = _QuantisedGradient.apply(y, self.options.gradient_bits)
        return y

    def quantised(self, live: Tensor, learn: Tensor) -> Tensor:
        """w̄ on live edges, 0 on dead ones, with its gradient; [D, S, kh, kw]."""
        weight, bits = self.weight, self.weight_bits
        if bits == FULL:
            return mask_weight(weight, live, learn)
        if bits == 1:
            return straight(weight, self.extent * sign(weight), live, learn)
        relative = torch.tanh(weight) / self.extent
        values = 2 * levels_of((relative + 1) / 2, bits) / largest(bits) - 1
        return straight(relative, values, live, learn)

    @torch.no_grad()
    def levels(self) -> Tensor:
        """The weights' levels 0..2^W - 1, whole numbers [D, S, kh, kw]."""
        if self.weight_bits == 1:
            return (self.weight >= 0).to(self.weight.dtype)
        return levels_of((torch.tanh(self.weight) / self.extent + 1) / 2, self.weight_bits)

    def whole_numbers(self, live: Tensor) -> Tensor:
        """w̄ as odd whole numbers from -(2^W - 1) to 2^W - 1, and 0 on dead edges."""
        return torch.where(live, 2 * self.levels() - largest(self.weight_bits), 0.0)

    def unit(self) -> Tensor:
        """What a sum of whole numbers of weights times levels of inputs stands for; one number."""
        if self.weight_bits == 1:
            return self.extent / largest(self.activation_bits)
        levels = largest(self.weight_bits) * largest(self.activation_bits)
        return torch.ones_like(self.extent) / levels

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """The weight quantised once; or all of it on bit planes, where both sides have few bits."""
        steps, bits = (self.stride, self.padding), self.activation_bits
        if FULL in (bits, self.weight_bits):
            weight = self.quantised(live, live)

            def quantised(x: Tensor) -> Tensor:
                x = x if bits == FULL else levels_of(x, bits).div_(largest(bits))
                return F.conv2d(x, weight, None, *steps)

            return {"conv": epilogue.after(quantised, fresh=True)}
        numbers, unit = self.whole_numbers(live), self.unit().clone()

        def whole(x: Tensor) -> Tensor:
            return F.conv2d(levels_of(x, bits), numbers, None, *steps).mul_(unit)

        return {
            "conv": epilogue.after(whole, fresh=True),
            "planes": epilogue.after(self._on_planes(live, unit), fresh=True),
        }

    def _on_planes(self, live: Tensor, unit: Tensor) -> Kernel:
        """Σ (2·l - n)·a = 2 Σ l·a - n Σ a over live edges, l and a unsigned levels, n = 2^W - 1."""
        steps = (self.stride, self.padding)
        bits, top = self.activation_bits, largest(self.weight_bits)
        levels = torch.where(live, self.levels(), 0.0).to(torch.uint8)
        weight = bit_planes(levels, self.weight_bits)
        # Where every edge lives, all rows subtract the same.
        masks = live[:1] if bool(live.all()) else live
        mask = bit_planes(masks.to(torch.uint8), 1)

        def kernel(x: Tensor) -> Tensor:
            planes = bit_planes(levels_of(x, bits).to(torch.uint8), bits)
            total: Tensor = bitplane_conv2d(planes, weight, *steps).mul_(2)
            total -= top * bitplane_conv2d(planes, mask, *steps)
            return total.to(torch.float32).mul_(unit)

        return kernel

    @torch.no_grad()
    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """`levels`: W bits of each live edge in order, highest first, uint8; with W = 1 also
        `extent`, E in float32. With W = 32 the float weights."""
        if self.weight_bits == FULL:
            return super().pack(live)
        levels = self.levels()[live].to(torch.int64)
        places = torch.arange(self.weight_bits - 1, -1, -1, device=levels.device)
        stored = {"levels": pack_flags(((levels[:, None] >> places) & 1).bool().flatten())}
        if self.weight_bits == 1:
            stored["extent"] = self.extent.to(torch.float32).repeat(min(1, len(levels)))
        return stored

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        if self.weight_bits == FULL:
            super().unpack(stored, live)
            return
        bits, edges = self.weight_bits, int(live.sum())
        flags = unpack_flags(stored["levels"], edges * bits).view(edges, bits)
        powers = torch.from_numpy(1 << np.arange(bits - 1, -1, -1)).to(flags.device)
        levels = (flags * powers).sum(dim=1).to(self.weight.dtype)
        self.weight.zero_()
        if bits == 1:
            if edges:
                self.extent.copy_(stored["extent"][0])
            self.weight[live] = self.extent * (2 * levels - 1)
            return
        # Half the range of tanh, so that the highest level is a finite weight.
        self.extent.fill_(0.5)
        self.weight[live] = torch.atanh(0.5 * (2 * levels / largest(bits) - 1))

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For E live edges in R rows at P positions, with few bits on both sides: E·P·W·A one-bit
        products, counted as XNORs (as in the paper, without the plane that makes the levels
        signed), and R·P multiplications, by the unit of the levels. With W = 1 alone E·P
        additions and R·P multiplications, with A = 1 alone E·P additions, else E·P of both. W·E
        bits, and 32 for the scale where W = 1."""
        edges, rows = int(live.sum()), BinaryWeights.rows(live)
        bits = (self.weight_bits, self.activation_bits)
        stored = edges * self.weight_bits
        if self.weight_bits == 1 and edges:
            stored += WEIGHT_BITS
        if FULL not in bits:
            products = edges * positions * bits[0] * bits[1]
            return Cost(multiplications=rows * positions, xnors=products, weight_bits=stored)
        if bits == (1, FULL):
            return Cost(rows * positions, edges * positions, weight_bits=stored)
        if bits == (FULL, 1):
            return Cost(additions=edges * positions, weight_bits=stored)
        return Cost(edges * positions, edges * positions, weight_bits=stored)
