"""The front of a study: accuracy against each cost, as a picture, a page and a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from search.pareto import Direction, pareto_front
from search.records import StudyRecords, TrialRecords
from workers.files import write_bytes, write_text

PALETTE = ("#1c64d9", "#dd5f06", "#0d9f6e", "#b3379c", "#8a6d00", "#0f8fa8", "#6b4fd8", "#d6246e")
INK, SOFT, LINE, PALE = "#1f2733", "#5b6675", "#dfe4ea", "#9aa5b3"
UNITS = {"energy": "pJ", "weight_bits": "bits"}


class Point(NamedTuple):
    """A finished trial: its validation and test accuracy (0..1), its costs, and its origin."""

    trial: str
    op: str
    rule: str
    val_accuracy: float
    test_accuracy: float | None
    costs: dict[str, float]
    choices: str
    on_front: bool


def write_pareto(study_dir: Path) -> None:
    """Write pareto.png, pareto.html, front.csv and front.md into the study.

    Works while a study runs, with the trials that have finished. Raises StudyError for a damaged
    study and where the disk is full.
    """
    study = StudyRecords(study_dir.absolute())
    points = read_points(study)
    front = sorted((p for p in points if p.on_front), key=lambda p: -p.val_accuracy)
    rows = front_rows(study, front)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(study_dir / "front.csv", text.getvalue())
    write_text(study_dir / "front.md", _markdown(study, rows))
    write_bytes(study_dir / "pareto.png", picture(study, points))
    write_text(study_dir / "pareto.html", page(study, points))


def spans_a_decade(costs: Sequence[float]) -> bool:
    """Whether a logarithmic axis suits them: within a decade it may have no labelled tick."""
    return bool(costs) and 0 < 10 * min(costs) < max(costs)


def axes_of(study: StudyRecords) -> list[str]:
    """The costs on the x axes: those that are minimised, weight bits, at least two in all."""
    costs = list(dict.fromkeys([*study.minimize, "weight_bits"]))
    return costs if len(costs) > 1 else [*costs, "energy"]


def read_points(study: StudyRecords) -> list[Point]:
    """Every finished trial; the front is that of validation accuracy and the minimised costs."""
    ended = [(trial, trial.result) for trial in study.trials() if trial.state == "finished"]
    found = [(trial, result) for trial, result in ended if result is not None]
    values = [(r["val_accuracy"], *(r["costs"][n] for n in study.minimize)) for _, r in found]
    costs: list[Direction] = ["minimize" for _ in study.minimize]
    directions: list[Direction] = ["maximize", *costs]
    front = pareto_front(values, directions)
    return [
        Point(
            trial=trial.id,
            op=trial.spec["model"]["op"]["name"],
            rule=trial.spec["model"]["rule"]["name"],
            val_accuracy=result["val_accuracy"],
            test_accuracy=result["test_accuracy"],
            costs=result["costs"],
            choices=_choices(trial),
            on_front=index in front,
        )
        for index, (trial, result) in enumerate(found)
    ]


def _choices(trial: TrialRecords) -> str:
    shown = {k: v for k, v in trial.params.items() if k not in ("op", "rule", "seed")}
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in shown.items()
    )


def front_rows(study: StudyRecords, front: list[Point]) -> list[list[str]]:
    """A header and a line for each point of the front."""
    costs = axes_of(study)
    header = ["run", "operator", "rule", "validation accuracy", "test accuracy", *costs]
    return [
        header,
        *(
            [
                f"{study.name}/{p.trial}",
                p.op,
                p.rule,
                f"{p.val_accuracy:.4f}",
                "" if p.test_accuracy is None else f"{p.test_accuracy:.4f}",
                *(f"{p.costs[name]:.6g}" for name in costs),
            ]
            for p in front
        ),
    ]


def _markdown(study: StudyRecords, rows: list[list[str]]) -> str:
    against = ", ".join(study.minimize)
    lines = [f"**Pareto front** of validation accuracy against {against}", ""]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(3, "|" + "---|" * len(rows[0]))
    return "\n".join(lines) + "\n"


def _label(cost: str) -> str:
    name = cost.replace("_", " ")
    return f"{name} ({UNITS[cost]})" if cost in UNITS and UNITS[cost] not in name else name


def _colours(points: list[Point]) -> dict[str, str]:
    ops = sorted({point.op for point in points})
    return {op: PALETTE[number % len(PALETTE)] for number, op in enumerate(ops)}


def _steps(front: list[Point], cost: str) -> tuple[list[float], list[float]]:
    """The best validation accuracy for at most each cost, as the corners of a staircase."""
    xs: list[float] = []
    ys: list[float] = []
    for point in sorted(front, key=lambda p: (p.costs[cost], -p.val_accuracy)):
        if not ys or point.val_accuracy > ys[-1]:
            xs.append(point.costs[cost])
            ys.append(point.val_accuracy)
    return xs, ys


def picture(study: StudyRecords, points: list[Point], kind: str = "png") -> bytes:
    """A PNG (or SVG) with one panel for each cost."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, PercentFormatter

    costs, colours = axes_of(study), _colours(points)
    front = [point for point in points if point.on_front]
    figure = Figure(figsize=(5.6 * len(costs), 4.8), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    for number, cost in enumerate(costs):
        axes = figure.add_subplot(1, len(costs), number + 1)
        axes.step(*_steps(front, cost), where="post", color=PALE, linewidth=1.4, zorder=1)
        for point in points:
            strong, x = point.on_front, point.costs[cost]
            colour = colours[point.op]
            axes.scatter(
                x,
                point.val_accuracy,
                s=58 if strong else 26,
                color=colour,
                alpha=1.0 if strong else 0.35,
                edgecolors=INK if strong else "none",
                linewidths=0.9,
                zorder=3,
            )
            if point.test_accuracy is not None:
                axes.scatter(
                    x,
                    point.test_accuracy,
                    s=26 if strong else 14,
                    marker="D",
                    facecolors="none",
                    edgecolors=colour,
                    alpha=1.0 if strong else 0.35,
                    linewidths=1.1,
                    zorder=2,
                )
        if points and min(point.costs[cost] for point in points) > 0:
            axes.set_xscale("log", subs=(2, 5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(EngFormatter(sep=""))
        axes.set_xlabel(_label(cost), color=SOFT)
        if number == 0:
            axes.set_ylabel("accuracy", color=SOFT)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color=LINE, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PALE)
        axes.tick_params(colors=SOFT, labelsize=9, which="both")
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=op)
        for op, colour in colours.items()
    ]
    handles += [
        Line2D([], [], marker="o", linestyle="", color=PALE, label="validation"),
        Line2D([], [], marker="D", linestyle="", color=PALE, markerfacecolor="none", label="test"),
        Line2D([], [], color=PALE, label="front"),
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=min(9, len(handles)), frameon=False, fontsize=9
    )
    title = f"{study.name}: {len(front)} of {len(points)} networks on the front"
    figure.text(0.012, 0.955, title, fontsize=12, weight="bold", color=INK, va="center")
    figure.tight_layout(rect=(0, 0.07, 1, 0.92))
    data = io.BytesIO()
    figure.savefig(data, format=kind)
    return data.getvalue()


