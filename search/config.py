"""The settings of a study: what is searched, how, on what data, with which resources."""

from __future__ import annotations

import re
from typing import Any, Literal, Self, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from wiring.config import Component, Config
from workers.spec import DataConfig

CostName = Literal["multiplications", "additions", "xnors", "weight_bits", "energy", "live_edges"]
Unit = Literal["density", "edges", "multiplications", "energy", "weight_bits", "latency_ms"]
PICOJOULE = {"pJ": 1.0, "nJ": 1e3, "uJ": 1e6, "µJ": 1e6, "mJ": 1e9}


class BudgetConfig(Config):
    """How many edges live, whatever the space would choose: exactly one amount.

    `density` is the share of the edges that scopes choose from, `edges` their number. The others
    are what one image may take in the whole network, all of its nodes counted: `energy` in
    picojoule (or text with a unit: 1.8uJ), `latency_ms` as predicted from the table that `wiring
    profile` measured. `densities` says how scopes share: all the same, by the Erdős–Rényi-kernel
    formula, or in one pool over the network.
    """

    density: float | None = Field(default=None, gt=0, le=1)
    edges: PositiveInt | None = None
    multiplications: PositiveFloat | None = None
    energy: PositiveFloat | None = None
    weight_bits: PositiveFloat | None = None
    latency_ms: PositiveFloat | None = None
    densities: Literal["uniform", "erk", "pool"] = "uniform"

    @field_validator("energy", mode="before")
    @classmethod
    def _picojoule(cls, value: Any) -> Any:
        if isinstance(value, str) and (match := re.fullmatch(r"\s*(\S+?)\s*([npuµm]J)\s*", value)):
            return float(match[1]) * PICOJOULE[match[2]]
        return value

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        given = [unit for unit in get_args(Unit) if getattr(self, unit) is not None]
        if len(given) != 1:
            named = " and ".join(given) or "none"
            raise ValueError(f"a budget is one of {', '.join(get_args(Unit))}; given are {named}")
        return self

    @property
    def unit(self) -> Unit:
        """The unit of the amount."""
        return next(unit for unit in get_args(Unit) if getattr(self, unit) is not None)

    @property
    def amount(self) -> float:
        """How much of it."""
        return float(getattr(self, self.unit))


class StudyConfig(Config):
    """Everything a study needs; stands in TOML, in `study.json` and behind the CLI's flags.

    A `node_rule` removes nodes of every trial's network after the share `train.removal` of its
    training. `train` overrides what the space trains with; `fix` pins choices of the space. The
    best networks have high validation accuracy and low `minimize` costs. A `budget` replaces the
    choices of the space that say how many edges live. `max_time` in seconds limits the run that
    begins the study, not one that resumes it.
    """

    space: Component
    op: tuple[Component, ...] = (Component(name="dense"),)
    rule: tuple[Component, ...] = (Component(name="dnw"),)
    node_rule: Component | None = None
    data: DataConfig = DataConfig()
    train: dict[str, Any] = Field(default_factory=dict)
    fix: dict[str, Any] = Field(default_factory=dict)
    budget: BudgetConfig | None = None
    algorithm: Component = Component(name="random")
    scheduler: Literal["asha", "none"] = "none"
    minimize: tuple[CostName, ...] = Field(default=("energy", "weight_bits"), min_length=1)
    trials: PositiveInt = 12
    max_time: PositiveFloat | None = None
    cpus_per_trial: PositiveFloat = 1.0
    gpus_per_trial: NonNegativeFloat = 0.0
    concurrent: PositiveInt | None = None
    retries: NonNegativeInt = 2
    seed: NonNegativeInt = 0

    @property
    def directions(self) -> tuple[Literal["maximize", "minimize"], ...]:
        """One per objective: validation accuracy, then each cost."""
        costs: list[Literal["maximize", "minimize"]] = ["minimize"] * len(self.minimize)
        return ("maximize", *costs)

    def values(self, row: dict[str, Any]) -> tuple[float, ...]:
        """The objectives in a metrics row or a result's costs."""
        return (float(row["val_accuracy"]), *(float(row[name]) for name in self.minimize))


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """`90`, `90s`, `10m`, `1.5h` or `2d` in seconds. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"a duration is like 90s, 10m or 2h, got {text!r}")
    return float(match[1]) * _UNITS[match[2] or "s"]
