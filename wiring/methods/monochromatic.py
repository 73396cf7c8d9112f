"""W_ds(p) = h_d(p) c_{k(d)}(s): each destination looks at one of K mixtures c_k of the sources.

y_d = h_d * (c_{k(d)} · x): a 1×1 convolution to K colours, then one kernel for each destination on
its colour; gradients are theirs. It has K·S + D·kh·kw parameters, and ⌈log₂ K⌉ bits for each
destination say which colour it looks at.

From a trained W, Denton et al. 2014, section 3.2, cluster the leading left singular vectors of the
matrices W_d [S, kh·kw]. Here that is where the clustering begins. Then each destination goes to the
colour that keeps most of it, ‖c_kᵀ W_d‖², and each colour becomes the leading eigenvector of
Σ W_d W_dᵀ over its destinations: Σ_d ‖W_d - c h_dᵀ‖² never rises.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.bitstream import BitReader, number_bits, pack_numbers
from wiring.graph.edges import EDGE_OPS, Seen
from wiring.graph.ranks import largest_rank, one_size
from wiring.graph.tied import TiedOp

DEFAULT_SHARE = 0.5
ROUNDS = 50


class MonochromaticOptions(Config):
    """K: `colours` in every layer alike, at most one for each destination; or as many as the share
    `parameters` of the dense layer's parameters pays for, at least 1. 0.5 where nothing is said."""

    colours: PositiveInt | None = None
    parameters: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        return one_size(self, "colours", "parameters")


@EDGE_OPS.register("monochromatic")
class Monochromatic(TiedOp):
    """Each destination filters one of a few mixtures of the sources."""

    paper = (
        "Denton et al.: Exploiting Linear Structure Within Convolutional Networks for Efficient "
        "Evaluation, NIPS 2014"
    )
    use = (
        "For first layers, whose filters of a photograph's three channels mostly look at one "
        "colour. Behind them, where filters join many channels, take `low-rank` or `bicluster`."
    )
    Options: ClassVar[type[Config]] = MonochromaticOptions
    colour: Tensor

    def make_parameters(self) -> None:
        """`mixtures` [K, S, 1, 1], `filters` [D, 1, kh, kw]; `colour` int64 [D], at first of
        neighbours."""
        destinations, sources, *kernel = self.shape
        colours = self.options.colours
        if colours is None:
            kernels = destinations * kernel[0] * kernel[1]
            limit = (self.options.parameters or DEFAULT_SHARE) * self.shape.numel()
            colours = largest_rank(lambda k: k * sources + kernels, limit, destinations)
        colours = min(colours, destinations)
        self.mixtures = nn.Parameter(torch.empty(colours, sources, 1, 1))
        self.filters = nn.Parameter(torch.empty(destinations, 1, *kernel))
        self.register_buffer("colour", torch.arange(destinations) * colours // destinations)

    def reset_parameters(self, fan_in: int) -> None:
        """Both uniform, of one variance."""
        bound = (3 * (1 / (3 * fan_in)) ** 0.5) ** 0.5
        nn.init.uniform_(self.mixtures, -bound, bound)
        nn.init.uniform_(self.filters, -bound, bound)

    def expand(self) -> Tensor:
        return self.mixtures[self.colour] * self.filters

    def whole(self, x: Tensor) -> Tensor:
        """The colours, then a kernel on each destination's own; with the stride at the first of
        the two that may take it."""
        mixtures, filters = self.mixtures.to(x.dtype), self.filters.to(x.dtype)
        strided = partial(F.conv2d, stride=self.stride, padding=self.padding)
        if self._early:
            return strided(x, mixtures).index_select(1, self.colour) * filters.view(1, -1, 1, 1)
        colours = F.conv2d(x, mixtures).index_select(1, self.colour)
        return strided(colours, filters, groups=len(filters))

    @property
    def _early(self) -> bool:
        return self.filters.shape[2:].numel() == 1

    def parameter_bits(self) -> int:
        """32 a parameter, ⌈log₂ K⌉ a destination."""
        return super().parameter_bits() + len(self.colour) * number_bits(len(self.mixtures))

    def whole_cost(self, positions: int) -> Cost:
        """stride²·K·S + D·kh·kw multiplications and additions at each of P pixels: colours are
        mixed at the input's, unless kernels are 1x1. 32 bits a parameter, ⌈log₂ K⌉ a destination.
        """
        wider = 1 if self._early else self.stride**2
        products = (wider * self.mixtures.numel() + self.filters.numel()) * positions
        return Cost(products, products, weight_bits=self.parameter_bits())

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """Colours by the alternation above, from singular vectors far apart."""
        matrices = weight.double().flatten(2)
        colours, found = _colours(matrices, len(self.mixtures))
        filters = torch.einsum("dsp,ds->dp", matrices, colours[found])
        # A colour and its filters of one size train alike.
        sums = filters.new_zeros(len(colours)).index_add_(0, found, filters.square().sum(dim=1))
        counts = torch.bincount(found, minlength=len(colours)).clamp(min=1)
        size = (sums / counts).pow(1 / 4)
        size = torch.where(size > 0, size, 1.0)
        self.mixtures.copy_((colours * size[:, None]).view_as(self.mixtures))
        self.filters.copy_((filters / size[found, None]).view_as(self.filters))
        self.colour.copy_(found)

    @torch.no_grad()
    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """Parameters in float32; `colour`: ⌈log₂ K⌉ bits a destination, uint8."""
        stored: dict[str, Any] = super().pack(live)
        bits = number_bits(len(self.mixtures))
        if stored and bits:
            stored["colour"] = pack_numbers([(self.colour, bits)]).to(live.device)
        return stored

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        super().unpack(stored, live)
        if "colour" in stored:
            bits = number_bits(len(self.mixtures))
            self.colour.copy_(BitReader(stored["colour"]).take(len(self.colour), bits))


def _colours(matrices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Unit vectors [K, S] and the one of each matrix [D, S, P], int64 [D]."""
    leading = torch.linalg.svd(matrices, full_matrices=False)[0][..., 0]
    energies = matrices.square().sum(dim=(1, 2))
    # Filters with much weight at a wide angle from every colour chosen so far.
    chosen = [int(energies.argmax())]
    while len(chosen) < count:
        kept = (leading @ leading[chosen].T).square().amax(dim=1)
        missed = energies * (1 - kept)
        missed[chosen] = -1
        chosen.append(int(missed.argmax()))
    colours = leading[chosen]
    found = torch.full((len(matrices),), -1, dtype=torch.long, device=matrices.device)
    for _ in range(ROUNDS):
        kept = torch.einsum("ks,dsp->dkp", colours, matrices).square().sum(dim=2)
        nearest = kept.argmax(dim=1)
        if torch.equal(nearest, found):
            break
        found = nearest
        for k in torch.unique(found).tolist():
            joined = matrices[found == k].transpose(0, 1).flatten(1)
            colours[k] = torch.linalg.eigh(joined @ joined.T)[1][:, -1]
    return colours, found
