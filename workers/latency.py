"""Predicts how long a network takes in its compiled form, from a table measured on this machine.

A network is lowered as `wiring.compile` does it, only that no form is timed: the table tells what
each takes, and the fastest is chosen. The prediction begins with the sum over the program's steps.
In a row they take longer than each by itself, the more so the less of the network a processor
holds near: whole networks, drawn at random, tell how much.

For every kind of step, and for networks, the table fits t = Σ c_i w_i, c ≥ 0, over the work w
(`Work`), so that relative errors are least; what is left between measurements is interpolated,
each weighed by the inverse square of its distance in the logarithm of the work.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from wiring.compact import compact
from wiring.compiled.lowering import CHANNELS_LAST, PLANAR, Lowering
from wiring.compiled.program import Step
from wiring.compiled.tuning import Memory, Microseconds, cache_path, machine, with_threads
from wiring.config import Config, parse
from wiring.errors import ConfigError
from wiring.files import write_atomic
from wiring.graph.edges import Epilogue
from wiring.graph.resolutions import convolved
from wiring.graph.topology import Bundle
from wiring.network import Network

log = logging.getLogger(__name__)

FEWEST = 8  # measurements of a kind of step, without which it is not predicted
NEAREST = 6
NETWORK = "network"
OTHER = "relu"  # steps without a law of their own pass over their values, as it does


class Work(NamedTuple):
    """What a step has to do, in one call: besides the call itself, what its time may grow with.

    `edges`: live edges times positions, and `products`, all edges times positions, live or not;
    `weights` and values it reads and writes; `after`: values that an epilogue changes. Of a
    whole network `products` are the microseconds of its steps, and `read` is their number.
    """

    edges: float = 0.0
    products: float = 0.0
    weights: float = 0.0
    read: float = 0.0
    written: float = 0.0
    after: float = 0.0


class Sample(Config):
    """One measured step: its kind, its work and the microseconds it took at least."""

    step: str
    work: Work
    us: PositiveFloat


class Profile(Config):
    """What `wiring profile` measured with images in batches of `batch` and so many threads."""

    batch: PositiveInt
    threads: PositiveInt
    measured: str
    samples: tuple[Sample, ...]


class _File(Config):
    version: Literal[1] = 1
    machines: dict[str, Profile]


def profile_path() -> Path:
    """Where the table is kept: beside the measured kernels, in the user's cache."""
    return cache_path().with_name("profile.json")


def save_profile(profile: Profile, path: Path | None = None) -> Path:
    """Keep a table for this machine and number of threads. Raises OSError."""
    path = path or profile_path()
    with with_threads(profile.threads):
        machines = {**_read(path), machine(): profile}
    file = _File(machines=machines)
    write_atomic(path, file.model_dump_json().encode() + b"\n")
    return path


def load_profile(path: Path | None = None) -> Profile:
    """The table last measured on this machine as it is now. Raises ConfigError for none."""
    path = path or profile_path()
    fitting = []
    for name, profile in _read(path).items():
        with with_threads(min(profile.threads, os.cpu_count() or 1)):
            if machine() == name:
                fitting.append(profile)
    if not fitting:
        raise ConfigError(
            f"{path} has no table of latencies for this machine and these versions; "
            "measure one with 'wiring profile'"
        )
    return max(fitting, key=lambda profile: profile.measured)


def _read(path: Path) -> dict[str, Profile]:
    try:
        return dict(parse(_File, json.loads(path.read_bytes())).machines)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        log.warning("%s cannot be read (%s); measure again with 'wiring profile'", path, error)
    return {}


class _Law:
    """Time of one kind of step as a function of its work."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        from scipy.optimize import nnls

        work = np.array([(1.0, *sample.work) for sample in samples])
        us = np.array([sample.us for sample in samples])
        scale = np.maximum((work / us[:, None]).max(axis=0), 1e-30)
        # Rows over their time: the residuals that are squared are relative errors.
        self.coefficients = nnls(work / us[:, None] / scale, np.ones(len(us)))[0] / scale
        self.places = np.log1p(work[:, 1:])
        self.left = np.log(us / np.maximum(work @ self.coefficients, 1e-3))

    def us(self, work: Work) -> float:
        """Microseconds of such a step."""
        fitted = max(float(np.array((1.0, *work)) @ self.coefficients), 1e-3)
        distances = ((self.places - np.log1p(np.array(work))) ** 2).sum(axis=1)
        near = np.argsort(distances, kind="stable")[:NEAREST]
        weights = 1 / (distances[near] + 0.05)
        return fitted * math.exp(float(weights @ self.left[near] / weights.sum()))


class Predictor:
    """Milliseconds of one call of a network, compiled, on the machine of a table."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        kinds: dict[str, list[Sample]] = {}
        for sample in profile.samples:
            kinds.setdefault(sample.step, []).append(sample)
        self._laws = {k: _Law(some) for k, some in kinds.items() if len(some) >= FEWEST}

    def us(self, step: str, work: Work) -> float:
        """Microseconds of a step. Raises ConfigError for a kind that was not measured."""
        try:
            return self._laws[step].us(work)
        except KeyError:
            raise ConfigError(
                f"the table of latencies knows no step '{step}'; measure again with "
                f"'wiring profile --op {step.split()[0]}'"
            ) from None

    def knows(self, step: str) -> bool:
        """Whether such steps were measured."""
        return step in self._laws

    @torch.no_grad()
    def predict_ms(self, network: Network, *, whole: bool = False) -> float:
        """Milliseconds of a batch. With `whole`, nodes that no output depends on are not cut.

        Raises ConfigError for graphs that run over time, and for steps that were not measured.
        """
        if network.spec.topology.dynamics is not None:
            raise ConfigError("latency is predicted for static graphs; this one has dynamics")
        small = network if whole else compact(network)
        training = small.training
        small.eval()
        image = small.spec.image
        x = torch.zeros(self.profile.batch, image.channels, image.side, image.side)
        bundles = small.spec.topology.bundles
        sensitive = any(small.graph.op(bundle.name).sensitive for bundle in bundles)
        layouts = [CHANNELS_LAST] if sensitive else [CHANNELS_LAST, PLANAR]
        with with_threads(min(self.profile.threads, os.cpu_count() or 1)):
            works = [Lowered(small, x, layout, self).work() for layout in layouts]
        small.train(training)
        return min(self.us(NETWORK, work) for work in works) / 1000


