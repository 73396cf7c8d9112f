"""Operators whose weight matrix is a product of diagonals and fast transforms.

They map the window of every output pixel, S·kh·kw values, to D values in O(n log n) operations and
with O(n) parameters. `transform` is all that a subclass computes: `whole` applies it to every
window, `expand` to the rows of the identity. Where a batch has more windows than the identity has
rows, the weight is written out and convolved: fewer transforms, and in training much faster.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.errors import WiringError
from wiring.graph.tied import TiedOp

FIT_STEPS = 100


class StructuredOp(TiedOp):
    """A TiedOp whose weights are a fast linear map of windows."""

    # ‖W - W(θ)‖ / ‖W‖ of the last `approximate`; None before.
    residual: float | None = None

    @property
    def window(self) -> int:
        """Values that an output pixel sees: S·kh·kw."""
        return math.prod(self.shape[1:])

    @abstractmethod
    def transform(self, rows: Tensor) -> Tensor:
        """[..., S·kh·kw] → [..., D], linear and differentiable, in the parameters' type."""

    def expand(self) -> Tensor:
        like = next(self.parameters())
        rows = torch.eye(self.window, dtype=like.dtype, device=like.device)
        return self.transform(rows).t().reshape(self.shape)

    def whole(self, x: Tensor) -> Tensor:
        windows = self._windows(x.to(next(self.parameters()).dtype))
        images, _, height, width = windows.shape[:4]
        if images * height * width > self.window:
            return self.convolve(x, self.expand())
        rows = windows.permute(0, 2, 3, 1, 4, 5).flatten(3)
        return self.transform(rows).permute(0, 3, 1, 2).to(x.dtype)

    def _windows(self, x: Tensor) -> Tensor:
        """A view of the window of every output pixel: [N, S, H', W', kh, kw]."""
        (kh, kw), p, stride = self.shape[2:], self.padding, self.stride
        height, width = x.shape[2] + 2 * p, x.shape[3] + 2 * p
        if height < kh or width < kw:
            raise WiringError(
                f"a kernel of {[kh, kw]} does not fit an image of {list(x.shape[2:])} with "
                f"padding {p}"
            )
        if p:
            x = F.pad(x, (p, p, p, p))
        return x.unfold(2, kh, stride).unfold(3, kw, stride)

    def state_residual(self, weight: Tensor) -> None:
        """Set `residual` for weights [D, S, kh, kw] that the parameters stand for by now."""
        size = torch.linalg.vector_norm(weight).item()
        rest = torch.linalg.vector_norm(weight - self.expand().detach().to(weight.dtype)).item()
        self.residual = rest / size if size else rest

    def fit(self, weight: Tensor, steps: int = FIT_STEPS) -> None:
        """Move the parameters towards the smallest ‖W - W(θ)‖² by at most `steps` steps of L-BFGS
        with a strong Wolfe line search, from where they are; sets `residual`.

        The same start gives the same parameters. A step takes a few times the memory of the
        weight padded to the transform's size.
        """
        parameters = list(self.parameters())
        before = [(p.requires_grad, p.grad) for p in parameters]
        weight = weight.detach().to(parameters[0].dtype)
        scale = weight.square().sum().clamp_min(torch.finfo(weight.dtype).tiny)
        optimizer = torch.optim.LBFGS(
            [p.requires_grad_() for p in parameters],
            max_iter=steps,
            max_eval=2 * steps,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            distance = (self.expand() - weight).square().sum() / scale
            torch.autograd.backward(distance)
            return distance

        with torch.enable_grad():
            optimizer.step(loss)  # type: ignore[no-untyped-call]
        for parameter, (needed, grad) in zip(parameters, before, strict=True):
            parameter.requires_grad_(needed)
            parameter.grad = grad
        self.state_residual(weight)
