"""How weights are distributed: Laplace-like in adder networks, Gaussian-like elsewhere.

Chen 2020 (AdderNet, figure 3) compares the two: a network of l1 distances has weights as from a
Laplace distribution, one of products as from a Gaussian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from search.figures.chart import INK, PALETTE, Axis, Bars, Chart, Floats, Line, Mark, Panel
from search.figures.kinds.base import KINDS, ChartKind
from search.figures.runs import Run, Selection
from wiring.errors import StudyError
from workers.evaluate import load_trained
from workers.trial import WEIGHTS

BINS = 81
# Histograms end where all but this share of the weights lies.
TAIL = 0.002


@dataclass(frozen=True)
class Sample:
    """Weights of one operator, each in units of the deviation of its bundle, and who had them."""

    values: Floats
    live: Floats
    source: str


@dataclass(frozen=True)
class Fit:
    """A distribution with its mean log-likelihood, in nats per weight."""

    middle: float
    scale: float
    likelihood: float


@KINDS.register("weights")
class Weights(ChartKind):
    """Histograms of the weights by operator, with Laplace and Gaussian fits."""

    def chart(self, selection: Selection) -> Chart:
        found: dict[str, Sample] = {}
        for run in sorted(selection.trained, key=lambda r: -_rank(r)):
            for name, sample in samples(run).items():
                found.setdefault(name, sample)
        if not found:
            raise StudyError(f"{selection.title}: no live edge has a weight")
        return Chart(
            f"{selection.title}: weights by operator",
            tuple(_panel(name, sample) for name, sample in sorted(found.items())),
            facts="of the most accurate trial in validation with each operator"
            if len(selection.runs) > 1
            else f"{selection.runs[0].spec.model.space} · {selection.runs[0].method}",
            note="Weights of edges that receive gradients, each divided by the standard deviation "
            "of its bundle: a mixture of scales would look like a Laplace distribution. "
            "In brackets: mean log-likelihood in nats per weight; the higher one fits better. "
            + "; ".join(f"{name}: {sample.source}" for name, sample in sorted(found.items()))
            + ".",
            columns=3,
            size=(5.2, 3.6),
        )


def samples(run: Run) -> dict[str, Sample]:
    """The weights of a run by operator. Raises StudyError or CheckpointError."""
    trained = (run.directory / WEIGHTS).exists()
    values: dict[str, list[Floats]] = {}
    alive: dict[str, list[Floats]] = {}
    for name, learned, live in _of_network(run) if trained else _of_snapshot(run):
        deviation = float(learned.std()) if len(learned) > 1 else 0.0
        if deviation > 0 and math.isfinite(deviation):
            values.setdefault(name, []).append((learned - learned.mean()) / deviation)
            alive.setdefault(name, []).append((live - learned.mean()) / deviation)
    where = f"{run.name}, {run.method}" + ("" if trained else f", epoch {run.shown_epoch}")
    return {
        name: Sample(np.concatenate(parts), np.concatenate(alive[name]), where)
        for name, parts in values.items()
    }


def _of_network(run: Run) -> list[tuple[str, Floats, Floats]]:
    """(operator, weights that learn, those of them that live) of every bundle."""
    spec, network = load_trained(run.directory)
    learn, live, found = network.graph.learn(), network.graph.live(), []
    for bundle in spec.model.topology.bundles:
        weight = network.graph.op(bundle.name).weight.detach()
        component = bundle.op or spec.model.op
        found.append(
            (
                component.name,
                weight[learn[bundle.name]].double().numpy(),
                weight[live[bundle.name]].double().numpy(),
            )
        )
    return found


def _of_snapshot(run: Run) -> list[tuple[str, Floats, Floats]]:
    """The same of a trial that left no weights: of its live edges, for there are no others."""
    tensors, found = run.snapshot(run.shown_epoch), []
    for scope in run.topology.scopes:
        edges, weights = tensors[f"{scope.name}.edges"], tensors[f"{scope.name}.weights"]
        begin = 0
        for name in scope.bundles:
            bundle = run.topology.bundle(name)
            end = begin + math.prod(run.topology.weight_shape(bundle))
            here = torch.logical_and(edges >= begin, edges < end)
            values = weights[here].double().numpy()
            component = bundle.op or run.spec.model.op
            found.append((component.name, values, values))
            begin = end
    return found


def gaussian(values: Floats) -> Fit:
    """The most likely Gaussian: mean and standard deviation."""
    middle, scale = float(values.mean()), float(values.std())
    return Fit(middle, scale, -0.5 - math.log(scale * math.sqrt(2 * math.pi)))


def laplace(values: Floats) -> Fit:
    """The most likely Laplace distribution: median and mean distance from it."""
    middle = float(np.median(values))
    scale = float(np.abs(values - middle).mean())
    return Fit(middle, scale, -1 - math.log(2 * scale))


def _panel(name: str, sample: Sample) -> Panel:
    limit = float(np.quantile(np.abs(sample.values), 1 - TAIL))
    edges = np.linspace(-limit, limit, BINS + 1)
    width, total = edges[1] - edges[0], len(sample.values)
    heights = np.histogram(sample.values, edges)[0] / (total * width)
    x = np.linspace(-limit, limit, 241)
    normal, double = gaussian(sample.values), laplace(sample.values)
    bell = np.exp(-0.5 * ((x - normal.middle) / normal.scale) ** 2)
    tent = np.exp(-np.abs(x - double.middle) / double.scale)
    marks: list[Mark] = [
        Bars(edges, heights, PALETTE[5], "weights that learn"),
        Line(x, bell / (normal.scale * math.sqrt(2 * math.pi)), PALETTE[1], "Gaussian fit"),
        Line(x, tent / (2 * double.scale), PALETTE[2], "Laplace fit", "dash"),
    ]
    if len(sample.live) < total:
        living = np.histogram(sample.live, edges)[0] / (total * width)
        marks.insert(1, Bars(edges, living, INK, "of these, live edges", filled=False))
    return Panel(
        f"{name} ({total:,}; Gaussian {normal.likelihood:.3f}, Laplace {double.likelihood:.3f})",
        tuple(marks),
        x=Axis("weight ÷ deviation of its bundle"),
        y=Axis("share per unit"),
    )


def _rank(run: Run) -> float:
    return -1.0 if math.isnan(run.accuracy) else run.accuracy
