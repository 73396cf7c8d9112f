"""W[o, c] = Σ_i P[i, c]·Σ_k S[o, i, k]·Q[i, k]: channels are rotated, the kernels of each rotated
channel written in a few bases, and only the sparse S says which destination takes which.

J = P x is a 1×1 convolution, T_ik = Q_ik * J_i, with the kernel [kh, kw], belongs to one channel,
and y_o = Σ_ik S_oik T_ik. Training subtracts λ₁Σ|S| + λ₂Σ_ik ‖S_·ik‖₂ by proximal steps,

    S ← sign(S)·max(0, |S| - ηλ₁),  then  S_·ik ← S_·ik·max(0, 1 - ηλ₂/‖S_·ik‖₂),

and keeps ‖P_i‖₂ ≤ 1 and ‖Q_ik‖₂ ≤ 1, or else S could shrink for nothing (Liu, Wang, Foroosh,
Tappen, Pensky, CVPR 2015, eq. 3-8). A trained weight is taken over by two principal component
analyses: one of its channels gives P, one of each rotated channel's kernels gives Q_i.
"""

from __future__ import annotations

import math
from functools import partial
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
from wiring.graph.tied import TiedOp
from wiring.kernels.masked_conv2d import PreparedMasked


class SparseOptions(Config):
    """`bases`: kernels per rotated channel, all kh·kw of them where it is none or more. `entries`:
    λ₁, the penalty of each entry of S; `columns`: λ₂, that of what all destinations take of one
    basis. Both are taken off at the learning rate: beside momentum μ, whose steps are 1/(1 - μ)
    times as long, they weigh so much less."""

    bases: PositiveInt | None = None
    entries: NonNegativeFloat = 1e-4
    columns: NonNegativeFloat = 1e-4


