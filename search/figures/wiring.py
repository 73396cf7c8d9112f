"""Pictures and tables of one trial's wiring: what is kept of a network that was found."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from search.figures.history import Floats, History, Ints, Snapshot
from search.figures.layout import Layout, controls, place
from search.figures.page import page
from wiring.graph.convert import to_networkx
from wiring.graph.costs import cost_table
from wiring.graph.formats import to_graphml, to_node_link
from workers.files import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN_EDGES = 8000
CURVE_POINTS = 17
INK, PALE, BAND = "#1f2733", "#c3cad4", "#f3f5f8"
POSITIVE, NEGATIVE = (0.11, 0.39, 0.85), (0.90, 0.38, 0.04)


def write_artifacts(trial_dir: Path) -> None:
    """Write `artifacts/` of a trial that has ended.

    graph.json (node-link), graph.graphml, costs.csv and wiring.png show the best epoch, or the
    last one of a trial without result; wiring.html shows every epoch. Raises StudyError where
    the trial has no snapshot or the disk is full.
    """
    history = History(trial_dir)
    layout = place(history.topology, history.table, history.best.edges)
    artifacts = trial_dir / "artifacts"
    history.show(history.best)
    network = history.network
    live = network.graph.live()
    weights = {name: network.graph.op(name).weight.detach() for name in live}
    graph = to_networkx(history.topology, live, weights)
    write_text(artifacts / "graph.json", to_node_link(graph))
    write_text(artifacts / "graph.graphml", to_graphml(graph))
    write_text(artifacts / "costs.csv", costs_csv(history))
    write_bytes(artifacts / "wiring.png", picture(history, history.best, layout))
    write_text(artifacts / "wiring.html", page(history, layout, trial_dir))


def costs_csv(history: History) -> str:
    """The cost table of the network that `history` shows, a line for each part, and the total."""
    rows = cost_table(history.network)
    keys = list(rows[0].cost.to_dict())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "kind", *keys])
    for row in rows:
        writer.writerow([row.name, row.kind, *row.cost.to_dict().values()])
    sums = [sum(row.cost.to_dict()[key] for row in rows) for key in keys]
    writer.writerow(["total", "", *sums])
    return text.getvalue()


def curves(layout: Layout, sources: Ints, destinations: Ints) -> npt.NDArray[np.float64]:
    """Each edge as points of its Bézier curve, [edges, CURVE_POINTS, 2]."""
    t = np.linspace(0, 1, CURVE_POINTS)
    shares = np.stack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3])
    points: npt.NDArray[np.float64] = np.einsum(
        "epk,pc->eck", controls(layout, sources, destinations), shares
    )
    return points


def magnitudes(history: History, edges: Ints, weights: Floats) -> npt.NDArray[np.float64]:
    """|weight| from 0 to 1, relative to the largest few of its scope."""
    scopes = history.table.scopes(edges)
    result = np.zeros(len(edges))
    for scope in np.unique(scopes):
        inside = scopes == scope
        strength = np.abs(weights[inside])
        top = float(np.quantile(strength, 0.98)) or 1.0
        result[inside] = np.clip(strength / top, 0, 1)
    return result


def picture(history: History, snapshot: Snapshot, layout: Layout, kind: str = "png") -> bytes:
    """A PNG or SVG of a wiring: strongest live edges as curves, blue positive, orange negative."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    edges, weights = snapshot.edges, snapshot.weights
    strength = magnitudes(history, edges, weights)
    shown = history.strongest(snapshot, DRAWN_EDGES)
    shown = shown[np.argsort(strength[shown], kind="stable")]
    sources, destinations = history.table.ends(edges)
    # Many edges make each of them fainter, so that dense scopes still show structure.
    scope = history.table.scopes(edges[shown])
    faint = np.clip(300 / np.bincount(scope), 0.03, 1.0)[scope] ** 0.5
    colours = np.empty((len(shown), 4))
    colours[:, :3] = np.where(weights[shown][:, None] >= 0, POSITIVE, NEGATIVE)
    colours[:, 3] = faint * (0.10 + 0.85 * strength[shown] ** 1.5)

    wide = float(np.clip(layout.width / layout.height * 5.2, 8.0, 18.0))
    figure = Figure(figsize=(wide, 6.2), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.07, 0.96, 0.80))
    axes.set_axis_off()
    _draw_bands(axes, history, layout, points_per_unit=0.96 * 72 * wide / (layout.width + 6))
    axes.add_collection(
        LineCollection(
            list(curves(layout, sources[shown], destinations[shown])),
            colors=colours,
            linewidths=0.4 + 1.6 * np.sqrt(faint) * strength[shown] ** 1.5,
            capstyle="round",
        )
    )
    _draw_nodes(axes, history, snapshot, layout)
    axes.set_xlim(-3, layout.width + 3)
    axes.set_ylim(layout.height + 3.4, -3.4)
    model, count = history.spec.model, f"{len(edges):,} live edges"
    if len(shown) < len(edges):
        count = f"the strongest {len(shown):,} of {count}"
    title = f"{model.space}   ·   {model.op.name}   ·   {model.rule.name}"
    figure.text(0.025, 0.945, title, fontsize=13, weight="bold", color=INK, va="center")
    dead = int(snapshot.dead.sum())
    facts = (
        f"epoch {snapshot.epoch}   ·   {count}   ·   {dead:,} of {len(snapshot.dead):,} nodes dead"
    )
    if history.result and history.result["test_accuracy"] is not None:
        facts += f"   ·   test accuracy {history.result['test_accuracy']:.2%}"
    figure.text(0.025, 0.898, facts, fontsize=9.5, color="#5b6675", va="center")
    for inches, name, colour in ((1.1, "positive", POSITIVE), (0.2, "negative", NEGATIVE)):
        at = 1 - inches / wide
        figure.text(at, 0.945, f"━ {name}", fontsize=9, color=colour, ha="right", va="center")
    data = io.BytesIO()
    figure.savefig(data, format=kind)
    return data.getvalue()


