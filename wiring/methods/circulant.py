"""y = R D x: D diagonal with fixed random signs, R circulant, R_ij = r_{(i - j) mod n}.

y = F⁻¹(F(r) ⊙ F(D x)); ∂r = F⁻¹(F(g) ⊙ conj F(D x)), ∂x = D F⁻¹(F(g) ⊙ conj F(r)) (Cheng, Yu,
Feris, Kumar, Choudhary, Chang: An Exploration of Parameter Redundancy in Deep Networks with
Circulant Projections, ICCV 2015). n = S·kh·kw is the window of an output pixel. Where there are
more destinations, ⌈D/n⌉ circulant blocks stand above one another; what is more than D is cut off.
"""

from __future__ import annotations

import math

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.edges import EDGE_OPS, Seen
from wiring.graph.structured import StructuredOp
from wiring.graph.transforms import check_float, fourier_cost


class CirculantOptions(Config):
    """`seed` draws the signs; they are not stored."""

    seed: NonNegativeInt = 0


@EDGE_OPS.register("circulant")
class Circulant(StructuredOp):
    """Weights of one circulant matrix behind fixed random signs, by Fourier transforms."""

    paper = (
        "Cheng et al.: An Exploration of Parameter Redundancy in Deep Networks with Circulant "
        "Projections, ICCV 2015"
    )
    use = (
        "Wide layers that are all connected, such as classifiers: n parameters instead of n², and "
        "a trained layer is taken over in closed form. Take acdc or fastfood for maps that one "
        "circulant cannot reach, dense where layers are narrow."
    )
    Options = CirculantOptions
    options: CirculantOptions
    signs: Tensor

    def make_parameters(self) -> None:
        n = self.window
        self.blocks = -(-self.shape[0] // n)
        self.r = nn.Parameter(torch.empty(self.blocks, n))
        generator = torch.Generator().manual_seed(self.options.seed)
        signs = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
        self.register_buffer("signs", signs, persistent=False)

    def reset_parameters(self, fan_in: int) -> None:
        nn.init.uniform_(self.r, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def transform(self, rows: Tensor) -> Tensor:
        check_float(rows)
        n = self.window
        seen = torch.fft.rfft(rows * self.signs)
        y: Tensor = torch.fft.irfft(seen.unsqueeze(-2) * torch.fft.rfft(self.r), n=n)
        return y.flatten(-2)[..., : self.shape[0]]

    def whole_cost(self, positions: int) -> Cost:
        """Per position 1 + ⌈D/n⌉ Fourier transforms of n = S·kh·kw values, n log₂ n
        multiplications and 3/2 n log₂ n additions each, and ⌈D/n⌉ (⌊n/2⌋ + 1) complex products
        of 4 multiplications and 2 additions. Signs cost nothing, and F(r) is computed once."""
        n, blocks = self.window, self.blocks
        products = blocks * (n // 2 + 1)
        each = fourier_cost(n).repeated(1 + blocks) + Cost(4 * products, 2 * products)
        return each.repeated(positions) + Cost(weight_bits=self.parameter_bits())

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """The nearest: r_k is the mean of W_ij sign_j over the wrapped diagonal i - j = k mod n,
        taken over the rows that a block has."""
        n, destinations = self.window, self.shape[0]
        signed = weight.reshape(destinations, n).to(self.r.dtype) * self.signs
        row = torch.arange(destinations, device=weight.device)
        column = torch.arange(n, device=weight.device)
        place = row[:, None] // n * n + (row[:, None] - column) % n
        sums = torch.zeros_like(self.r).flatten().index_add_(0, place.flatten(), signed.flatten())
        rows = torch.bincount(row // n, minlength=self.blocks)
        self.r.copy_(sums.view_as(self.r) / rows[:, None])
        self.state_residual(weight)
