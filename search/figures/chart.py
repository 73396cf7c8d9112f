"""A figure as plain data: what is drawn where, before anybody draws it.

`search.figures.paint` makes PNG and SVG of it, `search.figures.interactive` a page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Dash = Literal["solid", "dash", "dot"]

# Okabe and Ito's colours, which stay apart for colour-blind readers, without the pale yellow.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
DASHES: tuple[Dash, ...] = ("solid", "dash", "dot")
INK, SOFT, GRID, PALE, BLANK = "#1f2733", "#5b6675", "#dfe4ea", "#9aa5b3", "#e8ebef"


def colour(number: int) -> str:
    """The colour of the n-th thing of a kind."""
    return PALETTE[number % len(PALETTE)]


def dash(number: int) -> Dash:
    """The dash of the n-th thing, which tells those apart that share a colour."""
    return DASHES[number // len(PALETTE) % len(DASHES)]


@dataclass(frozen=True)
class Axis:
    """`whole` asks for ticks at whole numbers, `ticks` are (place, text), `upright` turns them."""

    label: str = ""
    log: bool = False
    percent: bool = False
    whole: bool = False
    low: float | None = None
    high: float | None = None
    ticks: tuple[tuple[float, str], ...] | None = None
    upright: bool = False


@dataclass(frozen=True)
class Line:
    """A curve through the points; NaN makes a gap. `band` holds (low, high) around it."""

    x: Floats
    y: Floats
    colour: str = INK
    label: str | None = None
    dash: Dash = "solid"
    band: tuple[Floats, Floats] | None = None
    faint: bool = False
    hover: str = ""


@dataclass(frozen=True)
class Points:
    """Markers; `hover` says of each what it is."""

    x: Floats
    y: Floats
    colour: str = INK
    label: str | None = None
    size: float = 6.0
    hover: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bars:
    """A histogram: `heights` [n] between `edges` [n + 1]; an outline alone where not filled."""

    edges: Floats
    heights: Floats
    colour: str = INK
    label: str | None = None
    filled: bool = True


@dataclass(frozen=True)
class Heat:
    """A matrix [rows, columns] as colours, the first row on top; NaN is blank.

    `unit` names the colour bar; without it there is none. `rows`, `columns` are lines drawn
    across, in units of cells.
    """

    values: Floats
    low: float
    high: float
    unit: str = ""
    diverging: bool = False
    rows: tuple[float, ...] = ()
    columns: tuple[float, ...] = ()


@dataclass(frozen=True)
class Picture:
    """Pixels [rows, columns, 3], 0..1."""

    pixels: Floats


@dataclass(frozen=True)
class Words:
    """A text at a point of the panel."""

    x: float
    y: float
    text: str
    colour: str = INK


@dataclass(frozen=True)
class Border:
    """A vertical line through the whole panel, with a name."""

    x: float
    text: str = ""


Mark = Line | Points | Bars | Heat | Picture | Words | Border


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `instead` is said where there is nothing to draw."""

    title: str
    marks: tuple[Mark, ...]
    x: Axis = Axis()
    y: Axis = Axis()
    bare: bool = False
    instead: str = ""

    def kind(self, wanted: type[Any]) -> list[Any]:
        """Its marks of one kind."""
        return [mark for mark in self.marks if isinstance(mark, wanted)]


@dataclass(frozen=True)
class Chart:
    """Panels in a grid under a title; `facts` stand below the title, `note` at the bottom."""

    title: str
    panels: tuple[Panel, ...]
    facts: str = ""
    note: str = ""
    columns: int = 3
    size: tuple[float, float] = field(default=(4.3, 3.1))

    def legend(self) -> dict[str, Mark]:
        """The first mark of every label, in the order in which they are drawn."""
        found: dict[str, Mark] = {}
        for panel in self.panels:
            for mark in panel.marks:
                label = getattr(mark, "label", None)
                if label is not None:
                    found.setdefault(label, mark)
        return found
