"""SET, SNFS and RigL: when edges move, how many, and where to."""

from __future__ import annotations

import itertools

import pytest
import torch
from rule_cases import STEPS, Training, graph, scope_of

from wiring.errors import BudgetError, WiringError
from wiring.graph.phases import Clock
from wiring.graph.regrow import Regrowing
from wiring.graph.rules import EDGE_RULES
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology

NAMES = ("set", "snfs", "rigl")
every_name = pytest.mark.parametrize("name", NAMES)


def regrowing(
    name: str, step: int = 0, steps: int = 20, budget: int = 3, **options: object
) -> Regrowing:
    """A rule at that moment of a training."""
    rule = EDGE_RULES.get(name)(budget, options)
    assert isinstance(rule, Regrowing)
    rule.clock = Clock(step, steps)
    return rule


def moving_steps(rule: Regrowing, steps: int) -> list[int]:
    rule.clock = Clock(0, steps)
    return [step for step in range(steps + 1) if rule.moves_at(step)]


@every_name
def test_edges_move_every_interval_until_a_share_of_training(name: str) -> None:
    assert moving_steps(regrowing(name, interval=5), 20) == [5, 10]
    assert moving_steps(regrowing(name, interval=4, until=1.0), 12) == [4, 8]


@every_name
def test_the_interval_is_100_steps_or_a_tenth_of_a_short_training(name: str) -> None:
    rule = regrowing(name)
    assert moving_steps(rule, 1000) == [100, 200, 300, 400, 500, 600, 700]
    assert moving_steps(rule, 60) == [6, 12, 18, 24, 30, 36, 42]
    assert moving_steps(rule, 4) == [1, 2]


@every_name
def test_an_interval_that_never_comes_is_refused(name: str) -> None:
    with pytest.raises(WiringError, match=r"every 15 steps before step 15 of 20: never"):
        Training(graph(name, interval=15), steps=20)


@every_name
def test_the_fraction_that_moves_falls_as_a_cosine_or_stays(name: str) -> None:
    fractions = [regrowing(name, step, 20).fraction() for step in (0, 5, 10, 15)]
    assert fractions == pytest.approx([0.3, 0.225, 0.075, 0.0])
    assert regrowing(name, 10, 20, anneal="constant", fraction=0.4).fraction() == 0.4


@every_name
@pytest.mark.usefixtures("seeded")
def test_the_rounded_down_fraction_moves_and_only_then(name: str) -> None:
    module = graph(name, interval=5, anneal="constant", fraction=0.4)
    before = [module.scope("all").live.clone()]
    history = before + Training(module).run(STEPS)
    for step, (a, b) in enumerate(itertools.pairwise(history), start=1):
        assert int((a & ~b).sum()) <= (4 if step in (5, 10) else 0), step
    assert any((a & ~b).any() for a, b in itertools.pairwise(history))


@every_name
def test_a_budget_of_cost_is_refused(name: str) -> None:
    with pytest.raises(BudgetError, match="cannot keep a budget of cost, got 12"):
        EDGE_RULES.get(name)(9, {}, limit=12.0)


def test_rigl_drops_the_weakest_and_grows_where_the_gradient_is_largest() -> None:
    rule = regrowing("rigl", 4, interval=5, anneal="constant", fraction=0.4)
    edges = scope_of(
        rule,
        [[5.0, 1.0, 2.0, 9.0, 9.0, 9.0]],
        live=[1, 1, 1, 0, 0, 0],
        gradients=[[0.5, 0.1, 0.5, 0.1, -0.7, 0.3]],
        momenta=[[1.0] * 6],
    )
    assert rule.learn(edges.live, edges.allowed).all()
    rule.before_step(edges)
    assert edges.gradients().tolist() == pytest.approx([0.5, 0.1, 0.5, 0, 0, 0])
    rule.clock = Clock(5, 20)
    assert rule.update(edges).tolist() == [True, False, True, False, True, False]
    assert edges.weights().tolist() == [5, 1, 2, 9, 0, 9]
    assert edges.momenta().tolist() == [1, 1, 1, 1, 0, 1]


def test_an_edge_that_is_dropped_and_grown_at_once_keeps_its_weight() -> None:
    rule = regrowing("rigl", 4, interval=5, anneal="constant", fraction=0.4)
    edges = scope_of(
        rule,
        [[5.0, 1.0, 2.0, 9.0]],
        live=[1, 1, 1, 0],
        gradients=[[0.0, 0.7, 0.0, 0.3]],
    )
    rule.before_step(edges)
    rule.clock = Clock(5, 20)
    assert rule.update(edges).tolist() == [True, True, True, False]
    assert edges.weights().tolist() == [5, 1, 2, 9]