def predictor() -> Callable[[Network], float]:
    """Milliseconds of a network uncut, by the table last measured here. Raises ConfigError."""
    known = Predictor(load_profile())
    return lambda network: known.predict_ms(network, whole=True)


class _Predicted(Memory):
    """Tells a lowering what forms take, as if all of them had been measured before."""

    def __init__(self, known: Predictor) -> None:
        super().__init__(None)
        self.known = known

    def get(self, key: str, names: Mapping[str, object]) -> Microseconds | None:
        parts = json.loads(key)
        image, window = parts["image"], parts["weight"][2:]
        work = bundle_work(
            image,
            parts["weight"],
            stride=parts["stride"],
            padding=parts["padding"],
            density=parts["density"],
            epilogue=any(parts["epilogue"]),
        )
        values = float(math.prod(image))
        passing = Work(read=values, written=values)
        times = {}
        for name in names:
            step = form_step(parts["op"], name, window, parts["layout"])
            before = [label for label in parts["prepare"][name] if self.known.knows(label)]
            times[name] = self.known.us(step, work) + sum(
                self.known.us(label, passing) for label in before
            )
        return times


class Lowered(Lowering):
    """A lowering by predicted times, which adds up what its steps take."""

    def __init__(self, network: Network, example: Tensor, layout: str, known: Predictor) -> None:
        super().__init__(network, example, layout, _Predicted(known), {})
        self.known = known
        self.bundles: dict[int, float] = {}

    def _bundle(self, bundle: Bundle, epilogue: Epilogue, exact: bool) -> int:
        place = super()._bundle(bundle, epilogue, exact)
        choice = self.choices[-1]
        work = bundle_work(
            choice.image,
            choice.weight,
            stride=choice.stride,
            padding=choice.padding,
            density=choice.density,
            epilogue=bool(epilogue),
        )
        step = form_step(choice.op, choice.kernel, choice.weight[2:], self.layout)
        self.bundles[place] = self.known.us(step, work)
        return place

    def work(self) -> Work:
        """The work of the whole program."""
        self.program = self.run()
        steps = self.builder.steps
        us = sum(self.bundles.get(step.write) or self._plain(step) for step in steps)
        weights = sum(parameter.numel() for parameter in self.network.parameters())
        return Work(products=us, weights=weights, read=len(steps))

    def _plain(self, step: Step) -> float:
        read = [self.builder.value(place) for place in step.reads]
        kind, work = step_work(step.label, step.run, read, self.builder.value(step.write))
        kinds = (kind, kind.removesuffix(f" {PLANAR}"), OTHER)
        return self.known.us(next((k for k in kinds if self.known.knows(k)), OTHER), work)


def form_step(op: str, form: str, window: Sequence[int], layout: str) -> str:
    """The kind of step that a form of an operator is."""
    return f"{op} {form} {'1x1' if math.prod(window) == 1 else 'window'} {layout}"


def bundle_work(
    image: Sequence[int],
    weight: Sequence[int],
    *,
    stride: int,
    padding: int,
    density: float,
    epilogue: bool,
) -> Work:
    """The work of a bundle: image [N, S, H, W], weight [D, S, kh, kw]."""
    side = convolved((image[2], image[3]), (weight[2], weight[3]), stride, padding)
    positions, weights = image[0] * math.prod(side), math.prod(weight)
    written = weight[0] * positions
    return Work(
        edges=density * weights * positions,
        products=weights * positions,
        weights=weights,
        read=math.prod(image),
        written=written,
        after=written if epilogue else 0,
    )


def step_work(
    label: str, run: Callable[..., Tensor], read: Sequence[Tensor], written: Tensor
) -> tuple[str, Work]:
    """The kind and the work of a step that is no bundle; images in planar format are of a kind
    of their own."""
    values = sum(x.numel() for x in read)
    keywords = getattr(run, "keywords", {})
    kernel = keywords.get("weight") if label == "conv" else None
    if label == "linear" and isinstance(owner := getattr(run, "__self__", None), nn.Linear):
        kernel = owner.weight
    if label == "conv" and keywords.get("groups", 1) > 1:
        label = "depthwise"
    products = weights = 0
    if kernel is not None:
        weights, products = kernel.numel(), written.numel() * math.prod(kernel.shape[1:])
        if label == "linear":
            products = len(written) * weights
    work = Work(products=products, weights=weights, read=values, written=written.numel())
    image = next((x for x in read if x.dim() == 4), None)
    if image is not None and not image.is_contiguous(memory_format=torch.channels_last):
        label = f"{label} {PLANAR}"
    return label, work
