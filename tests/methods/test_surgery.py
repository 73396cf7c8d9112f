"""Dynamic network surgery: thresholds, hysteresis and the rhythm of refreshes, by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from rule_cases import BUDGET, STEPS, Training, graph, scope_of

from wiring.graph.phases import clock_at
from wiring.graph.rules import EDGE_RULES, EdgeRule


def surgery(budget: int = 2, **options: object) -> EdgeRule:
    """The rule at the first step of surgery, the 5th of 10."""
    rule = EDGE_RULES.get("surgery")(budget, options)
    rule.clock = clock_at(5, 10, rule.phases())
    return rule


def test_the_threshold_is_mean_plus_c_deviations_of_nonzero_magnitudes_in_a_layer() -> None:
    rule = surgery(c=2.0)
    edges = scope_of(rule, [[1.0, -3.0, 0.0, 0.0], [5.0, -5.0]])
    assert rule.thresholds(edges).tolist() == [4.0] * 4 + [5.0] * 2


def test_a_negative_threshold_counts_as_none() -> None:
    rule = surgery(c=-9.0)
    edges = scope_of(rule, [[1.0, -3.0, 0.0]])
    assert rule.thresholds(edges).tolist() == [0.0] * 3
    assert rule.update(edges).tolist() == [True, True, False]


def test_an_edge_between_the_thresholds_stays_as_it_is() -> None:
    rule = surgery(c=0.0)
    first = rule.update(scope_of(rule, [[1.0, 2.0, 3.0, 4.0, 2.4]]))
    # τ = 2.48: cut at 2.232 and less.
    assert first.tolist() == [False, False, True, True, True]
    rule.tau.fill_(2.0)
    edges = scope_of(rule, [[1.81, 1.79, 2.19, 2.21, -2.21]], live=[1, 1, 0, 0, 0])
    rule.tau.fill_(2.0)
    assert rule.refreshed(edges).tolist() == [True, False, False, True, True]


def test_at_the_thresholds_themselves_an_edge_is_cut_and_none_comes() -> None:
    rule = surgery(lower=0.5, upper=2.0)
    edges = scope_of(rule, [[1.0, 4.0, 1.5]], live=[1, 0, 1])
    rule.tau.fill_(2.0)
    assert rule.refreshed(edges).tolist() == [False, False, True]


def test_the_constants_are_the_papers() -> None:
    options = surgery().options
    assert (options.c, options.gamma, options.power) == (3.0, 1e-3, 1.0)
    assert (options.lower, options.upper) == (0.9, 1.1)


def test_refreshes_become_rare_as_one_over_one_plus_gamma_i() -> None:
    rule = surgery()
    assert [rule.probability(i) for i in (0, 1000, 3000)] == pytest.approx([1, 0.5, 0.25])
    assert surgery(gamma=1.0, power=2.0).probability(1) == pytest.approx(0.25)


def test_refreshes_happen_with_that_probability_until_the_stop() -> None:
    rule = surgery(gamma=1.0, power=1.0, stop=0.6)
    tried = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in (5, 6, 7, 8):
            rule.clock = clock_at(step, 10, rule.phases())
            tried[step] = sum(rule._refreshes() for _ in range(2000)) / 2000
    assert tried[5] == 1
    assert tried[6] == pytest.approx(1 / 2, abs=0.04)
    assert tried[7] == pytest.approx(1 / 3, abs=0.04)
    assert tried[8] == 0


def test_a_threshold_that_would_empty_a_scope_leaves_the_strongest_edge() -> None:
    rule = surgery(c=9.0)
    assert rule.update(scope_of(rule, [[1.0, -2.0, 1.5]])).tolist() == [False, True, False]


def test_a_threshold_from_the_budget_keeps_k_edges_with_the_same_hysteresis() -> None:
    rule = surgery(1, threshold="budget")
    assert rule.keeps_budget
    held = scope_of(rule, [[1.0, 1.2]], live=[1, 0])
    assert rule.refreshed(held).tolist() == [True, False]  # 1.2 / 1.1 < 1.0 / 0.9
    lost = scope_of(rule, [[1.0, 1.3]], live=[1, 0])
    assert rule.refreshed(lost).tolist() == [False, True]


@pytest.mark.usefixtures("seeded")
def test_with_a_threshold_from_the_budget_edges_come_back_and_k_live_throughout() -> None:
    history = Training(graph("surgery", threshold="budget", gamma=0.0, stop=1.0)).run(STEPS)
    surgical = history[STEPS // 2 - 1 :]
    assert [int(live.sum()) for live in surgical] == [BUDGET] * len(surgical)
    born = [(b & ~a).any() for a, b in itertools.pairwise(surgical)]
    assert any(born)


@pytest.mark.usefixtures("seeded")
def test_dead_edges_learn_by_the_gradient_of_the_masked_weights() -> None:
    module = graph("surgery", c=0.0)
    training = Training(module)
    training.run(STEPS - 1)
    wiring = module.scope("all")
    dead = wiring.allowed & ~wiring.live
    training.step()
    assert bool(dead.any())
    assert bool(module.edges(wiring).gradients()[dead].any())
