"""First y_v = Σ_live w_uv x_u, then y_v = Σ_g α_vg Σ_live b_uv x_u: bits found by hashing.

When the second stage begins, bits and scales are sought that minimise, layer by layer and over
sampled patches, ‖Xᵀ W_v - Σ_g α_vg X̃_gᵀ b_vg‖², X read in the network in full precision, X̃ in
the one whose earlier layers are binary (Hu, Wang and Cheng: From Hashing to CNNs, AAAI 2018).
With C = X̃ X̃ᵀ and Q = X̃ Xᵀ W, from b = sign(W) and α = mean |W|, in turns
b_j ← sign(α (Q_j - α Σ_{k≠j} C_jk b_k)), bit by bit and as it was where that is 0, and
α ← bᵀQ / bᵀCb; with G groups of sources the G least-squares scales. No turn makes a filter worse
(`wiring/graph/binary_hashing.py`).

Then the network trains on. Real weights keep the bits: b·|w|, scaled within each group of a row
until their mean magnitude is the α that was found. From there on α_vg = mean |w| and b = sign(w),
with the `exact` gradient of `binary_gradient` in every group: bits may flip, and scales train
through the weights that they are means of.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from wiring.config import Config
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.binary import BinaryWeights, binary_weight, pack_flags, row_scale
from wiring.graph.binary_hashing import Hashed, hash_weights, moments, sampled_patches
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, EdgeOp, Epilogue, Kernel, Seen, one_at_a_time
from wiring.graph.phases import Phase
from wiring.graph.staged import StagedOp, StageOptions
from wiring.kernels.masked_conv2d import PreparedMasked, masked_conv2d

FLOOR = 1e-4  # of a group's mean magnitude: a weight of 0 could not keep its bit


class BwnhOptions(StageOptions):
    """`groups`: scales for each destination, G; the sources are split evenly, in order.

    `sweeps`: most turns through all bits; `patches`: most windows of the inputs that are looked
    at, drawn with `seed`.
    """

    groups: PositiveInt = 1
    sweeps: PositiveInt = 10
    patches: PositiveInt = 20_000
    seed: NonNegativeInt = 0


@EDGE_OPS.register("bwnh")
class BinaryWeightsByHashing(BinaryWeights, StagedOp):
    """Ordinary weights first, then one bit each, hashed to keep what the layer computes."""

    paper = "Hu, Wang and Cheng: From Hashing to CNNs (BWNH), AAAI 2018"
    use = (
        "Take it to binarise a trained network: it has bwn's bits and speed and a smaller error, "
        "at the price of looking at data. Where a network is trained from nothing, bwn spends all "
        "its steps on bits."
    )
    Options: ClassVar[type[Config]] = BwnhOptions
    needs_data: ClassVar[bool] = True
    bounds: Tensor

    def make_parameters(self) -> None:
        """A weight for each edge, and the first source of every group but the first."""
        super().make_parameters()
        groups, sources = self.options.groups, self.shape[1]
        firsts = [sources * group // groups for group in range(1, groups)]
        self.register_buffer("bounds", torch.tensor(firsts, dtype=torch.int64))

    def phases(self) -> tuple[Phase, ...]:
        share = self.options.share
        return (Phase("train", 1 - share), Phase("hashed", share, lr=self.options.lr))

    @torch.no_grad()
    def enter(self, stage: int, live: Tensor, seen: Seen | None = None) -> None:
        """Hash the live weights. Raises WiringError where there is no `seen`."""
        self._binarise(live, seen)
        super().enter(stage, live, seen)

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """Take over the weights, in the second stage hashed as if all edges lived."""
        self.weight.copy_(weight)
        if self.stage:
            self._binarise(torch.ones_like(self.weight, dtype=torch.bool), seen)

    def _binarise(self, live: Tensor, seen: Seen | None) -> None:
        if seen is None:
            raise WiringError("bwnh looks at what a layer reads: give it images")
        if not live.any():
            return
        hashed = self.hashed(live, seen)
        groups = self._groups()
        magnitude = self.weight.detach().abs().flatten(1).double()
        members, alive = F.one_hot(groups, self.options.groups).double(), live.flatten(1)
        counts = (alive.double() @ members).clamp(min=1)
        mean = ((magnitude * alive) @ members / counts)[:, groups]
        magnitude = torch.maximum(magnitude, FLOOR * mean).where(mean > 0, 1.0)
        mean = ((magnitude * alive) @ members / counts)[:, groups]
        found = hashed.bits * magnitude * (hashed.scales[:, groups] / mean.clamp(min=1e-300))
        kept = torch.where(alive, found.to(self.weight.dtype), self.weight.flatten(1))
        self.weight.copy_(kept.view(self.shape))

    @torch.no_grad()
    def hashed(self, live: Tensor, seen: Seen) -> Hashed:
        """What hashing finds for the present weights, as if they were in full precision."""
        options = self.options
        generator = torch.Generator().manual_seed(options.seed)
        weight = torch.where(live, self.weight.detach(), 0.0).flatten(1)
        kernel = (self.shape[2], self.shape[3])
        steps = self.stride, self.padding
        patches = sampled_patches(seen, kernel, *steps, options.patches, generator)
        found = moments(patches, weight)
        return hash_weights(weight, live.flatten(1), found, self._groups(), sweeps=options.sweeps)

    def _groups(self) -> Tensor:
        """int64 [S·kh·kw]: the group of each row of patches."""
        places = torch.arange(self.shape[1], device=self.bounds.device)
        groups = torch.bucketize(places, self.bounds, right=True)
        return groups.repeat_interleave(self.shape[2] * self.shape[3])

    def _parts(self, mask: Tensor) -> list[Tensor]:
        """The edges of a mask [D, S, kh, kw] that belong to each group."""
        if self.options.groups == 1:
            return [mask]
        groups = self._groups().view(self.shape[1:])
        return [mask & (groups == group) for group in range(self.options.groups)]

    def filters(self, live: Tensor, learn: Tensor) -> Tensor:
        """α·b [D, S, kh, kw], in the second stage, with its gradient."""
        first, *others = (
            binary_weight(self.weight, *masks, "exact")
            for masks in zip(self._parts(live), self._parts(learn), strict=True)
        )
        return sum(others, first)

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        y: Tensor
        if self.stage == 0:
            y = masked_conv2d(x, self.weight, live, learn, self.stride, self.padding)
            return y
        return F.conv2d(x, self.filters(live, learn), stride=self.stride, padding=self.padding)

    @torch.no_grad()
    def effective_weight(self, live: Tensor) -> Tensor:
        """What stage 1 convolves with; in stage 0 the weights themselves."""
        return self.filters(live, live) if self.stage else super().effective_weight(live)

    def after_step(self, live: Tensor, learn: Tensor, lr: float = 0.0) -> None:
        """Nothing: centring, as bwn does, would throw away the bits that were found."""

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """The weight written out once, or its live edges alone; with one group as bits too."""
        if self.stage and self.options.groups == 1:
            return self.signed_sums(live, epilogue)
        whole = self.filters(live, live) if self.stage else torch.where(live, self.weight, 0.0)
        weight, shift, relu = epilogue.scaled(whole), epilogue.shift, epilogue.relu
        steps = {"stride": self.stride, "padding": self.padding}
        convolve = partial(F.conv2d, weight=weight, bias=shift, **steps)
        sparse = PreparedMasked(weight, live, shift=shift, relu=relu, **steps)
        return {
            "conv": Epilogue(relu=relu).after(convolve, fresh=True),
            "sparse": one_at_a_time(sparse),
        }

    def restrict(self, destinations: Tensor, sources: Tensor) -> dict[str, Tensor]:
        """The weight on fewer nodes; groups keep the sources that are left of them."""
        left = [int((sources < bound).sum()) for bound in self.bounds.tolist()]
        state: dict[str, Any] = self.state_dict()
        state["weight"] = self.weight.detach()[destinations][:, sources]
        state["bounds"] = torch.tensor(left, dtype=torch.int64)
        return state

    @torch.no_grad()
    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """First the float weights; then `signs`, a bit for each live edge, `alpha` float32
        [rows with a live edge, G], and of several groups `bounds` int32 [G - 1]."""
        if self.stage == 0:
            return EdgeOp.pack(self, live)
        rows = live.flatten(1).any(dim=1)
        stored = {
            "signs": pack_flags(self.weight[live] >= 0),
            "alpha": self._scales(live)[rows].to(torch.float32),
        }
        if len(self.bounds) and live.any():
            stored["bounds"] = self.bounds.to(torch.int32)
        return stored

    def _scales(self, live: Tensor) -> Tensor:
        """α [D, G]."""
        parts = [row_scale(self.weight, part).flatten(1) for part in self._parts(live)]
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        self.stage = int("signs" in stored)
        if self.stage == 0:
            EdgeOp.unpack(self, stored, live)
            return
        if "bounds" in stored:
            self.bounds.copy_(stored["bounds"])
        alpha = stored["alpha"].new_zeros(len(live), self.options.groups)
        alpha[live.flatten(1).any(dim=1)] = stored["alpha"]
        whole = alpha[:, self._groups()].view(self.shape)
        self._take_signs(stored["signs"], live, whole[live])

    def weight_bits(self, live: Tensor) -> int:
        """One bit per live edge, G floats for each row with one, and the borders of the groups."""
        groups, edges = int(self.options.groups), int(live.sum())
        borders = WEIGHT_BITS * (groups - 1) if edges else 0
        return edges + WEIGHT_BITS * groups * self.rows(live) + borders

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For E live edges in R rows at P positions: first E·P multiplications and additions and
        32·E bits; then G·R·P multiplications, by the scales, and E·P additions; E + 32·G·R bits,
        and 32·(G - 1) for the borders of the groups."""
        edges = int(live.sum())
        if self.stage == 0:
            products = edges * positions
            return Cost(products, products, weight_bits=edges * WEIGHT_BITS)
        return Cost(
            multiplications=self.options.groups * self.rows(live) * positions,
            additions=edges * positions,
            weight_bits=self.weight_bits(live),
        )
