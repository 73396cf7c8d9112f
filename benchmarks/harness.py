"""Two ways to compute the same, timed side by side, and the table of what came out.

One run measures both on one machine: after a warm-up the ways take turns, and the medians are
compared. A ratio is PyTorch's time over ours, so more is better.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wiring.errors import UnknownNameError
from wiring.kernels import backends

Work = Callable[[], object]
REPETITIONS = 7
MOST_REPETITIONS = 101
PAGE_WIDTH = 140
SAMPLE_SECONDS = 0.005  # shorter work is repeated inside one sample
# What holds PyTorch to an instruction set: its own kernels, oneDNN's and MKL's.
CAPS = {
    "portable": ("default", "SSE41", "SSE4_2"),
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE", "AVX512"),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


@dataclass(frozen=True)
class Case:
    """One comparison. `ours` and `torch` do the whole work on tensors made beforehand.

    Where `torch` is a list (say, of memory formats), its fastest entry counts. `target` is the
    ratio to reach; `limit_ratio` the best possible one by counting operations, or the least work
    that has to be done, which is then timed with the rest. None where there is none.
    """

    op: str
    case: str
    ours: Work
    torch: Work | Sequence[Work]
    target: float | None = None
    limit_ratio: float | Work | None = None
    note: str = ""


@dataclass(frozen=True)
class Result:
    """One case at one number of threads; the fields are the JSON keys."""

    op: str
    case: str
    threads: int
    ours_ms: float
    torch_ms: float
    ratio: float
    target: float | None
    limit_ratio: float | None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or a dash where there is no target."""
        if self.target is None:
            return "–"
        return "met" if self.ratio >= self.target else "missed"


def measure(case: Case, *, threads: int, seconds: float) -> Result:
    """Medians of at least 7 interleaved repetitions, of more while `seconds` last."""
    rivals = list(case.torch) if isinstance(case.torch, Sequence) else [case.torch]
    least = [case.limit_ratio] if callable(case.limit_ratio) else []
    with _torch_threads(threads), _no_collector():
        ours, *others = _medians([case.ours, *rivals, *least], seconds)
    best = min(others[: len(rivals)])
    return Result(
        op=case.op,
        case=case.case,
        threads=threads,
        ours_ms=1000 * ours,
        torch_ms=1000 * best,
        ratio=best / ours,
        target=case.target,
        limit_ratio=best / others[-1] if callable(case.limit_ratio) else case.limit_ratio,
    )


def _medians(works: Sequence[Work], seconds: float) -> list[float]:
    """Seconds of one call of each."""
    started = time.perf_counter()
    inner = []
    for work in works:
        work()  # memory, code and caches come to life
        once = _seconds(work, 1)
        inner.append(max(1, round(SAMPLE_SECONDS / max(once, 1e-9))))
    samples: list[list[float]] = [[] for _ in works]
    for repetition in range(MOST_REPETITIONS):
        if repetition >= REPETITIONS and time.perf_counter() - started > seconds:
            break
        for work, times, calls in zip(works, samples, inner, strict=True):
            times.append(_seconds(work, calls) / calls)
    return [statistics.median(times) for times in samples]


def _seconds(work: Work, calls: int) -> float:
    begun = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - begun


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=_positive, help="default: once 1, once all")
    parser.add_argument(
        "--isa",
        metavar="SET",
        help="hold ours and PyTorch to an instruction set; 'definition' runs ours without C++",
    )
    parser.add_argument("--json", action="store_true", help="one JSON line per case")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="how long a case goes on after 7 repetitions"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def thread_counts(wanted: int | None) -> list[int]:
    """The numbers of threads to measure at: the one asked for, or 1 and all."""
    return [wanted] if wanted else sorted({1, torch.get_num_threads()})


def capped(isa: str | None, environment: dict[str, str]) -> dict[str, str]:
    """The environment in which PyTorch keeps to `isa`; the same one where no cap is needed."""
    return environment | dict(zip(VARIABLES, CAPS.get(isa or "", ()), strict=False))


def cap_torch(isa: str | None, module: str, argv: Sequence[str]) -> None:
    """Start this command again where PyTorch is not yet held to `isa`: it reads that once."""
    environment = dict(os.environ)
    wanted = capped(isa, environment)
    if wanted != environment:
        os.execve(sys.executable, [sys.executable, "-m", module, *argv], wanted)


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def header(isa: str | None) -> str:
    """The machine and what runs on it, in one line."""
    sets = backends.instruction_sets()
    return (
        f"{cpu_model()}, {os.cpu_count()} cores; wiring: {isa or sets[-1]} "
        f"(here: {', '.join(sets)}); PyTorch {torch.__version__}: "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )


def run(cases: Iterable[Case], options: argparse.Namespace) -> list[Result]:
    """Measure and print: a table, or with --json a line per case as soon as it is measured.

    Progress and notes go to stderr. Raises UnknownNameError for an instruction set that is not
    here.
    """
    progress = Console(stderr=True, highlight=False)
    progress.print(escape(header(options.isa)))
    results = []
    with backends.use(options.isa) if options.isa else nullcontext():
        for case in cases:
            for threads in thread_counts(options.threads):
                progress.print(escape(f"{case.op}: {case.case}, {threads} thread(s) …"))
                result = measure(case, threads=threads, seconds=options.seconds)
                results.append(result)
                if options.json:
                    print(result.to_json(), flush=True)
            if case.note:
                progress.print(escape(f"  {case.note}"))
    if not options.json:
        console = Console()
        if not console.is_terminal:
            console.width = PAGE_WIDTH
        console.print(table(results, title=header(options.isa)))
    return results


def table(results: Sequence[Result], title: str) -> Table:
    """What was measured, the target and the limit beside it."""
    result = Table(title=escape(title), title_justify="left")
    for name in ("op", "case"):
        result.add_column(name, overflow="fold")
    for name in ("threads", "ours ms", "torch ms", "ratio", "target", "limit", "verdict"):
        result.add_column(name, justify="right")
    for row in results:
        result.add_row(
            escape(row.op),
            escape(row.case),
            str(row.threads),
            *(_number(x) for x in (row.ours_ms, row.torch_ms, row.ratio)),
            *(_number(x) for x in (row.target, row.limit_ratio)),
            row.verdict,
        )
    return result


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}"


JSON_KEYS = tuple(field.name for field in fields(Result))


def main_guard(work: Callable[[], object]) -> int:
    """0, or 2 and one sentence on stderr for a name that is unknown."""
    try:
        work()
    except UnknownNameError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
