"""The papers' numbers beside ours: a table for a terminal, Markdown, and a list of recipes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from search.console import clock, compact_number
from search.recipe import Published, Recipe
from search.reproduce import Reproduction

HEADINGS = (
    "recipe",
    "paper %",
    "ours %",
    "seeds",
    "epochs",
    "live edges",
    "energy pJ",
    "weight bits",
    "time a seed",
)


def number(mean: float | None, spread: float | None) -> str:
    """`99.40 ± 0.05`, as many decimals in both; a dash where there is nothing."""
    if mean is None:
        return "–"
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def paper_number(published: Published | None) -> str:
    """The paper's number with a decimal at least, marked where it is from memory."""
    if published is None:
        return "–"
    spread = "" if published.spread is None else f" ± {published.spread:g}"
    memory = "" if published.source.startswith("released") else " (from memory)"
    mean = max(f"{published.mean:.1f}", f"{published.mean:.5g}", key=len)
    return f"{mean}{spread}{memory}"


def cells(one: Reproduction) -> tuple[str, ...]:
    """A row under HEADINGS."""
    done, costs = f"{len(one.results)} of {len(one.seeds)}", one.costs
    epochs = "" if one.epochs is None else str(one.epochs)
    full = one.recipe.config().train.get("epochs")
    return (
        one.recipe.name,
        paper_number(one.recipe.published),
        number(one.mean, one.spread),
        str(len(one.seeds)) if one.complete else done,
        epochs if one.epochs == full else f"{epochs} of {full}",
        compact_number(costs["live_edges"]) if costs else "–",
        compact_number(costs["energy"]) if costs else "–",
        compact_number(costs["weight_bits"]) if costs else "–",
        "–" if one.seconds is None else clock(one.seconds),
    )


def result_table(results: Sequence[Reproduction]) -> Table:
    """All results for a terminal."""
    table = Table(title="Test accuracy, the paper's and ours", title_justify="left", box=None)
    for position, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if position else "left", no_wrap=True)
    for one in results:
        table.add_row(*cells(one))
    return table


def deviations(results: Sequence[Reproduction]) -> list[str]:
    """What is otherwise than in the papers, each with the recipes that it holds for."""
    held: dict[str, list[str]] = {}
    for one in results:
        for text in one.deviations:
            held.setdefault(text, []).append(one.recipe.name)
    everywhere = len(results)
    return [
        text if len(names) == everywhere else f"{text} ({', '.join(names)})"
        for text, names in held.items()
    ]


def markdown(results: Sequence[Reproduction], command: str) -> str:
    """The results with the command, the seeds and all that deviates, for a README."""
    lines = [
        f"`{command}`",
        "",
        "Test accuracy in per cent at the epoch that validated best; ± is the standard deviation "
        "between seeds, in the paper's column the paper's own.",
        "",
        _row(("", *HEADINGS)[1:]),
        _row(["---", *["---:"] * (len(HEADINGS) - 1)]),
        *(_row(cells(one)) for one in results),
    ]
    changed = deviations(results)
    if changed:
        lines += ["", "Otherwise than in the paper:", "", *(f"- {text}" for text in changed)]
    problems = [f"{one.recipe.name}: {text}" for one in results for text in one.problems]
    if problems:
        lines += ["", "Not finished:", "", *(f"- {text}" for text in problems)]
    return "\n".join(lines) + "\n"


def recipe_lines(recipes: Iterable[Recipe]) -> Iterator[str]:
    """What can be reproduced: each group, and a line for each of its rows."""
    group = ""
    for one in recipes:
        if one.group != group:
            yield f"{one.group}: {one.table}, {one.effort} ({one.paper})"
            group = one.group
        yield f"  {one.name:34} {paper_number(one.published):>12}  {one.title}"


def _row(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |"
