"""What is known of a registered name: paper, equations, options, cost, use, measurements.

All of it stands where the method is written: the module's docstring has the equations, the class
its paper and when to use it, its options their docstring, `cost` the formula. `measured.toml`
beside this file has what was measured. `wiring explain` prints it, docs/ is made of it.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wiring.config import Config, parse, read_toml
from wiring.errors import ConfigError, UnknownNameError
from wiring.registry import Registry

MEASURED = "measured.toml"
# How a kind's options are set on the command line.
FLAGS = {
    "edge operator": "op",
    "edge rule": "rule",
    "node rule": "node_rule",
    "space": "space",
    "algorithm": "algorithm",
}
NO_COST = {
    "edge rule": "A rule costs nothing in evaluation: what lives is counted by the operator, and "
    "which edges live in index bits, the cheaper of a plane (one bit per usable edge) and a list "
    "(⌈log₂ usable⌉ bits per live edge).",
    "node rule": "A rule costs nothing in evaluation: the nodes that it removes are gone, and the "
    "smaller network is counted as any other.",
    "space": "That of the networks in it, by operator: `wiring cost RUN` counts one.",
    "algorithm": "One training a trial; proposing costs milliseconds.",
}


class Measured(Config):
    """One measurement: `setting` says how (options, rate, epochs), `size_bits` are weights and
    index, `energy_uj` of one image's operations, `accuracy` 0..1 on test images, `latency_ms` of
    one image, and `command` repeats it. `kind` where a name stands in two registries."""

    dataset: str
    network: str
    setting: str
    command: str
    size_bits: int | None = None
    energy_uj: float | None = None
    accuracy: float | None = None
    latency_ms: float | None = None
    kind: Literal["edge operator", "edge rule", "node rule", "space", "algorithm"] | None = None


@dataclass(frozen=True)
class Option:
    """One field of a name's options; `required` ones have no default."""

    name: str
    type: str
    default: str
    required: bool


@dataclass(frozen=True)
class Explanation:
    """What one registry knows of a name; texts are empty where nothing was written."""

    name: str
    kind: str
    summary: str
    details: str
    paper: str
    use: str
    equations: str
    options: tuple[Option, ...]
    options_text: str
    cost: str
    measured: tuple[Measured, ...]
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = asdict(self)
        return {**plain, "measured": [row.to_dict() for row in self.measured]}


def registries() -> tuple[Registry[Any], ...]:
    """Every registry whose names can be explained."""
    from search.algorithms.base import ALGORITHMS
    from search.spaces.base import SPACES
    from wiring.graph.edges import EDGE_OPS
    from wiring.graph.node_rules import NODE_RULES
    from wiring.graph.rules import EDGE_RULES

    return EDGE_OPS, EDGE_RULES, NODE_RULES, SPACES, ALGORITHMS


def explain(name: str) -> list[Explanation]:
    """What every registry that holds the name knows of it. Raises UnknownNameError."""
    found = []
    for registry in registries():
        try:
            cls = registry.get(name)
        except UnknownNameError:
            continue
        found.append(_explanation(name, registry.kind, cls))
    if not found:
        known = sorted({one for registry in registries() for one in registry.names()})
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise UnknownNameError(f"nothing is registered as '{name}'; {hint}")
    return found


def explain_all() -> list[Explanation]:
    """Every name of every registry."""
    return [
        _explanation(name, registry.kind, registry.get(name))
        for registry in registries()
        for name in registry.names()
    ]


def _explanation(name: str, kind: str, cls: type) -> Explanation:
    module = sys.modules[cls.__module__]
    summary, _, details = inspect.cleandoc(cls.__doc__ or "").partition("\n")
    options: type[BaseModel] = getattr(cls, "Options", Config)
    rows = measured().get(name, ())
    return Explanation(
        name=name,
        kind=kind,
        summary=summary,
        details=details.strip(),
        paper=getattr(cls, "paper", ""),
        use=getattr(cls, "use", ""),
        equations=inspect.cleandoc(module.__doc__ or ""),
        options=tuple(_option(key, field) for key, field in options.model_fields.items()),
        options_text=_options_text(options),
        cost=_cost_text(cls) or NO_COST.get(kind, ""),
        measured=tuple(row for row in rows if row.kind in (None, kind)),
        source=cls.__module__,
    )


