"""Draws every kind of figure of one run: python docs/draw.py RUN DIRECTORY [RUNS]."""

from __future__ import annotations

import sys
from pathlib import Path

from search.figures.kinds.base import KINDS
from search.figures.runs import select
from wiring.errors import WiringError
from workers.files import write_bytes


def draw(run: str, directory: Path, runs: Path) -> list[Path]:
    """Write KIND.png for every kind that the run has data for; says which have none, and why."""
    selection = select([run], runs)
    drawn = []
    for kind in KINDS.names():
        try:
            picture = KINDS.get(kind)(data_root=None).render(selection, "png")
        except WiringError as error:
            print(f"{kind}: not drawn: {error}", file=sys.stderr)
            continue
        drawn.append(directory / f"{kind}.png")
        write_bytes(drawn[-1], picture)
    return drawn


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    where = Path(sys.argv[3]) if len(sys.argv) == 4 else Path("wiring-runs")
    for path in draw(sys.argv[1], Path(sys.argv[2]), where):
        print(path)
