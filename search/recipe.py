"""Recipes: the rows of published tables as settings of a study, with the paper's numbers.

A file `<group>.toml` holds the rows of one table and the settings that they share.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from search.config import StudyConfig
from wiring.config import Config, override, parse, read_toml
from wiring.errors import ConfigError, UnknownNameError

RECIPES = Path(__file__).parent / "recipes"
COMPONENTS = {"space", "op", "rule", "node_rule"}

# Where and how fast a study runs; none of it is the recipe's.
EXECUTION = {
    "trials",
    "seed",
    "algorithm",
    "scheduler",
    "minimize",
    "max_time",
    "cpus_per_trial",
    "gpus_per_trial",
    "concurrent",
    "retries",
    "fix.seed",
    "data.root",
    "data.download",
    "data.loaders",
    "train.threads",
    "train.device",
    "train.checkpoint_steps",
}


class Published(Config):
    """A paper's number. `spread` as the paper gives it, over `runs` runs where it says so."""

    mean: float
    spread: NonNegativeFloat | None = None
    runs: PositiveInt | None = None
    unit: Literal["top-1 %"] = "top-1 %"
    source: Literal["released code or its README", "the paper, from memory"] = (
        "released code or its README"
    )


class Recipe(Config):
    """One row of a published table. `effort` is roughly what it takes, in words.

    `deviations` from the paper hold for every run, beside those that a shorter run adds.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    group: str
    title: str
    paper: str
    table: str
    schedule: str
    effort: str
    deviations: tuple[str, ...] = ()
    published: Published | None = None
    settings: dict[str, Any]

    def config(self) -> StudyConfig:
        """The paper's own settings. Raises ConfigError."""
        return _study_config(self.settings, self.name)

    def planned(
        self,
        *,
        seeds: Sequence[int],
        scale: float = 1.0,
        data: Mapping[str, Any] | None = None,
        settings: Sequence[str] = (),
    ) -> StudyConfig:
        """The settings to run: one trial per seed, shortened by `scale`, with another data set
        (fields of DataConfig) and `--set` assignments, in this order. Raises ConfigError."""
        plain = json.loads(json.dumps(self.settings))
        for kind in COMPONENTS & set(plain):  # so that --set reaches their options
            plain[kind] = {"name": plain[kind]} if isinstance(plain[kind], str) else plain[kind]
        plain["train"] = scaled(plain.get("train", {}), scale)
        plain["data"] = {**plain.get("data", {}), **(data or {})}
        plain = override(plain, settings)
        plain["fix"] = {**plain.get("fix", {}), "seed": list(seeds)}
        plain |= {"algorithm": "grid", "trials": len(seeds), "scheduler": "none"}
        return _study_config(plain, self.name)

    def changes(self, config: StudyConfig) -> list[str]:
        """What `config` does otherwise than the recipe, a line each."""
        ours, theirs = (_essence(one) for one in (config, self.config()))
        keys = [*theirs, *(key for key in ours if key not in theirs)]
        return [
            f"{key} {_show(theirs, key)} → {_show(ours, key)}"
            for key in keys
            if ours.get(key) != theirs.get(key)
        ]


class _Row(Config):
    name: str
    title: str
    effort: str | None = None
    schedule: str | None = None
    deviations: tuple[str, ...] = ()
    published: Published | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class _Table(Config):
    paper: str
    table: str
    schedule: str
    effort: str
    deviations: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    row: tuple[_Row, ...] = Field(min_length=1)

    def recipes(self, group: str) -> Iterator[Recipe]:
        for row in self.row:
            shared = self.model_dump(exclude={"row", "settings"})
            own = row.model_dump(exclude={"settings"}, exclude_none=True)
            own["deviations"] = (*self.deviations, *row.deviations)
            settings = _merged(self.settings, row.settings)
            yield Recipe(**{**shared, **own}, group=group, settings=settings)


def load_recipes(directory: Path = RECIPES) -> dict[str, Recipe]:
    """Every recipe of a directory by name. Raises ConfigError for one that is off."""
    recipes: dict[str, Recipe] = {}
    for path in sorted(directory.glob("*.toml")):
        table = parse(_Table, read_toml(path), where=path.name)
        for recipe in table.recipes(path.stem):
            if recipe.name in recipes:
                other = recipes[recipe.name].group
                raise ConfigError(f"{path.name}: recipe '{recipe.name}' is in {other}.toml too")
            recipe.config()
            recipes[recipe.name] = recipe
    if not recipes:
        raise ConfigError(f"{directory}: holds no recipes (*.toml)")
    return recipes


def choose(names: Sequence[str], recipes: Mapping[str, Recipe]) -> list[Recipe]:
    """The recipes of these names, of these groups, or `all`. Raises UnknownNameError."""
    groups = {recipe.group for recipe in recipes.values()}
    chosen: dict[str, Recipe] = {}
    for name in names:
        found = [r for r in recipes.values() if name in (r.name, r.group, "all")]
        if not found:
            near = difflib.get_close_matches(name, [*recipes, *groups], n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"groups: {_listed(groups)}"
            raise UnknownNameError(f"unknown recipe '{name}'; {hint}")
        chosen |= {recipe.name: recipe for recipe in found}
    return list(chosen.values())


def scaled(train: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Training settings with `scale` times the epochs, at least one.

    Milestones and warm-up shrink by what the epochs really shrink by.
    """
    if not 0 < scale <= 1:
        raise ConfigError(f"--scale must be in 0..1 and more than 0, got {scale:g}")
    result = dict(train)
    if scale == 1:
        return result
    if "epochs" not in train:
        raise ConfigError("a recipe without train.epochs cannot be scaled")
    result["epochs"] = max(1, round(train["epochs"] * scale))
    share = result["epochs"] / train["epochs"]
    if train.get("milestones"):
        result["milestones"] = [max(1, round(one * share)) for one in train["milestones"]]
    if train.get("warmup_epochs"):
        result["warmup_epochs"] = train["warmup_epochs"] * share
    return result


def digest(config: StudyConfig) -> str:
    """Eight hex digits of all that decides a seed's numbers.

    Defaults are left out, so that a setting which comes to be later changes nothing.
    """
    plain = config.model_dump(mode="json", exclude_defaults=True)
    essence = {key: value for key, value in _flat(plain) if key not in EXECUTION}
    return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()[:8]


def _study_config(settings: Mapping[str, Any], name: str) -> StudyConfig:
    plain = dict(settings)
    for kind in ("op", "rule"):
        if kind in plain and not isinstance(plain[kind], list):
            plain[kind] = [plain[kind]]
    config = parse(StudyConfig, plain, where=f"recipe {name}")
    for kind in ("op", "rule"):
        if len(getattr(config, kind)) != 1:
            raise ConfigError(f"recipe {name}: a row has one {kind}")
    return config


def _essence(config: StudyConfig) -> dict[str, Any]:
    """Flat settings without those of EXECUTION, an operator's and a rule's as one each."""
    plain = config.to_dict()
    for kind in ("op", "rule"):
        (plain[kind],) = plain[kind]
    return {key: value for key, value in _flat(plain) if key not in EXECUTION}


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}".removesuffix(".name"), value


def _show(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]).strip('"') if key in settings else "default"


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `shared`, table by table; another space, operator or rule has its own options."""
    result = dict(shared)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        another = key in COMPONENTS and "name" in (value if both else ())
        result[key] = _merged(result[key], value) if both and not another else value
    return result


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


__all__ = ["Published", "Recipe", "choose", "digest", "load_recipes", "scaled"]
