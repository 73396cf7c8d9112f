"""y_v = -Σ_live |w_uv - x_u|; dw = Σ dy_v (x_u - w_uv); dx_u = Σ_live dy_v clamp(w_uv - x_u, ±1).

Padding is a pixel of value 0 that counts: |w - 0|. With `precision` uint8, for inference, x and w
are bytes on one grid of 256 levels: a distance needs a common scale. A weight outside the grid
costs nothing: |w - x| = |w - w'| + |w' - x| for its nearest level w', and the first is a constant
of the output (wiring/quantize.py).

The weights' step is normalised per layer, dw ← η √k · dw / ‖dw‖₂ (Chen et al., CVPR 2020, eq. 4-13;
η = 0.2 in the released code). The paper's ablations are options: the gradient sign(x - w) in place
of x - w, and a rate that is merely increased. Of n zero-mean Gaussian summands E y =
-n √(2(Var x + Var w)/π) and Var y = (1 - 2/π) n (Var x + Var w): a norm must follow.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wiring.config import Config
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp, Epilogue, Kernel, Seen
from wiring.kernels.l1_conv2d import (
    PreparedL1,
    PreparedL1Uint8,
    l1_conv2d,
    l1_conv2d_uint8,
    l1_input_gradient,
    l1_weight_gradient,
)

LEVELS = 255


class AdderOptions(Config):
    """`weight_gradient`: `full` x - w, or `sign` of it; `input_gradient`: `clipped` to ±1, or
    `full`. `learning_rate`: `adaptive` scales the gradient to norm `eta`·√k, k the edges that
    learn; `increased` multiplies it by `increase`; `plain` leaves it. `precision` uint8 does not
    train: `wiring.quantize` makes it of a trained network."""

    weight_gradient: Literal["full", "sign"] = "full"
    input_gradient: Literal["clipped", "full"] = "clipped"
    learning_rate: Literal["adaptive", "increased", "plain"] = "adaptive"
    eta: PositiveFloat = 0.2
    increase: PositiveFloat = 100.0
    precision: Literal["float32", "uint8"] = "float32"


class _AdderSum(torch.autograd.Function):
    """The distances of `l1_conv2d` with AdderNet's gradients in place of the exact ones."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        live: Tensor,
        learn: Tensor,
        steps: tuple[int, int],
        options: AdderOptions,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, live, learn)
        ctx.steps, ctx.options = steps, options
        y: Tensor = l1_conv2d(x, weight, live, *steps)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, live, learn = ctx.saved_tensors
        modes = ctx.options.input_gradient, ctx.options.weight_gradient
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = l1_input_gradient(grad, x, weight, live, *ctx.steps, modes[0])
        if ctx.needs_input_grad[1]:
            to_weight = l1_weight_gradient(grad, x, weight, learn, *ctx.steps, modes[1])
        return to_x, to_weight, None, None, None, None


def _levels(values: Tensor, grid: Tensor) -> Tensor:
    """Values as bytes on a grid (value of one level, level of 0)."""
    step, zero = grid.unbind()
    return (values / step + zero).round_().clamp_(0, LEVELS).to(torch.uint8)


def _values(sums: Tensor, grid: Tensor, offset: Tensor) -> Tensor:
    """Sums of levels int32 [N, D, H', W'] as outputs."""
    return torch.addcmul(offset.view(1, -1, 1, 1), sums, grid[0])


