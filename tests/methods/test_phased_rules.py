"""Rules that train the complete graph first: what happens at the borders of their phases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from rule_cases import BUDGET, STEPS, Training, graph, scope_of, topology

from wiring.errors import WiringError
from wiring.graph.phases import Phase, clock_at
from wiring.graph.rules import EDGE_RULES, EdgeRule
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology

BORDER = STEPS // 2


def at(rule: EdgeRule, step: int, steps: int = 10) -> None:
    """Set the rule's clock."""
    rule.clock = clock_at(step, steps, rule.phases())


def places(live: torch.Tensor | None) -> list[int]:
    """Indices of the live edges."""
    assert live is not None
    return live.nonzero().flatten().tolist()


def test_the_first_and_the_last_phase_have_a_step_where_there_are_two() -> None:
    phases = (Phase("one", 0.01), Phase("two", 0.01), Phase("three", 0.98))
    assert [clock_at(step, 2, phases).phase for step in range(3)] == [0, 2, 2]
    assert clock_at(1, 2, phases).begins_phase
    late = (Phase("one", 0.98), Phase("two", 0.01), Phase("three", 0.01))
    assert [clock_at(step, 3, late).phase for step in range(4)] == [0, 0, 2, 2]


@pytest.mark.parametrize("rule", ["fine-tune", "lottery"])
def test_the_strongest_edges_at_the_border_stay_for_good(rule: str) -> None:
    module = graph(rule)
    training = Training(module)
    training.run(BORDER - 1)
    edges = module.edges(module.scope("all"))
    strengths = []
    select = module.scope("all").rule.strongest

    def watched(scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        strengths.append(edges.weights().abs())
        return select(scores, allowed)

    module.scope("all").rule.strongest = watched
    history = training.run(STEPS - BORDER + 1)
    (strength,) = strengths
    usable = torch.where(module.scope("all").allowed, strength, -1.0)
    assert places(history[0]) == sorted(usable.topk(BUDGET).indices.tolist())
    assert all(torch.equal(live, history[0]) for live in history)


@pytest.mark.parametrize(("rule", "rewinds"), [("lottery", True), ("fine-tune", False)])
def test_a_lottery_ticket_begins_with_the_first_weights(rule: str, rewinds: bool) -> None:
    module = graph(rule)
    first = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    training = Training(module)
    training.run(BORDER)
    changed = {
        name
        for name, tensor in module.state_dict().items()
        if ("ops." in name or "norm" in name) and not torch.equal(tensor, first[name])
    }
    assert bool(changed) is not rewinds
    assert not training.optimizer.state


def test_fine_tuning_runs_at_a_tenth_of_the_rate_and_a_ticket_at_all_of_it() -> None:
    rates = {n: EDGE_RULES.get(n)(3).phases()[1].lr for n in ("fine-tune", "lottery", "magnitude")}
    assert rates == {"fine-tune": 0.1, "lottery": 1.0, "magnitude": 0.1}


def test_magnitude_compares_weights_in_deviations_of_their_layer() -> None:
    rule = EDGE_RULES.get("magnitude")(4, {"rounds": 1})
    at(rule, 5)
    # As weights the second layer would win four to none; the deviations are 1 to 10.
    edges = scope_of(rule, [[1.0, -2.0, 3.0, -4.0], [10.0, -20.0, 30.0, -40.0]])
    assert places(rule.update(edges)) == [2, 3, 6, 7]


def test_magnitudes_rounds_shrink_by_the_same_factor_and_end_at_k() -> None:
    rule = EDGE_RULES.get("magnitude")(4, {"rounds": 2})
    weights = [[float(i) for i in range(1, 17)]]
    at(rule, 5)
    edges = scope_of(rule, weights)
    left = rule.update(edges)
    assert places(left) == list(range(8, 16))  # √(16 · 4)
    edges.live = left
    at(rule, 8)
    assert places(rule.update(edges)) == list(range(12, 16))
    at(rule, 9)
    assert rule.update(edges) is None


def test_a_given_quality_is_the_papers_threshold() -> None:
    rule = EDGE_RULES.get("magnitude")(2, {"rounds": 1, "quality": 0.8})
    assert not rule.keeps_budget
    at(rule, 5)
    # std of (−3, −1, 1, 3) is √5: the threshold is 1.79; of (1, 1, 1, 9), √12: 2.77.
    edges = scope_of(rule, [[-3.0, -1.0, 1.0, 3.0], [1.0, 1.0, 1.0, 9.0]])
    assert places(rule.update(edges)) == [0, 3, 7]


def test_a_quality_that_would_remove_everything_is_refused() -> None:
    rule = EDGE_RULES.get("magnitude")(2, {"rounds": 1, "quality": 9})
    at(rule, 5)
    with pytest.raises(WiringError, match=r"quality 9 removes every edge .* weighs 1\.34164"):
        rule.update(scope_of(rule, [[-3.0, -1.0, 1.0, 3.0]]))


@pytest.mark.parametrize("rule", ["magnitude", "energy"])
def test_a_pruned_edge_never_returns(rule: str) -> None:
    history = Training(graph(rule)).run(STEPS)
    counts = [int(live.sum()) for live in history]
    assert len(set(counts)) == 6
    assert all(not (b & ~a).any() for a, b in itertools.pairwise(history))


def test_dropout_shrinks_with_the_root_of_the_edges_behind_it() -> None:
    """Han 2015, section 3.2."""
    shape = Topology(
        groups=(
            NodeGroup(name="in", size=8, steps=("dropout",), dropout=0.5),
            NodeGroup(name="out", size=4, steps=("norm",)),
        ),
        bundles=(Bundle(name="a", sources=("in",), destination="out"),),
        scopes=(Scope(name="all", bundles=("a",), budget=8),),
    )
    module = graph("magnitude", shape=shape)
    (dropout,) = (m for m in module.modules() if isinstance(m, torch.nn.Dropout))
    assert dropout.p == 0.5
    Training(module).run(STEPS)
    assert dropout.p == pytest.approx(0.5 * math.sqrt(8 / 32))


def test_the_l1_penalty_rises_on_a_line_and_ends_with_the_cut() -> None:
    rule = EDGE_RULES.get("l1-anneal")(2, {"penalty": 0.1})
    rates = []
    for step in range(8):
        at(rule, step)
        rates.append(rule.penalty())
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0, 0, 0])


