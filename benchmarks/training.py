"""One whole training step against the obvious formula in plain PyTorch.

    python -m benchmarks.training [--row NAME] [--threads N] [--json] [--seconds S]

A step is forward, backward, SGD with momentum, and the choice of the live edges. Both sides start
from the same weights and see the same batch of random images; that their first losses agree is
checked before anything is timed. The limit is our own step with edges that cost nothing but the
weight gradient, a dense matrix product: what is left for the kernels to win.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from benchmarks.harness import Case, arguments, cap_torch, main_guard, run
from benchmarks.obvious import AdderLayer, MaskedGraph
from search.spaces.base import SPACES
from wiring.errors import UnknownNameError, WiringError
from wiring.graph.driving import attach
from wiring.graph.edges import EDGE_OPS, EdgeOp
from wiring.graph.static import StaticGraph
from wiring.network import ImageShape, Network, build_network

CLASSES = 10
LEARNING_RATE, MOMENTUM = 0.01, 0.9
# Both sum thousands of float32 products, in different orders.
TOLERANCE = 1e-3


class Step:
    """One optimiser step on a fixed batch; `first_loss` is that of the weights it began with."""

    def __init__(self, network: nn.Module, x: Tensor, y: Tensor) -> None:
        self.network, self.x, self.y = network.train(), x, y
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, fused=True
        )
        attach(network, self.optimizer)
        self.first_loss: float | None = None

    def __call__(self) -> None:
        loss = F.cross_entropy(self.network(self.x), self.y)
        if self.first_loss is None:
            self.first_loss = loss.item()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for part in self.network.modules():
            if isinstance(part, (AdderLayer, _OurAdder)):
                part.scale_gradient()
        self.optimizer.step()


def _same_loss(ours: Step, obvious: Sequence[Step]) -> None:
    """Run the first steps. Raises WiringError where the losses differ."""
    losses = []
    for step in (ours, *obvious):
        step()
        losses.append(step.first_loss or 0.0)
    if any(abs(loss - losses[0]) > TOLERANCE * abs(losses[0]) for loss in losses):
        raise WiringError(f"the first losses differ: {losses}")


class _FreeEdges(torch.autograd.Function):
    """Zeros forwards and to x; to the weight the gradient of a convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = [stride] * 2, [padding] * 2
        side = zip(x.shape[2:], weight.shape[2:], strict=True)
        height, width = ((a + 2 * padding - k) // stride + 1 for a, k in side)
        return x.new_zeros(len(x), height, width, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = [False, True, False]
        _, to_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, wanted
        )
        return torch.zeros_like(x), to_weight, None, None


def _without_edges(network: nn.Module) -> nn.Module:
    """A copy whose edges sum and choose in no time."""
    free = copy.deepcopy(network)
    for part in free.modules():
        if isinstance(part, EdgeOp):
            object.__setattr__(part, "forward", partial(_free_edges, part))
        elif isinstance(part, StaticGraph):
            for _, wiring in part.wirings():
                object.__setattr__(wiring, "update", lambda edges: None)
    return free


def _free_edges(op: EdgeOp, x: Tensor, *_: Tensor) -> Tensor:
    summed: Tensor = _FreeEdges.apply(x, op.weight, op.stride, op.padding)
    return summed


def _batch(size: int, image: ImageShape) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, image.channels, image.side, image.side, generator=generator)
    return x, torch.randint(CLASSES, (size,), generator=generator)


