"""Which form is fastest on this machine: measured once, remembered beside all it depends on.

The memory is one JSON file, `kernels.json` under the user's cache directory (XDG_CACHE_HOME, or
~/.cache), with a section for every machine, library version and number of threads. It may vanish
or be damaged at any time: then it is measured again.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeFloat

from wiring.config import Config, parse
from wiring.errors import ConfigError
from wiring.files import write_atomic
from wiring.kernels import backends

log = logging.getLogger(__name__)

VERSION = 1
Microseconds = dict[str, float]
ROUNDS = 7
SECONDS = 0.05  # a form is called more often until it has had this long
MOST_ROUNDS = 200
TRIALS = 2
HOPELESS = 4.0  # times slower than the best after these trials: called no more


def cache_path() -> Path:
    """Where measurements are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "wiring" / "kernels.json"


@functools.cache
def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".strip()
    names = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    found = (re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE) for name in names)
    return " ".join(match[1].strip() for match in found if match) or platform.machine()


def machine() -> str:
    """Processor, threads, library versions and instruction sets in use, as one line."""
    sets = {op: backends.native(op)() for op in backends.operations()}
    compiled = ", ".join(
        f"{op} {backends.DEFINITION if module is None else module.instruction_set()}"
        for op, module in sets.items()
    )
    versions = f"torch {torch.__version__}, wiring {metadata.version('wiring')}"
    cores = f"{torch.get_num_threads()} threads of {torch.backends.cpu.get_cpu_capability()}"
    return f"{_processor()}; {cores}; {versions}; {compiled}"


@contextmanager
def with_threads(threads: int | None) -> Iterator[None]:
    """PyTorch's number of threads inside a `with`; None leaves it. Raises ConfigError below 1."""
    before = torch.get_num_threads()
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(forms: Mapping[str, Callable[[], object]]) -> Microseconds:
    """The shortest time of each form in µs, all of them called in turn.

    The shortest, since whatever else a machine does can only make a call longer.
    """
    best: Microseconds = {}
    for name, form in forms.items():
        form()  # libraries set themselves up in a first call
        best[name] = min(_time(form) for _ in range(TRIALS))
    limit = HOPELESS * min(best.values(), default=0.0)
    open_forms = {name: form for name, form in forms.items() if best[name] <= limit}
    if len(forms) == 1:
        return best
    started = time.perf_counter()
    for number in range(MOST_ROUNDS):
        if number >= ROUNDS and time.perf_counter() - started > SECONDS * len(open_forms):
            break
        for name, form in open_forms.items():
            best[name] = min(best[name], _time(form))
    return best


def _time(form: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    form()
    return (time.perf_counter_ns() - started) / 1000


class _File(Config):
    version: Literal[1]
    machines: dict[str, dict[str, dict[str, NonNegativeFloat]]]


class Memory:
    """Measurements of this machine by key. `path` None remembers nothing beyond this object."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.machine = machine()
        self._known = self._read().get(self.machine, {})
        self._new: dict[str, Microseconds] = {}

    def get(self, key: str, names: Mapping[str, object]) -> Microseconds | None:
        """What was measured for exactly these forms."""
        known = self._new.get(key) or self._known.get(key)
        return known if known is not None and set(known) == set(names) else None

    def put(self, key: str, times: Microseconds) -> None:
        self._new[key] = {name: round(time, 2) for name, time in times.items()}

    def save(self) -> None:
        """Write what is new, beside what others have written meanwhile."""
        if self.path is None or not self._new:
            return
        machines = self._read()
        machines.setdefault(self.machine, {}).update(self._new)
        text = json.dumps({"version": VERSION, "machines": machines}, indent=1, sort_keys=True)
        try:
            write_atomic(self.path, text.encode() + b"\n")
        except OSError as error:
            log.warning(
                "%s: cannot be written (%s); kernels will be measured again",
                self.path,
                error.strerror,
            )

    def _read(self) -> dict[str, dict[str, Microseconds]]:
        if self.path is None:
            return {}
        try:
            return parse(_File, json.loads(self.path.read_bytes())).machines
        except FileNotFoundError:
            return {}
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        except (ValueError, RecursionError, ConfigError):
            reason = f"is not a file of version {VERSION}"
        log.warning("%s: %s; kernels are measured again", self.path, reason)
        return {}
