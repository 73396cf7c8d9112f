"""How far a kernel's result is from the definition's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.gpu.cases import TOLERANCE, Case
from wiring.kernels import backends, triton_tools


def expected(case: Case) -> Tensor:
    with backends.use("definition"):
        return case.function()(*case.arguments())


@contextmanager
def settings(case: Case) -> Iterator[None]:
    """The case's bounds in place of the family's."""
    modules = [case.gpu(), triton_tools]
    old: list[tuple[Any, str, int]] = [
        (m, name, getattr(m, name)) for m in modules for name in case.settings if hasattr(m, name)
    ]
    try:
        for module, name, _ in old:
            setattr(module, name, case.settings[name])
        yield
    finally:
        for module, name, value in old:
            setattr(module, name, value)


def difference(case: Case, result: Tensor, wanted: Tensor) -> str:
    """What is wrong with the result; empty if nothing is."""
    result = result.cpu()
    if result.dtype != wanted.dtype or result.shape != wanted.shape:
        return f"{result.dtype} {list(result.shape)}, not {wanted.dtype} {list(wanted.shape)}"
    row_major = case.op.startswith(("pack", "bit_planes")) or "weight_gradient" in case.op
    format_ = torch.contiguous_format if row_major else torch.channels_last
    if not result.is_contiguous(memory_format=format_):
        return f"its strides are {result.stride()}"
    if case.exact or not wanted.is_floating_point():
        same = (result == wanted) | (result != result) & (wanted != wanted)
        return "" if bool(same.all()) else f"{int((~same).sum())} of {same.numel()} differ"
    tolerance = TOLERANCE[wanted.dtype]
    if torch.allclose(result, wanted, rtol=tolerance, atol=tolerance):
        return ""
    return f"off by up to {float((result - wanted).abs().max()):.2g}"