class _ObviousNetwork(nn.Module):
    """`network` with its graph computed by the obvious formula, its weights the same."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.stem, self.head = copy.deepcopy(network.stem), copy.deepcopy(network.head)
        self.graph = MaskedGraph(network.spec.topology)
        wanted = set(self.graph.state_dict())
        given = network.graph.state_dict()
        self.graph.load_state_dict({name: given[name] for name in wanted})

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.graph(self.stem(x)))
        return scores


def _dnw(name: str, size: int, space: str, options: dict[str, object], target: float) -> Case:
    image = ImageShape(channels=3, side=32)
    found = SPACES.get(space)(options)
    network = build_network(found.build(found.defaults(image), image, CLASSES), seed=0)
    x, y = _batch(size, image)
    last = torch.channels_last
    nchw = Step(_ObviousNetwork(network), x, y)
    nhwc = Step(_ObviousNetwork(network).to(memory_format=last), x.to(memory_format=last), y)
    least = Step(_without_edges(network), x, y)
    ours = Step(network, x, y)
    _same_loss(ours, [nchw, nhwc])
    return Case("training", name, ours, [nchw, nhwc], target=target, limit_ratio=least)


class _OurAdder(nn.Module):
    """The operator `adder` as a layer all of whose edges live."""

    def __init__(self, sources: int, destinations: int, kernel: int) -> None:
        super().__init__()
        self.op = EDGE_OPS.get("adder")(sources, destinations, kernel=(kernel, kernel))
        self.register_buffer("live", torch.ones(self.op.weight.shape, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        live = self.get_buffer("live")
        summed: Tensor = self.op(x, live, live)
        return summed

    def scale_gradient(self) -> None:
        self.op.scale_gradient(self.get_buffer("live"))


def lenet(adder: Callable[[int, int, int], nn.Module]) -> nn.Sequential:
    """LeNet-5-BN of AdderNet: adders but for the first convolution and the classifier."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        nn.MaxPool2d(2),
        *(adder(6, 16, 5), nn.BatchNorm2d(16), nn.ReLU()),
        nn.MaxPool2d(2),
        *(adder(16, 120, 5), nn.BatchNorm2d(120), nn.ReLU()),
        *(adder(120, 84, 1), nn.BatchNorm2d(84), nn.ReLU()),
        *(nn.Conv2d(84, CLASSES, 1), nn.Flatten()),
    )


def _adder() -> Case:
    torch.manual_seed(0)
    network, obvious = lenet(_OurAdder), lenet(AdderLayer)
    with torch.no_grad():
        for given, taken in zip(network.parameters(), obvious.parameters(), strict=True):
            taken.copy_(given)
    x, y = _batch(256, ImageShape(channels=1, side=28))
    last = torch.channels_last
    x_last = x.contiguous(memory_format=last)
    nchw = Step(copy.deepcopy(obvious), x, y)
    nhwc = Step(obvious.to(memory_format=last), x_last, y)
    least = Step(_without_edges(network).to(memory_format=last), x_last, y)
    ours = Step(network.to(memory_format=last), x_last, y)
    _same_loss(ours, [nchw, nhwc])
    name = "adder LeNet-5-BN, 28x28, batch 256"
    return Case("training", name, ours, [nchw, nhwc], target=50, limit_ratio=least)


ROWS: dict[str, Callable[[], Case]] = {
    "mobilenet-graph": partial(
        _dnw,
        "DNW mobilenet-graph x.225, 32x32, batch 32",
        32,
        "mobilenet-graph",
        {"size": "full"},
        3,
    ),
    "tiny": partial(_dnw, "DNW tiny, 32x32, batch 128", 128, "tiny", {}, 2),
    "adder": _adder,
}


def find(row: str | None) -> Iterator[Case]:
    """The cases, made one by one. Raises UnknownNameError."""
    if row is not None and row not in ROWS:
        raise UnknownNameError(f"unknown row '{row}'; there are {', '.join(ROWS)}")
    for name in ROWS if row is None else [row]:
        yield ROWS[name]()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = arguments("Time a training step against the obvious formula in PyTorch.")
    parser.add_argument("--row", help=f"one of {', '.join(ROWS)}")
    options = parser.parse_args(given)
    cap_torch(options.isa, "benchmarks.training", given)
    return main_guard(lambda: run(find(options.row), options))


if __name__ == "__main__":
    sys.exit(main())
