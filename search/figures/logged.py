"""The figures that every trial and every study leaves on disk, from where they go to MLflow.

As PNG: a page of plotly weighs 4.7 MB, and a study keeps one already, that of its front.
"""

from __future__ import annotations

from pathlib import Path

from search.figures.kinds.base import KINDS
from search.figures.runs import Selection, of_study, of_trial
from workers.files import write_bytes

OF_TRIAL = ("curves", "swaps", "heatmap", "weights")
OF_STUDY = ("curves", "swaps", "density")


def write_trial_figures(trial_dir: Path) -> None:
    """Write `artifacts/curves.png` and its like of a trial that has ended.

    A trial that ended before its first epoch has nothing to show. Raises StudyError for a trial
    that cannot be read and where the disk is full.
    """
    _write(of_trial(trial_dir), OF_TRIAL, trial_dir / "artifacts")


def write_study_figures(study_dir: Path) -> None:
    """Write `figures/curves.png` and its like into a study, with the trials it has so far.

    Raises StudyError for a damaged study and where the disk is full.
    """
    _write(of_study(study_dir), OF_STUDY, study_dir / "figures")


def _write(selection: Selection, kinds: tuple[str, ...], folder: Path) -> None:
    if any(run.rows for run in selection.runs):
        for kind in kinds:
            write_bytes(folder / f"{kind}.png", KINDS.get(kind)().render(selection, "png"))
