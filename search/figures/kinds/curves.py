"""Learning curves: every trial thin, the mean of each method thick."""

from __future__ import annotations

import itertools

import numpy as np

from search.figures.chart import Axis, Border, Chart, Line, Mark, Panel, colour, dash
from search.figures.kinds.base import KINDS, ChartKind
from search.figures.runs import Run, Selection, mean_and_spread

METRICS = (
    ("val_accuracy", "validation accuracy", Axis("accuracy", percent=True)),
    ("train_loss", "training loss", Axis("cross-entropy (nats)")),
    ("val_loss", "validation loss", Axis("cross-entropy (nats)")),
)


@KINDS.register("curves")
class Curves(ChartKind):
    """Learning curves by space, operator and rule: mean and spread of their trials."""

    def chart(self, selection: Selection) -> Chart:
        groups = selection.groups()
        borders = phase_borders(selection.trained)
        panels = tuple(
            Panel(
                title,
                (*curves(groups, key), *borders),
                x=Axis("epoch", whole=True),
                y=axis,
            )
            for key, title, axis in METRICS
        )
        return Chart(
            f"{selection.title}: learning curves",
            panels,
            facts=census(selection),
            note=NOTE if len(selection.trained) > 1 else "",
        )


NOTE = (
    "Thick: mean of the trials that reached an epoch; band: ± one standard deviation; "
    "thin: each trial."
)


def curves(groups: dict[str, list[Run]], key: str) -> list[Mark]:
    """The mean of a metric over each group with its spread, and every run by itself."""
    marks: list[Mark] = []
    for number, (name, runs) in enumerate(groups.items()):
        ink, style = colour(number), dash(number)
        columns = [run.column(key) for run in runs]
        if not any(np.isfinite(y).any() for _, y in columns):
            continue
        epochs, mean, spread = mean_and_spread(columns)
        several = len(runs) > 1
        if several:
            marks += [
                Line(x, y, ink, faint=True, dash=style, hover=run.name)
                for run, (x, y) in zip(runs, columns, strict=True)
            ]
        seeds = len({run.spec.seed for run in runs})
        label = f"{name} ({count(len(runs), 'trial')}, {count(seeds, 'seed')})" if several else name
        # None of these metrics is ever negative.
        band = (np.maximum(mean - spread, 0), mean + spread) if several else None
        marks.append(Line(epochs, mean, ink, label, style, band))
    return marks


def phase_borders(runs: list[Run]) -> tuple[Border, ...]:
    """Where the phases of a rule begin, if all runs have the same ones."""
    found = set()
    for run in runs:
        phases = [(row["epoch"], row.get("phase")) for row in run.rows]
        begins = [
            (epoch, phase)
            for (_, before), (epoch, phase) in itertools.pairwise(phases)
            if phase is not None and phase != before
        ]
        found.add(tuple(begins))
    if len(found) != 1:
        return ()
    return tuple(Border(epoch - 0.5, phase) for epoch, phase in found.pop())


def count(number: int, what: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def census(selection: Selection) -> str:
    """How many trials there are, and how they ended."""
    states = [run.state for run in selection.runs]
    if len(states) == 1:
        run = selection.runs[0]
        return f"{run.spec.model.space} · {run.method} · seed {run.spec.seed} · {states[0]}"
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    return f"{len(states)} trials: {counts}"
