"""How wirings change while they train, and how much they have in common."""

from __future__ import annotations

import numpy as np

from search.figures.chart import PALE, Axis, Chart, Floats, Line, Mark, Panel, colour, dash
from search.figures.kinds.base import KINDS, ChartKind
from search.figures.kinds.curves import NOTE, census, count, curves, phase_borders
from search.figures.runs import Run, Selection, mean_and_spread, pairs, titled
from wiring.graph.telemetry import Masks, jaccard, random_jaccard

# So many pairs of edges are compared at most, whatever the number of trials and epochs.
COMPARED = 2e9
EPOCHS_SHOWN = 40
RANDOM = "expected of random wirings"
OVERLAP = Axis("Jaccard index", low=0.0, high=1.05)
EPOCH = Axis("epoch", whole=True)

Column = tuple[Floats, Floats]


@KINDS.register("swaps")
class Swaps(ChartKind):
    """Swap rate, age of live edges, dead nodes, and overlaps of wirings over time."""

    def chart(self, selection: Selection) -> Chart:
        groups, runs = selection.groups(), selection.trained
        borders = phase_borders(runs)
        panels = [
            Panel(
                title,
                (*curves(groups, key), *borders),
                x=EPOCH,
                y=axis,
                instead=""
                if any(k in row for k in (key,) for run in runs for row in run.rows)
                else "these trials did not record it",
            )
            for key, title, axis in (
                (
                    "swap_rate",
                    "edges that are new",
                    Axis("share of live edges", percent=True, low=0.0),
                ),
                ("mean_age", "mean age of live edges", Axis("epochs without a break", low=0.0)),
                (
                    "dead_nodes",
                    "nodes without a path to the output",
                    Axis("nodes", whole=True, low=0.0),
                ),
            )
        ]
        panels.append(_since_start(groups))
        if len(runs) > 1:
            among = [(n, pairs(members)) for n, members in groups.items()]
            panels.append(_overlaps("overlap between trials of one method", among))
            panels.append(_overlaps("overlap between rules", _rules(runs)))
        note = (
            " Overlap: edges live in both wirings over edges live in either, "
            "of trials that choose from the same edges."
        )
        return Chart(
            f"{selection.title}: how the wiring changes",
            tuple(panels),
            facts=census(selection),
            note=(NOTE if len(runs) > 1 else "") + note,
            columns=3 if len(runs) > 1 else 2,
        )


def _since_start(groups: dict[str, list[Run]]) -> Panel:
    """How much of the wiring before training is left."""
    marks: list[Mark] = []
    for number, runs in enumerate(groups.values()):
        columns, random = [], []
        for run in runs:
            if 0 not in run.snapshots:
                continue
            first = run.masks(0)
            epochs = _sampled(sorted(run.snapshots), 1, run)
            found = [(run, epoch, run.masks(epoch)) for epoch in epochs]
            x = np.array(epochs, np.float64)
            columns.append((x, np.array([jaccard(first, masks) for *_, masks in found])))
            random.append(
                (x, np.array([random_jaccard(first, masks, run.usable) for *_, masks in found]))
            )
        marks += _lines(columns, random, number, None)
    return _panel("overlap with the wiring before training", marks, "there are no snapshots")


def _overlaps(title: str, among: list[tuple[str, list[tuple[Run, Run]]]]) -> Panel:
    """Overlaps of pairs of wirings at the same epoch, by name."""
    marks: list[Mark] = []
    for number, (name, found) in enumerate(among):
        if not found:
            continue
        columns, random = [], []
        seen: dict[tuple[str, int], Masks] = {}

        def masks(run: Run, epoch: int, seen: dict[tuple[str, int], Masks] = seen) -> Masks:
            key = (run.name, epoch)
            if key not in seen:
                seen[key] = run.masks(epoch)
            return seen[key]

        for one, other in found:
            common = sorted(one.snapshots.keys() & other.snapshots.keys())
            epochs = _sampled(common, len(found), one)
            x = np.array(epochs, np.float64)
            both = [(masks(one, epoch), masks(other, epoch)) for epoch in epochs]
            columns.append((x, np.array([jaccard(a, b) for a, b in both])))
            random.append((x, np.array([random_jaccard(a, b, one.usable) for a, b in both])))
        label = f"{name} ({count(len(found), 'pair')})" if "∩" in name else None
        marks += _lines(columns, random, number, label)
    return _panel(title, marks, "no two of these trials choose from the same edges")


def _rules(runs: list[Run]) -> list[tuple[str, list[tuple[Run, Run]]]]:
    """Pairs with the same operator and another rule."""
    found: dict[str, list[tuple[Run, Run]]] = {}
    for one, other in pairs(runs):
        a, b = one.spec.model, other.spec.model
        if a.op == b.op and a.rule != b.rule:
            rules = " ∩ ".join(sorted((titled(a.rule), titled(b.rule))))
            found.setdefault(f"{titled(a.op)} · {rules}", []).append((one, other))
    return list(found.items())


def _lines(
    columns: list[Column], random: list[Column], number: int, label: str | None
) -> list[Mark]:
    if not columns:
        return []
    epochs, mean, spread = mean_and_spread(columns)
    band = (mean - spread, mean + spread) if len(columns) > 1 else None
    at, expected, _ = mean_and_spread(random)
    ink = colour(number) if label is None else colour(-1 - number)
    return [
        Line(at, expected, PALE, RANDOM, "dash", hover=RANDOM),
        Line(epochs, mean, ink, label, dash(number), band),
    ]


def _panel(title: str, marks: list[Mark], instead: str) -> Panel:
    return Panel(title, tuple(marks), x=EPOCH, y=OVERLAP, instead="" if marks else instead)


def _sampled(epochs: list[int], comparisons: int, run: Run) -> list[int]:
    """Epochs from first to last, as many as can be compared in a reasonable time."""
    edges = sum(run.usable.values())
    wanted = int(np.clip(COMPARED / (comparisons * edges), 2, EPOCHS_SHOWN))
    if len(epochs) <= wanted:
        return epochs
    places = np.unique(np.linspace(0, len(epochs) - 1, wanted).round().astype(int))
    return [epochs[place] for place in places]
