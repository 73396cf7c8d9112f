"""Charts as one HTML page with everything in it, through plotly: hover, zoom, and no network."""

from __future__ import annotations

import html
import math
import textwrap
from typing import Any

import numpy as np

from search.figures.chart import (
    BLANK,
    GRID,
    INK,
    PALE,
    SOFT,
    Axis,
    Bars,
    Border,
    Chart,
    Heat,
    Line,
    Mark,
    Panel,
    Picture,
    Points,
    Words,
)

PANEL_PIXELS = 360
WIDTH = 170


def page(chart: Chart) -> str:
    """The whole HTML document, plotly's own code included (4.7 MB)."""
    text: str = figure(chart).to_html(include_plotlyjs=True, full_html=True)
    return text


def figure(chart: Chart) -> Any:
    """The chart as a plotly figure."""
    from plotly.subplots import make_subplots

    columns = min(chart.columns, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    high = rows * PANEL_PIXELS + 190
    bars = any(heat.unit for panel in chart.panels for heat in panel.kind(Heat))
    drawn = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[html.escape(panel.title) for panel in chart.panels],
        horizontal_spacing=(0.34 if bars else 0.22) / columns,
        vertical_spacing=95 / high if rows > 1 else 0,
    )
    named: set[str] = set()
    for number, panel in enumerate(chart.panels):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        for mark in panel.marks:
            _add(drawn, mark, place, named)
        _dress(drawn, panel, place)
        if panel.instead:
            x, y = _axes(drawn, place)
            drawn.add_annotation(
                text=html.escape(panel.instead),
                x=0.5,
                y=0.5,
                xref=f"{x} domain",
                yref=f"{y} domain",
                showarrow=False,
                font={"color": SOFT},
            )
    small = [*textwrap.wrap(chart.facts, WIDTH), *textwrap.wrap(chart.note, WIDTH)]
    lines = "".join(
        f"<br><span style='font-size:12px'>{html.escape(line)}</span>" for line in small
    )
    drawn.update_layout(
        title={
            "text": f"<b>{html.escape(chart.title)}</b>{lines}",
            "x": 0.01,
            "y": 1 - 14 / high,
            "yanchor": "top",
        },
        template="plotly_white",
        font={"family": "system-ui, Liberation Sans, sans-serif", "color": INK},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": -70 / high, "yanchor": "top"},
        modebar={"orientation": "v"},
        margin={"l": 60, "r": 30, "t": 72 + 20 * len(small), "b": 90},
        height=high,
    )
    if any(panel.kind(Picture) or _square(panel) for panel in chart.panels):
        drawn.update_layout(width=90 + 430 * columns)
    return drawn


def _dress(drawn: Any, panel: Panel, place: dict[str, int]) -> None:
    for axis, update in ((panel.x, drawn.update_xaxes), (panel.y, drawn.update_yaxes)):
        settings: dict[str, Any] = {
            "title": {"text": html.escape(axis.label), "standoff": 8},
            "gridcolor": GRID,
            "zeroline": False,
            "visible": not (panel.bare or panel.instead),
        }
        if axis.log:
            settings["type"] = "log"
        if axis.percent:
            settings["tickformat"] = ".3~p"
        if axis.whole:
            settings["dtick"] = _whole_step(panel, vertical=axis is panel.y)
        if axis.upright:
            settings["tickangle"] = -90
        if axis.ticks is not None:
            settings["tickvals"] = [at for at, _ in axis.ticks]
            settings["ticktext"] = [html.escape(text) for _, text in axis.ticks]
        limits = _range(axis)
        if limits is not None:
            settings["range"] = limits
        update(**settings, **place)
    heats = panel.kind(Heat)
    if heats or panel.kind(Picture):
        drawn.update_xaxes(showgrid=False, **place)
        drawn.update_yaxes(showgrid=False, autorange="reversed", **place)
    if _square(panel):
        drawn.update_yaxes(scaleanchor=_axes(drawn, place)[0], constrain="domain", **place)
        drawn.update_xaxes(constrain="domain", **place)


def _whole_step(panel: Panel, *, vertical: bool) -> int:
    """The distance of ticks at whole numbers, of which there are at most about seven."""
    values = [line.y if vertical else line.x for line in panel.kind(Line)]
    good = np.concatenate([np.zeros(1), *(v[np.isfinite(v)] for v in values)])
    return max(1, math.ceil(float(np.ptp(good)) / 7))


def _square(panel: Panel) -> bool:
    return any(heat.diverging for heat in panel.kind(Heat))


def _axes(drawn: Any, place: dict[str, int]) -> tuple[str, str]:
    """What plotly calls the axes of a panel: x5, y5."""
    x, y = next(drawn.select_xaxes(**place)), next(drawn.select_yaxes(**place))
    return x.plotly_name.replace("axis", ""), y.plotly_name.replace("axis", "")


def _range(axis: Axis) -> list[float | None] | None:
    if axis.low is None and axis.high is None:
        return None
    limits = [axis.low, axis.high]
    return [math.log10(v) if axis.log and v is not None else v for v in limits]


