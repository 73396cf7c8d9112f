"""The command `wiring`."""

from __future__ import annotations

import sys

import typer

from search.cli import (
    cluster,
    convert,
    cost,
    explain,
    look,
    optimize,
    plot,
    profile,
    reproduce,
    run,
)
from wiring.errors import WiringError

app = typer.Typer(
    help="Search for the wiring of neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("search")(run.search)
app.command("resume")(run.resume)
app.command("train")(run.train)
app.command("evaluate")(run.evaluate)
app.command("optimize")(optimize.optimize)
app.command("profile")(profile.profile)
app.command("reproduce")(reproduce.reproduce)
app.command("list")(look.list_names)
app.command("explain")(explain.explain)
app.command("cost")(cost.cost)
app.command("convert")(convert.convert)
app.command("kernels")(look.kernels)
app.command("plot")(plot.plot)
app.command("ui")(look.ui)
app.add_typer(cluster.app, name="cluster")


@app.callback()
def _root(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """`--debug` is read in `main`, so that it may stand anywhere."""


def main() -> None:
    """Run the command line. A user's mistake becomes one sentence and exit code 1."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments)
    except WiringError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if debug:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("error: stopped at once; 'wiring resume' goes on from the disk", file=sys.stderr)
        sys.exit(130)
