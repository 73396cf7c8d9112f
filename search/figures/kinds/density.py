"""Accuracy against the share of edges that is kept, as in the figures of sparse networks."""

from __future__ import annotations

import math

import numpy as np

from search.figures.chart import Axis, Chart, Line, Mark, Panel, Points, colour, dash
from search.figures.kinds.base import KINDS, ChartKind
from search.figures.kinds.curves import census
from search.figures.pareto import spans_a_decade
from search.figures.runs import Run, Selection
from wiring.errors import StudyError


@KINDS.register("density")
class Density(ChartKind):
    """Accuracy against density: the share of the usable edges that lives."""

    def chart(self, selection: Selection) -> Chart:
        groups = selection.groups()
        densities = [density(run) for run in selection.trained]
        log = spans_a_decade(densities)
        panels = []
        for title, measure in (
            ("validation accuracy (best epoch)", validation),
            ("test accuracy", test),
        ):
            marks: list[Mark] = []
            for number, (name, runs) in enumerate(groups.items()):
                marks += _marks(name, number, [(r, density(r), measure(r)) for r in runs])
            panels.append(
                Panel(
                    title,
                    tuple(marks),
                    x=Axis(
                        "density (share of the usable edges that live)",
                        percent=True,
                        log=log,
                        ticks=_ticks(densities),
                    ),
                    y=Axis("accuracy", percent=True),
                    instead="" if marks else "none of these trials was tested",
                )
            )
        return Chart(
            f"{selection.title}: accuracy against density",
            tuple(panels),
            facts=census(selection),
            note="Lines join the mean of the trials with equal density (to three digits); "
            "bands: ± one standard deviation.",
            columns=2,
            size=(5.4, 3.8),
        )


def density(run: Run) -> float:
    """Live over usable edges, at the best epoch or, of an unfinished trial, at the last one."""
    live = run.result["costs"].get("live_edges") if run.result else None
    if live is None:
        if not run.rows:
            raise StudyError(f"run {run.name} has not completed an epoch")
        live = run.rows[-1]["live_edges"]
    return float(live) / sum(run.usable.values())


def validation(run: Run) -> float:
    """The best validation accuracy so far."""
    return run.accuracy


def test(run: Run) -> float:
    """The test accuracy, NaN where the trial was not tested."""
    value = run.result["test_accuracy"] if run.result else None
    return math.nan if value is None else float(value)


def _marks(name: str, number: int, found: list[tuple[Run, float, float]]) -> list[Mark]:
    found = [entry for entry in found if math.isfinite(entry[2])]
    if not found:
        return []
    ink = colour(number)
    by_density: dict[str, list[tuple[float, float]]] = {}
    for _, x, y in found:
        by_density.setdefault(f"{x:.3g}", []).append((x, y))
    columns = sorted(by_density.values())
    places = np.array([np.mean([x for x, _ in column]) for column in columns])
    mean = np.array([np.mean([y for _, y in column]) for column in columns])
    spread = np.array(
        [np.std([y for _, y in column], ddof=1) if len(column) > 1 else 0.0 for column in columns]
    )
    marks: list[Mark] = [
        Points(
            np.array([place for _, place, _ in found]),
            np.array([y for *_, y in found]),
            ink,
            name,
            hover=tuple(run.name for run, *_ in found),
        )
    ]
    if len(places) > 1:
        marks.insert(0, Line(places, mean, ink, None, dash(number), (mean - spread, mean + spread)))
    return marks


def _ticks(densities: list[float]) -> tuple[tuple[float, str], ...] | None:
    """1, 2, 5, 10, 20 … % where the axis is logarithmic; a decade may have no tick of its own."""
    if not spans_a_decade(densities):
        return None
    low, high = min(densities) / 1.2, max(densities) * 1.2
    steps = (m * 10.0**e for e in range(-7, 1) for m in (1, 2, 5))
    return tuple((step, f"{100 * step:g}%") for step in steps if low <= step <= high)