def page(study: StudyRecords, points: list[Point]) -> str:
    """An HTML page with everything in it: hover names the run, its operator, rule and choices."""
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    costs, colours = axes_of(study), _colours(points)
    front = [point for point in points if point.on_front]
    figure = make_subplots(rows=1, cols=len(costs), shared_yaxes=True, horizontal_spacing=0.04)
    for column, cost in enumerate(costs, start=1):
        xs, ys = _steps(front, cost)
        first = column == 1
        figure.add_trace(
            graph_objects.Scatter(
                x=xs,
                y=ys,
                mode="lines",
                line={"shape": "hv", "color": PALE, "width": 1.5},
                name="front",
                showlegend=first,
                hoverinfo="skip",
            ),
            row=1,
            col=column,
        )
        for op, colour in colours.items():
            for kind in ("validation", "test"):
                chosen = [p for p in points if p.op == op and _accuracy(p, kind) is not None]
                figure.add_trace(
                    graph_objects.Scatter(
                        x=[p.costs[cost] for p in chosen],
                        y=[_accuracy(p, kind) for p in chosen],
                        mode="markers",
                        marker=_markers(chosen, kind, colour),
                        name=f"{op}, {kind}",
                        legendgroup=f"{op} {kind}",
                        showlegend=first,
                        text=[_hover(study, p, costs) for p in chosen],
                        hovertemplate=f"%{{text}}<extra>{kind}</extra>",
                    ),
                    row=1,
                    col=column,
                )
        log = spans_a_decade([point.costs[cost] for point in points])
        figure.update_xaxes(
            title=_label(cost),
            type="log" if log else "linear",
            dtick="D2" if log else None,
            gridcolor=LINE,
            row=1,
            col=column,
        )
    figure.update_yaxes(tickformat=".3~p", gridcolor=LINE)
    figure.update_yaxes(title="accuracy", row=1, col=1)
    figure.update_layout(
        title=f"{study.name}: {len(front)} of {len(points)} networks on the front",
        template="plotly_white",
        font={"family": "system-ui, Liberation Sans, sans-serif", "color": INK},
        hoverlabel={"align": "left"},
        margin={"l": 60, "r": 20, "t": 60, "b": 60},
    )
    text: str = figure.to_html(include_plotlyjs=True, full_html=True, default_height="92vh")
    return text


def _accuracy(point: Point, kind: str) -> float | None:
    return point.val_accuracy if kind == "validation" else point.test_accuracy


def _markers(points: list[Point], kind: str, colour: str) -> dict[str, Any]:
    return {
        "color": colour,
        "symbol": "circle" if kind == "validation" else "diamond-open",
        "size": [12 if p.on_front else 8 for p in points],
        "opacity": [1.0 if p.on_front else 0.4 for p in points],
        "line": {"color": INK if kind == "validation" else colour, "width": 1.2},
    }


def _hover(study: StudyRecords, point: Point, costs: list[str]) -> str:
    test = "" if point.test_accuracy is None else f", test {point.test_accuracy:.2%}"
    lines = [
        f"<b>{study.name}/{point.trial}</b>  {point.op} · {point.rule}",
        f"validation {point.val_accuracy:.2%}{test}",
        *(f"{_label(name)} {point.costs[name]:,.0f}" for name in costs),
        point.choices,
    ]
    if point.on_front:
        lines.append("on the front")
    return "<br>".join(lines)
