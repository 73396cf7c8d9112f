"""Shapes, masks and float64 definitions that the operators are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wiring.graph.edges import EDGE_OPS, EdgeOp, Seen
from wiring.graph.staged import StagedOp
from wiring.graph.tied import TiedOp


@dataclass(frozen=True)
class Shape:
    """A bundle and the batch it is given; `density` of its edges live."""

    name: str
    batch: int = 2
    sources: int = 6
    destinations: int = 4
    side: int = 5
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: int = 0
    density: float = 0.4
    channels_last: bool = False


SHAPES = (
    Shape("pointwise"),
    Shape("complete", density=1.0),
    Shape("odd channels", sources=7, destinations=3, side=3),
    Shape("one image", batch=1, channels_last=True),
    Shape("channels last", sources=8, channels_last=True),
    Shape("3x3 stride 2", kernel=(3, 3), stride=2, padding=1, channels_last=True),
    Shape("3x3 complete", kernel=(3, 3), padding=1, density=1.0),
    Shape("1x1 stride 2 padding 1", stride=2, padding=1),
    Shape("1x3", kernel=(1, 3), density=0.7),
    Shape("one source", sources=1, destinations=2, density=0.5),
    Shape("all dead", density=0.0),
)


def masks(shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(live, learn): the first row of a sparse shape is empty, learn is larger than live."""
    generator = torch.Generator().manual_seed(seed)
    size = (shape.destinations, shape.sources, *shape.kernel)
    drawn = torch.rand(size, generator=generator)
    live = drawn < shape.density
    if shape.density < 1:
        live[0] = False
    return live, live | (drawn > 0.8)


def make(name: str, shape: Shape, *, stage: int = 0, **options: Any) -> EdgeOp:
    """A float64 operator with weights spread around the clipping borders, taken to a stage."""
    op = EDGE_OPS.get(name)(
        shape.sources,
        shape.destinations,
        kernel=shape.kernel,
        stride=shape.stride,
        padding=shape.padding,
        options=options,
    ).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        drawn = torch.randn(op.shape, generator=generator, dtype=torch.float64)
        if not op.tied:
            op.weight.copy_(drawn)
        for number in range(1, stage + 1):
            assert isinstance(op, StagedOp)
            op.enter(number, masks(shape)[0], _seen(op, shape))
    return op


def _seen(op: EdgeOp, shape: Shape) -> Seen | None:
    """What operators that look at data are shown: 16 images."""
    if not op.needs_data:
        return None
    x = images(replace(shape, batch=16), seed=3)
    return Seen(x, x)


def images(shape: Shape, seed: int = 2) -> Tensor:
    """x [N, S, H, W] float64."""
    generator = torch.Generator().manual_seed(seed)
    size = (shape.batch, shape.sources, shape.side, shape.side)
    x = torch.randn(size, generator=generator, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last) if shape.channels_last else x


def windows(x: Tensor, op: EdgeOp) -> Tensor:
    """[N, 1, S·kh·kw, P]: what each output pixel sees, padding as 0."""
    kernel = (op.shape[2], op.shape[3])
    return F.unfold(x, kernel, padding=op.padding, stride=op.stride)[:, None]


def _naive_dense(op: EdgeOp, x: Tensor, live: Tensor) -> Tensor:
    weight = (op.weight * live).flatten(1)[None, :, :, None]
    return (weight * windows(x, op)).sum(dim=2)


def _alpha(op: EdgeOp, live: Tensor) -> Tensor:
    rows = zip(op.weight.flatten(1), live.flatten(1), strict=True)
    means = [row[mask].abs().mean() if mask.any() else row.new_zeros(()) for row, mask in rows]
    return torch.stack(means)


def _sign(x: Tensor) -> Tensor:
    return (x >= 0).to(x.dtype) * 2 - 1


def _naive_bwn(op: EdgeOp, x: Tensor, live: Tensor) -> Tensor:
    weight = (_sign(op.weight) * live).flatten(1)[None, :, :, None]
    return _alpha(op, live)[:, None] * (weight * windows(x, op)).sum(dim=2)


def _naive_xnor(op: EdgeOp, x: Tensor, live: Tensor) -> Tensor:
    y = _naive_bwn(op, _sign(x), live)
    if op.options.input_scale:
        seen = windows(x.abs().mean(dim=1, keepdim=True), op)
        y = y * seen.mean(dim=2)
    return y


def _naive_adder(op: EdgeOp, x: Tensor, live: Tensor) -> Tensor:
    weight, mask = (t.flatten(1)[None, :, :, None] for t in (op.weight, live))
    return -((weight - windows(x, op)).abs() * mask).sum(dim=2)


DEFINITIONS: dict[str, Callable[[EdgeOp, Tensor, Tensor], Tensor]] = {
    "dense": _naive_dense,
    "fft": _naive_dense,
    "winograd": _naive_dense,
    "bwn": _naive_bwn,
    "xnor": _naive_xnor,
    "adder": _naive_adder,
}


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return result


@dataclass(frozen=True)
class Setting:
    """An operator with options, in one of its stages."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    stage: int = 0

    @property
    def tied(self) -> bool:
        return EDGE_OPS.get(self.name).tied

    @property
    def masked(self) -> bool:
        """Whether it is a convolution with a weight that parameters are expanded to."""
        return issubclass(EDGE_OPS.get(self.name), TiedOp)

    def make(self, shape: Shape) -> EdgeOp:
        return make(self.name, shape, stage=self.stage, **self.options)


def _stages(name: str) -> int:
    return len(make(name, SHAPES[0]).phases())


SETTINGS: tuple[Setting, ...] = (
    *(Setting(name, stage=stage) for name in EDGE_OPS.names() for stage in range(_stages(name))),
    Setting("bwn", {"weight_gradient": "paper"}),
    Setting("bwn", {"weight_gradient": "repo"}),
    Setting("xnor", {"weight_gradient": "paper"}),
    Setting("xnor", {"weight_gradient": "repo"}),
    Setting("xnor", {"input_scale": True}),
    Setting("dorefa", {"weight_bits": 3, "activation_bits": 3}),
    Setting("bwnh", {"groups": 4}, stage=1),
    Setting("adder", {"weight_gradient": "sign"}),
    Setting("adder", {"input_gradient": "full"}),
    Setting("winograd", {"tile": 2}),
    Setting("hashed", {"index": "recomputed"}),
    Setting("low-rank", {"factors": "binary"}),
    Setting("low-rank", {"parameters": 0.9, "fit": "data"}),
    Setting("bicluster", {"kind": "outer", "input_clusters": 3}),
)
OWN = tuple(setting for setting in SETTINGS if not setting.tied)
TIED = tuple(setting for setting in SETTINGS if setting.masked)


def label(value: object) -> str:
    """A test id for a shape or a setting."""
    if isinstance(value, Shape):
        return value.name.replace(" ", "-")
    if isinstance(value, Setting):
        stage = [f"stage{value.stage}"] if value.stage else []
        return "-".join([value.name, *stage, *(f"{k}={v}" for k, v in value.options.items())])
    return str(value)