@pytest.mark.usefixtures("seeded")
def test_rigl_needs_the_dense_gradient_only_where_edges_move() -> None:
    module = graph("rigl", interval=5)
    training, wiring = Training(module), module.scope("all")
    dense = []
    for step in range(1, STEPS + 1):
        if torch.equal(wiring.learn(), wiring.allowed):
            dense.append(step)
        training.step()
    assert dense == [5, 10]


@pytest.mark.parametrize("name", ["rigl", "snfs"])
@pytest.mark.usefixtures("seeded")
def test_looking_at_dead_edges_gradients_does_not_move_them(name: str) -> None:
    module = graph(name, interval=1, anneal="constant")
    training = Training(module)
    for group in training.optimizer.param_groups:
        group["momentum"] = group["weight_decay"] = 0.0
    wiring = module.scope("all")
    for _ in range(10):
        live, before = wiring.live.clone(), module.edges(wiring).weights()
        training.step()
        after = module.edges(wiring).weights()
        never = ~live & ~wiring.live
        assert torch.equal(after[never], before[never])
        born = wiring.live & ~live
        assert not after[born].any()


def test_set_grows_every_edge_that_does_not_stay_equally_often() -> None:
    grown = torch.zeros(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(2000):
            rule = regrowing("set", 5, interval=5, anneal="constant", fraction=0.4)
            edges = scope_of(
                rule, [[5.0, 1.0, 2.0, 9.0, 9.0, 9.0, 9.0]], live=[1, 1, 1, 0, 0, 0, 0]
            )
            grown += rule.update(edges)
    expected = torch.tensor([1, 0.2, 1, 0.2, 0.2, 0.2, 0.2])
    torch.testing.assert_close(grown / 2000, expected, atol=0.04, rtol=0)


def test_snfs_smooths_the_gradient_of_every_edge() -> None:
    rule = regrowing("snfs", momentum=0.75)
    edges = scope_of(rule, [[1.0, 1.0]], live=[1, 0], gradients=[[4.0, 8.0]])
    rule.before_step(edges)
    assert rule.smoothed.tolist() == [1.0, 2.0]
    assert edges.gradients().tolist() == [4.0, 0.0]
    edges.put_gradients(torch.tensor([0.0, 4.0]))
    rule.before_step(edges)
    assert rule.smoothed.tolist() == [0.75, 2.5]


def test_snfs_gives_edges_to_scopes_by_their_mean_momentum() -> None:
    options = {"interval": 5, "anneal": "constant", "fraction": 0.5}
    rules = [regrowing("snfs", 5, budget=4, **options) for _ in range(2)]
    strong = [4.0, 3.0, 2.0, 1.0] + [0.0] * 4
    edges = [scope_of(rule, [strong], live=[1] * 4 + [0] * 4) for rule in rules]
    rules[0].smoothed.copy_(torch.tensor([3.0, -3, 3, -3, 0, 9, -8, 7]))
    rules[1].smoothed.copy_(torch.tensor([1.0, -1, 1, -1, 0, 9, -8, 7]))
    type(rules[0]).balance(rules, edges)
    # Each loses two of four; of the four that come, three and one.
    chosen = [rule.update(seen) for rule, seen in zip(rules, edges, strict=True)]
    live = [one.nonzero().flatten().tolist() for one in chosen]
    assert live == [[0, 1, 5, 6, 7], [0, 1, 5]]


@pytest.mark.usefixtures("seeded")
def test_snfs_moves_edges_between_scopes_and_keeps_their_total() -> None:
    groups = (
        NodeGroup(name="in", size=6),
        NodeGroup(name="mid", size=8, steps=("norm", "act")),
        NodeGroup(name="out", size=4, steps=("norm",)),
    )
    bundles = (
        Bundle(name="a", sources=("in",), destination="mid"),
        Bundle(name="b", sources=("mid",), destination="out"),
        Bundle(name="c", sources=("in",), destination="out"),
    )
    scopes = tuple(
        Scope(name=n, bundles=(n,), budget=k) for n, k in (("a", 20), ("b", 10), ("c", None))
    )
    module = graph(
        "snfs", shape=Topology(groups=groups, bundles=bundles, scopes=scopes), interval=2
    )
    counts = []

    def count() -> None:
        counts.append([int(wiring.live.sum()) for _, wiring in module.wirings()])

    Training(module).run(STEPS, count)
    assert {sum(row) for row in counts} == {20 + 10 + 24}
    assert {row[2] for row in counts} == {24}
    assert len({row[0] for row in counts}) > 1