def _add(drawn: Any, mark: Mark, place: dict[str, int], named: set[str]) -> None:
    from plotly import graph_objects

    label = getattr(mark, "label", None)
    legend: dict[str, Any] = {"showlegend": label is not None and label not in named}
    if label is not None:
        legend |= {"name": html.escape(label), "legendgroup": label}
        named.add(label)
    if isinstance(mark, Line):
        if mark.band is not None:
            _add_band(drawn, mark, place, label)
        drawn.add_trace(
            graph_objects.Scatter(
                x=mark.x,
                y=mark.y,
                mode="lines+markers" if len(mark.x) < 40 else "lines",
                marker={"size": 3 if mark.faint else 5},
                line={
                    "color": mark.colour,
                    "width": 1 if mark.faint else 2.2,
                    "dash": mark.dash,
                },
                opacity=0.4 if mark.faint else 1.0,
                hovertemplate=f"{html.escape(mark.hover or label or '')}<br>%{{x}}: %{{y:.4~g}}"
                "<extra></extra>",
                **legend,
            ),
            **place,
        )
    elif isinstance(mark, Points):
        texts = [html.escape(text) for text in mark.hover]
        drawn.add_trace(
            graph_objects.Scatter(
                x=mark.x,
                y=mark.y,
                mode="markers",
                marker={"color": mark.colour, "size": mark.size + 2, "opacity": 0.85},
                text=texts or None,
                hovertemplate=("%{text}<br>" if texts else "") + "%{x:.4~g}: %{y:.4~g}"
                "<extra></extra>",
                **legend,
            ),
            **place,
        )
    elif isinstance(mark, Bars):
        middle = (mark.edges[:-1] + mark.edges[1:]) / 2
        drawn.add_trace(
            graph_objects.Scatter(
                x=middle,
                y=mark.heights,
                mode="lines",
                line={"shape": "hvh", "color": mark.colour, "width": 1},
                fill="tozeroy" if mark.filled else None,
                **legend,
            ),
            **place,
        )
    elif isinstance(mark, Heat):
        _add_heat(drawn, mark, place)
    elif isinstance(mark, Picture):
        pixels = np.clip(np.round(255 * mark.pixels), 0, 255).astype(np.uint8)
        drawn.add_trace(graph_objects.Image(z=pixels, hoverinfo="skip"), **place)
    elif isinstance(mark, Words):
        drawn.add_annotation(
            x=mark.x,
            y=mark.y,
            text=f"<b>{html.escape(mark.text)}</b>",
            showarrow=False,
            bgcolor="rgba(255,255,255,0.75)",
            font={"color": mark.colour, "size": 11},
            **place,
        )
    else:
        assert isinstance(mark, Border)
        drawn.add_vline(
            x=mark.x,
            line={"color": PALE, "width": 1, "dash": "dot"},
            annotation_text=html.escape(mark.text),
            annotation_position="top right",
            annotation_font={"size": 10, "color": SOFT},
            **place,
        )


def _add_band(drawn: Any, mark: Line, place: dict[str, int], label: str | None) -> None:
    from plotly import graph_objects

    assert mark.band is not None
    good = np.isfinite(mark.band[0]) & np.isfinite(mark.band[1])
    low, high, x = mark.band[0][good], mark.band[1][good], mark.x[good]
    drawn.add_trace(
        graph_objects.Scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            fill="toself",
            mode="lines",
            line={"width": 0, "color": mark.colour},
            opacity=0.2,
            hoverinfo="skip",
            legendgroup=label,
            showlegend=False,
        ),
        **place,
    )


def _add_heat(drawn: Any, mark: Heat, place: dict[str, int]) -> None:
    from plotly import graph_objects

    bar: dict[str, Any] = {"showscale": False}
    if mark.unit:
        domains = (
            next(drawn.select_xaxes(**place)).domain,
            next(drawn.select_yaxes(**place)).domain,
        )
        bar = {
            "showscale": True,
            "colorbar": {
                "x": domains[0][1],
                "xanchor": "left",
                "y": sum(domains[1]) / 2,
                "len": domains[1][1] - domains[1][0],
                "thickness": 8,
                "tickfont": {"size": 9},
            },
        }
    drawn.add_trace(
        graph_objects.Heatmap(
            z=mark.values.astype(np.float32),
            zmin=mark.low,
            zmax=mark.high,
            colorscale="RdBu" if mark.diverging else "Blues",
            hovertemplate=f"row %{{y}}, column %{{x}}: %{{z:.3~g}} {html.escape(mark.unit)}"
            "<extra></extra>",
            hoverongaps=False,
            **bar,
        ),
        **place,
    )
    if np.isnan(mark.values).any():
        drawn.update_layout(plot_bgcolor=BLANK)
    for at in mark.rows:
        drawn.add_hline(y=at - 0.5, line={"color": SOFT, "width": 0.7}, **place)
    for at in mark.columns:
        drawn.add_vline(x=at - 0.5, line={"color": SOFT, "width": 0.7}, **place)
