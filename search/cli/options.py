"""The flags that commands share, and how flags, a TOML file and --set become one StudyConfig."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from search.config import StudyConfig, seconds
from wiring.config import override, parse, read_toml
from wiring.errors import ConfigError

Space = Annotated[str | None, typer.Option(help="Family of networks ('wiring list spaces').")]
Ops = Annotated[
    list[str] | None,
    typer.Option(
        "--op",
        help="Edge operator; repeat it to search over several. mixed:dense,adder lets the edges "
        "of several operators compete for one budget of energy.",
    ),
]
Density = Annotated[
    float | None, typer.Option(help="Share of the edges that live, instead of the space's choice.")
]
Edges = Annotated[
    int | None, typer.Option(help="Number of edges that live, instead of the space's choice.")
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="UNIT=AMOUNT",
        help="What one image may take in the whole network, dead nodes counted: "
        "multiplications=2e6, energy=1.8uJ (pJ without a unit), weight-bits=1e6, or "
        "latency-ms=2.5 by the table of 'wiring profile'. The most edges within it live.",
    ),
]
Densities = Annotated[
    str | None,
    typer.Option(
        help="How scopes share that budget: uniform, erk (Erdős–Rényi kernel), or pool (one "
        "budget over the network)."
    ),
]
Rules = Annotated[
    list[str] | None, typer.Option("--rule", help="Edge rule; repeat it to search over several.")
]
NodeRule = Annotated[
    str | None,
    typer.Option(
        help="Node rule ('wiring list node-rules'): removes nodes after the share train.removal "
        "of training, half of it by default, and the smaller network trains on."
    ),
]
Pool = Annotated[
    str | None,
    typer.Option(
        help="usable, or released: edges that run backwards compete for the budget too, as in "
        "the code released with DNW (spaces tiny and mobilenet-graph)."
    ),
]
Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained",
        help="Start from torchvision's weights (alexnet, resnet18, resnet50 at ImageNet's size).",
    ),
]
Data = Annotated[str | None, typer.Option(help="Data set ('wiring list data').")]
DataRoot = Annotated[Path | None, typer.Option(help="Where data sets lie.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set if missing.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of a full trial.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the search.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, e.g. train.lr=0.05, op.input_scale=true, space.preset=full, "
        "fix.width=0.3 (pins a choice of the space). Repeatable.",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Settings in TOML, as --dry-run prints them.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the settings as TOML and stop.")]
Name = Annotated[str | None, typer.Option(help="Name of the study (default: space, op, time).")]
Runs = Annotated[Path, typer.Option(help="Directory of all studies.")]
Tracking = Annotated[
    str | None,
    typer.Option("--tracking-uri", help="MLflow store or server (default: SQLite under --runs)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="End with one line of JSON on stdout.")]
Address = Annotated[
    str | None, typer.Option(help="A Ray cluster, HOST:PORT (default: a Ray on this machine).")
]
TokenFile = Annotated[
    Path | None, typer.Option(help="Token of the Ray cluster (default: RAY_AUTH_TOKEN_PATH).")
]
MaxTime = Annotated[
    str | None, typer.Option(help="Stop starting and running trials after 90s, 10m, 2h.")
]


def names(values: Sequence[str] | None) -> list[str] | None:
    """`--op xnor,adder --op dense` → [xnor, adder, dense].

    From `mixed:` on a value is one name: `dense,mixed:xnor,adder` → [dense, mixed:xnor,adder].
    """
    if not values:
        return None
    found: list[str] = []
    for value in values:
        single, mixed, rest = value.partition("mixed:")
        found += [name.strip() for name in single.split(",") if name.strip()]
        if mixed:
            found.append(mixed + ",".join(name.strip() for name in rest.split(",")))
    return found


def budget(
    density: float | None, edges: int | None, amounts: Sequence[str] | None, densities: str | None
) -> dict[str, Any] | None:
    """The flags of a budget as the section `budget` of the settings. Raises ConfigError."""
    given: dict[str, Any] = {"density": density, "edges": edges, "densities": densities}
    for text in amounts or ():
        unit, separator, amount = text.partition("=")
        unit = unit.strip().replace("-", "_")
        if not separator or unit not in ("multiplications", "energy", "weight_bits", "latency_ms"):
            raise ConfigError(
                "--budget takes multiplications=…, energy=…, weight-bits=… or latency-ms=…, "
                f"got {text!r}"
            )
        if unit in given:
            raise ConfigError(f"--budget {unit} is given twice")
        given[unit] = amount.strip()
    return {key: value for key, value in given.items() if value is not None} or None


def study_config(
    config_file: Path | None, settings: Sequence[str] | None, **flags: Any
) -> StudyConfig:
    """Defaults, then the TOML file, then flags, then --set. Raises ConfigError."""
    data: dict[str, Any] = read_toml(config_file) if config_file else {}
    for key, value in flags.items():
        if value is None or value is False:
            continue
        section, _, leaf = key.partition("__")
        if leaf:
            if isinstance(data.setdefault(section, {}), str):
                data[section] = {"name": data[section]}
            data[section][leaf] = value
        elif key in ("op", "rule"):
            data[key] = [{"name": name} for name in value]
        elif key in ("space", "algorithm", "node_rule"):
            data[key] = {"name": value}
        elif key == "budget":
            section = data.get(key, {}) if set(value) == {"densities"} else {}
            data[key] = {**section, **value}
        else:
            data[key] = value
    if isinstance(data.setdefault("space", {}), dict):
        data["space"].setdefault("name", "mobilenet-graph")
    return parse(StudyConfig, _with_settings(data, settings or ()), where="settings")


def _with_settings(data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Apply --set; `op.x` and `rule.x` reach the operator or rule when there is just one."""
    single = {}
    for kind, default in (("op", "dense"), ("rule", "dnw")):
        listed = data.get(kind, [{"name": default}])
        listed = listed if isinstance(listed, list) else [listed]
        components = [{"name": item} if isinstance(item, str) else item for item in listed]
        touched = [text for text in settings if text.startswith(f"{kind}.")]
        if touched and len(components) != 1:
            raise ConfigError(f"--set {touched[0]} needs exactly one --{kind}")
        data[kind] = components[0] if len(components) == 1 else components
        if len(components) == 1:
            single[kind] = True
    for kind in ("space", "node_rule"):
        if isinstance(data.get(kind), str):
            data[kind] = {"name": data[kind]}
    data = override(data, settings)
    for kind in single:
        data[kind] = [data[kind]]
    return data


def duration(text: str | None) -> float | None:
    """--max-time in seconds. Raises ConfigError."""
    if text is None:
        return None
    try:
        return seconds(text)
    except ValueError as error:
        raise ConfigError(f"--max-time: {error}") from None


def as_toml(settings: dict[str, Any]) -> str:
    """Plain settings as TOML, which has no null: what is None is left out."""
    import tomli_w

    return tomli_w.dumps(_without_none(settings))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value
