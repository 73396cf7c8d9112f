"""The documentation: a page for every registered name, and a site that builds."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import wiring
from search.docs import navigation, pages, write
from search.explain import registries

ROOT = Path(__file__).parents[2]
SECTIONS = ("Paper", "When to use it", "Equations", "Options", "Cost", "Measured")


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def test_every_registered_name_has_a_page_with_every_section(made: dict[str, str]) -> None:
    for registry in registries():
        for name in registry.names():
            page = made[f"methods/{name}.md"]
            assert f"*{registry.kind}* — " in page, name
            kinds = page.count(f"\n# {name}\n") + page.startswith(f"# {name}\n")
            for heading in SECTIONS:
                assert page.count(f"\n## {heading}\n") == kinds, (name, heading)
            assert f"| [{name}]({name}.md) |" in made["methods/index.md"]


def test_the_navigation_leads_to_every_page_once(made: dict[str, str]) -> None:
    (first, *groups) = navigation()
    assert first == {"All methods": "methods/index.md"}
    linked = [
        path
        for group in groups
        for entries in group.values()
        for entry in entries
        for path in entry.values()
    ]
    assert len(linked) == len(set(linked))
    assert {*linked, "methods/index.md", "api.md"} == set(made)


def test_every_public_name_is_documented_where_it_is_defined(made: dict[str, str]) -> None:
    for name in wiring.__all__:
        assert f"\n::: {wiring._HOMES[name]}.{name}\n" in made["api.md"]


def test_pages_are_written_where_one_says(tmp_path: Path, made: dict[str, str]) -> None:
    written = write(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in written} == set(made)
    assert (tmp_path / "methods" / "dense.md").read_text() == made["methods/dense.md"]


def test_every_picture_in_the_gallery_is_there() -> None:
    text = (ROOT / "docs" / "gallery.md").read_text()
    pictures = [line.rpartition("(")[2].rstrip(")") for line in text.splitlines() if "![" in line]
    assert pictures
    assert [name for name in pictures if not (ROOT / "docs" / name).exists()] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for module in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install '.[docs]'")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    page = (site / "methods" / "dense" / "index.html").read_text()
    assert "Multiply and add in floating point" in page
    assert "build_network" in (site / "api" / "index.html").read_text()
    assert not (ROOT / "docs" / "methods").exists()
