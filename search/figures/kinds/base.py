"""What a kind of figure is, and the registry that finds one by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

from search.figures import interactive, paint
from search.figures.chart import Chart
from search.figures.runs import Selection
from wiring.errors import ConfigError
from wiring.registry import Registry

Format = Literal["png", "svg", "html"]
FORMATS: tuple[Format, ...] = ("png", "svg", "html")


class Kind(ABC):
    """A figure of some trials. Subclasses live in search/figures/kinds/<name>.py.

    `single` kinds show one trial: of a study the most accurate one in validation.
    """

    single: ClassVar[bool] = False

    def __init__(self, *, data_root: Path | None = None) -> None:
        """`data_root` is where the images lie now, for kinds that look at some."""
        self.data_root = data_root

    @abstractmethod
    def render(self, selection: Selection, form: Format) -> bytes:
        """The file's bytes. Raises StudyError where the trials lack what is shown."""


class ChartKind(Kind):
    """A kind that is a chart, and so comes in every format."""

    @abstractmethod
    def chart(self, selection: Selection) -> Chart:
        """What is to be drawn. Raises StudyError where the trials lack what is shown."""

    def render(self, selection: Selection, form: Format) -> bytes:
        chart = self.chart(selection)
        return interactive.page(chart).encode() if form == "html" else paint.image(chart, form)


KINDS: Registry[Kind] = Registry(
    "kind of figure", package="search.figures.kinds", group="wiring.figures"
)


def format_of(path: Path) -> Format:
    """The format that a file's name asks for. Raises ConfigError."""
    form = path.suffix.lower().removeprefix(".")
    for known in FORMATS:
        if form == known:
            return known
    raise ConfigError(f"a figure's file must end in .png, .svg or .html, got '{path.name}'")
