"""The command that trains what papers published, and sets its numbers beside theirs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli import options
from wiring.errors import ConfigError

if TYPE_CHECKING:
    from search.config import StudyConfig
    from search.recipe import Recipe
    from search.reproduce import Reproduction

RUNS = Path("wiring-runs")
WIDTH = 120  # characters that the table needs, also where there is no terminal to measure


def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAMES|all", help="Recipes or groups of them (--list shows both)."),
    ] = None,
    scale: Annotated[
        float, typer.Option(help="Train this share of the paper's epochs; recorded everywhere.")
    ] = 1.0,
    seeds: Annotated[int, typer.Option(min=1, help="Trials of each recipe: seeds 0, 1, …")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first of them.")] = 0,
    data: Annotated[
        str | None, typer.Option(help="Another data set than the recipe's ('wiring list data').")
    ] = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of every recipe, e.g. space.size=quarter or "
            "data.limit=10000; recorded as a deviation. Repeatable.",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Trials at a time (default: as many as fit; 1 needs no Ray)."),
    ] = None,
    cpus_per_trial: Annotated[float, typer.Option(help="CPUs of one trial.")] = 1.0,
    gpus_per_trial: Annotated[float, typer.Option(help="GPUs of one trial.")] = 0.0,
    runs: options.Runs = RUNS,
    address: options.Address = None,
    token_file: options.TokenFile = None,
    tracking_uri: options.Tracking = None,
    recipes: Annotated[
        Path | None, typer.Option(help="Folder of recipes of your own (*.toml).")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown too.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the recipes and stop.")] = False,
    collect: Annotated[
        bool, typer.Option("--collect", help="Train nothing; show what is on disk.")
    ] = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Train rows of published tables and compare; run again, it goes on where it was."""
    from search.recipe import RECIPES, choose, load_recipes

    known = load_recipes(recipes or RECIPES)
    chosen = choose(names or (["all"] if show_list else []), known)
    if show_list:
        _show_list(chosen, as_json)
        return
    if not chosen:
        raise ConfigError("name recipes or groups, or 'all'; --list shows them")
    place = {
        "name": data,
        "root": str(data_root.absolute()) if data_root else None,
        "download": download or None,
    }
    planned = [
        (
            one,
            one.planned(
                seeds=range(first_seed, first_seed + seeds),
                scale=scale,
                data={key: value for key, value in place.items() if value is not None},
                settings=settings or (),
            ),
        )
        for one in chosen
    ]
    if dry_run:
        _print_plans(planned)
        return
    from search import reproduce as runner

    for one, config in planned:
        runner.check(one, config, None if collect else tracking_uri)
    how = runner.How(
        jobs=jobs,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        address=address,
        token_file=token_file,
        tracking_uri=tracking_uri,
    )
    results: list[Reproduction] = []
    for one, config in planned:
        stopped = bool(results) and results[-1].interrupted
        if collect or stopped:
            results.append(runner.collect(one, config, scale, runs))
            results[-1].interrupted = stopped
        else:
            _say(f"{one.name}: {one.title} ({one.table})")
            results.append(runner.run(one, config, scale, runs, how))
    _finish(results, _command(names or [], scale, seeds, first_seed, data, settings), markdown)
    if as_json:
        print(json.dumps([result.as_record() for result in results]), flush=True)
    if results[-1].interrupted:
        sys.exit(130)
    sys.exit(0 if all(result.complete for result in results) else 1)


def _finish(results: list[Reproduction], command: str, target: Path | None) -> None:
    from search import comparison
    from search.console import error_console
    from workers.files import write_text

    console = error_console()
    console.width = max(console.width, WIDTH)
    console.print(comparison.result_table(results))
    for text in comparison.deviations(results):
        console.print(f"otherwise than in the paper: {text}", highlight=False, soft_wrap=True)
    for result in results:
        for text in result.problems:
            console.print(f"{result.recipe.name}: {text}", style="red", soft_wrap=True)
    if not all(result.complete for result in results):
        console.print("the same command goes on with what is missing")
    if target is not None:
        write_text(target, comparison.markdown(results, command))


def _command(
    names: list[str],
    scale: float,
    seeds: int,
    first_seed: int,
    data: str | None,
    settings: list[str] | None,
) -> str:
    """What to type for the same numbers, wherever the data lie."""
    import shlex

    words = ["wiring", "reproduce", *names]
    words += ["--scale", f"{scale:g}"] if scale != 1 else []
    words += ["--seeds", str(seeds)]
    words += ["--first-seed", str(first_seed)] if first_seed else []
    words += ["--data", data] if data else []
    for setting in settings or ():
        words += ["--set", setting]
    return shlex.join(words)


def _show_list(recipes: list[Recipe], as_json: bool) -> None:
    if as_json:
        print(json.dumps([recipe.to_dict() for recipe in recipes]))
        return
    from search.comparison import recipe_lines

    for line in recipe_lines(recipes):
        print(line)


def _print_plans(planned: list[tuple[Recipe, StudyConfig]]) -> None:
    for recipe, config in planned:
        print(f"# {recipe.name}: {recipe.title}")
        for change in recipe.changes(config):
            print(f"# {change}")
        print(options.as_toml({recipe.name: config.to_dict()}))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
