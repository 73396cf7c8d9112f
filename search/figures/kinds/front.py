"""The Pareto front of a study."""

from __future__ import annotations

from search.figures import pareto
from search.figures.kinds.base import KINDS, Format, Kind
from search.figures.runs import Selection
from wiring.errors import StudyError


@KINDS.register("front")
class Front(Kind):
    """Accuracy against each cost, and the front of a study."""

    def render(self, selection: Selection, form: Format) -> bytes:
        if len(selection.studies) != 1 or len(selection.names) != 1:
            raise StudyError(f"a front is that of one study, got {selection.title}")
        study = selection.studies[0]
        points = pareto.read_points(study)
        if not points:
            raise StudyError(f"study '{study.name}' has no finished trial, and so no front")
        if form == "html":
            return pareto.page(study, points).encode()
        return pareto.picture(study, points, form)
