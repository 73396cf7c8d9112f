"""Triton kernels, interpreted on a CPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.gpu.cases import Case, cases

CASES = list(cases())
OPERATIONS = "bitpack", "l1_conv2d", "masked_conv2d", "select_edges", "xnor_conv2d"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_interpreted_kernel_gives_what_the_definition_gives(
    case: Case, interpreted: dict[str, str]
) -> None:
    assert interpreted[case.name] == ""


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("family", OPERATIONS)
def test_operations_import_without_triton(family: str) -> None:
    code = f"import sys; sys.modules['triton'] = None; import wiring.kernels.{family}"
    subprocess.run([sys.executable, "-c", code], check=True)
