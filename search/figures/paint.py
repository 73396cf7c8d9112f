"""Charts as PNG and SVG, through matplotlib without a display."""

from __future__ import annotations

import io
import math
import textwrap
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from search.figures.chart import (
    BLANK,
    GRID,
    INK,
    PALE,
    SOFT,
    Axis,
    Bars,
    Chart,
    Dash,
    Floats,
    Heat,
    Line,
    Mark,
    Panel,
    Picture,
    Points,
    Words,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as Scale
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]
DPI = 100
# Inches around the axes of a panel; and of a letter of 9 points, on average.
LEFT, RIGHT, BAR, ABOVE, BELOW = 0.72, 0.2, 0.44, 0.36, 0.52
LETTER = 0.072
STYLES: dict[Dash, Any] = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.6))}


def image(chart: Chart, kind: Format = "png") -> bytes:
    """The bytes of a PNG or SVG file."""
    import matplotlib

    data = io.BytesIO()
    # Equal charts give equal files: no date, and ids that do not depend on chance.
    with matplotlib.rc_context({"svg.hashsalt": "wiring"}):
        if kind == "svg":
            figure(chart).savefig(data, format=kind, metadata={"Date": None})
        else:
            figure(chart).savefig(data, format=kind, pil_kwargs={"compress_level": 4})
    return data.getvalue()


