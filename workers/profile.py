"""Measures what the steps of compiled networks take on this machine: `wiring profile`.

Sizes are drawn at random on logarithmic scales, so that any time limit covers the whole range, and
a longer one more densely. Every operator that is installed takes part, in all its forms.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from wiring.compact import compact
from wiring.compiled.chains import add_chain
from wiring.compiled.lowering import CHANNELS_LAST, LAYOUTS, PLANAR
from wiring.compiled.program import Builder, join
from wiring.compiled.tuning import with_threads
from wiring.config import Component, parse
from wiring.errors import ConfigError
from wiring.graph.budgets import distribute
from wiring.graph.edges import EDGE_OPS, EdgeOp, Epilogue
from wiring.graph.nodes import depthwise
from wiring.graph.topology import Topology
from wiring.kernels.bitpack import PreparedSigns
from wiring.network import HeadSpec, ImageShape, ModelSpec, StemSpec, build_network
from workers.latency import (
    FEWEST,
    NETWORK,
    Lowered,
    Predictor,
    Profile,
    Sample,
    Work,
    bundle_work,
    form_step,
    step_work,
)

OPERATORS = ("adder", "bwn", "dense", "xnor")  # unless others are asked for
CHANNELS = (1, 512)
SIDES = (1, 2, 4, 5, 7, 8, 14, 16, 28, 32)
LARGEST = 3e7  # products of one call
STEPS_SHARE = 0.65  # of the time; the rest goes to whole networks
CALL_SECONDS, FEWEST_CALLS, MOST_CALLS = 0.003, 5, 40
OTHER_VALUES = 1 << 17
WINDOWS = ((1, 1, 0), (1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2))  # kernel, stride, padding

Progress = Callable[[float, int], None]


@torch.no_grad()
def measure_profile(
    limit_s: float,
    *,
    batch: int = 1,
    threads: int | None = None,
    ops: Sequence[str] = OPERATORS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """A table of what the steps of networks with these operators take, measured for `limit_s`
    seconds.

    `progress(seconds, samples)` is called after every case. Raises ConfigError where the time is
    too short to measure every kind of step often enough; UnknownNameError for an operator.
    """
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    rows: list[Sample] = []
    began = time.monotonic()
    with with_threads(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        used = torch.get_num_threads()
        for case in itertools.cycle(_cases(ops)):
            samples += case(rng, batch)
            spent = time.monotonic() - began
            if progress:
                progress(spent, len(samples))
            if spent > STEPS_SHARE * limit_s:
                break
        known = _checked(samples, ops, used, batch, limit_s)
        while len(rows) < FEWEST or time.monotonic() - began < limit_s:
            rows += _network(known, ops, rng, batch)
            if progress:
                progress(time.monotonic() - began, len(samples) + len(rows))
    return known.profile.replace(samples=[*samples, *rows])


def _checked(
    samples: list[Sample], ops: Sequence[str], threads: int, batch: int, limit_s: float
) -> Predictor:
    """A predictor of steps. Raises ConfigError where some were measured too rarely."""
    counts = Counter(sample.step for sample in samples)
    rare = [step for step, count in counts.items() if count < FEWEST]
    if rare or not all(f"{name} eager 1x1 {CHANNELS_LAST}" in counts for name in ops):
        raise ConfigError(
            f"{limit_s:g} seconds are too short to measure every kind of step {FEWEST} times"
            + (f" ('{rare[0]}' {counts[rare[0]]} times)" if rare else "")
            + "; give 'wiring profile' a longer --limit"
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Predictor(Profile(batch=batch, threads=threads, measured=now, samples=tuple(samples)))


Case = Callable[[np.random.Generator, int], list[Sample]]


def _cases(ops: Sequence[str]) -> list[Case]:
    """What is measured in turn; edges most often, for they decide."""
    edges: list[Case] = []
    for name, layout in itertools.product(ops, (CHANNELS_LAST, PLANAR)):
        edges += [partial(_edges, name, layout, window) for window in WINDOWS]
    plain: list[Case] = [_convolution, _linear, _nodes, _join_and_pack, _nodes, _join_and_pack]
    # In the order of a shuffled pack: a limit that cuts a round short leaves nothing out.
    order = np.random.default_rng(0).permutation(len(edges))
    shuffled = [edges[i] for i in order]
    middle = len(shuffled) // 2
    return [*shuffled[:middle], *plain, *shuffled[middle:], *plain]


def shortest_us(
    run: Callable[[], object], *, seconds: float = CALL_SECONDS, touch: bool = True
) -> float:
    """The shortest of several calls in µs: whatever else a machine does makes a call longer.

    With `touch` other memory is read and written in between: in a network, too, a step's weights
    have left the innermost caches since its last call.
    """
    run()
    other = torch.zeros(OTHER_VALUES)
    best, spent = float("inf"), 0.0
    for call in range(MOST_CALLS):
        if call >= FEWEST_CALLS and spent > seconds * 1e6:
            break
        if touch:
            other.add_(1)
        started = time.perf_counter_ns()
        run()
        us = (time.perf_counter_ns() - started) / 1000
        best, spent = min(best, us), spent + us
    return max(best, 1e-3)


def _size(rng: np.random.Generator, low: int, high: int) -> int:
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def _edges(
    name: str, layout: str, window: tuple[int, int, int], rng: np.random.Generator, batch: int
) -> list[Sample]:
    """Every form of an operator on one drawn shape."""
    kernel, stride, padding = window
    sources, destinations = _size(rng, *CHANNELS), _size(rng, *CHANNELS)
    side = int(rng.choice(SIDES))
    weights = sources * destinations * kernel**2
    while side > 1 and batch * weights * side**2 > LARGEST:
        side //= 2
    op = EDGE_OPS.get(name)(
        sources, destinations, kernel=(kernel, kernel), stride=stride, padding=padding
    ).eval()
    if op.sensitive and layout == PLANAR:
        return []
    density = float(np.exp(rng.uniform(np.log(0.02), 0)))
    live = torch.rand(op.shape) < density
    live[0, 0] = True
    x = torch.randn(batch, sources, side, side).contiguous(memory_format=LAYOUTS[layout])
    epilogue = _epilogue(destinations) if rng.random() < 0.5 else Epilogue()
    work = bundle_work(
        x.shape,
        op.shape,
        stride=stride,
        padding=padding,
        density=float(live.float().mean()),
        epilogue=bool(epilogue),
    )
    samples = []
    for form, run in _forms(op, live, x, epilogue):
        step = form_step(name, form, (kernel, kernel), layout)
        samples.append(Sample(step=step, work=work, us=shortest_us(run)))
    return samples


def _epilogue(destinations: int) -> Epilogue:
    return Epilogue(torch.rand(destinations) + 0.5, torch.randn(destinations), relu=True)


def _forms(
    op: EdgeOp, live: Tensor, x: Tensor, epilogue: Epilogue
) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, call) of every form, its own evaluation first."""
    yield "eager", partial(epilogue.after(partial(op.evaluate, live)), x)
    for form, kernel in op.candidates(live, epilogue).items():
        if form != "eager":
            yield form, partial(kernel, x)
    packed = op.packed_candidates(live, [x.shape[1]], epilogue)
    words = PreparedSigns()(x) if packed else x
    for form, kernel in packed.items():
        yield form, partial(kernel, words)


