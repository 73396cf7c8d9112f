"""W_ds(y, x) ≈ Σ_k h_dk(x) v_ks(y): a kh×1 convolution v to K channels, then 1×kw ones h to all.

y = h * (v * x), dv and dh those of the two convolutions. For square kernels of side k and padding
that keeps an image's width it takes K·k·(S + D) multiplications a pixel instead of S·D·k².

From a trained W, scheme 2 of Jaderberg et al. 2014: the matrix [S·kh, D·kw] of entries W_ds(y, x)
has rank K exactly where such v and h exist, so the nearest are its leading singular vectors. On
data, ‖W X − M X̃‖² over such M: least squares for h with v fixed (in closed form, one problem for
all destinations), then for v with h fixed (conjugate gradients), in turn; it never rises.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, Epilogue, Kernel, Seen
from wiring.graph.ranks import largest_rank, one_size, second_moments
from wiring.graph.tied import TiedOp

DEFAULT_SHARE = 0.5
CONJUGATE_STEPS = 10


class SeparableOptions(Config):
    """How many channels lie between the two convolutions: `filters` of them, in every layer alike
    and at most as many as represent any weight; or as many as the share `parameters` of the dense
    layer's parameters pays for, at least one. 0.5 where nothing is said.

    `fit`: whether a trained weight is approximated as it is (`weights`) or by what it makes of
    images (`data`), in `sweeps` rounds.
    """

    filters: PositiveInt | None = None
    parameters: Annotated[float, Field(gt=0, le=1)] | None = None
    fit: Literal["weights", "data"] = "weights"
    sweeps: PositiveInt = 10

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        return one_size(self, "filters", "parameters")


@EDGE_OPS.register("separable")
class Separable(TiedOp):
    """Columns, then rows: a k×1 convolution to few channels, then 1×k to all."""

    paper = (
        "Jaderberg et al.: Speeding up Convolutional Neural Networks with Low Rank Expansions, "
        "BMVC 2014 (scheme 2)"
    )
    use = (
        "For kernels of 3x3 and larger, the more the larger they are; with fit = data where some "
        "images are at hand. With 1x1 kernels it is `low-rank`."
    )
    Options: ClassVar[type[Config]] = SeparableOptions
    vertical: nn.Parameter
    horizontal: nn.Parameter

    @classmethod
    def looks_at_data(cls, options: Any) -> bool:
        return bool(options.fit == "data")

    def make_parameters(self) -> None:
        """v [K, S, kh, 1] and h [D, K, 1, kw]."""
        destinations, sources, height, width = self.shape
        ends = sources * height, destinations * width
        if self.options.filters is not None:
            filters = min(self.options.filters, *ends)
        else:
            share = self.options.parameters or DEFAULT_SHARE
            limit = share * self.shape.numel()
            filters = largest_rank(lambda k: k * sum(ends), limit, min(ends))
        self.vertical = nn.Parameter(torch.empty(filters, sources, height, 1))
        self.horizontal = nn.Parameter(torch.empty(destinations, filters, 1, width))

    @property
    def filters(self) -> int:
        """K, the channels between the two convolutions."""
        return len(self.vertical)

    def reset_parameters(self, fan_in: int) -> None:
        """Both uniform, v as a layer of its own, h so that variances of weights are right."""
        for factor, variance in (
            (self.vertical, 1 / (3 * fan_in)),
            (self.horizontal, 1 / self.filters),
        ):
            bound = (3 * variance) ** 0.5
            nn.init.uniform_(factor, -bound, bound)

    def expand(self) -> Tensor:
        horizontal, vertical = self.horizontal[:, :, 0], self.vertical[..., 0]
        return torch.einsum("dkx,ksy->dsyx", horizontal, vertical)

    def whole(self, x: Tensor) -> Tensor:
        """Columns first, with the stride down the image; rows with the stride across it."""
        stride, padding = self._down
        columns = F.conv2d(x, self.vertical.to(x.dtype), stride=stride, padding=padding)
        stride, padding = self._across
        return F.conv2d(columns, self.horizontal.to(x.dtype), stride=stride, padding=padding)

    @property
    def _early(self) -> bool:
        """Whether columns can be skipped at once: rows of one pixel need no neighbours."""
        return self.shape[3] == 1

    @property
    def _down(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Stride and padding of the columns."""
        across = (self.stride, self.padding) if self._early else (1, 0)
        return (self.stride, across[0]), (self.padding, across[1])

    @property
    def _across(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Stride and padding of the rows."""
        return ((1, 1), (0, 0)) if self._early else ((1, self.stride), (0, self.padding))

    def whole_cost(self, positions: int) -> Cost:
        """K (stride · S · kh + D · kw) multiplications and additions at each of P pixels.

        Between the two, images are as high as the output and as wide as the input: `stride` times
        the output's width, as they are where padding is (kw - 1) / 2. With kw = 1 they are no wider
        than the output.
        """
        wider = 1 if self._early else self.stride
        products = wider * self.vertical.numel() + self.horizontal.numel()
        return Cost(products * positions, products * positions, weight_bits=self.parameter_bits())

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """Also the two convolutions with a norm behind them folded into the second."""
        found = super().candidates(live, epilogue)
        if not self.is_whole(live):
            return found
        vertical = self.vertical.detach().clone()
        horizontal = epilogue.scaled(self.horizontal.detach().clone())
        down, across = self._down, self._across
        columns = partial(F.conv2d, weight=vertical, stride=down[0], padding=down[1])
        steps = {"stride": across[0], "padding": across[1]}
        rows = partial(F.conv2d, weight=horizontal, bias=epilogue.shift, **steps)
        relu = Epilogue(relu=epilogue.relu)
        return {**found, "factored": relu.after(lambda x: rows(columns(x)), fresh=True)}

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """The nearest weight of this kind; or from there, the best on the images seen."""
        vertical, horizontal = self._nearest(weight.double())
        if self.options.fit == "data":
            gram, cross = second_moments(self, seen)
            fit = DataFit(gram, weight.flatten(1).double() @ cross, self.shape)
            for _ in range(self.options.sweeps):
                horizontal = fit.rows(vertical)
                vertical = fit.columns(vertical, horizontal)
            horizontal = fit.rows(vertical)
        # Factors of one size train alike; a filter that is 0 stays so.
        down = vertical.square().sum(dim=(1, 2)).sqrt()
        across = horizontal.square().sum(dim=(0, 2)).sqrt()
        size = torch.where((down > 0) & (across > 0), (across / down).sqrt(), 1.0)
        size = torch.where(size.isfinite(), size, 1.0)
        self.vertical.copy_((vertical * size[:, None, None])[..., None])
        self.horizontal.copy_((horizontal / size[:, None])[:, :, None])

    def _nearest(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(v [K, S, kh], h [D, K, kw]) by singular vectors."""
        destinations, sources, height, width = self.shape
        matrix = weight.permute(1, 2, 0, 3).reshape(sources * height, destinations * width)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        k = self.filters
        vertical = left[:, :k].T.reshape(k, sources, height)
        horizontal = (values[:k, None] * right[:k]).view(k, destinations, width)
        return vertical, horizontal.transpose(0, 1)


class DataFit:
    """½ tr(M G Mᵀ) − tr(M Cᵀ) over M_d(s, y, x) = Σ_k h_dk(x) v_ks(y), for one of v and h.

    gram G float64 [n, n], target C = W Q [D, n], n = S·kh·kw; the shape [D, S, kh, kw].
    """

    def __init__(self, gram: Tensor, target: Tensor, shape: torch.Size) -> None:
        self.gram, self.target, self.shape = gram, target, shape

    def value(self, vertical: Tensor, horizontal: Tensor) -> float:
        """The objective, up to a constant."""
        weight = self._weight(vertical, horizontal)
        return float(0.5 * (weight * (weight @ self.gram)).sum() - (weight * self.target).sum())

    def rows(self, vertical: Tensor) -> Tensor:
        """The best h [D, K, kw] for v [K, S, kh]."""
        width = self.shape[3]
        # Row (k, x) is what h_dk(x) multiplies: v_k in column x of the kernel, 0 elsewhere.
        across = torch.eye(width, dtype=vertical.dtype, device=vertical.device)
        design = torch.einsum("ksy,xz->kxsyz", vertical, across).reshape(-1, len(self.gram))
        normal = design @ self.gram @ design.T
        found: Tensor = self.target @ design.T @ torch.linalg.pinv(normal, hermitian=True)
        return found.view(self.shape[0], len(vertical), width)

    def columns(self, vertical: Tensor, horizontal: Tensor) -> Tensor:
        """A better v [K, S, kh] for h [D, K, kw], from the v given."""

        def adjoint(weight: Tensor) -> Tensor:
            return torch.einsum("dkx,dsyx->ksy", horizontal, weight.view(self.shape))

        def apply(direction: Tensor) -> Tensor:
            return adjoint(self._weight(direction, horizontal) @ self.gram)

        residual = adjoint(self.target) - apply(vertical)
        direction, size = residual, residual.square().sum()
        floor = 1e-24 * adjoint(self.target).square().sum()
        for _ in range(CONJUGATE_STEPS):
            if size <= floor:
                break
            image = apply(direction)
            length = size / (direction * image).sum()
            vertical = vertical + length * direction
            residual = residual - length * image
            before, size = size, residual.square().sum()
            direction = residual + (size / before) * direction
        return vertical

    def _weight(self, vertical: Tensor, horizontal: Tensor) -> Tensor:
        weight: Tensor = torch.einsum("dkx,ksy->dsyx", horizontal, vertical)
        return weight.reshape(self.shape[0], -1)
