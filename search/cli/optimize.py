"""The command that compiles a trained network: optimize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from search.cli import options


def optimize(
    run: Annotated[str, typer.Argument(help="A trial: its directory, or STUDY/0003.")],
    output: Annotated[
        Path | None,
        typer.Option(help="File to write (default: compiled.safetensors in the trial)."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images a call, for which kernels are timed.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads to time with (default: all cores).")
    ] = None,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="Let adder edges compute in bytes; reports accuracies.")
    ] = False,
    runs: options.Runs = Path("wiring-runs"),
    as_json: options.AsJson = False,
) -> None:
    """Compile a trained network for this machine: the fastest kernel for every bundle."""
    from search.study import find_trial
    from workers.optimize import optimize_run

    report = optimize_run(find_trial(run, runs), output, batch=batch, threads=threads, uint8=uint8)
    if as_json:
        print(json.dumps(report))
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("bundle", "input", "weight", "density", "kernel", "µs of each form"):
        right = column == "density"
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for choice in report["choices"]:
        times = sorted(choice["us"].items(), key=lambda item: item[1])
        table.add_row(
            choice["bundle"],
            "×".join(map(str, choice["image"])),
            "×".join(map(str, choice["weight"])),
            f"{choice['density']:.1%}",
            f"{choice['op']}: {choice['kernel']}",
            ", ".join(f"{name} {time:.0f}" for name, time in times),
        )
    console = Console()
    console.print(table)
    eager, compiled = report["eager_ms"], report["compiled_ms"]
    payload = report["cost_bits"] / 8
    lines = [
        f"batch {report['batch']}, {report['threads']} thread(s): eager {eager:.3g} ms, "
        f"compiled {compiled:.3g} ms ({eager / compiled:.3g} times as fast)",
        f"scores differ by at most {report['max_difference']:.3g} (largest: "
        f"{report['largest_score']:.3g}) on {report['images']} images",
        f"{report['file']}: {report['bytes']:,} bytes, of which cost counts {payload:,.0f}",
    ]
    if report["accuracy"]:
        figures = (f"{name} {share:.2%}" for name, share in report["accuracy"].items())
        lines.append(f"validation accuracy: {', '.join(figures)}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
