"""Names become classes by file, by plug-in, or not at all, with the near ones offered."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest

from wiring.errors import UnknownNameError, WiringError
from wiring.graph.edges import EDGE_OPS, EdgeOp
from wiring.graph.rules import EDGE_RULES, EdgeRule
from wiring.registry import Registry


def empty() -> Registry[object]:
    return Registry("thing", package="wiring.methods", group="wiring.test_things")


@pytest.mark.parametrize(
    ("registry", "base"), [(EDGE_OPS, EdgeOp), (EDGE_RULES, EdgeRule)], ids=["ops", "rules"]
)
def test_every_method_lives_in_a_file_of_its_name_and_says_what_it_is(
    registry: Registry[Any], base: type
) -> None:
    assert registry.names() == sorted(set(registry.names()))
    for entry in registry.entries():
        cls = registry.get(entry.name)
        assert issubclass(cls, base)
        assert cls.__module__ == f"wiring.methods.{entry.name.replace('-', '_')}"
        assert entry.summary.endswith(".")
        assert entry.paper


def test_a_method_is_found_by_name_without_importing_the_others() -> None:
    code = (
        "import sys; from wiring.graph.edges import EDGE_OPS; EDGE_OPS.get('dense');"
        "print(sorted(m for m in sys.modules if m.startswith('wiring.methods.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['wiring.methods.dense']"


def test_near_names_are_offered() -> None:
    with pytest.raises(UnknownNameError, match="unknown edge rule 'dnw_'; did you mean dnw"):
        EDGE_RULES.get("dnw_")


def test_far_names_are_answered_with_all_of_them() -> None:
    known = ", ".join(EDGE_OPS.names())
    with pytest.raises(UnknownNameError, match=f"unknown edge operator 'zzzz'; known: {known}"):
        EDGE_OPS.get("zzzz")


@pytest.mark.parametrize("name", ["os.path", "../dense", "", "base"])
def test_a_name_that_is_no_module_of_ours_is_only_unknown(name: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown edge operator"):
        EDGE_OPS.get(name)


def test_a_name_taken_twice_is_refused_and_the_first_stays() -> None:
    registry = empty()

    @registry.register("mine")
    class First:
        """One."""

    with pytest.raises(WiringError, match="thing 'mine' is registered twice"):

        @registry.register("mine")
        class Second:
            """Two."""

    assert registry.get("mine") is First


def test_a_plug_in_is_found_through_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = empty()

    class Plugin:
        """Comes from elsewhere."""

    class Point:
        name, value = "plugin", "elsewhere:Plugin"

        def load(self) -> object:
            return registry.register("plugin")(Plugin)

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Point()])
    assert registry.get("plugin") is Plugin


def test_a_plug_in_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name, value = "plugin", "elsewhere:Plugin"

        def load(self) -> object:
            raise ImportError("no such thing")

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Point()])
    sentence = r"plug-in 'plugin' \(elsewhere:Plugin\) cannot be loaded: no such thing"
    with pytest.raises(WiringError, match=sentence):
        empty().get("plugin")


def test_importing_the_library_loads_nothing_heavy() -> None:
    code = (
        "import sys, wiring, wiring.graph.topology;"
        "print([m for m in ('torch', 'ray', 'mlflow', 'optuna', 'triton') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_of_the_library_exists() -> None:
    import wiring

    assert all(getattr(wiring, name) is not None for name in wiring.__all__)
    assert dir(wiring) == sorted(wiring.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = wiring.nothing
