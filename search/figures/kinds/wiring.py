"""The graph of one trial."""

from __future__ import annotations

from search.figures.history import History
from search.figures.kinds.base import KINDS, Format, Kind
from search.figures.layout import place
from search.figures.page import page
from search.figures.runs import Selection
from search.figures.wiring import picture


@KINDS.register("wiring")
class Wiring(Kind):
    """The live edges between the nodes: best epoch as a picture, all epochs on a slider page."""

    single = True

    def render(self, selection: Selection, form: Format) -> bytes:
        directory = selection.best.directory
        history = History(directory)
        layout = place(history.topology, history.table, history.best.edges)
        if form == "html":
            return page(history, layout, directory).encode()
        return picture(history, history.best, layout, form)
