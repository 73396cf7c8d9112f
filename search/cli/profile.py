"""The command that measures this machine: profile."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli import options
from search.config import seconds
from wiring.errors import ConfigError

if TYPE_CHECKING:
    from search.profile import Checked
    from workers.latency import Profile


def profile(
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Hold the table that is there against networks it has not seen."
        ),
    ] = False,
    limit: Annotated[str, typer.Option(help="How long to measure: 60s, 2m.")] = "90s",
    batch: Annotated[int, typer.Option(help="Images a call.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads to time with (default: all cores).")
    ] = None,
    ops: Annotated[
        list[str] | None,
        typer.Option(
            "--op", help="Operator to measure; repeatable (default: adder, bwn, dense, xnor)."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure what networks take on this machine; budgets of latency-ms go by it.

    Of compiled networks, as 'wiring optimize' makes them. The table measured last decides how
    many images and threads a budget of latency means.
    """
    try:
        limit_s = seconds(limit)
    except ValueError as error:
        raise ConfigError(f"--limit: {error}") from None
    if check:
        _check(as_json)
        return
    from workers.latency import save_profile

    table = _measure(limit_s, batch, threads, options.names(ops))
    path = save_profile(table)
    report = {
        "file": str(path),
        "batch": table.batch,
        "threads": table.threads,
        "samples": len(table.samples),
        "kinds": len({sample.step for sample in table.samples}),
    }
    if as_json:
        print(json.dumps(report))
    else:
        print(
            f"{report['samples']:,} steps and networks of {report['kinds']} kinds measured, batch "
            f"{table.batch}, {table.threads} thread(s): {path}"
        )


def _measure(limit_s: float, batch: int, threads: int | None, ops: list[str] | None) -> Profile:
    from rich.progress import Progress, TextColumn

    from search.console import error_console
    from workers.profile import OPERATORS, measure_profile

    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, console=error_console(), transient=True) as bar:
        task = bar.add_task("measuring", total=limit_s, count="")

        def show(spent: float, count: int) -> None:
            bar.update(task, completed=min(spent, limit_s), count=f"{count:,} measured")

        return measure_profile(
            limit_s, batch=batch, threads=threads, ops=ops or OPERATORS, progress=show
        )


def _check(as_json: bool) -> None:
    from search.console import error_console
    from search.profile import check
    from workers.latency import load_profile

    with error_console().status("building networks") as status:
        rows = check(load_profile(), status.update)
    errors = [abs(row.error) for row in rows]
    if as_json:
        checked = [{**row._asdict(), "error": row.error} for row in rows]
        print(
            json.dumps(
                {"median": statistics.median(errors), "worst": max(errors), "networks": checked}
            )
        )
    else:
        _show(rows, errors)


def _show(rows: list[Checked], errors: list[float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("network", "density", "predicted ms", "measured ms", "error"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        table.add_row(
            row.network,
            f"{row.density:g}",
            f"{row.predicted_ms:.3f}",
            f"{row.measured_ms:.3f}",
            f"{row.error:+.0%}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"relative error: median {statistics.median(errors):.1%}, worst {max(errors):.1%} "
        f"of {len(rows)} networks",
        highlight=False,
    )
