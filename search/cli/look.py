"""Commands that look: list, kernels, ui."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from search.cli import options
from wiring.registry import Entry

Kind = Literal["spaces", "ops", "rules", "node-rules", "algorithms", "data"]


def list_names(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout.")] = False,
) -> None:
    """List what can be named: spaces, ops, rules, node-rules, algorithms or data."""
    entries = _entries(kind)
    if as_json:
        print(
            json.dumps([{"name": e.name, "summary": e.summary, "paper": e.paper} for e in entries])
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "summary", "paper"):
        table.add_column(column)
    for entry in entries:
        table.add_row(entry.name, entry.summary, entry.paper)
    Console().print(table)


def _entries(kind: Kind) -> list[Entry]:
    if kind == "spaces":
        from search.spaces.base import SPACES

        return SPACES.entries()
    if kind == "algorithms":
        from search.algorithms.base import ALGORITHMS

        return ALGORITHMS.entries()
    if kind == "data":
        from workers.data import DATA

        return DATA.entries()
    if kind == "node-rules":
        from wiring.graph.node_rules import NODE_RULES

        return NODE_RULES.entries()
    from wiring.graph.edges import EDGE_OPS
    from wiring.graph.rules import EDGE_RULES

    return EDGE_OPS.entries() if kind == "ops" else EDGE_RULES.entries()


def kernels(
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout.")] = False,
) -> None:
    """List, per operation, which compiled kernels run on this machine, and why others do not.

    Without one an operation runs on its definition in PyTorch: the same numbers, slower.
    """
    from wiring.kernels.backends import backends

    rows = backends()
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("operation", "back end", "here", "which, or why not"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.op, row.backend, "yes" if row.available else "no", row.detail)
    Console().print(table)


def ui(
    runs: options.Runs = Path("wiring-runs"),
    tracking_uri: options.Tracking = None,
    host: Annotated[
        str, typer.Option(help="Address to bind; anything but loopback opens it to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 5000,
) -> None:
    """Serve the MLflow pages of all studies on this machine."""
    from search.tracking import serve_ui

    serve_ui(runs, tracking_uri, host=host, port=port)
