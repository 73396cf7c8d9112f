"""What the README shows is true: its code runs, its lists are complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from search.algorithms.base import ALGORITHMS
from search.spaces.base import SPACES
from wiring.graph.edges import EDGE_OPS
from wiring.graph.node_rules import NODE_RULES
from wiring.graph.rules import EDGE_RULES
from workers.data import DATA

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_exactly_two_commands_set_the_project_up() -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert [line for line in commands if "pip install" in line] == [
        "pip install . && wiring search --space mobilenet-graph --op xnor",
        "pip install '.[test]' && pytest",
    ]


def test_the_operator_shown_is_the_example_that_is_tested() -> None:
    assert (ROOT / "examples" / "plugin" / "wiring_shift.py").read_text() in blocks("python")


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = (block for block in blocks("python") if "build_network" in block)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "network.safetensors").stat().st_size > 1000


def test_the_example_on_any_network_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = (block for block in blocks("python") if "wiring.convert" in block)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert "24 of 26 layers converted" in capsys.readouterr().out
    x = names["images"]
    torch.testing.assert_close(names["again"].eval()(x), names["small"](x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "registry"),
    [
        ("spaces", SPACES),
        ("operators", EDGE_OPS),
        ("rules", EDGE_RULES),
        ("node rules", NODE_RULES),
        ("algorithms", ALGORITHMS),
        ("data", DATA),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_registered_name_stands_in_its_row(kind: str, registry: object) -> None:
    (row,) = re.findall(rf"^\| {kind} \| (.*) \|$", README, re.MULTILINE)
    names = registry.names()  # type: ignore[attr-defined]
    assert names
    assert [name for name in names if f"`{name}`" not in row] == []


def test_every_picture_and_file_that_is_linked_exists() -> None:
    links = re.findall(r"\]\(((?!http)[^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