def _image(rng: np.random.Generator, batch: int, layout: str | None = None) -> Tensor:
    channels, side = _size(rng, *CHANNELS), int(rng.choice(SIDES))
    layout = layout or str(rng.choice([CHANNELS_LAST, PLANAR]))
    x = torch.randn(batch, channels, side, side)
    return x.contiguous(memory_format=LAYOUTS[layout])


def _chain(modules: list[nn.Module], x: Tensor) -> list[Sample]:
    """What a compiled network makes of modules in a row, step by step."""
    builder = Builder(x)
    add_chain(builder, [module.eval() for module in modules], 0, owned=False, exact=True)
    samples = []
    for step in builder.steps:
        read = [builder.value(place) for place in step.reads]
        kind, work = step_work(step.label, step.run, read, builder.value(step.write))
        samples.append(Sample(step=kind, work=work, us=shortest_us(partial(step.run, *read))))
    return samples


def _convolution(rng: np.random.Generator, batch: int) -> list[Sample]:
    """A stem's: few channels in."""
    layout = str(rng.choice([CHANNELS_LAST, PLANAR]))
    channels, side = int(rng.choice([1, 3, 16])), int(rng.choice(SIDES[-6:]))
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=LAYOUTS[layout])
    stride = int(rng.choice([1, 2]))
    return _chain([nn.Conv2d(channels, _size(rng, 8, 128), 3, stride, padding=1)], x)


