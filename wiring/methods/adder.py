"""y_v = -Σ_live |w_uv - x_u|; dw = Σ dy_v (x_u - w_uv); dx_u = Σ_live dy_v clamp(w_uv - x_u, ±1).

Padding is a pixel of value 0 that counts: |w - 0|. The weights' step is normalised per layer,
dw ← η √k · dw / ‖dw‖₂ (Chen et al., CVPR 2020, eq. 4-13; η = 0.2 in the released code).
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
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp, Epilogue, Kernel
from wiring.kernels.l1_conv2d import PreparedL1, l1_conv2d, l1_input_gradient, l1_weight_gradient


class AdderOptions(Config):
    """`weight_gradient`: `full` x - w, or `sign` of it; `input_gradient`: `clipped` to ±1, or
    `full`. `learning_rate`: `adaptive` scales the gradient to norm `eta`·√k, k the edges that
    learn; `increased` multiplies it by `increase`; `plain` leaves it."""

    weight_gradient: Literal["full", "sign"] = "full"
    input_gradient: Literal["clipped", "full"] = "clipped"
    learning_rate: Literal["adaptive", "increased", "plain"] = "adaptive"
    eta: PositiveFloat = 0.2
    increase: PositiveFloat = 100.0


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


@EDGE_OPS.register("adder")
class Adder(EdgeOp):
    """Negative L1 distance instead of a product: additions only."""

    paper = "Chen et al.: AdderNet, CVPR 2020"
    Options: ClassVar[type[Config]] = AdderOptions
    # Sums lie around -n·√(2(Var x + Var w)/π): without a norm behind them training diverges.
    needs_norm: ClassVar[bool] = True

    def reset_parameters(self, fan_in: int) -> None:
        """Standard normal, as in the released code: a distance has no scale to preserve."""
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        steps = self.stride, self.padding
        result: Tensor = _AdderSum.apply(x, self.weight, live, learn, steps, self.options)
        return result

    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """The weights in the kernel's own layout."""
        kernel = PreparedL1(self.weight, live, stride=self.stride, padding=self.padding)
        return {"prepared": epilogue.after(kernel, fresh=True)}

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
        edges = int(live.sum())
        return Cost(additions=2 * edges * positions, weight_bits=edges * WEIGHT_BITS)
