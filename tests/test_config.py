"""Settings are checked wherever they come from, and a fault is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PositiveInt, ValidationError

from wiring.config import Component, Config, override, parse, read_toml
from wiring.errors import ConfigError


class Inner(Config):
    depth: PositiveInt = 2
    rate: float = 0.1


class Outer(Config):
    inner: Inner = Inner()
    op: Component = Component(name="dense")
    names: tuple[str, ...] = ()


class Needy(Config):
    must: int


def test_settings_survive_json() -> None:
    op = Component.model_validate({"name": "xnor", "input_scale": True})
    settings = Outer(inner=Inner(depth=3), op=op, names=("a", "b"))
    again = parse(Outer, json.loads(json.dumps(settings.to_dict())))
    assert again == settings
    assert again.op.options == {"input_scale": True}


def test_settings_are_frozen_and_replaced_with_a_check() -> None:
    settings = Inner()
    with pytest.raises(ValidationError, match="frozen"):
        settings.depth = 3  # type: ignore[misc]
    assert settings.replace(depth=3) == Inner(depth=3)
    with pytest.raises(ConfigError, match=r"depth: .*greater than 0, got 0"):
        settings.replace(depth=0)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"inner": {"dept": 3}}, "unknown key 'inner.dept'; known keys here: depth, rate"),
        ({"outer": 1}, "unknown key 'outer'; known keys here: inner, names, op"),
        ({"inner": {"depth": "deep"}}, r"inner\.depth: .*integer.*, got 'deep'"),
        ({"inner": {"depth": 0}}, r"inner\.depth: input should be greater than 0, got 0"),
        ({"inner": {"rate": float("nan")}}, r"inner\.rate: .*finite number, got nan"),
        ({"op": {}}, r"key 'op\.name' is missing"),
        ([1], r"Outer: .*got \[1\]"),
    ],
)
def test_a_fault_is_one_sentence_with_source_key_and_value(data: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^study.toml: {sentence}") as caught:
        parse(Outer, data, where="study.toml")
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^key 'must' is missing$"):
        parse(Needy, {})


def test_assignments_set_nested_values_of_any_type() -> None:
    data = {"train": {"lr": 0.1}, "keep": [1]}
    result = override(
        data, ["train.lr=0.5", "train.nesterov=true", "model.op.name=xnor", "side=null", "t= a b"]
    )
    assert result == {
        "train": {"lr": 0.5, "nesterov": True},
        "keep": [1],
        "model": {"op": {"name": "xnor"}},
        "side": None,
        "t": " a b",
    }
    assert data == {"train": {"lr": 0.1}, "keep": [1]}


def test_a_later_assignment_wins_and_values_may_hold_equal_signs() -> None:
    assert override({}, ["a=1", "a=x=y"]) == {"a": "x=y"}


@pytest.mark.parametrize("assignment", ["lr", "=3", "  =3"])
def test_an_assignment_without_key_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match=f"--set takes key=value, got '{assignment}'"):
        override({}, [assignment])


def test_a_value_is_no_section() -> None:
    with pytest.raises(ConfigError, match=r"--set train\.lr\.x: 'lr' is a value, not a section"):
        override({"train": {"lr": 0.1}}, ["train.lr.x=3"])


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_json_value_can_be_assigned(value: Any) -> None:
    assert override({}, [f"a.b={json.dumps(value)}"]) == {"a": {"b": value}}


def test_toml_is_read_and_broken_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("[train]\nlr = 0.5\n")
    assert read_toml(path) == {"train": {"lr": 0.5}}
    path.write_text("[train\n")
    with pytest.raises(ConfigError, match=r"study\.toml: is not TOML: .*line 1"):
        read_toml(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"study\.toml: is not TOML"):
        read_toml(path)
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        read_toml(tmp_path / "none.toml")
