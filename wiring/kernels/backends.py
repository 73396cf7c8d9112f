"""Which back ends each operation has on this machine, and why others are missing.

PyTorch's dispatcher picks by device: on a CPU the compiled kernel of the widest instruction set
that runs here, on a GPU the Triton one, and the definition in `op.py` where there is neither.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch

from wiring.errors import UnknownNameError

DEFINITION = "definition"
_forced: str | None = None


class Native:
    """The compiled module `wiring.kernels.<op>._cpu`, imported when first asked for.

    Calling it gives the module, or None where there is none or the definition is forced.
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.reason = ""
        self._module: ModuleType | None = None
        self._tried = False

    def __call__(self) -> ModuleType | None:
        if not self._tried:
            self._load()
        return None if _forced == DEFINITION else self._module

    def _load(self) -> None:
        self._tried = True
        try:
            self._module = importlib.import_module(f"wiring.kernels.{self.op}._cpu")
        except ModuleNotFoundError:
            self.reason = "not compiled: wiring was installed without a working C++ compiler"
        except ImportError as error:
            self.reason = f"cannot be loaded: {error}"
        if self._module is not None and _forced not in (None, DEFINITION):
            self._module.choose(_forced)


_natives: dict[str, Native] = {}


def native(op: str) -> Native:
    """The one `Native` of an operation."""
    return _natives.setdefault(op, Native(op))


def threads() -> int:
    """As many threads as PyTorch's own operations take."""
    return torch.get_num_threads()


def operations() -> list[str]:
    """The operations: folders beside this file that have an `op.py`."""
    package = importlib.import_module("wiring.kernels")
    return [m.name for m in pkgutil.iter_modules(package.__path__) if m.ispkg]


def instruction_sets() -> list[str]:
    """What `use` takes: `definition`, and the compiled instruction sets that run here."""
    names = [DEFINITION]
    for op in operations():
        module = _module(op)
        if module is not None:
            names += [name for name in module.instruction_sets() if name not in names]
    return names


def _module(op: str) -> ModuleType | None:
    entry = native(op)
    entry()
    return entry._module


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run CPU operations on one instruction set, or on their definitions, inside a `with`.

    Raises UnknownNameError for one that is not here.
    """
    global _forced
    if name not in instruction_sets():
        raise UnknownNameError(
            f"unknown instruction set '{name}'; here are {', '.join(instruction_sets())}"
        )
    before = _forced
    chosen = {op: m.instruction_set() for op in operations() if (m := _module(op)) is not None}
    try:
        _forced = name
        for op in chosen:
            if name != DEFINITION:
                _natives[op]._module.choose(name)  # type: ignore[union-attr]
        yield
    finally:
        _forced = before
        for op, previous in chosen.items():
            _natives[op]._module.choose(previous)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Backend:
    """One row of `wiring kernels`: whether `op` runs on `backend`, and on what or why not."""

    op: str
    backend: str
    available: bool
    detail: str


def backends() -> list[Backend]:
    """Every operation on every back end: `cpu` (C++) and `cuda` (Triton)."""
    return [row for op in operations() for row in (_cpu(op), _cuda(op))]


def _cpu(op: str) -> Backend:
    module = _module(op)
    if module is None:
        if not hasattr(importlib.import_module(f"wiring.kernels.{op}.op"), "_native"):
            return Backend(op, "cpu", False, "has no compiled kernel; PyTorch's own operations run")
        return Backend(op, "cpu", False, native(op).reason)
    sets = module.instruction_sets()
    return Backend(op, "cpu", True, f"{module.instruction_set()} of {', '.join(sets)}")


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed. A kernel that then fails to import is an error, not absent."""
    return importlib.util.find_spec("triton") is not None


def _cuda(op: str) -> Backend:
    if importlib.util.find_spec(f"wiring.kernels.{op}.gpu") is None:
        return Backend(op, "cuda", False, "has no Triton kernel; PyTorch's own operations run")
    if not has_triton():
        return Backend(op, "cuda", False, "Triton is not installed")
    if not torch.cuda.is_available():
        return Backend(op, "cuda", False, "PyTorch finds no CUDA device")
    return Backend(op, "cuda", True, torch.cuda.get_device_name())