@EDGE_OPS.register("adder")
class Adder(EdgeOp):
    """Negative L1 distance instead of a product: additions only."""

    paper = (
        "Chen, Wang, Xu, Shi, Xu, Tian, Xu: AdderNet: Do We Really Need Multiplications in Deep "
        "Learning?, CVPR 2020"
    )
    use = (
        "Where a multiplication costs more than two additions: twice the additions and no product, "
        "near to a convolution's accuracy when trained so from the start, first and last layer "
        "apart. Trained products cannot be taken over; for those, and for fewer bits, take bwn."
    )
    Options: ClassVar[type[Config]] = AdderOptions
    # Sums lie around -n·√(2(Var x + Var w)/π): without a norm behind them training diverges.
    needs_norm: ClassVar[bool] = True
    grid: Tensor
    offset: Tensor

    def reset_parameters(self, fan_in: int) -> None:
        """Standard normal, as in the released code: a distance has no scale to preserve."""
        nn.init.normal_(self.weight)

    def __init__(self, *sizes: int, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        if self.in_bytes:
            # (value of one level, level of 0), and what is added to every output.
            self.register_buffer("grid", torch.tensor([1.0, 0.0]))
            self.register_buffer("offset", torch.zeros(len(self.weight)))
            self.sensitive = True  # type: ignore[misc]

    @property
    def in_bytes(self) -> bool:
        """Whether x and w are rounded to bytes."""
        return bool(self.options.precision == "uint8")

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        steps = self.stride, self.padding
        if self.in_bytes:
            if self.training:
                raise WiringError("adders of precision uint8 do not train; call eval() first")
            zero = int(self.grid[1])
            sums = l1_conv2d_uint8(self.levels(x), self.levels(self.weight), live, zero, *steps)
            return _values(sums, self.grid, self.offset)
        x = x.to(self.weight.dtype)
        result: Tensor = _AdderSum.apply(x, self.weight, live, learn, steps, self.options)
        return result

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """Copies the weights, from which training may start: no distance stands for a product.
        Raises WiringError in bytes, whose grid comes from a trained adder (`quantise`)."""
        if self.in_bytes:
            raise WiringError("adders of precision uint8 are made of trained ones: quantise those")
        super().approximate(weight, seen)

    def levels(self, values: Tensor) -> Tensor:
        """Values as bytes, the nearest level of each."""
        return _levels(values.detach(), self.grid)

    @torch.no_grad()
    def quantise(self, weight: Tensor, live: Tensor, low: float, high: float) -> None:
        """Take over float weights, on a grid from `low` to `high`, 0 among its levels."""
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / LEVELS or 1.0
        zero = round(-low / step)
        self.grid.copy_(torch.tensor([step, zero]))
        inside = weight.clamp(-zero * step, (LEVELS - zero) * step)
        beyond = (weight - inside).abs().where(live, 0)
        self.offset.copy_(-beyond.sum(dim=(1, 2, 3)))
        self._take_levels(self.levels(inside))

    def _take_levels(self, levels: Tensor) -> None:
        self.weight.data.copy_((levels.float() - self.grid[1]) * self.grid[0])

    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """Weights in the kernel's layout."""
        steps = {"stride": self.stride, "padding": self.padding}
        if not self.in_bytes:
            return {"prepared": epilogue.after(PreparedL1(self.weight, live, **steps), fresh=True)}
        zero = int(self.grid[1])
        distances = PreparedL1Uint8(self.levels(self.weight), live, zero, **steps)
        grid, offset = self.grid.clone(), self.offset.clone()

        def kernel(x: Tensor) -> Tensor:
            return _values(distances(_levels(x, grid)), grid, offset)

        return {"prepared": epilogue.after(kernel, fresh=True)}

    def restrict(self, destinations: Tensor, sources: Tensor) -> dict[str, Tensor]:
        restricted = {"weight": self.weight[destinations][:, sources]}
        if self.in_bytes:
            restricted |= {"grid": self.grid, "offset": self.offset[destinations]}
        return restricted

    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """The weights of live edges, as bytes where that is the precision."""
        if not self.in_bytes:
            return super().pack(live)
        if not live.any():
            return {}
        weight = self.levels(self.weight)[live]
        return {"weight": weight, "grid": self.grid, "offset": self.offset}

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        if not self.in_bytes:
            super().unpack(stored, live)
            return
        if not stored:  # no edge lives: outputs are 0
            self.offset.zero_()
            return
        self.grid.copy_(stored["grid"])
        self.offset.copy_(stored["offset"])
        levels = torch.full(self.weight.shape, int(self.grid[1]), dtype=torch.uint8)
        levels[live] = stored["weight"]
        self._take_levels(levels)

    @torch.no_grad()
    def scale_gradient(self, learn: Tensor) -> None:
        """AdderNet's adaptive rate, once per optimiser step: accumulated gradients stay right."""
        grad = self.weight.grad
        if grad is None or self.options.learning_rate == "plain":
            return
        if self.options.learning_rate == "increased":
            grad.mul_(self.options.increase)
            return
        edges = int(learn.sum())
        grad.mul_(self.options.eta * math.sqrt(edges) / grad.norm().clamp(min=1e-12))

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For E live edges at P positions: 2·E·P additions and no multiplication; 32·E bits, or
        in bytes 8·E and a float32 per destination and two of the grid. What bytes take to convert
        inputs and outputs is not counted."""
        edges = int(live.sum())
        bits = edges * WEIGHT_BITS
        if self.in_bytes and edges:
            bits = edges * 8 + (len(live) + len(self.grid)) * WEIGHT_BITS
        return Cost(additions=2 * edges * positions, weight_bits=bits)
