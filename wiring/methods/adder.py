"""y_v = -Σ_live |w_uv - x_u|; dw = Σ dy_v (x_u - w_uv); dx_u = Σ_live dy_v clamp(w_uv - x_u, ±1).

Padding is a pixel of value 0 that counts: |w - 0|. The weights' step is normalised per layer,
dw ← η √k · dw / ‖dw‖₂ (Chen et al., CVPR 2020, eq. 4-13; η = 0.2 in the released code).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp
from wiring.kernels.adder_edges import adder_input_gradient, adder_sign_gradient, adder_sums

PATCH_ELEMENTS = 1 << 22
PATCH_PIXELS = 1 << 14


class AdderOptions(Config):
    """`weight_gradient`: `full` x - w, or `sign` of it; `input_gradient`: `clipped` to ±1, or
    `full`. `learning_rate`: `adaptive` scales the gradient to norm `eta`·√k, k the edges that
    learn; `increased` multiplies it by `increase`; `plain` leaves it."""

    weight_gradient: Literal["full", "sign"] = "full"
    input_gradient: Literal["clipped", "full"] = "clipped"
    learning_rate: Literal["adaptive", "increased", "plain"] = "adaptive"
    eta: PositiveFloat = 0.2
    increase: PositiveFloat = 100.0


class _Patches:
    """The windows of a batch as columns [S·kh·kw, pixels], a few images at a time."""

    def __init__(self, x: torch.Size, kernel: tuple[int, int], stride: int, padding: int) -> None:
        self.image, self.kernel, self.stride, self.padding = (x[2], x[3]), kernel, stride, padding
        self.height, self.width = (
            (side + 2 * padding - k) // stride + 1
            for side, k in zip(self.image, kernel, strict=True)
        )
        self.pointwise = kernel == (1, 1) and stride == 1 and padding == 0
        pixels = max(1, self.height * self.width)
        columns = x[1] * math.prod(kernel)
        self.images = max(1, min(PATCH_ELEMENTS // (columns * pixels), PATCH_PIXELS // pixels))

    def chunks(self, batch: int) -> Iterator[slice]:
        for start in range(0, batch, self.images):
            yield slice(start, start + self.images)

    def unfold(self, x: Tensor) -> Tensor:
        """[n, S, H, W] → [S·kh·kw, n·H'·W']."""
        if not self.pointwise:
            x = F.unfold(x, self.kernel, padding=self.padding, stride=self.stride)
        return _flatten(x)

    def fold(self, columns: Tensor) -> Tensor:
        """The sum of columns at the pixels they came from: the transpose of `unfold`."""
        if self.pointwise:
            return _image(columns, *self.image)
        windows = columns.view(len(columns), -1, self.height * self.width).transpose(0, 1)
        return F.fold(windows, self.image, self.kernel, padding=self.padding, stride=self.stride)


def _flatten(x: Tensor) -> Tensor:
    """[n, C, ...] → [C, pixels], a view of a channels_last x."""
    return x.flatten(2).transpose(0, 1).flatten(1)


def _image(flat: Tensor, height: int, width: int) -> Tensor:
    """[C, n·H·W] → channels_last [n, C, H, W]."""
    # The transposed copy of a matrix is several times faster than one of a 4-d tensor.
    last = flat.t().contiguous().view(-1, height, width, len(flat))
    return last.permute(0, 3, 1, 2)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _AdderSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        live: Tensor,
        learn: Tensor,
        patches: _Patches,
        options: AdderOptions,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, live, learn)
        ctx.patches, ctx.options = patches, options
        rows, mask = weight.flatten(1), live.flatten(1)
        sums = [
            adder_sums(patches.unfold(x[chunk]), rows, mask) for chunk in patches.chunks(len(x))
        ]
        return _join([_image(part, patches.height, patches.width) for part in sums])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, live, learn = ctx.saved_tensors
        rows, living, learning = (t.flatten(1) for t in (weight, live, learn))
        patches, options = ctx.patches, ctx.options
        to_x = []
        to_rows = torch.zeros_like(rows) if ctx.needs_input_grad[1] else None
        for chunk in patches.chunks(len(x)):
            columns = patches.unfold(x[chunk])
            g = _flatten(grad[chunk])
            if to_rows is not None:
                if options.weight_gradient == "full":
                    to_rows += g @ columns.t() - rows * g.sum(dim=1, keepdim=True)
                else:
                    to_rows += adder_sign_gradient(g, columns, rows, learning)
            if ctx.needs_input_grad[0]:
                if options.input_gradient == "clipped":
                    pull = adder_input_gradient(g, columns, rows, living)
                else:
                    mask = living.to(rows.dtype)
                    pull = (rows * mask).t() @ g - columns * (mask.t() @ g)
                to_x.append(patches.fold(pull))
        to_weight = None if to_rows is None else torch.where(learn, to_rows.view_as(weight), 0.0)
        return _join(to_x) if to_x else None, to_weight, None, None, None, None


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
        kernel = (self.weight.shape[2], self.weight.shape[3])
        patches = _Patches(x.shape, kernel, self.stride, self.padding)
        x = x.to(self.weight.dtype)
        result: Tensor = _AdderSum.apply(x, self.weight, live, learn, patches, self.options)
        return result

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
