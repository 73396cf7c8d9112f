"""The plug-in protocol of edge operators: how an edge computes.

Operators and rules (`rules.py`) compose freely: every rule ranks every operator's `scores`, every
operator obeys the two masks it is handed. *Live* edges act in the forward pass; *learn* edges
receive the weight gradient. `learn` contains `live`, and is larger where a rule learns dead edges
(DNW).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wiring.config import Config, NoOptions, parse
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.phases import Phase
from wiring.graph.topology import Step
from wiring.registry import Registry

WEIGHT_BITS = 32
Kernel = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Epilogue:
    """What a compiled bundle does with its sums y [N, D, H', W']: relu(y · scale + shift).

    scale, shift float32 [D]; None and False leave a part out.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    relu: bool = False

    def __bool__(self) -> bool:
        return self.relu or self.scale is not None or self.shift is not None

    def scaled(self, weight: Tensor) -> Tensor:
        """Rows [D, ...] with the scale taken in, for operators that are linear in them."""
        if self.scale is None:
            return weight
        return weight * self.scale.view(-1, *[1] * (weight.dim() - 1))

    def unscaled(self) -> Epilogue:
        """The rest of it."""
        return Epilogue(None, self.shift, self.relu)

    def after(self, run: Kernel, *, fresh: bool = False) -> Kernel:
        """`run` and then this; for kernels that cannot take it in.

        `fresh` promises that `run` returns memory of nobody else's, which may be overwritten.
        """
        if not self:
            return run
        scale, shift = (t if t is None else t.view(1, -1, 1, 1) for t in (self.scale, self.shift))
        relu = self.relu

        def kernel(x: Tensor) -> Tensor:
            y, new = run(x), fresh
            if scale is not None:
                y, new = (y.mul_(scale) if new else y * scale), True
            if shift is not None:
                y, new = (y.add_(shift) if new else y + shift), True
            if relu:
                y = y.relu_() if new else torch.relu(y)
            return y

        return kernel


def one_at_a_time(kernel: Kernel) -> Kernel:
    """For kernels that keep something of the images' size: threads wait for one another."""
    lock = Lock()

    def call(x: Tensor) -> Tensor:
        with lock:
            return kernel(x)

    return call


@dataclass(frozen=True)
class Seen:
    """What a layer reads, on the images of a calibration set; both float32 [N, S, H, W].

    `full` in the network as it was, `here` in the network whose earlier layers have changed.
    """

    full: Tensor
    here: Tensor


