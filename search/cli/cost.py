"""The command that counts: cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli import options
from wiring.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

HEADS = {
    "multiplications": "multiply",
    "additions": "add",
    "xnor_words": "XNOR words",
    "lookups": "look up",
    "transforms": "transforms",
    "weight_bits": "weight bits",
    "index_bits": "index bits",
    "activation_bits": "activation bits",
    "energy": "energy µJ",
    "memory_energy": "memory µJ",
}
PICO_PER_MICRO = 1e6
TIMES = ("before_us", "after_us")
WIDE = 160  # columns of a table that goes to no terminal


def cost(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A trial (its directory, or STUDY/0003), an exported, compiled or converted "
            "file, a model of torchvision's, or FILE.py:FUNCTION that makes one.",
        ),
    ],
    shape: Annotated[
        str, typer.Option("--input", help="What a model is given that is no trial's.")
    ] = "3x224x224",
    weights: Annotated[
        Path | None, typer.Option(help="A state dict or a converted file of this model.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time every layer here, beside what theory says.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A line a layer, as CSV.")] = False,
    runs: options.Runs = Path("wiring-runs"),
    as_json: options.AsJson = False,
) -> None:
    """Count what one image costs: operations, bits, traffic and energy, layer by layer.

    For a run also what the ordinary network in its place would cost: every edge, in floating
    point; for a converted file, what the model was before. Energy is that of the 45 nm table in
    wiring/cost.py.
    """
    if as_csv and as_json:
        raise ConfigError("--csv and --json exclude one another")
    from search import costs

    image = costs.image_shape(shape)
    model, before = costs.open_model(name, runs, weights)
    found = costs.report(model, image, before=before, measured=measure)
    if as_csv:
        print(costs.as_csv(found), end="")
    elif as_json:
        print(costs.as_json(found))
    else:
        _show(found)
    if as_csv or not as_json:
        for note in found["notes"]:
            print(f"NOT COUNTED: {note}", file=sys.stderr)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    print(f"one input of {'x'.join(map(str, found['input']))}")
    console.print(_layers(found["layers"]))
    if "compared" in found:
        console.print("\nbefore (every edge, in floating point) and after:", highlight=False)
        console.print(_compared(found["compared"]))
    if "times" in found:
        console.print("\nshares of the operations, and of the time on this machine:")
        console.print(_times(found["times"]))
        last = found["times"][-1]["us"]
        console.print(
            f"the whole model takes {last / 1000:.3g} ms, its layers by themselves "
            f"{sum(line['us'] for line in found['times'][:-1]) / 1000:.3g} ms",
            highlight=False,
        )


def _layers(lines: list[dict[str, Any]]) -> Table:
    """All columns that are not 0 throughout."""
    shown = [name for name in HEADS if any(line[name] for line in lines)]
    table = _table("layer", "kind", *(HEADS[name] for name in shown))
    for line in lines:
        values = (_number(line[n] / (PICO_PER_MICRO if "energy" in n else 1)) for n in shown)
        table.add_row(line["layer"], line["kind"], *values)
    return table


def _compared(lines: list[dict[str, Any]]) -> Table:
    measured = any(line["measured"] is not None for line in lines)
    heads = ["layer", "kind", "operations", "", "bits", "", "energy µJ", "", "in theory"]
    table = _table(*heads, *(["µs", "", "measured", ""] if measured else []))
    for line in lines:
        cells = [line["layer"], line["kind"]]
        for names in (
            ("multiplications", "additions", "xnor_words", "xnor_words", "lookups"),
            ("weight_bits", "index_bits"),
        ):
            cells += [
                _number(sum(line[f"{n}_{end}"] for n in names)) for end in ("before", "after")
            ]
        cells += [_number(line[f"energy_{end}"] / PICO_PER_MICRO) for end in ("before", "after")]
        cells.append(_ratio(line["theory"]))
        if measured:
            cells += ["" if line[us] is None else f"{line[us]:.0f}" for us in TIMES]
            cells += [_ratio(line["measured"]), "SLOWER" if line["slower"] else ""]
        table.add_row(*cells)
    return table


def _times(lines: list[dict[str, Any]]) -> Table:
    table = _table("layer", "operations", "µs", "of the operations", "of the time", "")
    for line in lines[:-1]:
        table.add_row(
            line["layer"],
            _number(line["operations"]),
            f"{line['us']:.0f}",
            f"{line['operations_share']:.1%}",
            f"{line['time_share']:.1%}",
            "above its share" if line["slower"] else "",
        )
    return table


def _table(*heads: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for place, head in enumerate(heads):
        left = head in ("layer", "kind") or (not head and place == len(heads) - 1)
        table.add_column(head, justify="left" if left else "right", overflow="fold")
    return table


def _number(value: float) -> str:
    """Three digits and a unit: 1.81 G."""
    for least, unit, name in ((1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if value >= least:
            return f"{value / unit:.4g}{name}"
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}×"
