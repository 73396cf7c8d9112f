"""Compiles what `launches` would launch, for GPUs that are not there; prints JSON.

Triton is told that a device of the architecture is current, and every launch ends behind the
compiler: types, alignment and constants are those of a real launch.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from tests.gpu import sass
from tests.gpu.launches import Launch, launches

ARCHITECTURES = (80, 90)


class NoDevice:
    """As much of a driver as the compiler asks for."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


_compiled: list[tuple[str, Any]] = []
_run = JITFunction.run


def _compile(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
    kernel = _run(self, *arguments, grid=grid, warmup=True, **options)
    _compiled.append((self.__name__, kernel))


def compiled(launch: Launch, architecture: int) -> dict[str, Any]:
    """The kernel's figures, or `error`."""
    _compiled.clear()
    try:
        launch.call()
        kernel = next(kernel for name, kernel in _compiled if name == launch.kernel)
        code = kernel.asm["cubin"]
        return sass.read(launch.kernel, architecture, code, kernel.metadata.shared).as_json()
    except Exception:
        return {"error": traceback.format_exc(limit=-3)}


def figures() -> dict[str, dict[str, Any]]:
    """{architecture and launch: figures} of all."""
    JITFunction.run = _compile
    result = {}
    for architecture in ARCHITECTURES:
        triton.runtime.driver.set_active(NoDevice(architecture))
        for launch in launches():
            result[f"sm_{architecture} {launch.name}"] = compiled(launch, architecture)
    return result


def main() -> None:
    torch.set_num_threads(1)
    json.dump(figures(), sys.stdout)


if __name__ == "__main__":
    main()
