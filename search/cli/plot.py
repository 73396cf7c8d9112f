"""The command that draws: plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from search.cli import options
from wiring.errors import ConfigError


def plot(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN|STUDY...", help="Studies, and trials like STUDY/0003."),
    ] = None,
    kind: Annotated[str, typer.Option(help="What to draw ('wiring plot --list').")] = "curves",
    output: Annotated[
        Path | None,
        typer.Option(help="A .png, .svg or .html file (default: a PNG beside the run)."),
    ] = None,
    data_root: options.DataRoot = None,
    runs: options.Runs = Path("wiring-runs"),
    show_kinds: Annotated[
        bool, typer.Option("--list", help="List the kinds of figures and stop.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Draw a figure of trials and studies, finished or not, as PNG, SVG or interactive HTML."""
    from search.figures.kinds.base import KINDS, format_of
    from search.figures.runs import select
    from workers.files import write_bytes

    if show_kinds:
        _show_kinds(as_json)
        return
    if not names:
        raise ConfigError("wiring plot needs at least one RUN or STUDY, or --list")
    figure = KINDS.get(kind)(data_root=data_root)
    form = format_of(output) if output else "png"
    selection = select(names, runs)
    path = output or selection.home(kind, single=figure.single)
    write_bytes(path, figure.render(selection, form))
    if as_json:
        shown = [selection.best] if figure.single else selection.runs
        print(json.dumps({"file": str(path), "kind": kind, "runs": [run.name for run in shown]}))
    else:
        print(path)


def _show_kinds(as_json: bool) -> None:
    from search.figures.kinds.base import KINDS

    entries = KINDS.entries()
    if as_json:
        print(json.dumps([{"name": entry.name, "summary": entry.summary} for entry in entries]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("kind", "what it shows"):
        table.add_column(column)
    for entry in entries:
        table.add_row(entry.name, entry.summary)
    Console().print(table)
