"""What holds for every edge rule that is registered, on a graph that trains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wiring.config import Component
from wiring.errors import BudgetError, ConfigError
from wiring.graph.edges import EDGE_RULES
from wiring.graph.neural import attach
from wiring.graph.static import StaticGraph
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology

RULES = EDGE_RULES.names()
every_rule = pytest.mark.parametrize("rule", RULES)
# `complete` keeps every usable edge by definition; every other rule must keep to its budget.
budgeted = pytest.mark.parametrize("rule", [name for name in RULES if name != "complete"])
every_op = pytest.mark.parametrize("op", ["dense", "bwn", "xnor", "adder"])

STEPS = 20
BUDGET = 11


def topology(budget: int | None = BUDGET) -> Topology:
    """Two bundles that share a budget, one of them with only some usable edges."""
    return Topology(
        groups=(
            NodeGroup(name="in", size=4),
            NodeGroup(name="mid", size=5, steps=("norm", "act")),
            NodeGroup(name="out", size=3, steps=("norm",)),
        ),
        bundles=(
            Bundle(name="a", sources=("in",), destination="mid"),
            Bundle(
                name="b",
                sources=("in", "mid"),
                destination="out",
                edges=tuple((d, s) for d in range(3) for s in range(9) if (d + s) % 2),
            ),
        ),
        scopes=(Scope(name="all", bundles=("a", "b"), budget=budget),),
    )


def graph(rule: str, op: str = "dense", seed: int = 0) -> StaticGraph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StaticGraph(topology(), Component(name=op), Component(name=rule))


def train(module: StaticGraph, steps: int) -> list[Tensor]:
    """The scope's live edges after each step."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-3)
    attach(module, optimizer)
    generator = torch.Generator().manual_seed(7)
    history = []
    for _ in range(steps):
        x = torch.randn(6, 4, 3, 3, generator=generator)
        target = torch.randn(6, 3, 3, 3, generator=generator)
        optimizer.zero_grad()
        (module(x) - target).square().mean().backward()
        optimizer.step()
        history.append(module.scope("all").live.clone())
    return history


@budgeted
@every_op
def test_exactly_k_usable_edges_live_after_every_step(rule: str, op: str) -> None:
    module = graph(rule, op)
    allowed = module.scope("all").allowed
    for live in [module.scope("all").live, *train(module, STEPS)]:
        assert int(live.sum()) == BUDGET
        assert not (live & ~allowed).any()


@every_rule
def test_live_edges_are_usable_and_learn(rule: str) -> None:
    module = graph(rule)
    for _ in range(3):
        train(module, 1)
        wiring = module.scope("all")
        assert not (wiring.live & ~wiring.allowed).any()
        assert not (wiring.live & ~wiring.learn()).any()
        assert not (wiring.learn() & ~wiring.allowed).any()


@every_rule
def test_dead_edges_learn_only_where_the_rule_says_so(rule: str) -> None:
    module = graph(rule)
    wiring = module.scope("all")
    expected = wiring.allowed if EDGE_RULES.get(rule).learns_dead_edges else wiring.live
    assert torch.equal(wiring.learn(), expected)


@every_rule
def test_edges_that_do_not_learn_keep_a_gradient_of_zero(rule: str) -> None:
    module = graph(rule)
    module(torch.randn(6, 4, 3, 3)).square().sum().backward()
    for name, learn in module.learn().items():
        grad = module.op(name).weight.grad
        assert grad is not None
        assert not grad[~learn].any()


@every_rule
def test_the_same_seed_gives_the_same_wirings(rule: str) -> None:
    first, second = (train(graph(rule, seed=3), 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@budgeted
def test_another_seed_gives_another_wiring(rule: str) -> None:
    assert not torch.equal(
        graph(rule, seed=1).scope("all").live, graph(rule, seed=2).scope("all").live
    )


@pytest.mark.parametrize("rule", ["dnw", "dnw-no-update"])
def test_ties_go_to_the_lower_index(rule: str) -> None:
    allowed = torch.tensor([0, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    scores = torch.tensor([9.0, 1, 2, 9, 1, 1, 1])
    live = EDGE_RULES.get(rule)(3).select(scores, allowed, None)
    assert live.tolist() == [False, True, True, False, True, False, False]


def test_random_wiring_never_changes_and_complete_wiring_is_whole() -> None:
    module = graph("random")
    before = module.scope("all").live.clone()
    assert all(torch.equal(live, before) for live in train(module, 5))
    module = graph("complete")
    assert torch.equal(train(module, 1)[0], module.scope("all").allowed)


def test_random_wiring_draws_every_usable_edge_equally_often() -> None:
    allowed = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1], dtype=torch.bool)
    rule = EDGE_RULES.get("random")(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = torch.stack([rule.select(torch.zeros(8), allowed, None) for _ in range(1200)])
    share = drawn.float().mean(dim=0)
    torch.testing.assert_close(share, allowed / 3, atol=0.05, rtol=0)


@every_rule
def test_a_budget_below_one_is_refused(rule: str) -> None:
    with pytest.raises(BudgetError, match="at least 1, got 0"):
        EDGE_RULES.get(rule)(0)


@every_rule
def test_an_unknown_option_is_refused_by_name(rule: str) -> None:
    with pytest.raises(ConfigError, match="unknown key 'no_such_option'"):
        EDGE_RULES.get(rule)(3, {"no_such_option": 1})