def _linear(rng: np.random.Generator, batch: int) -> list[Sample]:
    """A head: pool, flatten, linear."""
    x = _image(rng, batch)
    parts = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(x.shape[1], _size(rng, 2, 1000))]
    return _chain(parts, x)


def _nodes(rng: np.random.Generator, batch: int) -> list[Sample]:
    """The steps of nodes, each by itself, and the instance norm with what it takes along."""
    x = _image(rng, batch)
    channels, stride = x.shape[1], int(rng.choice([1, 1, 2]))
    parts: list[nn.Module] = [nn.BatchNorm2d(channels), nn.ReLU(), depthwise(channels, stride)]
    samples = _chain(parts, x)
    norm = nn.InstanceNorm2d(channels, affine=True)
    if x.shape[2] > 1:
        samples += _chain([norm, nn.ReLU(), depthwise(channels, 1)], x)
        samples += _chain([nn.MaxPool2d(2)], x) + _chain([nn.AvgPool2d(2)], x)
    return samples


def _join_and_pack(rng: np.random.Generator, batch: int) -> list[Sample]:
    """What reads several values, and signs on their way into words."""
    x = _image(rng, batch)
    y, joined = torch.randn_like(x), torch.cat([x, x], dim=1)
    words = PreparedSigns()
    calls = {
        "join": (partial(join, x, y), Work(read=joined.numel(), written=joined.numel())),
        "add": (partial(torch.add, x, y), Work(read=2 * x.numel(), written=x.numel())),
        "pack": (partial(words, x), Work(read=x.numel(), written=x.numel())),
    }
    return [Sample(step=k, work=w, us=shortest_us(run)) for k, (run, w) in calls.items()]


def _network(
    known: Predictor, ops: Sequence[str], rng: np.random.Generator, batch: int
) -> list[Sample]:
    """A whole network drawn at random, in the forms that were predicted to be fastest."""
    network = compact(build_network(_draw(ops, rng), seed=int(rng.integers(1 << 31)))).eval()
    image = network.spec.image
    x = torch.randn(batch, image.channels, image.side, image.side)
    lowered = Lowered(network, x, CHANNELS_LAST, known)
    work = lowered.work()
    x = x.contiguous(memory_format=torch.channels_last)
    us = shortest_us(partial(lowered.program, x), seconds=0.05, touch=False)
    return [Sample(step=NETWORK, work=work, us=us)]


def _draw(ops: Sequence[str], rng: np.random.Generator) -> ModelSpec:
    """One to twelve layers that read up to three earlier ones each, halving now and then."""
    channels, side = int(rng.choice([1, 3])), int(rng.choice([16, 28, 32]))
    norm = str(rng.choice(["batch", "batch", "instance"]))
    steps = [["norm", "act"], ["norm", "act", "depthwise"]][int(rng.integers(2))]
    width = _size(rng, 8, 128)
    groups = [{"name": "g0", "size": width, "steps": steps, "norm": norm}]
    bundles, here, left = [], [0], side
    for layer in range(1, int(rng.integers(1, 13)) + 1):
        kernel, stride = int(rng.choice([1, 1, 1, 3])), 1
        if left >= 8 and rng.random() < 0.3:
            stride, left, width = 2, left // 2, min(2 * width, 256)
        sources = [f"g{one}" for one in here[-1 if stride == 2 else -3 :]]
        bundles.append(
            {
                "name": f"g{layer}",
                "sources": sources,
                "destination": f"g{layer}",
                "kernel": (kernel, kernel),
                "stride": stride,
                "padding": kernel // 2,
            }
        )
        groups.append({"name": f"g{layer}", "size": width, "steps": steps, "norm": norm})
        here = [layer] if stride == 2 else [*here, layer]
    plain = {
        "groups": groups,
        "bundles": bundles,
        "scopes": [{"name": one["name"], "bundles": [one["name"]]} for one in bundles],
    }
    density = float(np.exp(rng.uniform(np.log(0.05), 0)))
    return ModelSpec(
        space="profile",
        choices={},
        image=ImageShape(channels=channels, side=side),
        classes=10,
        stem=StemSpec(stride=int(rng.choice([1, 2]))),
        topology=distribute(parse(Topology, plain), density),
        head=HeadSpec(),
        op=Component(name=str(rng.choice(list(ops)))),
        rule=Component(name="random"),
    )