@EDGE_OPS.register("sparse-cnn")
class SparseConvolution(TiedOp):
    """Rotated channels and few kernels for each, combined by a sparse matrix."""

    paper = "Liu, Wang, Foroosh, Tappen, Pensky: Sparse Convolutional Neural Networks, CVPR 2015"
    use = (
        "For trained layers with kernels larger than 1x1 and many more destinations than such a "
        "kernel has pixels, fine-tuned until over 90 % of S is 0. For 1x1 layers prune edges by a "
        "rule instead."
    )
    Options: ClassVar[type[Config]] = SparseOptions

    def make_parameters(self) -> None:
        destinations, sources, height, width = self.shape
        self.bases = min(self.options.bases or height * width, height * width)
        self.rotation = nn.Parameter(torch.empty(sources, sources))
        self.kernels = nn.Parameter(torch.empty(sources, self.bases, height, width))
        self.mixing = nn.Parameter(torch.empty(destinations, sources, self.bases))

    @torch.no_grad()
    def reset_parameters(self, fan_in: int) -> None:
        """Random orthonormal P and Q_i, and S uniform: with all kh·kw bases in ±1/√fan_in, as
        neither rotation changes a variance; wider by √(kh·kw/bases) with fewer."""
        nn.init.orthogonal_(self.rotation)
        pixels = self.shape[2] * self.shape[3]
        drawn = torch.randn(self.shape[1], pixels, self.bases, device=self.kernels.device)
        self.kernels.copy_(torch.linalg.qr(drawn).Q.mT.reshape(self.kernels.shape))
        bound = math.sqrt(pixels / (self.bases * fan_in))
        nn.init.uniform_(self.mixing, -bound, bound)

    def expand(self) -> Tensor:
        rotated = torch.einsum("oik,ikuv->oiuv", self.mixing, self.kernels)
        return torch.einsum("oiuv,ic->ocuv", rotated, self.rotation)

    def whole(self, x: Tensor) -> Tensor:
        rotation, kernels, mixing = (t.to(x.dtype) for t in self.parameters())
        rotated = F.conv2d(x, rotation[:, :, None, None])
        parts = self._parts(rotated, kernels.flatten(0, 1)[:, None], len(rotation))
        return F.conv2d(parts, mixing.flatten(1)[:, :, None, None])

    def _parts(self, rotated: Tensor, kernels: Tensor, groups: int) -> Tensor:
        return F.conv2d(rotated, kernels, groups=groups, stride=self.stride, padding=self.padding)

    @torch.no_grad()
    def after_step(self, live: Tensor, learn: Tensor, lr: float = 0.0) -> None:
        """The proximal steps of both penalties, and the projections of P and Q."""
        limit = lr * self.options.entries
        self.mixing.sub_(self.mixing.clamp(-limit, limit))
        norms = self.mixing.norm(dim=0, keepdim=True).clamp(min=1e-12)
        self.mixing.mul_((1 - lr * self.options.columns / norms).clamp(min=0))
        self.rotation.div_(self.rotation.norm(dim=1, keepdim=True).clamp(min=1))
        self.kernels.div_(self.kernels.norm(dim=(2, 3), keepdim=True).clamp(min=1))

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: object = None) -> None:
        """Principal components of the channels, then of each rotated channel's kernels; exact
        with all kh·kw bases."""
        destinations, sources, height, width = self.shape
        exact = weight.double()
        by_channel = exact.transpose(0, 1).reshape(sources, -1)
        # Columns of U are the principal directions of the channels, strongest first.
        rotation = torch.linalg.eigh(by_channel @ by_channel.T).eigenvectors.flip(1).T
        rotated = (rotation @ by_channel).view(sources, destinations, height * width)
        moments = rotated.mT @ rotated
        kernels = torch.linalg.eigh(moments).eigenvectors.flip(2)[:, :, : self.bases].mT
        self.rotation.copy_(rotation)
        self.kernels.copy_(kernels.reshape(self.kernels.shape))
        self.mixing.copy_((rotated @ kernels.mT).transpose(0, 1))

    @property
    def sparsity(self) -> float:
        """The share of S that is 0."""
        return float((self.mixing == 0).double().mean())

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """With the weight written out; or factored, over entries of S that are not 0."""
        forms = super().candidates(live, epilogue)
        taken = (self.mixing != 0).any(dim=0)
        channels = taken.any(dim=1)
        if not self.is_whole(live) or not taken.any():
            return forms
        rotation = self.rotation[channels][:, :, None, None]
        # Every channel that is left keeps as many bases, as groups of a convolution must.
        kernels = self.kernels[channels].flatten(0, 1)[:, None]
        mixing = self.mixing[:, channels].flatten(1)[:, :, None, None]
        sparse = PreparedMasked(
            epilogue.scaled(mixing).contiguous(),
            mixing != 0,
            stride=1,
            padding=0,
            shift=epilogue.shift,
            relu=epilogue.relu,
        )
        parts = partial(
            F.conv2d,
            weight=kernels,
            groups=len(rotation),
            stride=self.stride,
            padding=self.padding,
        )

        def kernel(x: Tensor) -> Tensor:
            return sparse(parts(F.conv2d(x, rotation)))

        return {**forms, "factored": one_at_a_time(kernel)}

    def _sizes(self) -> tuple[int, int, int]:
        """Rotated channels, bases and entries of S that are not 0."""
        taken = self.mixing.detach() != 0
        bases = taken.any(dim=0)
        return int(bases.any(dim=1).sum()), int(bases.sum()), int(taken.sum())

    def _listed(self, entries: int) -> bool:
        """Whether a list of places takes fewer bits than a bit for every entry of S."""
        size = self.mixing.numel()
        return entries * number_bits(size) < size

    def parameter_bits(self) -> int:
        """32 bits for each number of the rows of P and kernels of Q that S takes, and for each of
        S that is not 0; and where those are: a bit for every entry of S, or ⌈log2(O·S·q)⌉ for each
        that is not 0, whichever is less."""
        channels, bases, entries = self._sizes()
        pixels, size = self.shape[2] * self.shape[3], self.mixing.numel()
        places = entries * number_bits(size) if self._listed(entries) else size
        numbers = channels * self.shape[1] + bases * pixels + entries
        return WEIGHT_BITS * numbers + places

    def whole_cost(self, positions: int) -> Cost:
        """With c rotated channels and b bases that S takes, and n entries of S that are not 0:
        c·S products and sums at each of the R input pixels that are read, b·kh·kw + n at each of P
        positions. Bits: 32·(c·S + b·kh·kw + n), and min(O·S·q, n·⌈log2(O·S·q)⌉) for where the
        entries are. Where edges are dead, a multiplication and an addition per live edge and
        position."""
        kernel = (self.shape[2], self.shape[3])
        channels, bases, entries = self._sizes()
        read = pixels_read(positions, kernel, self.stride, self.padding)
        products = channels * self.shape[1] * read
        products += (bases * math.prod(kernel) + entries) * positions
        return Cost(products, products, weight_bits=self.parameter_bits())

    @torch.no_grad()
    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """`places`, a stream of bits; the `mixing` entries there; and the rows of `rotation` and
        the `kernels` that these take, all float32."""
        if not live.any():
            return {}
        taken = self.mixing != 0
        bases = taken.any(dim=0)
        flat = taken.flatten()
        if self._listed(int(flat.sum())):
            places = pack_numbers([(flat.nonzero(), number_bits(flat.numel()))])
        else:
            places = pack_numbers([(flat, 1)])
        stored = {
            "mixing": self.mixing[taken],
            "rotation": self.rotation[bases.any(dim=1)],
            "kernels": self.kernels[bases],
        }
        floats = {name: tensor.to(torch.float32) for name, tensor in stored.items()}
        return {"places": places.to(live.device), **floats}

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        """What S does not take comes back as 0."""
        if not stored:
            return
        values, size = stored["mixing"], self.mixing.numel()
        stream = BitReader(stored["places"])
        if self._listed(len(values)):
            places = stream.take(len(values), number_bits(size))
        else:
            places = stream.take(size, 1).nonzero().squeeze(1)
        flat = values.new_zeros(size)
        flat[places.to(values.device)] = values
        self.mixing.copy_(flat.view(self.mixing.shape))
        bases = (self.mixing != 0).any(dim=0)
        self.rotation.zero_()
        self.rotation[bases.any(dim=1)] = stored["rotation"].to(self.rotation.dtype)
        self.kernels.zero_()
        self.kernels[bases] = stored["kernels"].to(self.kernels.dtype)
