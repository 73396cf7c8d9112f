"""First y_v = Σ_live tanh(w_uv) tanh(x_u), then y_v = Σ_live w̄_uv sign(x_u), w̄ in {-1, 0, +1}.

The second phase starts from the first one's weights (Kim and Smaragdis 2016): w̄ = sign(w) where
|w| >= β and 0 in the dead zone, β such that the share `sparsity` of the live edges lies in it. It
is taken anew after every step and stays as it is in between. The real weights learn on: what
reaches w̄ and sign(x) passes on as it would through tanh,
dw = ḡ·(1 - tanh² w), dx = g·(1 - tanh² x), dead zone or not.

The paper's tanh between layers is here at the inputs of the edges, for what stands between two
operators belongs to the network's nodes; binary biases are the nodes' too. Padding is 0, not a
sign: it adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from wiring.config import Config, Share
from wiring.cost import Cost
from wiring.graph.binary import norm_last, packed_weight
from wiring.graph.edges import EDGE_OPS, WEIGHT_BITS, Epilogue, Kernel, Seen, mask_weight
from wiring.graph.phases import Phase
from wiring.graph.staged import StagedOp, StageOptions
from wiring.graph.surrogates import exact_sum, sign, straight, tanh_sign
from wiring.graph.topology import Step
from wiring.kernels.xnor_conv2d import PreparedXnor

TRITS = 5  # ternary digits in a byte: 3^5 = 243


class BitwiseOptions(StageOptions):
    """`sparsity`: the share of a layer's live edges that end in the dead zone and weigh 0.

    `block_order`: `norm-last` normalises directly before the tanh or the sign; `as-is` keeps the
    space's order, in which ReLU often comes last and every sign is +1.
    """

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.3
    share: Share = 0.5
    lr: PositiveFloat = 1.0
    block_order: Literal["norm-last", "as-is"] = "norm-last"


@EDGE_OPS.register("bitwise")
class Bitwise(StagedOp):
    """Squashed real weights first, then -1, 0 or +1 on inputs of one bit."""

    paper = "Kim and Smaragdis: Bitwise Neural Networks, 2016"
    use = (
        "Take it where nothing but XNOR and counting may run and training has time for two "
        "phases: it starts from a real network and may leave weak edges out. bnn trains its bits "
        "from the first step."
    )
    Options: ClassVar[type[Config]] = BitwiseOptions
    sensitive: ClassVar[bool] = True
    # Sums grow with the square root of the number of edges, and nothing scales them down.
    needs_norm: ClassVar[bool] = True
    border: Tensor

    def make_parameters(self) -> None:
        """A weight for each edge, and β, which the first phase does not read."""
        super().make_parameters()
        self.register_buffer("border", torch.zeros(()))

    def phases(self) -> tuple[Phase, ...]:
        share = self.options.share
        return (Phase("real", 1 - share), Phase("bitwise", share, lr=self.options.lr))

    @property
    def input_bits(self) -> int:
        """32, and 1 in the second phase."""
        return 1 if self.stage else WEIGHT_BITS

    @torch.no_grad()
    def enter(self, stage: int, live: Tensor, seen: Seen | None = None) -> None:
        """Go over to ternary weights."""
        super().enter(stage, live, seen)
        self._take_border(live)

    @torch.no_grad()
    def after_step(self, live: Tensor, learn: Tensor, lr: float = 0.0) -> None:
        """β anew, in the second phase."""
        if self.stage:
            self._take_border(live)

    def _take_border(self, live: Tensor) -> None:
        """The magnitude below which the share `sparsity` of the live weights lies."""
        magnitudes = self.weight.detach()[live].abs().sort().values
        if len(magnitudes):
            self.border.copy_(magnitudes[int(self.options.sparsity * len(magnitudes))])

    @torch.no_grad()
    def ternary(self, live: Tensor) -> Tensor:
        """w̄ [D, S, kh, kw]: 0 in the dead zone and on dead edges."""
        return torch.where(live & (self.weight.abs() >= self.border), sign(self.weight), 0.0)

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        steps = self.stride, self.padding
        squashed = torch.tanh(self.weight)
        if self.stage == 0:
            weight = mask_weight(squashed, live, learn)
            return F.conv2d(torch.tanh(x.to(weight.dtype)), weight, None, *steps)
        weight = straight(squashed, self.ternary(live), live, learn)
        signs = tanh_sign(x).to(weight.dtype)
        levels = signs.detach(), weight.detach()
        return exact_sum(signs, weight, levels, None, *steps)

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """Signs of the inputs packed on the way; the weight squashed once in the first phase."""
        if self.stage:
            kernel = self._prepared(live, [live.shape[1]])
            return {"packed": epilogue.after(kernel, fresh=True)}
        weight = torch.where(live, torch.tanh(self.weight), 0.0)
        steps = self.stride, self.padding

        def squashed(x: Tensor) -> Tensor:
            return F.conv2d(torch.tanh(x), weight, None, *steps)

        return {"conv": epilogue.after(squashed, fresh=True)}

    def packed_candidates(
        self, live: Tensor, sizes: Sequence[int], epilogue: Epilogue
    ) -> dict[str, Kernel]:
        """Words in, in the second phase."""
        if not self.stage:
            return {}
        return {"packed words": epilogue.after(self._prepared(live, sizes).packed, fresh=True)}

    def _prepared(self, live: Tensor, sizes: Sequence[int]) -> PreparedXnor:
        """An edge of weight 0 is dead for the kernel."""
        words, mask, channels = packed_weight(self.weight, self.ternary(live) != 0, sizes)
        steps = {"stride": self.stride, "padding": self.padding}
        return PreparedXnor(words, mask, torch.ones(len(live)), channels, **steps)

    @classmethod
    def arrange(cls, steps: tuple[Step, ...], options: Any) -> tuple[Step, ...]:
        """`norm-last` or as the space has them."""
        return steps if options.block_order == "as-is" else norm_last(steps)

    @torch.no_grad()
    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """First the float weights; then `trits`: five live edges in a byte, in order, the first
        in the lowest digit of base 3, 0 for -1, 1 for 0 and 2 for +1."""
        if not self.stage:
            return super().pack(live)
        digits = (self.ternary(live)[live] + 1).to(torch.int64)
        rows = F.pad(digits, (0, -len(digits) % TRITS)).view(-1, TRITS)
        return {"trits": (rows * _powers(digits)).sum(dim=1).to(torch.uint8)}

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        self.stage = int("trits" in stored)
        if not self.stage:
            super().unpack(stored, live)
            return
        digits = stored["trits"].to(torch.int64)[:, None] // _powers(stored["trits"]) % 3
        values = digits.flatten()[: int(live.sum())] - 1
        self.border.fill_(0.5)
        self.weight.zero_()
        self.weight[live] = values.to(self.weight.dtype)

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For E live edges at P positions: first E·P multiplications and additions (tanh is not
        counted, no more than any activation) and 32·E bits; then E·P XNORs, edges of weight 0
        among them, and 8·⌈E/5⌉ bits."""
        edges = int(live.sum())
        products = edges * positions
        if not self.stage:
            return Cost(products, products, weight_bits=edges * WEIGHT_BITS)
        return Cost(xnors=products, weight_bits=8 * -(-edges // TRITS))


def _powers(like: Tensor) -> Tensor:
    """1, 3, 9, 27, 81."""
    return 3 ** torch.arange(TRITS, device=like.device)