def figure(chart: Chart) -> Figure:
    """The chart as a figure whose size follows from its panels and texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(chart.columns, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    wide = max(5.0, columns * chart.size[0])
    title = textwrap.wrap(chart.title, int((wide - 0.3) / 0.105))
    facts = textwrap.wrap(chart.facts, int((wide - 0.3) / LETTER))
    note = textwrap.wrap(chart.note, int((wide - 0.3) / (LETTER * 0.9)))
    labels = chart.legend()
    across, down = _legend_grid(list(labels), wide)
    top = 0.16 + 0.24 * len(title) + 0.19 * len(facts) + 0.06
    bottom = 0.1 + 0.16 * len(note) + 0.22 * down
    high = top + rows * chart.size[1] + bottom

    bars = any(heat.unit for panel in chart.panels for heat in panel.kind(Heat))
    right = RIGHT + BAR * bars
    drawn = Figure(figsize=(wide, high), dpi=DPI, facecolor="white")
    FigureCanvasAgg(drawn)
    for number, panel in enumerate(chart.panels):
        row, column = divmod(number, columns)
        left = column * wide / columns + LEFT
        under = bottom + (rows - 1 - row) * chart.size[1] + BELOW
        box = (
            left / wide,
            under / high,
            (wide / columns - LEFT - right) / wide,
            (chart.size[1] - ABOVE - BELOW) / high,
        )
        _draw_panel(drawn.add_axes(box), panel, wide / columns)
    at = high - 0.16
    for texts, size, weight, ink, step in (
        (title, 12.5, "bold", INK, 0.24),
        (facts, 9.0, "normal", SOFT, 0.19),
    ):
        for text in texts:
            drawn.text(0.15 / wide, at / high, text, size=size, weight=weight, color=ink, va="top")
            at -= step
    for line, text in enumerate(reversed(note)):
        drawn.text(0.15 / wide, (0.08 + 0.16 * line) / high, text, size=8, color=SOFT, va="bottom")
    if labels:
        drawn.legend(
            handles=[_handle(mark) for mark in labels.values()],
            labels=list(labels),
            loc="lower center",
            bbox_to_anchor=(0.5, (0.04 + 0.16 * len(note)) / high),
            ncols=across,
            frameon=False,
            fontsize=9,
            borderpad=0.1,
            labelspacing=0.35,
            columnspacing=1.6,
        )
    return drawn


def _legend_grid(labels: list[str], wide: float) -> tuple[int, int]:
    """How many columns fit, and how many rows that makes."""
    if not labels:
        return 1, 0
    entry = 0.62 + LETTER * max(map(len, labels))
    across = max(1, min(len(labels), int(wide / entry)))
    return across, math.ceil(len(labels) / across)


def _handle(mark: Mark) -> Artist:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if isinstance(mark, Points):
        return Line2D([], [], marker="o", linestyle="", color=mark.colour, markersize=mark.size)
    if isinstance(mark, Bars):
        if mark.filled:
            return Patch(color=mark.colour, alpha=0.55)
        return Patch(facecolor="none", edgecolor=mark.colour)
    assert isinstance(mark, Line)
    return Line2D([], [], color=mark.colour, linestyle=STYLES[mark.dash], linewidth=1.8)


def _draw_panel(axes: Axes, panel: Panel, wide: float) -> None:
    size = min(10.0, 10.0 * (wide - 0.3) / (0.085 * max(len(panel.title), 1)))
    # With a place of its own the title need not be moved clear of ticks, which takes a drawing.
    axes.set_title(panel.title, fontsize=size, color=INK, pad=6, y=1.0)
    if panel.instead:
        axes.set_axis_off()
        text = "\n".join(textwrap.wrap(panel.instead, 36))
        axes.text(0.5, 0.5, text, ha="center", va="center", size=9, color=SOFT)
        return
    for mark in panel.marks:
        _draw(axes, mark)
    axes.tick_params(colors=SOFT, labelsize=8.5)
    if panel.kind(Heat) or panel.kind(Picture):
        axes.spines[:].set_color(PALE)
        _dress(axes.xaxis, panel.x)
        _dress(axes.yaxis, panel.y)
    else:
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PALE)
        if panel.x.log:
            axes.set_xscale("log")
        if panel.y.log:
            axes.set_yscale("log")
        _dress(axes.xaxis, panel.x)
        _dress(axes.yaxis, panel.y)
        axes.set_xlim(panel.x.low, panel.x.high)
        if panel.x.whole and np.ptp(axes.get_xlim()) < 1:
            middle = round(float(np.mean(axes.get_xlim())))
            axes.set_xlim(middle - 1, middle + 1)
        axes.set_ylim(panel.y.low, panel.y.high)
        if panel.y.whole and np.ptp(axes.get_ylim()) < 1:
            axes.set_ylim(axes.get_ylim()[0], axes.get_ylim()[0] + 1)
    if panel.bare:
        axes.set_axis_off()


def _dress(scale: Scale, axis: Axis) -> None:
    from matplotlib.ticker import (
        FixedFormatter,
        FixedLocator,
        FuncFormatter,
        MaxNLocator,
        NullFormatter,
    )

    scale.set_label_text(axis.label, color=SOFT, fontsize=9)
    if axis.percent:
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    if axis.log:
        scale.set_minor_formatter(NullFormatter())
    if axis.whole:
        scale.set_major_locator(MaxNLocator(integer=True, nbins=7))
    if axis.ticks is not None:
        scale.set_major_locator(FixedLocator([place for place, _ in axis.ticks]))
        scale.set_major_formatter(FixedFormatter([text for _, text in axis.ticks]))
    if axis.upright:
        scale.set_tick_params(labelrotation=90)
        for text in scale.get_ticklabels():
            text.set_verticalalignment("center")


def _draw(axes: Axes, mark: Mark) -> None:
    if isinstance(mark, Line):
        if mark.band is not None:
            axes.fill_between(mark.x, *mark.band, color=mark.colour, alpha=0.18, linewidth=0)
        axes.plot(
            mark.x,
            mark.y,
            color=mark.colour,
            linestyle=STYLES[mark.dash],
            linewidth=0.8 if mark.faint else 1.8,
            alpha=0.35 if mark.faint else 1.0,
            # A single point has no line to be seen.
            marker="o" if _lonely(mark.y) else None,
            markersize=3 if mark.faint else 5,
        )
    elif isinstance(mark, Points):
        axes.scatter(
            mark.x, mark.y, s=mark.size**2, color=mark.colour, linewidths=0.5, edgecolors="white"
        )
    elif isinstance(mark, Bars):
        fill = {"color": mark.colour, "alpha": 0.45} if mark.filled else {"facecolor": "none"}
        axes.stairs(mark.heights, mark.edges, fill=mark.filled, edgecolor=mark.colour, **fill)
    elif isinstance(mark, Heat):
        _draw_heat(axes, mark)
    elif isinstance(mark, Picture):
        axes.imshow(mark.pixels, interpolation="nearest")
    elif isinstance(mark, Words):
        from matplotlib.patheffects import withStroke

        axes.text(
            mark.x,
            mark.y,
            mark.text,
            color=mark.colour,
            ha="center",
            va="center",
            size=9,
            weight="bold",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    else:
        axes.axvline(mark.x, color=PALE, linewidth=1, linestyle=STYLES["dot"])
        if mark.text:
            axes.annotate(
                mark.text,
                (mark.x, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                size=7.5,
                color=SOFT,
            )


def _lonely(y: Floats) -> bool:
    """Whether some value stands between gaps."""
    good = np.concatenate([[False], np.isfinite(y), [False]])
    return bool((good[1:-1] & ~good[:-2] & ~good[2:]).any())


def _draw_heat(axes: Axes, mark: Heat) -> None:
    import matplotlib

    colours = matplotlib.colormaps["RdBu" if mark.diverging else "Blues"].with_extremes(bad=BLANK)
    axes.imshow(
        np.ma.masked_invalid(mark.values),
        cmap=colours,
        vmin=mark.low,
        vmax=mark.high,
        aspect="equal" if mark.diverging else "auto",
        interpolation="nearest",
    )
    for at in mark.rows:
        axes.axhline(at - 0.5, color=SOFT, linewidth=0.6)
    for at in mark.columns:
        axes.axvline(at - 0.5, color=SOFT, linewidth=0.6)
    if mark.unit:
        wide = axes.get_window_extent().width / DPI
        place = axes.inset_axes((1 + 0.07 / wide, 0.0, 0.1 / wide, 1.0))
        place.imshow(
            np.linspace(mark.high, mark.low, 64)[:, None],
            cmap=colours,
            aspect="auto",
            extent=(0, 1, mark.low, mark.high),
        )
        place.set_xticks([])
        place.yaxis.tick_right()
        place.tick_params(labelsize=7.5, colors=SOFT)
        place.spines[:].set_color(PALE)