def _draw_bands(axes: Axes, history: History, layout: Layout, *, points_per_unit: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    stages: dict[int, list[float]] = {}
    for group, (left, right) in zip(history.topology.groups, layout.spans, strict=True):
        stages.setdefault(group.stage, []).extend((left, right))
    for stage, ends in stages.items():
        left, right = min(ends) - 1.6, max(ends) + 1.6
        box = FancyBboxPatch(
            (left, -2.2),
            right - left,
            layout.height + 4.2,
            boxstyle="round,pad=0,rounding_size=1",
            facecolor=BAND,
            edgecolor="none",
        )
        axes.add_patch(box)
        axes.text(
            (left + right) / 2, -2.8, f"stage {stage}", ha="center", fontsize=8, color="#7a8594"
        )
    free = [-math.inf, -math.inf]  # where the last label of each of two lines ends
    for group, (left, right) in zip(history.topology.groups, layout.spans, strict=True):
        name, middle = f"{group.name} · {group.size}", (left + right) / 2
        half = 2.3 * len(name) / points_per_unit
        line = next((i for i, end in enumerate(free) if middle - half > end), None)
        if line is not None:
            free[line] = middle + half
            below = layout.height + 3.3 + 1.4 * line
            axes.text(middle, below, name, ha="center", fontsize=7, color="#5b6675")


def _draw_nodes(axes: Axes, history: History, snapshot: Snapshot, layout: Layout) -> None:
    sources, destinations = history.table.ends(snapshot.edges)
    nodes = history.table.nodes
    degree = np.bincount(sources, minlength=nodes) + np.bincount(destinations, minlength=nodes)
    # Points squared; a unit of the layout is about 330 / height points.
    unit = (330 / max(layout.height, 1)) ** 2
    size = unit * (0.10 + 0.42 * np.sqrt(degree / max(1, degree.max())))
    size = np.minimum(size, 120)
    for dead, face, edge in ((True, "white", PALE), (False, INK, "white")):
        chosen = snapshot.dead == dead
        axes.scatter(
            layout.x[chosen],
            layout.y[chosen],
            s=size[chosen],
            c=face,
            edgecolors=edge,
            linewidths=0.5,
            zorder=3,
        )
