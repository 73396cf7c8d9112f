"""Operators whose edges share parameters: hashed, factored, structured, projected.

Their weight [D, S, kh, kw] is a function of fewer parameters. While all edges of a bundle live it
need not be written out; where some are dead, it is, and masked like any other.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.edges import WEIGHT_BITS, EdgeOp, Epilogue, Kernel, Seen, mask_weight


class TiedOp(EdgeOp):
    """Edges that share parameters. Subclasses say how `expand` makes weights of them.

    They are linear in their inputs. No edge can be cut out of the parameters, so compaction keeps
    all nodes of such a bundle, and what is stored are all parameters.
    """

    tied: ClassVar[bool] = True
    # Set by the graph where no edge of the bundle can ever die: then nothing must be looked up.
    always_whole: bool = False

    @abstractmethod
    def make_parameters(self) -> None:
        """Create the parameters and buffers of `self.shape` and `self.options`."""

    @abstractmethod
    def reset_parameters(self, fan_in: int) -> None:
        """Draw first parameters so that weights have variance 1 / (3 fan_in), that of PyTorch's
        own layers."""

    @abstractmethod
    def expand(self) -> Tensor:
        """The weights [D, S, kh, kw], differentiable in the parameters."""

    @abstractmethod
    def whole_cost(self, positions: int) -> Cost:
        """Cost with every edge alive, its weight_bits those of `pack`."""

    @abstractmethod
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """See EdgeOp: the parameters whose weights are nearest, or near, to `weight`."""

    def whole(self, x: Tensor) -> Tensor:
        """`forward` with every edge alive: override it where that is faster without `expand`."""
        return self.convolve(x, self.expand())

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """The ordinary convolution of x with a weight, at this bundle's stride and padding."""
        return F.conv2d(x, weight.to(x.dtype), stride=self.stride, padding=self.padding)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What the parameters stand for; [D, S, kh, kw]. Cannot be set."""
        return self.expand()

    def is_whole(self, live: Tensor) -> bool:
        """Whether every edge lives, as far as can be said without looking: a graph that is being
        compiled or exported must not depend on what the mask holds."""
        if self.always_whole or torch.compiler.is_compiling():
            return self.always_whole
        return bool(live.all())

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        if self.is_whole(live):
            return self.whole(x)
        return self.convolve(x, mask_weight(self.expand(), live, learn))

    def parameter_bits(self) -> int:
        """What `pack` stores: by default every parameter in float32."""
        return WEIGHT_BITS * sum(parameter.numel() for parameter in self.parameters())

    def cost(self, live: Tensor, positions: int) -> Cost:
        """`whole_cost` where every edge lives, an ordinary sparse convolution where some do not;
        the parameters are stored all the same."""
        edges = int(live.sum())
        if edges == 0:
            return Cost()
        if edges == live.numel() and live.shape == self.shape:
            return self.whole_cost(positions)
        products = edges * positions
        return Cost(products, products, weight_bits=self.parameter_bits())

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """As in training; or with the weight written out once."""
        weight = epilogue.scaled(torch.where(live, self.expand(), 0.0))
        steps = {"stride": self.stride, "padding": self.padding}
        convolve = partial(F.conv2d, weight=weight, bias=epilogue.shift, **steps)
        return {
            **super().candidates(live, epilogue),
            "expanded": Epilogue(relu=epilogue.relu).after(convolve, fresh=True),
        }

    def restrict(self, destinations: Tensor, sources: Tensor) -> dict[str, Tensor]:
        """Everything, for all nodes only. Raises WiringError for fewer."""
        if (len(destinations), len(sources)) != tuple(self.shape[:2]):
            raise WiringError(f"the edges of {type(self).__name__} cannot be cut to fewer nodes")
        return self.state_dict()

    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """Every parameter in float32, whichever edges live; nothing where none does."""
        if not live.any():
            return {}
        return {name: p.detach().to(torch.float32) for name, p in self.named_parameters()}

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        if stored:
            for name, parameter in self.named_parameters():
                parameter.copy_(stored[name])
