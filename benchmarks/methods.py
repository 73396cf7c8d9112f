"""What every method saves and costs on one small network: the table of `wiring explain`.

    wiring reproduce methods --data-root DIR --runs RUNS
    python -m benchmarks.methods RUNS [--seeds S] [--scale X] [--write] [--picture FILE]

Reads the trials that the first line has trained, compiles the network of the first seed for this
machine, and prints a row each: stored kilobytes, energy of one image, test accuracy with its
spread over the seeds, milliseconds of one image eager and compiled (one thread, batch 1). With
`--write` the rows go to search/measured.toml.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from search import reproduce
from search.explain import MEASURED
from search.recipe import RECIPES, Recipe, choose, load_recipes
from search.study import Study
from wiring.compiled import compile as compile_network
from wiring.compiled.tuning import measure, with_threads
from wiring.errors import WiringError
from wiring.graph.costs import total_cost
from workers.evaluate import load_trained

GROUP = "methods"
TARGET = Path(__file__).parents[1] / "search" / MEASURED


@torch.no_grad()
def row(recipe: Recipe, runs: Path, seeds: int, scale: float) -> dict[str, Any] | None:
    """One recipe's row; None where no seed of it has finished."""
    config = recipe.planned(seeds=range(seeds), scale=scale)
    done = reproduce.collect(recipe, config, scale, runs)
    accuracies = [one.test_accuracy or 0.0 for one in done.results.values()]
    if not accuracies:
        print(f"{recipe.name}: {'; '.join(done.problems) or 'not trained'}", file=sys.stderr)
        return None
    spec, network = load_trained(_directory(runs, done.studies))
    network.eval()
    cost = total_cost(network)
    image = spec.model.image
    x = torch.randn(1, image.channels, image.side, image.side)
    with with_threads(1):
        times = measure({"eager": lambda: network(x)})
        try:
            compiled = compile_network(network, batch=1)
            times |= measure({"compiled": lambda: compiled(x)})
        except WiringError as error:
            print(f"{recipe.name} is not compiled: {error}", file=sys.stderr)
    return {
        "recipe": recipe,
        "accuracy": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "seeds": len(accuracies),
        "epochs": done.epochs,
        "size_bits": cost.weight_bits + cost.index_bits,
        "energy_uj": cost.energy / 1e6,
        "eager_ms": times["eager"] / 1000,
        "compiled_ms": times["compiled"] / 1000 if "compiled" in times else None,
    }


def _directory(runs: Path, studies: list[str]) -> Path:
    """The finished trial of the lowest seed."""
    finished = {
        int(trial.params["seed"]): trial.directory
        for name in studies
        for trial in Study.load(runs / name).trials.values()
        if trial.result is not None and trial.result.state == "finished"
    }
    return finished[min(finished)]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines, the dense network's first."""
    yield (
        f"{'method':28}{'kB':>8}{'times':>7}{'uJ':>8}{'accuracy %':>15}"
        f"{'eager ms':>10}{'compiled':>10}"
    )
    whole = rows[0]["size_bits"]
    for one in rows:
        spread = "" if one["spread"] is None else f" ±{100 * one['spread']:.2f}"
        compiled = "" if one["compiled_ms"] is None else f"{one['compiled_ms']:.3f}"
        yield (
            f"{one['recipe'].name.removeprefix(GROUP + '-'):28}{one['size_bits'] / 8000:8.1f}"
            f"{whole / one['size_bits']:7.1f}{one['energy_uj']:8.3f}"
            f"{100 * one['accuracy']:9.2f}{spread:6}{one['eager_ms']:10.3f}{compiled:>10}"
        )


def as_toml(rows: list[dict[str, Any]], scale: float) -> str:
    """The rows under the names of their methods; a composition stands under each of its parts."""
    import tomli_w

    named: dict[str, list[dict[str, Any]]] = {}
    for one in rows:
        recipe: Recipe = one["recipe"]
        command = ["wiring", "reproduce", recipe.name, "--seeds", str(one["seeds"])]
        command += ["--scale", f"{scale:g}"] if scale != 1 else []
        record = {
            "dataset": "mnist, 12,000 images",
            "network": "lenet5-bn",
            "setting": f"{recipe.title}; {one['epochs']} epochs, {one['seeds']} seeds",
            "size_bits": one["size_bits"],
            "energy_uj": round(one["energy_uj"], 4),
            "accuracy": round(one["accuracy"], 4),
            "command": shlex.join(command),
        }
        if one["compiled_ms"] is not None:
            record["latency_ms"] = round(one["compiled_ms"], 4)
        for name, kind in _methods(recipe):
            named.setdefault(name, []).append({**record, "kind": kind})
    return tomli_w.dumps(named)


def _methods(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(name, kind) of what a recipe measures."""
    kinds = {"op": "edge operator", "rule": "edge rule", "node_rule": "node rule"}
    defaults = {"op": "dense", "rule": "complete", "node_rule": None}
    found = [
        (value["name"] if isinstance(value, dict) else value, kind)
        for key, kind in kinds.items()
        if (value := recipe.settings.get(key)) is not None and value != defaults[key]
    ]
    yield from found or [("dense", "edge operator"), ("complete", "edge rule")]


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Test errors against stored size, a point with its name for every row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figure = Figure(figsize=(10, 7), dpi=150)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel="stored kilobytes", ylabel="test error in %")
    axes.grid(alpha=0.3, which="both")
    places = [(one["size_bits"] / 8000, 100 - 100 * one["accuracy"]) for one in rows]
    names = [one["recipe"].name.removeprefix(f"{GROUP}-") for one in rows]
    colours = ["tab:orange" if name.startswith("nodes") else "tab:blue" for name in names]
    sizes, errors = zip(*places, strict=True)
    axes.scatter(sizes, errors, s=22, color=colours)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.tick_params(which="both", labelsize=7)
    axes.margins(x=0.15)
    figure.tight_layout()
    figure.draw_without_rendering()
    taken: list[Any] = []
    for name, at in sorted(zip(names, places, strict=True), key=lambda pair: pair[1]):
        lines = {"arrowstyle": "-", "lw": 0.4, "color": "gray"}
        # Up and down by turns until a label lies on no other.
        for step in range(60):
            shift = 9 * ((step + 1) // 2) * (1 if step % 2 else -1)
            label = axes.annotate(
                name, at, (7, shift - 2), textcoords="offset points", size=7, arrowprops=lines
            )
            label.update_positions(canvas.get_renderer())  # type: ignore[no-untyped-call]
            box = Text.get_window_extent(label)  # without the line
            if not any(box.overlaps(other) for other in taken):
                break
            label.remove()
        taken.append(box)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, help="where the trials lie")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--write", action="store_true", help=f"write search/{MEASURED}")
    parser.add_argument("--picture", type=Path, help="a PNG or SVG of accuracy against size")
    given = parser.parse_args()
    recipes = choose([GROUP], load_recipes(RECIPES))
    found = [row(recipe, given.runs, given.seeds, given.scale) for recipe in recipes]
    rows = [one for one in found if one is not None]
    if not rows:
        sys.exit(f"{given.runs} holds no finished trial of the group '{GROUP}'")
    print("\n".join(table(rows)))
    if given.picture:
        picture(rows, given.picture)
    if given.write:
        head = "".join(
            f"{line}\n" for line in TARGET.read_text().splitlines() if line.startswith("#")
        )
        TARGET.write_text(f"{head}\n{as_toml(rows, given.scale)}")


if __name__ == "__main__":
    main()