class EdgeOp(nn.Module, ABC):
    """How the edges of one bundle compute. Subclasses hold `self.weight` [D, S, kh, kw].

    A dead edge contributes exactly 0 whatever its weight, so every operator applies `live`
    itself: |x - 0| is not 0, sign(0) is +1, and a scale averages live edges only.

    Operators whose edges share parameters derive from `TiedOp` (`tied.py`), those that train in
    stages from `StagedOp` (`staged.py`).
    """

    paper: ClassVar[str] = ""
    # One or two sentences: when to take this method, and when another.
    use: ClassVar[str] = ""
    Options: ClassVar[type[Config]] = NoOptions
    # A group that receives such sums and has no norm gets one, before its other steps.
    needs_norm: ClassVar[bool] = False
    # The output jumps where an input crosses a border (takes signs, rounds): when a network is
    # compiled, what leads up to such an operator stays as it is to the last bit.
    sensitive: ClassVar[bool] = False
    # Edges share parameters, or have none: no rule can set the weight of one, and none of the
    # bundle's nodes can be cut out.
    tied: ClassVar[bool] = False
    # Given by its options alone: nothing learns, nothing is stored, and `approximate` raises
    # WiringError, as no trained weight can be taken over.
    fixed: ClassVar[bool] = False
    # `approximate` and `enter` look at what the layer reads: they are given `Seen`. Of one
    # operator it is what `looks_at_data` says of its options.
    needs_data: ClassVar[bool] = False
    # What edges cost depends on more than which of them live: where nodes go, `part` is asked.
    cost_of_part: ClassVar[bool] = False

    def __init__(
        self,
        sources: int,
        destinations: int,
        *,
        kernel: tuple[int, int] = (1, 1),
        stride: int = 1,
        padding: int = 0,
        fan_in: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        self.options = self.parse_options(options or {})
        self.needs_data = self.looks_at_data(self.options)  # type: ignore[misc]
        self.shape = torch.Size((destinations, sources, *kernel))
        self.make_parameters()
        self.reset_parameters(fan_in or sources * math.prod(kernel))

    def make_parameters(self) -> None:
        """Create the parameters and buffers of `self.shape`; by default a weight for each edge."""
        self.weight = nn.Parameter(torch.empty(self.shape))

    @classmethod
    def parse_options(cls, options: dict[str, Any]) -> Any:
        """Checked options of this operator. Raises ConfigError."""
        return parse(cls.Options, options, where=f"operator {cls.__module__.rpartition('.')[2]}")

    @classmethod
    def looks_at_data(cls, options: Any) -> bool:
        """Whether an operator of these options looks at data: by default all do or none."""
        return cls.needs_data

    def reset_parameters(self, fan_in: int) -> None:
        """Uniform in ±1/sqrt(fan_in), PyTorch's own bound, taken over the whole scope."""
        nn.init.uniform_(self.weight, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    @abstractmethod
    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        """Sum the messages of live edges.

        x [N, S, H, W]; live, learn bool [D, S, kh, kw]; returns [N, D, H', W'].
        """

    @abstractmethod
    def cost(self, live: Tensor, positions: int) -> Cost:
        """Cost of the live edges [D, S, kh, kw] at `positions` output pixels; no index bits."""

    @property
    def input_bits(self) -> int:
        """Bits of an input value as this operator reads it."""
        return WEIGHT_BITS

    def phases(self) -> tuple[Phase, ...]:
        """The stretches that training of this operator consists of; one unless it is staged."""
        return (Phase("train"),)

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: Seen | None = None) -> None:
        """Take over the weights [D, S, kh, kw] of an ordinary convolution, as near as this
        operator can come. `seen` is given where `needs_data`."""
        self.weight.copy_(weight)

    @torch.no_grad()
    def effective_weight(self, live: Tensor) -> Tensor:
        """The weight [D, S, kh, kw] of the ordinary convolution that computes the same, for
        operators that are linear in their inputs and know it: by default the live edges'. Whoever
        uses it checks it, and finds it by probing where it is not right."""
        return torch.where(live, self.weight.detach(), 0.0)

    def verify(self, live: Tensor) -> None:
        """Raises WiringError where the live edges are no longer what this operator promises
        (two values a row, so many centroids, …); by default there is nothing to break."""

    def scores(self, out: Tensor | None = None) -> Tensor:
        """What a rule ranks: the magnitude of each edge, [D, S, kh, kw], without gradient.

        Written to `out` where that is given: a scope ranks the scores of all its bundles at once.
        """
        return torch.abs(self.weight.detach(), out=out)

    def used_sources(self, live: Tensor) -> Tensor:
        """Bool [S]: the sources whose value reaches the output."""
        return live.any(dim=(0, 2, 3)) if live.numel() else live.new_zeros(live.shape[1])

    def scale_gradient(self, learn: Tensor) -> None:
        """Optimiser pre-step hook: change `self.weight.grad` in place; nothing by default."""

    @torch.no_grad()
    def after_step(self, live: Tensor, learn: Tensor, lr: float = 0.0) -> None:
        """Optimiser post-step hook: project the weights; nothing by default. `lr` is the rate of
        the step, for proximal steps."""

    @classmethod
    def arrange(cls, steps: tuple[Step, ...], options: Any) -> tuple[Step, ...]:
        """The order of a node's steps that this operator wants before its edges."""
        return steps

    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        """Forms for evaluation by kernel name: float32 [N, S, H, W] → [N, D, H', W'].

        Each computes what `forward` does, followed by the epilogue, in any memory format, and
        must not change its input. `wiring.compile` measures them and keeps the fastest; forms
        should hold their own copy of the weights, so that the operator can go.
        """
        return {"eager": epilogue.after(partial(self.evaluate, live))}

    def packed_candidates(
        self, live: Tensor, sizes: Sequence[int], epilogue: Epilogue
    ) -> dict[str, Kernel]:
        """The same for operators that see nothing of their inputs but signs; by default none.

        These read words, int64 [N, H, W, words]: those of the source groups, which have `sizes`
        channels, side by side, each group filled up to whole words as `pack_signs` does.
        """
        return {}

    def evaluate(self, live: Tensor, x: Tensor) -> Tensor:
        """`forward` where nothing learns."""
        y: Tensor = self(x, live, live)
        return y

    def restrict(self, destinations: Tensor, sources: Tensor) -> dict[str, Tensor]:
        """The state dict of this operator on fewer nodes: indices int64 [D'], [S'].

        Operators with state of other shapes than the weight's override this. Raises WiringError
        for a tensor that it cannot cut.
        """
        restricted: dict[str, Tensor] = {}
        for name, tensor in self.state_dict().items():
            if tensor.shape[:2] == self.shape[:2]:
                restricted[name] = tensor[destinations][:, sources]
            elif tensor.dim() == 0:
                restricted[name] = tensor
            else:
                raise WiringError(
                    f"{type(self).__name__} keeps '{name}' of shape {list(tensor.shape)} and does "
                    "not say in `restrict` how to cut it to fewer nodes"
                )
        return restricted

    @torch.no_grad()
    def part(self, destinations: Tensor, sources: Tensor) -> EdgeOp:
        """A copy of this operator on fewer nodes: indices int64 [D'], [S']."""
        # What a new operator draws is overwritten: nobody else's numbers may change by it.
        with torch.random.fork_rng(devices=[]):
            small = type(self)(
                len(sources),
                len(destinations),
                kernel=(self.shape[2], self.shape[3]),
                stride=self.stride,
                padding=self.padding,
                options=self.options.to_dict(),
            )
        if (like := next(self.parameters(), None)) is not None:
            small.to(device=like.device, dtype=like.dtype)
        small.load_state_dict(self.restrict(destinations, sources))
        return small.train(self.training)

    def pack(self, live: Tensor) -> dict[str, Tensor]:
        """What evaluation needs of the live edges, as stored: their float32 weights, in order."""
        return {"weight": self.weight.detach()[live].to(torch.float32)}

    @torch.no_grad()
    def unpack(self, stored: dict[str, Tensor], live: Tensor) -> None:
        """Inverse of `pack`: dead edges get weight 0."""
        self.weight.zero_()
        self.weight[live] = stored["weight"].to(self.weight.dtype)

    def stores_live(self, live: Tensor) -> bool:
        """Whether `pack` also holds which edges live, so that nothing else need."""
        return False

    def unpack_live(self, stored: dict[str, Tensor]) -> Tensor | None:
        """The live edges [D, S, kh, kw] of what `pack` gave, None where it does not hold them.
        Raises ValueError where it is damaged."""
        return None


EDGE_OPS: Registry[EdgeOp] = Registry(
    "edge operator", package="wiring.methods", group="wiring.edge_ops"
)


class _MaskedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        ctx.save_for_backward(learn)
        return weight * live

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (learn,) = ctx.saved_tensors
        return grad * learn, None, None


def mask_weight(weight: Tensor, live: Tensor, learn: Tensor) -> Tensor:
    """weight * live, whose gradient reaches every edge in `learn` (straight through the mask).

    With a linear operator on top this is DNW's rule: the gradient of an edge u → v is
    ⟨Z_u, ∂L/∂I_v⟩ whether it lives or not, and ∂L/∂Z_u flows through live edges only.
    """
    result: Tensor = _MaskedWeight.apply(weight, live, learn)
    return result
