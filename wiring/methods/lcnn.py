"""W[o, :, r, c] = Σ_{t≤s} C[o, t, r, c]·D[I[o, t, r, c]]: each pixel of a filter is a sum of few
multiples of the rows of a dictionary D [k, S] that all destinations of a bundle share.

Trained as y = P̂ * (D * x): a 1×1 convolution with D, then a convolution with the sparse P̂
[O, k, kh, kw] that holds the coefficients: of the k entries of a real P at (o, r, c) the s largest,
where they reach ε, the others 0. Gradients go straight through both: dP = dP̂. λ‖P‖₁ is taken off
by proximal steps, P ← sign(P)·max(0, |P| - ηλ) (Bagherinezhad et al., CVPR 2017, section 3).

Looked up, the k products of D with a pixel are made once for all destinations; what is left is
s look-ups, products and sums a pixel of a filter.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.bitstream import BitReader, number_bits, pack_numbers
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, Epilogue, Kernel, one_at_a_time
from wiring.graph.pixels import pixels_read
from wiring.graph.sparse_coding import learn_dictionary
from wiring.graph.tied import TiedOp
from wiring.kernels.masked_conv2d import PreparedMasked


class LookupOptions(Config):
    """`dictionary`: k, its rows; no more are made than the filters of a bundle have pixels.
    `lookups`: s, the most rows that a pixel of a filter sums. `threshold`: ε, below which a
    coefficient counts as 0; coefficients begin with a mean square sum of 1 a pixel. `penalty`: λ
    of ‖P‖₁, taken off at the learning rate, so that it weighs less beside momentum."""

    dictionary: PositiveInt = 64
    lookups: PositiveInt = 3
    threshold: NonNegativeFloat = 0.01
    penalty: NonNegativeFloat = 1e-4


@EDGE_OPS.register("lcnn")
class LookupConvolution(TiedOp):
    """Filters that sum a few rows of a dictionary shared by the layer."""

    paper = "Bagherinezhad, Rastegari, Farhadi: LCNN: Lookup-based CNN, CVPR 2017"
    use = (
        "For layers with many destinations and kernels larger than 1x1, where a dictionary of far "
        "fewer rows than destinations saves both arithmetic and bits. For few destinations take "
        "low-rank."
    )
    Options: ClassVar[type[Config]] = LookupOptions

    def make_parameters(self) -> None:
        destinations, sources, height, width = self.shape
        self.rows = min(self.options.dictionary, destinations * height * width)
        self.lookups = min(self.options.lookups, self.rows)
        self.dictionary = nn.Parameter(torch.empty(self.rows, sources))
        self.coefficients = nn.Parameter(torch.empty(destinations, self.rows, height, width))

    @torch.no_grad()
    def reset_parameters(self, fan_in: int) -> None:
        """Normal coefficients whose s largest have a mean square sum of 1, so that the dictionary,
        uniform in ±1/√fan_in, hands its variance on to the weights."""
        nn.init.uniform_(self.dictionary, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        nn.init.normal_(self.coefficients)
        largest = self.coefficients.abs().topk(self.lookups, dim=1).values
        self.coefficients.div_(largest.square().sum(dim=1).mean().sqrt().clamp(min=1e-12))

    def used(self) -> Tensor:
        """Which coefficients count; bool [D, k, kh, kw], at most s along k."""
        size = self.coefficients.detach().abs()
        largest = torch.zeros_like(size, dtype=torch.bool)
        largest.scatter_(1, size.topk(self.lookups, dim=1).indices, True)
        return largest.logical_and_(size >= self.options.threshold).logical_and_(size > 0)

    def sparse(self) -> Tensor:
        """P̂ [D, k, kh, kw], whose gradient all of P receives."""
        kept = torch.where(self.used(), self.coefficients, 0.0)
        return self.coefficients + (kept - self.coefficients).detach()

    def expand(self) -> Tensor:
        return torch.einsum("okrc,ks->osrc", self.sparse(), self.dictionary)

    def whole(self, x: Tensor) -> Tensor:
        products = F.conv2d(x, self.dictionary.to(x.dtype)[:, :, None, None])
        return self.convolve(products, self.sparse())

    @torch.no_grad()
    def after_step(self, live: Tensor, learn: Tensor, lr: float = 0.0) -> None:
        """The proximal step of λ‖P‖₁."""
        limit = lr * self.options.penalty
        self.coefficients.sub_(self.coefficients.clamp(-limit, limit))

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: object = None) -> None:
        """A dictionary by orthogonal matching pursuit and least squares in turns; exact where
        the pixels of all filters lie on no more than k lines. Coefficients below ε times their
        root mean square sum are dropped."""
        destinations, sources, height, width = self.shape
        pixels = weight.permute(0, 2, 3, 1).reshape(-1, sources)
        atoms, codes = learn_dictionary(pixels, self.rows, self.lookups)
        scale = codes.square().sum(dim=1).mean().sqrt().clamp(min=1e-12)
        self.dictionary.copy_(atoms * scale)
        table = (codes / scale).view(destinations, height, width, self.rows)
        self.coefficients.copy_(table.permute(0, 3, 1, 2))

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """With the weight written out, or by look-ups: products with the dictionary, then a sum
        over the coefficients that are not 0."""
        forms = super().candidates(live, epilogue)
        if not self.is_whole(live):
            return forms
        dictionary = self.dictionary.detach().clone()[:, :, None, None]
        filters = epilogue.scaled(self.sparse().detach())
        steps = {"stride": self.stride, "padding": self.padding}
        look_up = PreparedMasked(
            filters, self.used(), shift=epilogue.shift, relu=epilogue.relu, **steps
        )

        def kernel(x: Tensor) -> Tensor:
            return look_up(F.conv2d(x, dictionary))

        return {**forms, "look-up": one_at_a_time(kernel)}

    def parameter_bits(self) -> int:
        """32·k·S of the dictionary, 32 + ⌈log2 k⌉ a coefficient that counts, and ⌈log2(s + 1)⌉ a
        pixel of a filter for how many those are."""
        destinations, _, height, width = self.shape
        entry = WEIGHT_BITS + number_bits(self.rows)
        pixels = destinations * height * width
        table = int(self.used().sum()) * entry + pixels * number_bits(self.lookups + 1)
        return WEIGHT_BITS * self.dictionary.numel() + table

    def whole_cost(self, positions: int) -> Cost:
        """k·S products and sums at each of the Q input pixels that are read; then, for each of the
        n coefficients that count, n ≤ s·O·kh·kw, a look-up, a product and a sum at each of P
        positions. Bits: 32·k·S + n·(32 + ⌈log2 k⌉) + O·kh·kw·⌈log2(s + 1)⌉. Where edges are dead,
        a multiplication and an addition per live edge and position."""
        kernel = (self.shape[2], self.shape[3])
        read = pixels_read(positions, kernel, self.stride, self.padding)
        lookups = int(self.used().sum()) * positions
        products = self.dictionary.numel() * read + lookups
        return Cost(products, products, lookups=lookups, weight_bits=self.parameter_bits())

    @torch.no_grad()
    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """`dictionary` and `coefficients` float32, and `places`, a stream of bits: how many rows
        each pixel (o, r, c) of a filter sums, then which, in the order of the coefficients."""
        if not live.any():
            return {}
        used = self.used().permute(0, 2, 3, 1)
        counts = (used.sum(dim=3), number_bits(self.lookups + 1))
        rows = (used.nonzero()[:, 3], number_bits(self.rows))
        values = self.coefficients.permute(0, 2, 3, 1)[used]
        return {
            "dictionary": self.dictionary.detach().to(torch.float32),
            "coefficients": values.to(torch.float32),
            "places": pack_numbers([counts, rows]).to(live.device),
        }

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        """Coefficients that did not count come back as 0."""
        if not stored:
            return
        destinations, _, height, width = self.shape
        stream, values = BitReader(stored["places"]), stored["coefficients"]
        counts = stream.take(destinations * height * width, number_bits(self.lookups + 1))
        rows = stream.take(len(values), number_bits(self.rows)).to(values.device)
        pixels = torch.arange(len(counts)).repeat_interleave(counts).to(values.device)
        table = values.new_zeros(len(counts), self.rows)
        table[pixels, rows] = values
        self.dictionary.copy_(stored["dictionary"])
        shaped = table.view(destinations, height, width, self.rows)
        self.coefficients.copy_(shaped.permute(0, 3, 1, 2))
