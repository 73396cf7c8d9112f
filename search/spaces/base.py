"""A space: the family of networks a search may build, and what may vary in it."""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from wiring.config import Component, Config, NoOptions, parse
from wiring.errors import ConfigError
from wiring.graph.topology import Topology
from wiring.registry import Registry

if TYPE_CHECKING:  # wiring.network takes seconds to import, for torch
    from wiring.network import HeadSpec, ImageShape, ModelSpec, StemSpec

MUTATION_STEP = 0.15  # standard deviation of a numeric mutation, as a share of the range


class Space(ABC):
    """A family of networks. Its options fix the family, its choices are what a search varies."""

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    use: ClassVar[str] = ""
    Options: ClassVar[type[Config]] = NoOptions
    # Choices (or the part of their names before a dot) and options that say how many edges live:
    # a study's budget takes their place.
    budget_choices: ClassVar[tuple[str, ...]] = ("density", "edges", "width")

    def __init__(self, options: dict[str, Any]) -> None:
        self.options: Any = parse(self.Options, options, where=f"space {self.name}")

    @abstractmethod
    def choices(self, image: ImageShape) -> dict[str, BaseDistribution]:
        """What may vary, by key; includes `op`, `rule`, `lr` and `seed` (see common_choices)."""

    @abstractmethod
    def defaults(self, image: ImageShape) -> dict[str, Any]:
        """One value for every choice: the published network, or the nearest to it."""

    @abstractmethod
    def train(self, image: ImageShape, *, epochs: int, images: int) -> dict[str, Any]:
        """Fields of workers.spec.TrainConfig that this space sets by default.

        `images` is the number of training images.
        """

    def augments(self, image: ImageShape) -> bool:
        """Whether training images are cropped and flipped by default: photographs are."""
        return image.channels == 3

    @abstractmethod
    def build(self, values: Mapping[str, Any], image: ImageShape, classes: int) -> ModelSpec:
        """The network at one point of the space; `values` has every key of `choices`.

        `op` and `rule` are registered names or components with options. Raises ConfigError.
        """

    def mutate(
        self,
        values: Mapping[str, Any],
        choices: Mapping[str, BaseDistribution],
        rng: np.random.Generator,
    ) -> dict[str, Any]:
        """A neighbour of `values`: one choice changed."""
        return mutate(values, choices, rng)

    def spec(
        self,
        values: Mapping[str, Any],
        image: ImageShape,
        classes: int,
        *,
        stem: StemSpec,
        topology: Topology,
        head: HeadSpec,
    ) -> ModelSpec:
        """The parts as one model, with the operator and the rule that `values` names."""
        from wiring.network import ModelSpec

        return ModelSpec(
            space=self.name,
            choices=dict(values),
            image=image,
            classes=classes,
            stem=stem,
            topology=topology,
            head=head,
            op=_component(values["op"]),
            rule=_component(values["rule"]),
        )


SPACES: Registry[Space] = Registry("space", package="search.spaces", group="wiring.spaces")


def common_choices() -> dict[str, BaseDistribution]:
    """The choices of every space: operator, rule, learning rate, seed."""
    from wiring.graph.edges import EDGE_OPS
    from wiring.graph.rules import EDGE_RULES

    return {
        "op": CategoricalDistribution(EDGE_OPS.names()),
        "rule": CategoricalDistribution(EDGE_RULES.names()),
        "lr": FloatDistribution(0.05, 0.5, log=True),
        "seed": CategoricalDistribution((0,)),
    }


def common_defaults() -> dict[str, Any]:
    """Values of the common choices: Wortsman 2019."""
    return {"op": "dense", "rule": "dnw", "lr": 0.1, "seed": 0}


