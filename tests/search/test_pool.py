"""The pool of DNW's released code, in which entries compete that no forward pass reads."""

from __future__ import annotations

from typing import Any

import pytest

from search.spaces.base import SPACES
from wiring.network import ImageShape, ModelSpec, build_network

CIFAR = ImageShape(channels=3, side=32)


def model(space: str, **options: Any) -> ModelSpec:
    made = SPACES.get(space)(options)
    return made.build(made.defaults(CIFAR), CIFAR, classes=10)


def test_by_default_only_usable_edges_compete() -> None:
    for space in ("tiny", "mobilenet-graph"):
        assert all(scope.unusable == 0 for scope in model(space).topology.scopes)


def test_the_released_pools_are_whole_weight_matrices() -> None:
    """The matrix sizes of the paper's code, less what can be used."""
    (tiny,) = model("tiny", pool="released").topology.scopes
    assert tiny.unusable == 800 * 800 - 264_960
    topology = model("mobilenet-graph", size="full", pool="released").topology
    sizes = [topology.usable_edges(scope) + scope.unusable for scope in topology.scopes]
    assert sizes == [2_048, 49_152, 196_608, 8_650_752, 3_145_728]


@pytest.mark.parametrize(
    ("space", "options", "scope", "wasted"),
    [("tiny", {}, "all", 0.586), ("mobilenet-graph", {"size": "full"}, "s4", 0.4545)],
)
def test_a_released_pool_wastes_its_share_of_the_budget_at_the_start(
    space: str, options: dict[str, Any], scope: str, wasted: float
) -> None:
    wiring = build_network(model(space, pool="released", **options)).graph.scope(scope)
    share = 1 - int(wiring.live.sum()) / wiring.rule.budget
    assert share == pytest.approx(wasted, abs=0.01)
