"""Triton kernels, compiled ahead of time for GPUs that are not there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import wiring.kernels
from tests.gpu.launches import Launch, launches

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
ARCHITECTURES = (80, 90)
LAUNCHES = list(launches())
every_launch = pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.name)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
Figures = dict[str, dict[str, Any]]


def _kernel(compiled: Figures, architecture: int, launch: Launch) -> Any:
    from tests.gpu.sass import Kernel

    figures = compiled[f"sm_{architecture} {launch.name}"]
    assert "error" not in figures, figures["error"]
    return Kernel(**figures)


@every_architecture
@every_launch
def test_a_kernel_spills_nothing_and_keeps_to_its_registers(
    launch: Launch, architecture: int, compiled: Figures
) -> None:
    kernel = _kernel(compiled, architecture, launch)
    assert (kernel.spills, kernel.stack) == (0, 0)
    assert kernel.registers <= launch.registers


@every_architecture
@every_launch
def test_a_kernel_has_the_instructions_its_speed_rests_on(
    launch: Launch, architecture: int, compiled: Figures
) -> None:
    kernel = _kernel(compiled, architecture, launch)
    pattern = launch.instruction(architecture)
    assert kernel.count(pattern) > 0, kernel.counts
    assert kernel.share(pattern) >= launch.share, kernel.loop


def test_every_kernel_is_compiled() -> None:
    folder = Path(wiring.kernels.__path__[0])
    kernels = {
        (file.parent.name, name)
        for file in folder.glob("*/gpu*.py")
        for name in re.findall(r"def (\w+_kernel)\(", file.read_text())
    }
    assert kernels == {(launch.family, launch.kernel) for launch in LAUNCHES}
