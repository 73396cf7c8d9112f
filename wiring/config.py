"""Frozen, validated configuration: Python objects, JSON, TOML and `--set a.b=c` alike.

Built on pydantic, so that a wrong key, type or range is caught wherever the value comes from;
`parse` turns pydantic's report into one sentence.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wiring.errors import ConfigError

# A part of a whole: neither nothing nor all of it.
Share = Annotated[float, Field(gt=0, lt=1)]


class Config(BaseModel):
    """Base of every settings object: frozen, unknown keys refused, NaN refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only; `parse(type(self), self.to_dict())` gives an equal object."""
        return self.model_dump(mode="json")

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed."""
        return parse(type(self), {**self.to_dict(), **changes})


class NoOptions(Config):
    """The options of a method that has none."""


class Component(BaseModel):
    """A registered name with its options: `{"name": "xnor", "input_scale": true}`.

    A name alone stands for one without options. The component itself checks its options.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


C = TypeVar("C", bound=BaseModel)


def parse(cls: type[C], data: Any, *, where: str = "") -> C:
    """Validate plain data as `cls`. Raises ConfigError, one sentence for the first fault.

    `where` names the source (a file, a flag) and stands in front of the sentence.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_sentence(cls, error, where)) from None


def _sentence(cls: type[BaseModel], error: ValidationError, where: str) -> str:
    fault = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in fault["loc"]) or cls.__name__
    prefix = f"{where}: " if where else ""
    if fault["type"] == "extra_forbidden":
        known = ", ".join(sorted(_fields_at(cls, fault["loc"][:-1]))) or "none"
        return f"{prefix}unknown key '{key}'; known keys here: {known}"
    if fault["type"] == "missing":
        return f"{prefix}key '{key}' is missing"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{prefix}{key}: {message}, got {fault['input']!r}"


def _fields_at(cls: type[BaseModel], path: tuple[Any, ...]) -> Iterable[str]:
    for part in path:
        field = cls.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ()
        cls = inner
    return cls.model_fields


def override(data: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b=c` assignments to nested plain data; values are read as JSON, else as text."""
    result: dict[str, Any] = json.loads(json.dumps(data))
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path.strip():
            raise ConfigError(f"--set takes key=value, got {assignment!r}")
        *parents, leaf = path.strip().split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {path}: '{parent}' is a value, not a section")
        node[leaf] = _read_value(text)
    return result


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError where it is missing or malformed."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
