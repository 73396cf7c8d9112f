"""`wiring explain` and the pages made of it: complete for every registered name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import PositiveFloat

from search import explain as explaining
from search.explain import (
    Explanation,
    as_markdown,
    as_text,
    explain,
    explain_all,
    read_measured,
    registries,
)
from tests.search.test_cli import Runner, wiring  # noqa: F401
from wiring.config import Config, Share
from wiring.errors import ConfigError, UnknownNameError

EVERYTHING = explain_all()


def ident(found: Explanation) -> str:
    return f"{found.kind} {found.name}"


@pytest.mark.parametrize("found", EVERYTHING, ids=ident)
def test_every_registered_name_says_what_a_person_must_know(found: Explanation) -> None:
    assert found.summary
    assert found.equations
    assert found.use, "say in `use` when to take it"
    assert found.cost, "say in the docstring of `cost` what it counts"
    assert found.paper or found.name == "grid"
    if found.options:
        assert found.options_text, "explain the options in their docstring"
        missing = [o.name for o in found.options if f"`{o.name}`" not in found.options_text]
        assert not missing, f"options that nobody explains: {missing}"


def test_no_name_is_left_out() -> None:
    named = {(registry.kind, name) for registry in registries() for name in registry.names()}
    assert {(one.kind, one.name) for one in EVERYTHING} == named
    assert {kind for kind, _ in named} == {
        "edge operator",
        "edge rule",
        "node rule",
        "space",
        "algorithm",
    }


@pytest.mark.parametrize("found", EVERYTHING, ids=ident)
def test_text_and_page_hold_every_section(found: Explanation) -> None:
    page, text = as_markdown(found), as_text(found)
    assert page.startswith(f"# {found.name}\n")
    for heading in ("Paper", "When to use it", "Equations", "Options", "Cost", "Measured"):
        assert f"\n## {heading}\n\n" in page
        assert f"\n{heading.upper()}\n" in text
    assert found.paper in page
    assert found.use in page
    assert found.equations.splitlines()[0] in page
    assert page.count("```") % 2 == 0


class _Options(Config):
    """`rate` of change, per second."""

    rate: PositiveFloat = 0.5
    mode: str
    part: Share | None = None
    kind: Literal["one", "two"] | int = 2


def test_options_are_shown_with_type_and_default() -> None:
    fields = {name: explaining._option(name, f) for name, f in _Options.model_fields.items()}
    rate, mode = fields["rate"], fields["mode"]
    assert (rate.type, rate.default, rate.required) == ("float > 0", "0.5", False)
    assert (mode.type, mode.default, mode.required) == ("str", "", True)
    assert fields["part"].type == "float > 0 < 1 | none"
    assert fields["kind"].type == "one | two | int"
    assert explaining._options_text(_Options) == "`rate` of change, per second."
    (center,) = [option for option in explain("xnor")[0].options if option.name == "input_scale"]
    assert (center.type, center.default) == ("bool", "false")


def test_a_name_in_two_registries_is_explained_twice(wiring: Runner) -> None:  # noqa: F811
    end = wiring("explain", "random", "--json")
    assert [one["kind"] for one in json.loads(end.out)] == ["edge rule", "algorithm"]


def test_a_wrong_name_is_answered_with_near_ones(wiring: Runner) -> None:  # noqa: F811
    end = wiring("explain", "xnorr")
    assert (end.code, end.out) == (1, "")
    assert end.err == "error: nothing is registered as 'xnorr'; did you mean xnor?\n"
    with pytest.raises(UnknownNameError, match="nothing is registered as 'zzzz'; known: "):
        explain("zzzz")


def test_a_pipe_gets_plain_text_and_markdown_where_asked_for(wiring: Runner) -> None:  # noqa: F811
    (dense,) = explain("dense")
    assert wiring("explain", "dense").out == as_text(dense) + "\n"
    assert wiring("explain", "dense", "--markdown").out == as_markdown(dense)
    assert "\x1b" not in as_text(dense)
    assert "exclude one another" in wiring("explain", "dense", "--markdown", "--json").err


MEASURED = """
[[dense]]
dataset = "mnist"
network = "lenet5-bn"
setting = "10 epochs"
size_bits = 1_600_000
energy_uj = 1.95
accuracy = 0.9921
command = "wiring train --space lenet5-bn"

[[random]]
dataset = "digits"
network = "tiny"
setting = "density 0.1"
command = "wiring train --rule random"
kind = "edge rule"
"""


def test_measurements_come_from_the_file_and_go_to_the_kind_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "measured.toml").write_text(MEASURED)
    known = read_measured(tmp_path / "measured.toml")
    monkeypatch.setattr(explaining, "measured", lambda: known)
    (dense,) = explain("dense")
    page = as_markdown(dense)
    line = "mnist  lenet5-bn  10 epochs  200.0 kB  1.95 µJ  99.21%    –"
    assert line in page
    assert "```text\nwiring train --space lenet5-bn\n```" in page
    rule, algorithm = explain("random")
    assert [row.dataset for row in rule.measured] == ["digits"]
    assert algorithm.measured == ()
    assert "No measurement has been recorded." in as_text(algorithm)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[dense]\ndataset = 'x'\n", r"'dense' must be a list of tables, \[\[dense\]\]"),
        ("[[dense]]\ndataset = 'x'\n", "dense: key 'network' is missing"),
        ("[[dense]]\nsize = 3\n", "unknown key 'size'|is missing"),
    ],
)
def test_a_mistake_in_the_measurements_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_measured(tmp_path / "m.toml")


def test_the_measurements_that_come_with_the_package_are_of_names_that_exist() -> None:
    names = {one.name for one in EVERYTHING}
    assert set(explaining.measured()) <= names
