"""The command that explains a name: explain."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli import options
from wiring.errors import ConfigError

if TYPE_CHECKING:
    from search.explain import Explanation


def explain(
    name: Annotated[
        str, typer.Argument(help="A registered operator, rule, node rule, space or algorithm.")
    ],
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="The page of the documentation.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Explain a method: paper, equations, options, cost, when to use it, what was measured.

    A name that stands in two registries, as an edge rule and a node rule may, is explained twice.
    """
    if as_markdown and as_json:
        raise ConfigError("--markdown and --json exclude one another")
    from search import explain as known

    found = known.explain(name)
    if as_json:
        print(json.dumps([one.to_dict() for one in found]))
    elif as_markdown:
        print("\n".join(known.as_markdown(one) for one in found), end="")
    elif not sys.stdout.isatty():
        print("\n\n".join(known.as_text(one) for one in found))
    else:
        _show(found)


def _show(found: list[Explanation]) -> None:
    from rich.console import Console

    from search.explain import sections

    console = Console(highlight=False)
    for one in found:
        console.rule(f"[bold]{one.name}[/bold] ({one.kind})", align="left")
        console.print(one.summary)
        for heading, text in sections(one):
            if heading:
                console.print(f"\n[bold]{heading}[/bold]")
            console.print(text, markup=False, soft_wrap=True)
        console.print(f"\nwritten in {one.source}", style="dim")
