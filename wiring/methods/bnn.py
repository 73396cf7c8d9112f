"""y_v = Σ_live sign(w_uv) sign(x_u); dx = g·1[|x| < 1] (hardtanh), g the gradient of sign(x).

The gradient of sign(w) goes straight to w, which is clipped to ±1 after every step (Courbariaux
et al. 2016, algorithm 1), and is scaled by 1/√(1.5/(fan in + fan out)) as in the released code.
There is no α: the norm behind takes its place. Padding is 0, not a sign: it adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from wiring.config import Config
from wiring.cost import Cost
from wiring.graph.binary import UnitOptions, UnitWeights, norm_last
from wiring.graph.edges import EDGE_OPS, Epilogue, Kernel
from wiring.graph.surrogates import clipped_sign, exact_sum, sign, straight
from wiring.graph.topology import Step


class BnnOptions(UnitOptions):
    """`block_order`: `norm-last` normalises directly before the sign; `as-is` keeps the space's
    order, in which ReLU often comes last and every sign is +1."""

    block_order: Literal["norm-last", "as-is"] = "norm-last"


@EDGE_OPS.register("bnn")
class BinaryNet(UnitWeights):
    """Weights and inputs of one bit each and no scale: XNOR and count alone."""

    paper = "Courbariaux et al.: Binarized Neural Networks (BinaryNet), 2016"
    use = (
        "Take it where nothing but XNOR and counting may run: no product and no scale is left. "
        "xnor has a scale for each destination and is easier to train where no norm may follow."
    )
    Options: ClassVar[type[Config]] = BnnOptions
    sensitive: ClassVar[bool] = True

    @property
    def input_bits(self) -> int:
        """1: nothing but the sign is read."""
        return 1

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        weight = straight(self.weight, sign(self.weight), live, learn)
        signs = clipped_sign(x).to(weight.dtype)
        levels = signs.detach(), weight.detach()
        return exact_sum(signs, weight, levels, None, self.stride, self.padding)

    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """Signs of the inputs packed on the way."""
        kernel = self.prepared(live, [live.shape[1]])
        return {"packed": epilogue.after(kernel, fresh=True)}

    def packed_candidates(
        self, live: Tensor, sizes: Sequence[int], epilogue: Epilogue
    ) -> dict[str, Kernel]:
        """Words in."""
        return {"packed words": epilogue.after(self.prepared(live, sizes).packed, fresh=True)}

    @classmethod
    def arrange(cls, steps: tuple[Step, ...], options: Any) -> tuple[Step, ...]:
        """`norm-last` or as the space has them."""
        return steps if options.block_order == "as-is" else norm_last(steps)

    def cost(self, live: Tensor, positions: int) -> Cost:
        """For E live edges at P positions: E·P XNORs; E bits."""
        return Cost(xnors=int(live.sum()) * positions, weight_bits=self.weight_bits(live))