def batch_size(images: int, largest: int) -> int:
    """The largest power of two that gives an epoch at least 32 steps, within 8..largest."""
    return max(8, min(largest, 1 << max(images // 32, 1).bit_length() - 1))


def exact(value: float) -> Fraction:
    """The decimal that a float prints as: 0.15 is 3/20, so that ceilings are the table's."""
    return Fraction(repr(float(value)))


def narrow(
    choices: Mapping[str, BaseDistribution], fixed: Mapping[str, Any]
) -> dict[str, BaseDistribution]:
    """The choices with some pinned to one value, or to the values of a list.

    A seed may be any whole number. Raises ConfigError for a key that is no choice, and for a
    value out of range.
    """
    result = dict(choices)
    for key, value in fixed.items():
        if key not in choices:
            raise ConfigError(f"the space has no choice '{key}'; {_hint(key, list(choices))}")
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values:
            raise ConfigError(f"choice '{key}' needs at least one value, got an empty list")
        checked = [_check(key, choices[key], one) for one in values]
        result[key] = CategoricalDistribution(tuple(dict.fromkeys(checked)))
    return result


def settle(choices: Mapping[str, BaseDistribution], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """One value per choice: the pinned one, else the default. Raises ConfigError.

    A choice that was narrowed to several values, its default not among them, is not settled.
    """
    values = {}
    for key, choice in choices.items():
        if choice.single():
            values[key] = only_value(choice)
        else:
            values[key] = _check(key, choice, defaults[key])
    return values


def only_value(choice: BaseDistribution) -> Any:
    """The value of a choice that leaves no choice."""
    assert choice.single(), f"{choice} has more than one value"
    if isinstance(choice, CategoricalDistribution):
        return choice.choices[0]
    assert isinstance(choice, FloatDistribution | IntDistribution)
    return choice.low


def sample(choice: BaseDistribution, rng: np.random.Generator) -> Any:
    """A value drawn uniformly, on the logarithmic scale where the choice has one."""
    if isinstance(choice, CategoricalDistribution):
        return choice.choices[int(rng.integers(len(choice.choices)))]
    assert isinstance(choice, FloatDistribution | IntDistribution)
    low, high = _scaled_range(choice)
    return _unscale(choice, float(rng.uniform(low, high)))


def mutate(
    values: Mapping[str, Any], choices: Mapping[str, BaseDistribution], rng: np.random.Generator
) -> dict[str, Any]:
    """`values` with one choice changed; equal to `values` if nothing may vary.

    A number moves by a Gaussian step of 15% of its (logarithmic) range, clipped to the range;
    one that the clip would leave where it is moves inwards. A category becomes another one.
    """
    open_keys = [key for key, choice in choices.items() if not choice.single()]
    result = dict(values)
    if open_keys:
        key = open_keys[int(rng.integers(len(open_keys)))]
        result[key] = _neighbour(choices[key], values[key], rng)
    return result


def _neighbour(choice: BaseDistribution, value: Any, rng: np.random.Generator) -> Any:
    if isinstance(choice, CategoricalDistribution):
        others = [other for other in choice.choices if other != value]
        return others[int(rng.integers(len(others)))]
    assert isinstance(choice, FloatDistribution | IntDistribution)
    low, high = _scaled_range(choice)
    here = math.log(value) if choice.log else float(value)
    step = float(rng.normal(0.0, MUTATION_STEP * (high - low)))
    for move in (step, -step):
        moved = _unscale(choice, here + move)
        if moved != value:
            return moved
    # An integer whose step rounds to nothing: the nearest one.
    return value + 1 if value < choice.high else value - 1


def _scaled_range(choice: FloatDistribution | IntDistribution) -> tuple[float, float]:
    if isinstance(choice, IntDistribution) and not choice.log:
        return choice.low - 0.5, choice.high + 0.5
    low, high = float(choice.low), float(choice.high)
    return (math.log(low), math.log(high)) if choice.log else (low, high)


def _unscale(choice: FloatDistribution | IntDistribution, scaled: float) -> float | int:
    value = math.exp(scaled) if choice.log else scaled
    value = round(value) if isinstance(choice, IntDistribution) else value
    return min(max(value, choice.low), choice.high)


def _check(key: str, choice: BaseDistribution, value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = number and float(value).is_integer()
    if key == "seed":
        if whole and value >= 0:
            return int(value)
        raise ConfigError(f"choice 'seed' must be a whole number of at least 0, got {value!r}")
    if isinstance(choice, CategoricalDistribution):
        if value in choice.choices:
            return value
        known = [str(one) for one in choice.choices]
        raise ConfigError(f"choice '{key}' cannot be {value!r}; {_hint(str(value), known)}")
    assert isinstance(choice, FloatDistribution | IntDistribution)
    integer = isinstance(choice, IntDistribution)
    if not (whole if integer else number) or not choice.low <= value <= choice.high:
        kind = "a whole number" if integer else "a number"
        raise ConfigError(
            f"choice '{key}' must be {kind} in {choice.low}..{choice.high}, got {value!r}"
        )
    return int(value) if integer else float(value)


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def _component(value: Any) -> Component:
    return parse(Component, {"name": value} if isinstance(value, str) else value)
