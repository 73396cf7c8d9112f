"""Which pairs of nodes live edges join: a matrix for each scope."""

from __future__ import annotations

import math

import numpy as np
import torch

from search.figures.chart import Axis, Chart, Floats, Heat, Panel
from search.figures.kinds.base import KINDS, ChartKind
from search.figures.runs import Selection
from wiring.graph.topology import Bundle, Topology

CELLS = 200
PANELS = 12
# A letter of a tick's text in widths of the matrix.
LETTERS = 0.024
# A scope whose edges fill less of its matrix than this is drawn bundle by bundle.
FILLED = 0.25


@KINDS.register("heatmap")
class Heatmap(ChartKind):
    """Live edges of each scope as a matrix, destinations by sources."""

    single = True

    def chart(self, selection: Selection) -> Chart:
        run = selection.best
        epoch = run.shown_epoch
        masks, parts = run.masks(epoch), []
        for scope in run.topology.scopes:
            bundles = [run.topology.bundle(name) for name in scope.bundles]
            shapes = [run.topology.weight_shape(bundle) for bundle in bundles]
            live = torch.split(masks[scope.name], [math.prod(shape) for shape in shapes])
            counts = [
                part.view(shape).sum((2, 3)).numpy().astype(np.float64)
                for part, shape in zip(live, shapes, strict=True)
            ]
            parts += _parts(run.topology, scope.name, bundles, counts)
        largest = sorted(range(len(parts)), key=lambda i: -parts[i].edges)[:PANELS]
        shown = [parts[index] for index in sorted(largest)]
        some = f" · the {len(shown)} largest of {len(parts)} matrices"
        facts = f"{run.spec.model.space} · {run.method} · epoch {epoch}"
        return Chart(
            f"{run.name}: live edges by scope",
            tuple(part.panel() for part in shown),
            facts=facts + (some if len(shown) < len(parts) else ""),
            note="Colour: share of the usable edges between a source and a destination node that "
            "live (averaged where nodes are many); grey: no edge is possible.",
            columns=min(4, len(shown)),
            size=(4.1, 3.7),
        )


class Part:
    """One matrix: live and usable edges between all its destinations and sources."""

    def __init__(
        self, title: str, topology: Topology, bundles: list[Bundle], counts: list[Floats]
    ) -> None:
        self.title = title
        names = [group.name for group in topology.groups]
        sizes = {group.name: group.size for group in topology.groups}
        self.rows = [n for n in names if n in {b.destination for b in bundles}]
        self.columns = [n for n in names if n in {s for b in bundles for s in b.sources}]
        self.row_sizes = [sizes[name] for name in self.rows]
        self.column_sizes = [sizes[name] for name in self.columns]
        shape = (sum(self.row_sizes), sum(self.column_sizes))
        self.live, self.usable = np.zeros(shape), np.zeros(shape)
        for bundle, count in zip(bundles, counts, strict=True):
            window, possible = math.prod(bundle.kernel), np.zeros(count.shape)
            if bundle.edges is None:
                possible[:] = window
            elif bundle.edges:
                destinations, sources = np.array(bundle.edges).T
                possible[destinations, sources] = window
            top = sum(self.row_sizes[: self.rows.index(bundle.destination)])
            begin = 0
            for name in bundle.sources:
                left = sum(self.column_sizes[: self.columns.index(name)])
                here = np.s_[top : top + count.shape[0], left : left + sizes[name]]
                self.live[here] += count[:, begin : begin + sizes[name]]
                self.usable[here] += possible[:, begin : begin + sizes[name]]
                begin += sizes[name]

    @property
    def edges(self) -> int:
        """Usable edges."""
        return int(self.usable.sum())

    def panel(self) -> Panel:
        """The matrix, in at most CELLS rows and columns."""
        down, across = (math.ceil(size / CELLS) for size in self.live.shape)
        live, usable = (_pooled(m, down, across) for m in (self.live, self.usable))
        share = np.divide(live, usable, out=np.full(live.shape, np.nan), where=usable > 0)
        top = float(np.nanmax(share)) or 1.0
        return Panel(
            f"{self.title}: {self.live.sum():,.0f} of {self.edges:,} live",
            (
                Heat(
                    share,
                    0.0,
                    top,
                    unit="live",
                    rows=_borders(self.row_sizes, down),
                    columns=_borders(self.column_sizes, across),
                ),
            ),
            x=Axis("source", ticks=_ticks(self.columns, self.column_sizes, across)),
            y=Axis("destination", ticks=_ticks(self.rows, self.row_sizes, down), upright=True),
        )


def _parts(
    topology: Topology, scope: str, bundles: list[Bundle], counts: list[Floats]
) -> list[Part]:
    """One matrix for a scope, or one for each destination where it would be mostly empty."""
    sizes = {group.name: group.size for group in topology.groups}
    height = sum(sizes[name] for name in {bundle.destination for bundle in bundles})
    width = sum(sizes[name] for name in {s for bundle in bundles for s in bundle.sources})
    filled = sum(count.size for count in counts) / (height * width)
    if len(bundles) == 1 or filled >= FILLED:
        return [Part(scope, topology, bundles, counts)]
    found = []
    for name in dict.fromkeys(bundle.destination for bundle in bundles):
        chosen = [i for i, bundle in enumerate(bundles) if bundle.destination == name]
        inside = [bundles[i] for i in chosen]
        found.append(
            Part(f"{scope}, {name}", topology, inside, [counts[index] for index in chosen])
        )
    return found


def _pooled(matrix: Floats, down: int, across: int) -> Floats:
    """Sums over blocks of `down` x `across` cells; those at the end may be smaller."""
    rows = np.add.reduceat(matrix, np.arange(0, matrix.shape[0], down), axis=0)
    pooled: Floats = np.add.reduceat(rows, np.arange(0, matrix.shape[1], across), axis=1)
    return pooled


def _borders(sizes: list[int], pitch: int) -> tuple[float, ...]:
    return tuple(end / pitch for end in np.cumsum(sizes)[:-1].tolist())


def _ticks(names: list[str], sizes: list[int], pitch: int) -> tuple[tuple[float, str], ...]:
    """The groups' names in the middle of their nodes, as many as fit."""
    ends = np.cumsum(sizes)
    whole, last, ticks = float(ends[-1]), -math.inf, []
    for name, size, end in zip(names, sizes, ends.tolist(), strict=True):
        middle, half = end - size / 2, 0.5 * LETTERS * (len(name) + 1) * whole
        if middle - half > last:
            ticks.append((middle / pitch - 0.5, name))
            last = middle + half
    return tuple(ticks)
