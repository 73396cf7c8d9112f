"""The command that wires any PyTorch network: convert."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from search.cli import options
from wiring.config import Component, override, parse
from wiring.errors import ConfigError

WIDE = 160  # columns of a table that goes to no terminal


def convert(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="A model of torchvision's, FILE.py:FUNCTION (which is run), or a converted file.",
        ),
    ],
    op: Annotated[str | None, typer.Option("--op", help="Edge operator (default: dense).")] = None,
    rule: Annotated[
        str | None, typer.Option("--rule", help="Edge rule (default: complete).")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of the wired layers' edges that live.")
    ] = None,
    scheme: Annotated[
        Literal["uniform", "erk"], typer.Option(help="How layers share those edges.")
    ] = "uniform",
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--compress",
            metavar="METHOD",
            help="Instead of --op and --rule: compress by methods in this order, nodes before "
            "edges before an operator. Repeatable.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="An option: op.x, rule.x, or METHOD.x. Repeatable."
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            help="Layers that stay: first, last, a name or a pattern; none for none. Repeatable. "
            "(default: first and last)",
        ),
    ] = None,
    shape: Annotated[
        str, typer.Option("--input", help="What the model is given, for its cost.")
    ] = "3x224x224",
    weights: Annotated[
        Path | None, typer.Option(help="A state dict (or a converted file), in safetensors.")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="torchvision's trained weights.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Data set for methods that look at images ('wiring list data')."),
    ] = None,
    data_root: options.DataRoot = None,
    images: Annotated[int, typer.Option(min=1, help="How many of its training images.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of random wirings and weights.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="File to write, for wiring.load_model.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Wire the convolutions and linear layers of any network, and say which were left, and why."""
    from search import models
    from search.costs import image_shape
    from wiring.models.compress import compress
    from wiring.models.convert import convert as convert_model
    from wiring.models.files import save_model

    if methods and (op or rule):
        raise ConfigError("--compress takes the place of --op and --rule: name all methods there")
    size = image_shape(shape)
    chosen = _components(op or "dense", rule or "complete", methods or [], settings or [])
    network, source = models.open_plain(model, weights=weights, pretrained=pretrained)
    batches = models.images(data, data_root, size, images) if data else None
    kept = ["first", "last"] if keep is None else [entry for entry in keep if entry != "none"]
    shared: dict[str, Any] = {"keep": kept, "scheme": scheme, "seed": seed}
    shared |= {"example": models.example_of(size), "progress": None if as_json else _tell}
    if methods:
        report = compress(network, chosen["methods"], batches, density=density, **shared)
    else:
        share = 1.0 if density is None else density
        report = convert_model(network, chosen["op"], chosen["rule"], share, data=batches, **shared)
    found = report.to_dict()
    if output is not None:
        save_model(network, output, source=source)
        found |= {"file": str(output), "bytes": output.stat().st_size}
    if as_json:
        print(json.dumps(found))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(report)
    if output is not None:
        console.print(f"{output}: {found['bytes']:,} bytes", highlight=False, soft_wrap=True)


def _components(
    op: str, rule: str, methods: Sequence[str], settings: Sequence[str]
) -> dict[str, Any]:
    """The methods with the options that --set gives them. Raises ConfigError."""
    named = {"op": op, "rule": rule} if not methods else {name: name for name in methods}
    tables: dict[str, Any] = {key: {} for key in named}
    for setting in settings:
        section = setting.partition("=")[0].rpartition(".")[0]
        if "=" not in setting or not section:
            raise ConfigError(f"--set takes METHOD.KEY=VALUE, got '{setting}'")
        if section not in tables:
            known = ", ".join(f"{key}.x" for key in tables)
            raise ConfigError(f"--set {setting}: there is no '{section}' here; it takes {known}")
        leaf = override({}, [setting.removeprefix(f"{section}.")])
        tables[section] |= leaf
    made = {
        key: parse(Component, {"name": name, **tables[key]}, where=f"--set {key}")
        for key, name in named.items()
    }
    return made if not methods else {"methods": [made[name] for name in methods]}


def _tell(place: int, count: int, name: str) -> None:
    """Progress, on the terminal only."""
    if sys.stderr.isatty():
        end = "\n" if place >= count else ""
        print(f"\r{place}/{count} {name:<60.60}", end=end, file=sys.stderr, flush=True)
