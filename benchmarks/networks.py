"""Whole networks: eager, by torch.compile where that works, and compiled by wiring.

    python -m benchmarks.networks [--network NAME] [--batch N] [--threads N] [--json]
                                  [--no-torch-compile] [--seconds S]

`float` is the same shapes as an ordinary convolutional network, every edge alive, eager. Weights
are random (DNW keeps the k largest, so its live edges are those of no training); batch norms hold
the moments of random images. Memory is what a process of its own needs beyond PyTorch itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

import wiring
from benchmarks.harness import (
    PAGE_WIDTH,
    Case,
    arguments,
    cap_torch,
    header,
    main_guard,
    measure,
    thread_counts,
)
from benchmarks.network_cases import NETWORKS, Form, dense, images, make, spec_of
from wiring.compiled import CompiledNetwork
from wiring.compiled.tuning import with_threads
from wiring.graph.costs import total_cost
from wiring.kernels import backends
from wiring.network import Network

BATCHES = (1, 16)
progress = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Row:
    """One form of one network. Times are medians, those of `float` measured in turns with the
    form's; `max_difference` is that of the scores to eager evaluation; operations are those of
    one image. None where there is nothing to say."""

    network: str
    form: str
    batch: int
    threads: int
    ms: float
    float_ms: float
    max_difference: float | None
    resident_mb: float | None
    peak_mb: float | None
    disk_bytes: int
    multiplications: int
    additions: int
    xnors: int


def rows(
    name: str, batches: Sequence[int], threads: int, seconds: float, *, torch_compile: bool
) -> Iterator[Row]:
    """Every form of one network at every batch; each is timed in turns with `float`."""
    spec = spec_of(name)
    networks = {"float": make(dense(spec)), "eager": make(spec)}
    for batch in batches:
        progress.print(escape(f"{name}, batch {batch}, {threads} thread(s) …"))
        x = images(spec, batch)
        compiled = wiring.compile(networks["eager"], batch=batch, threads=threads)
        forms: dict[str, Form] = {**networks, "compiled": compiled}
        if torch_compile:
            for form, network in networks.items():
                ready = _torch_compiled(network, x, threads)
                if ready is not None:
                    forms[f"{form}, torch.compile"] = ready
        with torch.no_grad():
            expected = networks["eager"](x)
            for form, run in forms.items():
                ours, float_ms = _times(run, networks["float"], x, threads, seconds)
                difference = float((run(x) - expected).abs().max())
                whole = form.startswith("float")
                yield Row(
                    network=name,
                    form=form,
                    batch=batch,
                    threads=threads,
                    ms=ours,
                    float_ms=float_ms,
                    max_difference=None if whole else difference,
                    **_footprint(name, form, networks, compiled, batch, threads),
                    **_operations(networks["float" if whole else "eager"]),
                )


def _times(run: Form, rival: Form, x: Tensor, threads: int, seconds: float) -> tuple[float, float]:
    """Median ms of both."""
    case = Case("network", "", lambda: run(x), lambda: rival(x))
    result = measure(case, threads=threads, seconds=seconds)
    return result.ours_ms, result.torch_ms


def _torch_compiled(network: Network, x: Tensor, threads: int) -> Form | None:
    """By PyTorch's own compiler, warm; None where that fails, with the reason on stderr."""
    torch.compiler.reset()
    form: Form = torch.compile(network)
    try:
        with torch.no_grad(), with_threads(threads):
            form(x)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        progress.print(escape(f"  torch.compile fails: {type(error).__name__}: {reason}"))
        return None
    return form


def _operations(network: Network) -> dict[str, int]:
    cost = total_cost(network)
    return {key: getattr(cost, key) for key in ("multiplications", "additions", "xnors")}


def _footprint(
    name: str,
    form: str,
    networks: dict[str, Network],
    compiled: CompiledNetwork,
    batch: int,
    threads: int,
) -> dict[str, Any]:
    """Size on disk, and memory in a process of its own; none for torch.compile, which compiles
    in the process that runs."""
    none: dict[str, Any] = {"resident_mb": None, "peak_mb": None}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.safetensors"
        if form == "compiled":
            compiled.save(file)
        else:
            network = networks["float" if form.startswith("float") else "eager"]
            safetensors.torch.save_file(network.state_dict(), file)
        size = {"disk_bytes": file.stat().st_size}
        if "torch.compile" in form:
            return none | size
        command = [sys.executable, "-m", "benchmarks.network_cases"]
        settings = [name, form, str(batch), str(threads), str(file)]
        ended = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    if ended.returncode:
        progress.print(escape(f"  memory is unknown: {ended.stderr.strip()[-300:]}"))
        return none | size
    memory: dict[str, Any] = json.loads(ended.stdout)
    return memory | size


def table(found: Sequence[Row]) -> Table:
    """One line per form; the speed is against `float`, the same shapes as ordinary convolutions."""
    result = Table(title=escape(header(None)), title_justify="left")
    for name in ("network", "form"):
        result.add_column(name, overflow="fold")
    for name in ("batch", "threads", "ms", "× float", "resident MB", "peak MB", "disk kB"):
        result.add_column(name, justify="right")
    for name in ("M mul", "M add", "M xnor", "difference"):
        result.add_column(name, justify="right")
    for row in found:
        counts = (row.multiplications, row.additions, row.xnors)
        result.add_row(
            row.network,
            row.form,
            str(row.batch),
            str(row.threads),
            f"{row.ms:#.3g}",
            f"{row.float_ms / row.ms:#.3g}",
            *("–" if mb is None else f"{mb:.1f}" for mb in (row.resident_mb, row.peak_mb)),
            f"{row.disk_bytes / 1000:,.0f}",
            *(f"{count / 1e6:,.1f}" for count in counts),
            "–" if row.max_difference is None else f"{row.max_difference:.1g}",
        )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = arguments("Time whole networks: eager, torch.compile, wiring.compile.")
    parser.add_argument("--network", help=f"one of {', '.join(NETWORKS)}")
    parser.add_argument("--batch", type=int, help="one batch (default: 1 and 16)")
    parser.add_argument(
        "--no-torch-compile",
        action="store_true",
        help="leave out PyTorch's compiler, which is slow",
    )
    options = parser.parse_args(given)
    cap_torch(options.isa, "benchmarks.networks", given)

    def work() -> None:
        progress.print(escape(header(options.isa)))
        found = []
        with backends.use(options.isa) if options.isa else nullcontext():
            for name in [options.network] if options.network else NETWORKS:
                for threads in thread_counts(options.threads):
                    batches = [options.batch] if options.batch else BATCHES
                    compiler = not options.no_torch_compile
                    for row in rows(
                        name, batches, threads, options.seconds, torch_compile=compiler
                    ):
                        found.append(row)
                        if options.json:
                            print(json.dumps(asdict(row)), flush=True)
        if not options.json:
            console = Console()
            if not console.is_terminal:
                console.width = PAGE_WIDTH
            console.print(table(found))

    return main_guard(work)


if __name__ == "__main__":
    sys.exit(main())
