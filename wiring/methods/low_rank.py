"""W ≈ A·B: a k×k convolution B to r channels, then a 1×1 convolution A to all destinations.

W is [D, n], n = S·kh·kw; A [D, r]; B [r, n]. y = A(B * x); dA = dW Bᵀ, dB = Aᵀ dW. It is smaller
than W where r < D·n / (D + n), and multiplies r·(D + n) times at a pixel instead of D·n times.

Trained factored from the beginning (Sainath et al. 2013), or taken from a trained W by its singular
vectors (Xue et al. 2013; Denton et al. 2014). On data, ‖W X − A B X̃‖² is least for
B = Uᵀ M, A = U, where M = W Q G⁻¹ is the free regression (G = X̃X̃ᵀ, Q = X X̃ᵀ) and U the r leading
left singular vectors of M G^½ (reduced-rank regression, Izenman 1975).

With binary factors A = diag(a) sign(A'), B = diag(b) sign(B'), a and b the mean magnitudes of rows,
whose gradients go straight through the signs as in XNOR-Net.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from wiring.config import Config, Share
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.binary import binary_weight, row_scale
from wiring.graph.bitstream import BitReader, pack_numbers
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, Epilogue, Kernel, Seen
from wiring.graph.ranks import largest_rank, one_size, second_moments
from wiring.graph.surrogates import sign
from wiring.graph.tied import TiedOp

DEFAULT_SHARE = 0.5
SWEEPS = 10


class LowRankOptions(Config):
    """How many channels lie between the two convolutions: one of the first three settings.

    `rank`: that many, in every layer alike; refused in a layer where it saves nothing.
    `parameters`: as many as this share of the dense layer's parameters pays for, at least one.
    0.5 where nothing is said. `energy`: as few as keep this share of the squared singular values
    of a trained weight, refused where that saves nothing; until there is a trained weight, as many
    as save something.

    `factors`: `float`, or `binary` for one bit a parameter and a scale a row. `fit`: whether a
    trained weight is approximated as it is (`weights`) or by what it makes of images (`data`).
    """

    rank: PositiveInt | None = None
    parameters: Share | None = None
    energy: Annotated[float, Field(gt=0, le=1)] | None = None
    factors: Literal["float", "binary"] = "float"
    fit: Literal["weights", "data"] = "weights"

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        return one_size(self, "rank", "parameters", "energy")

    @property
    def share(self) -> float:
        """Of the dense layer's parameters."""
        return DEFAULT_SHARE if self.parameters is None else self.parameters


