"""The settings of a study: what is searched, how, on what data, with which resources."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from wiring.config import Component, Config
from workers.spec import DataConfig

CostName = Literal["multiplications", "additions", "xnors", "weight_bits", "energy", "live_edges"]


class StudyConfig(Config):
    """Everything a study needs; stands in TOML, in `study.json` and behind the CLI's flags.

    `train` overrides what the space trains with; `fix` pins choices of the space. The best
    networks have high validation accuracy and low `minimize` costs. `max_time` in seconds
    limits the run that begins the study, not one that resumes it.
    """

    space: Component
    op: tuple[Component, ...] = (Component(name="dense"),)
    rule: tuple[Component, ...] = (Component(name="dnw"),)
    data: DataConfig = DataConfig()
    train: dict[str, Any] = Field(default_factory=dict)
    fix: dict[str, Any] = Field(default_factory=dict)
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
