"""What operators share whose weights lie on a codebook after an ordinary training.

Stage 0 is the ordinary convolution: y_v = Σ_live w_uv x_u. When stage 1 begins, centroids are
fitted to the live weights; from then on w_uv is what a code looks up among them,

    y_v = Σ_live c[code_uv] x_u,    dc_j = Σ_{live, code_uv = j} dw_uv,

codes stay as they are, and the centroids train by the sum of the gradients of their cluster
(Han et al.: *Deep Compression*, ICLR 2016, section 3.3). After a step the weights follow.

A step along that sum moves every weight of a cluster of n by n times what its own gradient asks
for. By default it is divided by n: gradient descent on the weights, projected onto the codebook,
which keeps the rate of the first stage. With the plain sum LeNet-5 with 4 centroids a layer
diverged at a rate of 0.01.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from wiring.config import Config
from wiring.cost import Cost
from wiring.errors import ConfigError, WiringError
from wiring.graph.clustering import Init, nearest_number, number_centroids
from wiring.graph.edges import WEIGHT_BITS, Epilogue, Kernel, Seen, one_at_a_time
from wiring.graph.phases import Phase
from wiring.graph.staged import StagedOp, StageOptions
from wiring.kernels.masked_conv2d import PreparedMasked, masked_conv2d

Centroids = Annotated[int, Field(ge=2, le=1 << 16)]


class CodebookOptions(StageOptions):
    """`train_centroids`: whether centroids learn in the second stage, or stay as they were fitted.
    `gradient` that they learn by: the `mean` over the weights that share one, or the `sum`, as
    published, which wants smaller rates for larger clusters. `seed` is that of first centroids
    that are drawn."""

    train_centroids: bool = True
    gradient: Literal["mean", "sum"] = "mean"
    seed: NonNegativeInt = 0


class ScalarOptions(CodebookOptions):
    """`centroids`, or `bits` for 2^bits of them. `init` of k-means: centroids `linear` between the
    least and the greatest weight, at quantiles (`density`), or at weights drawn at `random`."""

    centroids: int | None = Field(default=None, ge=2, le=1 << 16)
    bits: int | None = Field(default=None, ge=1, le=16)
    init: Init = "linear"

    @model_validator(mode="after")
    def _one_count(self) -> Self:
        if self.centroids is not None and self.bits is not None:
            raise ConfigError(
                f"the number of centroids is given twice: {self.centroids}, and {self.bits} bits"
            )
        return self


def code_type(count: int) -> torch.dtype:
    """The smallest integers that number `count` centroids."""
    if count <= 1 << 8:
        return torch.uint8
    return torch.int16 if count <= 1 << 15 else torch.int32


class CodebookOp(StagedOp):
    """An ordinary convolution whose weights move onto a codebook in stage 1.

    Subclasses create the codebook, `fit` it, and `decode` weights from it.
    """

    Options: ClassVar[type[Config]] = CodebookOptions

    def make_parameters(self) -> None:
        super().make_parameters()
        self.make_codebook()

    @abstractmethod
    def make_codebook(self) -> None:
        """Create centroids (a parameter) and codes (a buffer), whose shapes never change."""

    @abstractmethod
    def fit(self, live: Tensor) -> None:
        """Set centroids and codes for the live weights; dead edges get some code too."""

    @abstractmethod
    def decode(self) -> Tensor:
        """The weights [D, S, kh, kw] of the codes, differentiable in the centroids."""

    @abstractmethod
    def codebook_cost(self, live: Tensor, positions: int) -> Cost:
        """`cost` in stage 1, where an edge lives."""

    @abstractmethod
    def pack_codebook(self, live: Tensor) -> dict[str, Tensor]:
        """`pack` in stage 1, where an edge lives."""

    @abstractmethod
    def unpack_codebook(self, stored: dict[str, Tensor], live: Tensor) -> None:
        """Inverse of `pack_codebook`: set centroids and codes."""

    @abstractmethod
    def holds_codebook(self, stored: dict[str, Tensor]) -> bool:
        """Whether this is what `pack_codebook` gives."""

    def phases(self) -> tuple[Phase, ...]:
        """The ordinary training, and the one on the codebook."""
        share = self.options.share
        return (Phase("train", 1 - share), Phase("shared", share, lr=self.options.lr))

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self.stage:
            weight, learn = self.decode(), live  # an edge that is dead belongs to no cluster
            weight = weight if self.options.train_centroids else weight.detach()
        y: Tensor = masked_conv2d(x, weight, live, learn, self.stride, self.padding)
        return y

    @torch.no_grad()
    def enter(self, stage: int, live: Tensor, seen: Seen | None = None) -> None:
        """Fit the codebook to the live weights, which then lie on it."""
        super().enter(stage, live, seen)
        if live.any():
            self.fit(live)
        self._follow(live)

    @torch.no_grad()
    def scale_gradient(self, learn: Tensor) -> None:
        """In stage 1, unless `gradient` is `sum`, divide by the number of weights that a number of
        the codebook stands for."""
        if not self.stage or self.options.gradient == "sum":
            return
        for name, numbers in self.named_parameters():
            if name != "weight" and numbers.grad is not None:
                with torch.enable_grad():
                    total = self.decode().where(learn, 0.0).sum()
                (count,) = torch.autograd.grad(total, numbers)
                numbers.grad.div_(count.clamp(min=1))

    @torch.no_grad()
    def after_step(self, live: Tensor, learn: Tensor, lr: float = 0.0) -> None:
        """In stage 1 the live weights follow their centroids."""
        if self.stage:
            self._follow(live)

    def _follow(self, live: Tensor) -> None:
        self.weight.copy_(torch.where(live, self.decode(), self.weight))

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """Take over the weights as they are, for an operator that is in stage 0 again."""
        self.stage = 0
        self.weight.copy_(weight)

    @torch.no_grad()
    def verify(self, live: Tensor) -> None:
        """Raises WiringError where, in stage 1, a live weight is no longer what its code says, but
        for what a change of its type rounds."""
        if not self.stage:
            return
        wanted = self.decode()
        rounding = 8 * torch.finfo(wanted.dtype).eps * wanted.abs().amax()
        off = int(((self.weight - wanted).abs() > rounding)[live].sum())
        if off:
            raise WiringError(
                f"{type(self).__name__} keeps weights on its codebook; {off} of "
                f"{int(live.sum())} live weights are off it"
            )

    @torch.no_grad()
    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """With the weights written out once: the live edges alone, or all of them masked, in both
        memory formats."""
        weight = self.decode() if self.stage else self.weight
        weight = epilogue.scaled(torch.where(live, weight, 0.0))
        shift, steps = epilogue.shift, {"stride": self.stride, "padding": self.padding}
        last = weight.contiguous(memory_format=torch.channels_last)
        convolve = partial(F.conv2d, bias=shift, **steps)
        relu = Epilogue(relu=epilogue.relu)
        sparse = PreparedMasked(weight, live, shift=shift, relu=epilogue.relu, **steps)
        return {
            "sparse": one_at_a_time(sparse),
            "conv": relu.after(partial(convolve, weight=weight), fresh=True),
            "conv channels_last": relu.after(partial(convolve, weight=last), fresh=True),
        }

    def cost(self, live: Tensor, positions: int) -> Cost:
        """In stage 0 that of an ordinary convolution, then `codebook_cost`."""
        edges = int(live.sum())
        if not edges:
            return Cost()
        if self.stage:
            return self.codebook_cost(live, positions)
        return written_out(edges, positions, edges * WEIGHT_BITS)

    @torch.no_grad()
    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """The live weights in float32, or, in stage 1, the codebook and codes; nothing where no
        edge lives."""
        if not live.any():
            return {}
        return self.pack_codebook(live) if self.stage else super().pack(live)

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        """Inverse of `pack`, in the stage that was stored."""
        self.stage = int(self.holds_codebook(stored))
        if not stored:
            self.weight.zero_()
        elif self.stage:
            self.unpack_codebook(stored, live)
            self.weight.copy_(torch.where(live, self.decode(), 0.0))
        else:
            super().unpack(stored, live)


def written_out(edges: int, positions: int, weight_bits: int) -> Cost:
    """A product and an addition per edge and position."""
    return Cost(edges * positions, edges * positions, weight_bits=weight_bits)


class ScalarCodebook(CodebookOp):
    """A codebook of numbers: k centroids for a layer, found by k-means over its live weights."""

    Options: ClassVar[type[Config]] = ScalarOptions
    codes: Tensor

    @property
    def count(self) -> int:
        """The number of centroids k."""
        chosen = self.options.centroids
        return chosen if chosen is not None else 1 << (self.options.bits or self.default_bits())

    def default_bits(self) -> int:
        """log2 of the number of centroids where the options do not say."""
        return 5

    def make_codebook(self) -> None:
        self.centroids = nn.Parameter(torch.zeros(self.count))
        codes: Any = torch.zeros(self.shape, dtype=code_type(self.count))
        self.register_buffer("codes", codes)

    def fit(self, live: Tensor) -> None:
        options = self.options
        values = self.weight.detach()
        found = number_centroids(values[live], self.count, init=options.init, seed=options.seed)
        self.centroids.copy_(found)
        self.codes.copy_(nearest_number(values, found))

    def decode(self) -> Tensor:
        return self.centroids.index_select(0, self.codes.flatten().int()).view(self.shape)

    def restrict(self, destinations: Tensor, sources: Tensor) -> dict[str, Tensor]:
        """Weights and codes of the nodes that stay, and every centroid."""
        state = self.state_dict()
        cut = {name: state[name][destinations][:, sources] for name in ("weight", "codes")}
        return {**state, **cut}
