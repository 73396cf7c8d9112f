"""Where the nodes of a graph stand in a picture: groups from left to right, tidy inside."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search.figures.history import EdgeTable, Ints
from wiring.graph.topology import Topology

Points = npt.NDArray[np.float64]

ROWS = 36
SWEEPS = 6
LOOP_REACH, LOOP_LIFT, LOOP_GROWTH = 1.3, 2.2, 0.12


@dataclass(frozen=True)
class Layout:
    """`x`, `y` [nodes] in units of the distance between neighbours; y grows downwards from 0.

    `spans` holds the left and the right end of each group.
    """

    x: Points
    y: Points
    width: float
    height: float
    spans: list[tuple[float, float]]


def place(topology: Topology, table: EdgeTable, edges: Ints) -> Layout:
    """Groups become blocks of at most ROWS rows; inside one, nodes stand near their neighbours.

    The order inside a group follows the barycentres of `edges` (Sugiyama et al. 1981), nodes
    without edges last.
    """
    sizes = [group.size for group in topology.groups]
    columns = [math.ceil(size / ROWS) for size in sizes]
    gap = max(9.0, 1.5 * sum(columns) / max(1, len(sizes) - 1))
    heights = _orders(sizes, *table.ends(edges))
    x, y = np.zeros(table.nodes), np.zeros(table.nodes)
    spans, left, first = [], 0.0, 0
    for size, wide in zip(sizes, columns, strict=True):
        rows = math.ceil(size / wide)
        pitch = min(2.6, max(1.0, ROWS / max(rows, 1)))
        rank = np.argsort(np.argsort(heights[first : first + size], kind="stable"))
        row, column = np.divmod(rank, wide)
        x[first : first + size] = left + column
        y[first : first + size] = (row - (rows - 1) / 2) * pitch
        spans.append((left, left + wide - 1))
        left += wide - 1 + gap
        first += size
    top = y.min()
    return Layout(x, y - top, spans[-1][1], float(y.max() - top), spans)


def controls(layout: Layout, sources: Ints, destinations: Ints) -> Points:
    """The four control points of each edge's Bézier curve, [edges, 4, 2].

    An edge to the right is S-shaped. Any other, in a graph with cycles, leaves to the right too
    and comes back from the left, over a bow above both ends: a node's own edge is a loop on it.
    """
    x0, x1, y0, y1 = (
        layout.x[sources],
        layout.x[destinations],
        layout.y[sources],
        layout.y[destinations],
    )
    back = np.maximum(x0 - x1, 0)
    forward = x1 > x0
    reach = np.where(forward, (x1 - x0) / 2, LOOP_REACH + LOOP_GROWTH * back)
    lift = np.where(forward, 0, LOOP_LIFT + np.minimum(LOOP_GROWTH * back, LOOP_LIFT))
    x = np.stack([x0, x0 + reach, x1 - reach, x1], axis=-1)
    y = np.stack([y0, y0 - lift, y1 - lift, y1], axis=-1)
    return np.stack([x, y], axis=-1)


def _orders(sizes: list[int], sources: Ints, destinations: Ints) -> Points:
    """A height 0..1 for every node such that joined nodes are near; 2 where nothing is joined."""
    nodes = sum(sizes)
    starts = np.cumsum([0, *sizes])
    height = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
    degree = np.bincount(sources, minlength=nodes) + np.bincount(destinations, minlength=nodes)
    for sweep in range(SWEEPS):
        # Alternate directions, as layered drawing does: first follow sources, then destinations.
        near, far = (destinations, sources) if sweep % 2 == 0 else (sources, destinations)
        total = np.bincount(near, weights=height[far], minlength=nodes)
        count = np.bincount(near, minlength=nodes)
        wanted = np.where(count > 0, total / np.maximum(count, 1), height)
        for begin, end in itertools.pairwise(starts):
            rank = np.argsort(np.argsort(wanted[begin:end], kind="stable"))
            height[begin:end] = (rank + 0.5) / (end - begin)
    height[degree == 0] = 2.0
    return height
