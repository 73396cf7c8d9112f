"""Which back ends run: the choice of instruction set, the definition without any, the reasons."""

from __future__ import annotations

import sys

import pytest
import torch

from wiring.errors import UnknownNameError
from wiring.kernels import backends
from wiring.kernels.bitpack import pack_signs


def test_every_operation_says_on_what_it_runs_or_why_not() -> None:
    rows = backends.backends()
    assert {(row.op, row.backend) for row in rows} == {
        (op, backend) for op in backends.operations() for backend in ("cpu", "cuda")
    }
    assert all(row.detail for row in rows)


def test_an_unknown_instruction_set_is_refused_by_name() -> None:
    with pytest.raises(UnknownNameError, match="'mmx'; here are definition"), backends.use("mmx"):
        pass


def test_a_choice_ends_with_its_block_even_after_an_error() -> None:
    before = [row.detail for row in backends.backends()]
    for name in backends.instruction_sets():
        with pytest.raises(KeyError), backends.use(name):
            raise KeyError
    assert [row.detail for row in backends.backends()] == before


def test_without_compiled_modules_the_definition_runs_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(2, 70, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = pack_signs(x)
    fresh = backends.Native("bitpack")
    monkeypatch.setitem(sys.modules, "wiring.kernels.bitpack._cpu", None)
    monkeypatch.setitem(backends._natives, "bitpack", fresh)
    monkeypatch.setattr("wiring.kernels.bitpack.op._native", fresh)
    assert torch.equal(pack_signs(x), expected)
    row = next(r for r in backends.backends() if (r.op, r.backend) == ("bitpack", "cpu"))
    assert not row.available
    assert "without a working C++ compiler" in row.detail


def test_a_module_that_cannot_be_loaded_says_what_the_loader_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> None:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(backends.importlib, "import_module", broken)
    native = backends.Native("bitpack")
    assert native() is None
    assert native.reason == "cannot be loaded: libgomp.so.1: cannot open shared object file"
