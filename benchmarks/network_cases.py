"""The networks that `benchmarks.networks` times, and the memory that one of them takes.

    python -m benchmarks.network_cases NAME FORM BATCH THREADS [FILE]

prints the memory of one form as a line of JSON; a process of its own, so that nothing else counts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import wiring.compiled
from search.spaces.base import SPACES
from wiring.config import Component
from wiring.errors import UnknownNameError
from wiring.graph.edges import EDGE_OPS
from wiring.graph.topology import Bundle, NodeGroup, Scope, Skip, Step, Topology
from wiring.network import HeadSpec, ImageShape, ModelSpec, Network, StemSpec, build_network

CALLS = 3
Form = Callable[[Tensor], Tensor]


def mobilenet_graph(side: int) -> ModelSpec:
    """The full mobilenet-graph at ×.225 by DNW."""
    space = SPACES.get("mobilenet-graph")({"size": "full", "width": 0.225})
    image = ImageShape(channels=3, side=side)
    return space.build(space.defaults(image), image, 1000 if side > 64 else 10)


def resnet(blocks: tuple[int, ...], widths: tuple[int, ...], side: int, op: str) -> ModelSpec:
    """A residual network with pre-activation (He et al. 2016), two 3x3 bundles a block.

    Where the resolution halves, the identity becomes a 1x1 bundle with stride 2. The stem is one
    3x3 convolution; of large images it takes every fourth pixel, so that the blocks see the
    resolutions of ResNet-18.
    """
    steps: tuple[Step, ...] = ("norm", "act")
    groups = [NodeGroup(name="input", size=widths[0], steps=steps)]
    bundles: list[Bundle] = []
    skips: list[Skip] = []
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
        for block in range(1, count + 1):
            before, name = groups[-1], f"s{stage}b{block}"
            stride = 2 if block == 1 and stage > 1 else 1
            groups += [
                NodeGroup(name=f"{name}-{part}", size=width, steps=steps, stage=stage)
                for part in ("mid", "out")
            ]
            mid, out = groups[-2].name, groups[-1].name
            window = {"kernel": (3, 3), "padding": 1}
            bundles += [
                Bundle.model_validate(
                    {"name": f"{name}-1", "sources": (before.name,), "destination": mid}
                    | {"stride": stride, **window}
                ),
                Bundle.model_validate(
                    {"name": f"{name}-2", "sources": (mid,), "destination": out, **window}
                ),
            ]
            if before.size == width and stride == 1:
                skips.append(Skip(source=before.name, destination=out))
            else:
                bundles.append(
                    Bundle(name=f"{name}-0", sources=(before.name,), destination=out, stride=stride)
                )
    return ModelSpec(
        space="resnet",
        choices={},
        image=ImageShape(channels=3, side=side),
        classes=1000 if side > 64 else 10,
        stem=StemSpec(stride=4 if side > 64 else 1),
        topology=Topology(
            groups=tuple(groups),
            bundles=tuple(bundles),
            scopes=(Scope(name="all", bundles=tuple(bundle.name for bundle in bundles)),),
            skips=tuple(skips),
        ),
        head=HeadSpec(),
        op=Component(name=op),
        rule=Component(name="complete"),
    )


SMALL: tuple[tuple[int, ...], tuple[int, ...], int] = ((3, 3, 3), (16, 32, 64), 32)
LARGE: tuple[tuple[int, ...], tuple[int, ...], int] = ((2, 2, 2, 2), (64, 128, 256, 512), 224)
NETWORKS: dict[str, Callable[[], ModelSpec]] = {
    "mobilenet-graph-32": partial(mobilenet_graph, 32),
    "mobilenet-graph-224": partial(mobilenet_graph, 224),
    "resnet20-xnor": partial(resnet, *SMALL, "xnor"),
    "resnet20-adder": partial(resnet, *SMALL, "adder"),
    "resnet18-xnor": partial(resnet, *LARGE, "xnor"),
    "resnet18-adder": partial(resnet, *LARGE, "adder"),
}


def spec_of(name: str) -> ModelSpec:
    """Raises UnknownNameError for a name that is not in `NETWORKS`."""
    if name not in NETWORKS:
        raise UnknownNameError(f"unknown network '{name}'; known: {', '.join(NETWORKS)}")
    return NETWORKS[name]()


def dense(spec: ModelSpec) -> ModelSpec:
    """The same shapes in floating point, every edge alive."""
    whole = {"op": Component(name="dense"), "rule": Component(name="complete")}
    return spec.model_copy(update=whole)


def make(spec: ModelSpec) -> Network:
    """A network of random weights whose norms know the moments of random images."""
    network = build_network(spec).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(images(spec, 4, seed=1))
    return network.eval()


def images(spec: ModelSpec, batch: int, *, seed: int = 0) -> Tensor:
    """Standard normal [batch, channels, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    side = spec.image.side
    return torch.randn(batch, spec.image.channels, side, side, generator=generator)


def _load(name: str, form: str, batch: int, file: str | None) -> Form:
    if form == "compiled":
        assert file is not None
        return wiring.compiled.load(file, batch=batch)
    spec = spec_of(name)
    return make(dense(spec) if form == "float" else spec)


def _status(key: str) -> float:
    """MB of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1000
    raise OSError(f"/proc/self/status has no {key}")


def _settle() -> None:
    """Give free memory back, and begin a new high-water mark."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _warm_up() -> None:
    """Load what the libraries load when an operator first runs."""
    x, live = torch.randn(1, 8, 8, 8), torch.ones(8, 8, 3, 3, dtype=torch.bool)
    for name in ("adder", "bwn", "dense", "xnor"):
        EDGE_OPS.get(name)(8, 8, kernel=(3, 3))(x, live, live)


@torch.no_grad()
def _memory(name: str, form: str, batch: int, file: str | None) -> dict[str, float | None]:
    """`resident_mb`: the network at rest; `peak_mb`: while it runs. Beyond a process that has run
    every operator. None where the system does not say."""
    x = images(spec_of(name), batch)
    _warm_up()
    try:
        _settle()
        idle = _status("VmRSS")
        network = _load(name, form, batch, file)
        _settle()
        resident = _status("VmRSS")
        for _ in range(CALLS):
            network(x)
        return {"resident_mb": resident - idle, "peak_mb": _status("VmHWM") - idle}
    except (OSError, AttributeError):
        return {"resident_mb": None, "peak_mb": None}


if __name__ == "__main__":
    _name, _form, _batch, _threads, *_file = sys.argv[1:]
    torch.set_num_threads(int(_threads))
    print(json.dumps(_memory(_name, _form, int(_batch), _file[0] if _file else None)))