@EDGE_OPS.register("low-rank")
class LowRank(TiedOp):
    """A product of two thin matrices: a convolution to few channels, then 1x1 to all."""

    paper = (
        "Sainath et al.: Low-rank Matrix Factorization for Deep Neural Network Training, ICASSP "
        "2013; Xue et al., Interspeech 2013; Denton et al., NIPS 2014"
    )
    use = (
        "The first thing to try on wide layers and classifiers, trained from scratch or taken from "
        "a trained network. Where kernels are 3x3 and larger, `separable` and `tensor-train` save "
        "more at the same error."
    )
    Options: ClassVar[type[Config]] = LowRankOptions
    left: nn.Parameter
    right: nn.Parameter

    @classmethod
    def looks_at_data(cls, options: Any) -> bool:
        return bool(options.fit == "data")

    def make_parameters(self) -> None:
        """A [D, r, 1, 1] and B [r, S, kh, kw]. Raises WiringError for a rank that saves nothing."""
        rows, columns = self._sides
        rank = self.options.rank
        if rank is not None:
            self._check_saves(rank, f"rank {rank}")
        elif self.options.energy is not None:
            rank = self._saving
            self._check_saves(max(rank, 1), "even rank 1")
        else:
            limit = self.options.share * rows * columns
            rank = largest_rank(lambda r: r * (rows + columns), limit, min(rows, columns))
        self.left = nn.Parameter(torch.empty(rows, rank, 1, 1))
        self.right = nn.Parameter(torch.empty(rank, *self.shape[1:]))

    @property
    def rank(self) -> int:
        """Channels between the two convolutions."""
        return len(self.right)

    @property
    def is_binary(self) -> bool:
        """Whether the factors are one bit a parameter."""
        return bool(self.options.factors == "binary")

    @property
    def _sides(self) -> tuple[int, int]:
        return self.shape[0], self.shape[1:].numel()

    @property
    def _saving(self) -> int:
        """The largest rank with fewer parameters than the weight, maybe 0."""
        rows, columns = self._sides
        return (rows * columns - 1) // (rows + columns)

    def _check_saves(self, rank: int, what: str) -> None:
        rows, columns = self._sides
        if rank > self._saving:
            raise WiringError(
                f"{what} saves nothing in a layer of {rows} x {columns}: {rank * (rows + columns)} "
                f"parameters instead of {rows * columns}; a rank below "
                f"{rows * columns / (rows + columns):.1f} does"
            )

    def reset_parameters(self, fan_in: int) -> None:
        """Both uniform, B as a layer of its own, A so that variances of weights are right."""
        # A sign times the mean magnitude has 3/4 of a uniform variable's variance.
        widen = 2 / 3**0.5 if self.is_binary else 1.0
        for factor, variance in ((self.left, 1 / self.rank), (self.right, 1 / (3 * fan_in))):
            bound = widen * (3 * variance) ** 0.5
            nn.init.uniform_(factor, -bound, bound)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [D, r, 1, 1] and B [r, S, kh, kw] as they act."""
        if not self.is_binary:
            return self.left, self.right
        every = [torch.ones_like(f, dtype=torch.bool) for f in (self.left, self.right)]
        left = binary_weight(self.left, every[0], every[0], "exact")
        return left, binary_weight(self.right, every[1], every[1], "exact")

    def expand(self) -> Tensor:
        left, right = self.factors()
        return (left.flatten(1) @ right.flatten(1)).view(self.shape)

    def whole(self, x: Tensor) -> Tensor:
        """Two convolutions, the first with this bundle's stride and padding."""
        left, right = self.factors()
        return F.conv2d(self.convolve(x, right), left.to(x.dtype))

    def parameter_bits(self) -> int:
        """32 a parameter; one, and 32 a row of either factor, where they are binary."""
        parameters = self.left.numel() + self.right.numel()
        if self.is_binary:
            return parameters + WEIGHT_BITS * (len(self.left) + len(self.right))
        return parameters * WEIGHT_BITS

    def whole_cost(self, positions: int) -> Cost:
        """r (D + n) multiplications and additions at each of P pixels. With binary factors as many
        additions, and r + D multiplications by scales."""
        rows, columns = self._sides
        additions = self.rank * (rows + columns) * positions
        products = (rows + self.rank) * positions if self.is_binary else additions
        return Cost(products, additions, weight_bits=self.parameter_bits())

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """Also the two convolutions with a norm behind them folded into the second."""
        found = super().candidates(live, epilogue)
        if not self.is_whole(live):
            return found
        left, right = (factor.detach().clone() for factor in self.factors())
        narrow = partial(F.conv2d, weight=right, stride=self.stride, padding=self.padding)
        widen = partial(F.conv2d, weight=epilogue.scaled(left), bias=epilogue.shift)
        relu = Epilogue(relu=epilogue.relu)
        return {**found, "factored": relu.after(lambda x: widen(narrow(x)), fresh=True)}

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """The nearest weight of this rank (Eckart and Young), or the one whose outputs on the
        images seen are nearest. Raises WiringError where `energy` needs a rank that saves nothing.
        """
        target = weight.flatten(1).double()
        if self.options.fit == "data":
            gram, cross = second_moments(self, seen)
            target = torch.linalg.solve(gram, cross.T @ target.T).T
            basis, spectrum, _ = torch.linalg.svd(
                target @ torch.linalg.cholesky(gram), full_matrices=False
            )
        else:
            basis, spectrum, _ = torch.linalg.svd(target, full_matrices=False)
        if self.options.energy is not None:
            kept = spectrum.square().cumsum(0)
            wanted = (self.options.energy - 1e-12) * kept[-1]
            rank = min(int((kept < wanted).sum()) + 1, len(spectrum))
            self._check_saves(rank, f"rank {rank}, due for energy {self.options.energy:g},")
            self._take_rank(rank)
        left = basis[:, : self.rank]
        right = left.T @ target
        # Factors of one size train alike; zero rows stay.
        size = right.norm(dim=1).sqrt()
        size = torch.where(size > 0, size, 1.0)
        left, right = left * size, right / size[:, None]
        if self.is_binary:
            left, right = _binarised(left, right)
        self.left.copy_(left.view_as(self.left))
        self.right.copy_(right.view_as(self.right))

    @torch.no_grad()
    def after_step(self, live: Tensor, learn: Tensor, lr: float = 0.0) -> None:
        """Binary factors stay within ±1, outside of which no gradient reaches their signs."""
        if self.is_binary:
            self.left.clamp_(-1, 1)
            self.right.clamp_(-1, 1)

    @torch.no_grad()
    def _take_rank(self, rank: int) -> None:
        """Make room for factors of another rank, where that is `energy`'s to say."""
        if rank == self.rank or self.options.energy is None:
            return
        # The parameters themselves stay: an optimiser may hold them.
        self.left.data = self.left.new_zeros(self.shape[0], rank, 1, 1)
        self.right.data = self.right.new_zeros(rank, *self.shape[1:])

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *rest: Any, **named: Any
    ) -> None:
        stored = state_dict.get(f"{prefix}right")
        if stored is not None:
            self._take_rank(len(stored))
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    @torch.no_grad()
    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """A and B in float32; where they are binary, `signs`: their bits, A's first, 1 for +, uint8
        [⌈r (D + n) / 8⌉], and `scales` float32 [D + r]."""
        if not self.is_binary or not live.any():
            return super().pack(live)
        factors = (self.left, self.right)
        scales = [row_scale(f, torch.ones_like(f, dtype=torch.bool)).flatten() for f in factors]
        return {
            "signs": pack_numbers([(factor >= 0, 1) for factor in factors]).to(live.device),
            "scales": torch.cat(scales).to(torch.float32),
        }

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        if not stored:
            return
        rows = self.shape[0]
        if not self.is_binary:
            self._take_rank(len(stored["right"]))
            super().unpack(stored, live)
            return
        self._take_rank(len(stored["scales"]) - rows)
        reader = BitReader(stored["signs"])
        parts = torch.split(stored["scales"], [rows, self.rank])
        for factor, scales in zip((self.left, self.right), parts, strict=True):
            bits = reader.take(factor.numel(), 1).view_as(factor).to(scales.device)
            factor.copy_(scales.view(-1, 1, 1, 1) * (2 * bits - 1))


def _binarised(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """diag(a) sign(left) and diag(b) sign(right), whose product is near left · right [m, n].

    a and b by least squares, each in turn for the other: the error never rises.
    """
    target = left @ right
    left_signs, right_signs = sign(left), sign(right)
    agreement = right_signs @ right_signs.T
    rows, columns = left.abs().mean(dim=1), right.abs().mean(dim=1)
    for _ in range(SWEEPS):
        scaled = rows[:, None] * left_signs
        normal = (scaled.T @ scaled) * agreement
        wanted = (scaled * (target @ right_signs.T)).sum(dim=0)
        columns = torch.linalg.pinv(normal, hermitian=True) @ wanted
        made = (left_signs * columns) @ right_signs
        rows = (target * made).sum(dim=1) / made.square().sum(dim=1).clamp(min=1e-300)
    return rows[:, None] * left_signs, columns[:, None] * right_signs
