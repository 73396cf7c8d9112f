"""Pictures of what a study found: the wiring of a trial, and the front of a study.

Plotting libraries are imported when a picture is made, not before.
"""

from pathlib import Path

__all__ = ["write_artifacts", "write_pareto"]


def write_artifacts(trial_dir: Path) -> None:
    """See `search.figures.wiring.write_artifacts`."""
    from search.figures import wiring

    wiring.write_artifacts(trial_dir)


def write_pareto(study_dir: Path) -> None:
    """See `search.figures.pareto.write_pareto`."""
    from search.figures import pareto

    pareto.write_pareto(study_dir)