def test_the_l1_penalty_pulls_by_the_sign_of_a_weight() -> None:
    rule = EDGE_RULES.get("l1-anneal")(2, {"penalty": 0.1})
    at(rule, 4)
    edges = scope_of(rule, [[2.0, -3.0, 0.0]], gradients=[[1.0, 1.0, 1.0]])
    rule.before_step(edges)
    assert edges.gradients().tolist() == pytest.approx([1.1, 0.9, 1.0])


def test_energy_takes_the_weakest_edges_most_from_where_edges_cost_most() -> None:
    rule = EDGE_RULES.get("energy")(4, {"rounds": 1, "restore": 0})
    at(rule, 5)
    edges = scope_of(rule, [[4.0, -3.0, 2.0, 1.0], [0.4, -0.3, 0.2, 0.1]], prices=[3.0, 1.0])
    # 12 of 16 units of energy lie in the first layer: it loses three of four edges.
    assert places(rule.update(edges)) == [0, 4, 5, 6]


def test_energy_restores_what_damages_most_for_the_energy_that_it_saves() -> None:
    rule = EDGE_RULES.get("energy")(4, {"rounds": 1, "restore": 0.25, "memory": 0})
    at(rule, 4)
    edges = scope_of(
        rule,
        [[4.0, -3.0, 2.0, 1.0], [0.4, -0.3, 0.2, 0.1]],
        gradients=[[0.0, 0.0, 0.0, 5.0], [0.0, 0.0, 15.0, 0.0]],
        prices=[3.0, 1.0],
    )
    rule.before_step(edges)
    assert rule.damage.tolist() == pytest.approx([0, 0, 0, 25, 0, 0, 9, 0])
    at(rule, 5)
    # Five are cut, and one comes back: edge 6 with 9 per unit of energy, not edge 3 with 25 / 3.
    assert places(rule.update(edges)) == [0, 4, 5, 6]


def test_energy_takes_a_single_edge_from_the_most_hungry_layer() -> None:
    rule = EDGE_RULES.get("energy")(5, {"rounds": 1, "restore": 0})
    at(rule, 5)
    edges = scope_of(rule, [[0.2, 0.1], [4.0, 3.0], [0.2, 0.1]], prices=[3.0, 4.0, 3.0])
    assert places(rule.update(edges)) == [0, 1, 2, 4, 5]


def test_energy_leaves_no_layer_without_an_edge() -> None:
    rule = EDGE_RULES.get("energy")(2, {"rounds": 1, "restore": 0})
    at(rule, 5)
    edges = scope_of(rule, [[4.0, -3.0, 2.0, 1.0], [0.4, -0.3]], prices=[1.0, 1e6])
    assert places(rule.update(edges)) == [0, 4]


def test_energy_asks_for_prices() -> None:
    module = graph("energy", shape=topology())
    module.scope("all").rule.prices = None
    with pytest.raises(WiringError, match=r"call graph\.set_prices"):
        Training(module)