def _option(name: str, field: FieldInfo) -> Option:
    required = field.is_required()
    default = "" if required else field.get_default(call_default_factory=True)
    type_ = _type(field.annotation, field.metadata)
    return Option(name, type_, "" if required else _plain(default), required)


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        return str(value.model_dump(mode="json"))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _type(annotation: Any, limits: Sequence[Any]) -> str:
    """A type as a person writes it: "float > 0", "full | sign", "int > 0 | none"."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0], parts[1:])
    if origin in (Union, UnionType):
        return " | ".join(_type(part, ()) for part in parts)
    if annotation is type(None):
        return "none"
    text = " | ".join(map(str, parts))
    if origin is not Literal:
        text = inspect.formatannotation(annotation)
        for noise in ("typing.", "pydantic.types.", "wiring.config."):
            text = text.replace(noise, "")
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    # Of a part of a union pydantic leaves the limits in a field of their own.
    bounds = [bound for limit in limits for bound in getattr(limit, "metadata", [limit])]
    for bound in bounds:
        for name, sign in signs.items():
            if getattr(bound, name, None) is not None:
                text += f" {sign} {getattr(bound, name)}"
    return text


def _options_text(options: type[BaseModel]) -> str:
    """The docstrings of the options and of those they build on, the nearest first."""
    texts = []
    for base in options.__mro__:
        if base in (Config, BaseModel):
            break
        if base.__doc__:
            texts.append(inspect.cleandoc(base.__doc__))
    return "\n\n".join(texts)


def _cost_text(cls: type) -> str:
    """The docstring of what counts the cost, of the class itself or the nearest that has one."""
    from wiring.graph.edges import EdgeOp

    texts = []
    for method in ("whole_cost", "cost"):
        owner = next((one for one in cls.__mro__ if method in one.__dict__), None)
        if owner is not None and owner is not EdgeOp:
            text = owner.__dict__[method].__doc__
            abstract = getattr(owner.__dict__[method], "__isabstractmethod__", False)
            if text and not abstract:
                texts.append(inspect.cleandoc(text))
    return "\n\n".join(texts)


@cache
def measured() -> dict[str, tuple[Measured, ...]]:
    """The measurements that come with the package, by name."""
    with resources.as_file(resources.files("search") / MEASURED) as path:
        return read_measured(path)


def read_measured(path: Path) -> dict[str, tuple[Measured, ...]]:
    """The rows of a TOML file, a list of tables per name. Raises ConfigError."""
    tables = read_toml(path)
    for name, rows in tables.items():
        if not isinstance(rows, list):
            raise ConfigError(f"{path}: '{name}' must be a list of tables, [[{name}]]")
    return {
        name: tuple(parse(Measured, row, where=f"{path}: {name}") for row in rows)
        for name, rows in tables.items()
    }


# -- what people read ----------------------------------------------------------------------


def sections(found: Explanation) -> list[tuple[str, str]]:
    """(heading, text) of everything there is, in the order in which it is shown."""
    use = found.use or "Nothing was written about when to take it."
    parts = [
        ("Paper", found.paper or "No paper: it is this package's own."),
        ("When to use it", use),
        ("Equations", found.equations),
        ("Options", _options_table(found)),
        ("Cost", found.cost),
        ("Measured", _measured_table(found)),
    ]
    return [("", found.details), *parts] if found.details else parts


def _options_table(found: Explanation) -> str:
    if not found.options:
        return "None."
    flag = FLAGS.get(found.kind, found.kind)
    rows = [("option", "type", "default")]
    rows += [(o.name, o.type, "required" if o.required else o.default) for o in found.options]
    first = found.options[0].name
    return "\n\n".join(
        part
        for part in (_aligned(rows), found.options_text, f"Set one by --set {flag}.{first}=VALUE.")
        if part
    )


def _measured_table(found: Explanation) -> str:
    if not found.measured:
        return "No measurement has been recorded."
    rows = [("data", "network", "setting", "size", "energy", "accuracy", "latency")]
    for one in found.measured:
        rows.append(
            (
                one.dataset,
                one.network,
                one.setting,
                _or_dash(one.size_bits, lambda bits: f"{bits / 8000:,.1f} kB"),
                _or_dash(one.energy_uj, lambda uj: f"{uj:,.3g} µJ"),
                _or_dash(one.accuracy, lambda share: f"{share:.2%}"),
                _or_dash(one.latency_ms, lambda ms: f"{ms:.3g} ms"),
            )
        )
    commands = dict.fromkeys(one.command for one in found.measured)
    return "\n\n".join([_aligned(rows), "\n".join(commands)])


def _or_dash(value: float | None, show: Callable[[float], str]) -> str:
    return "–" if value is None else show(value)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def as_text(found: Explanation) -> str:
    """For a terminal or a pipe."""
    lines = [f"{found.name} ({found.kind})", found.summary]
    for heading, text in sections(found):
        lines += ["", heading.upper()] if heading else [""]
        lines += [f"  {line}".rstrip() for line in text.splitlines()]
    return "\n".join([*lines, "", f"written in {found.source}"])


def as_markdown(found: Explanation) -> str:
    """A page. Tables and equations stand as they are, in blocks of their own."""
    lines = [f"# {found.name}", "", f"*{found.kind}* — {found.summary}"]
    for heading, text in sections(found):
        lines += ["", f"## {heading}"] if heading else []
        fenced = heading == "Equations"
        lines += ["", "```text", text, "```"] if fenced else ["", *_blocks(text)]
    return "\n".join([*lines, "", f"Source: `{found.source}`", ""])


def _blocks(text: str) -> list[str]:
    """Paragraphs, those with columns or commands fenced."""
    lines: list[str] = []
    for block in text.split("\n\n"):
        table = block.startswith(("option ", "data ", "wiring "))
        lines += ["```text", block, "```", ""] if table else [block, ""]
    return lines[:-1]
