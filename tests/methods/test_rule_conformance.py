"""What holds for every edge rule that is registered, on a graph that trains."""

from __future__ import annotations

import pytest
import torch
from rule_cases import BUDGET, STEPS, Training, graph, topology, train

from wiring.errors import BudgetError, ConfigError, WiringError
from wiring.graph.driving import attach
from wiring.graph.rules import EDGE_RULES, EdgeRule

RULES = EDGE_RULES.names()
every_rule = pytest.mark.parametrize("rule", RULES)
every_op = pytest.mark.parametrize("op", ["dense", "bwn", "xnor", "adder"])
CLASSES = {name: EDGE_RULES.get(name) for name in RULES}
budgeted = pytest.mark.parametrize(
    "rule", [n for n in RULES if n != "complete" and CLASSES[n](BUDGET).keeps_budget]
)


def phases(rule: str) -> int:
    """Of how many phases training with it consists."""
    return len(CLASSES[rule](BUDGET).phases())


single = [name for name in RULES if phases(name) == 1 and name != "complete"]


@pytest.mark.parametrize("rule", single)
@every_op
@pytest.mark.usefixtures("seeded")
def test_exactly_k_edges_live_after_every_step_where_nothing_is_trained_first(
    rule: str, op: str
) -> None:
    module = graph(rule, op)
    for live in [module.scope("all").live, *train(module)]:
        assert int(live.sum()) == BUDGET


@budgeted
@every_op
@pytest.mark.usefixtures("seeded")
def test_training_ends_with_exactly_k_edges(rule: str, op: str) -> None:
    module = graph(rule, op)
    assert int(train(module)[-1].sum()) == BUDGET


@pytest.mark.parametrize("rule", [name for name in RULES if phases(name) > 1])
@pytest.mark.usefixtures("seeded")
def test_every_usable_edge_lives_in_the_first_of_several_phases(rule: str) -> None:
    module = graph(rule)
    allowed = module.scope("all").allowed
    first = round(STEPS * module.phases()[0].share)
    history = [module.scope("all").live.clone(), *train(module)]
    assert all(torch.equal(live, allowed) for live in history[:first])
    assert int(history[first].sum()) < int(allowed.sum())


@every_rule
@pytest.mark.parametrize("steps", [2, 3, 7])
@pytest.mark.usefixtures("seeded")
def test_a_training_of_few_steps_keeps_the_promise_too(rule: str, steps: int) -> None:
    module = graph(rule)
    wiring = module.scope("all")
    live = train(module, steps)[-1]
    assert bool(live.any())
    if wiring.rule.keeps_budget:
        assert int(live.sum()) == BUDGET


@every_rule
@pytest.mark.usefixtures("seeded")
def test_live_and_acting_edges_are_usable_and_learn(rule: str) -> None:
    module = graph(rule)
    wiring = module.scope("all")

    def check() -> None:
        pairs = zip(*module.masks().values(), strict=True)
        acting, learn = (torch.cat([mask.flatten() for mask in masks]) for masks in pairs)
        for mask in (wiring.live, acting):
            assert not (mask & ~wiring.allowed).any()
            assert not (mask & ~learn).any()
        assert torch.equal(learn, wiring.learn())
        assert not (learn & ~wiring.allowed).any()

    check()
    Training(module).run(STEPS, check)


@every_rule
@pytest.mark.usefixtures("seeded")
def test_dead_edges_learn_where_the_rule_says_so(rule: str) -> None:
    module = graph(rule)
    wiring = module.scope("all")
    expected = wiring.allowed if CLASSES[rule].learns_dead_edges else wiring.live
    assert torch.equal(wiring.learn(), expected)


@every_rule
@every_op
@pytest.mark.usefixtures("seeded")
def test_edges_that_do_not_learn_keep_a_gradient_of_zero(rule: str, op: str) -> None:
    module = graph(rule, op)
    training = Training(module)
    for _ in range(STEPS):
        learn = {name: mask.clone() for name, mask in module.learn().items()}
        training.step()
        for name, mask in learn.items():
            grad = module.op(name).weight.grad
            assert grad is not None
            assert not grad[~mask].any()


@every_rule
def test_the_same_seed_gives_the_same_wirings(rule: str) -> None:
    runs = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            runs.append(train(graph(rule, seed=3)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@budgeted
@pytest.mark.usefixtures("seeded")
def test_another_seed_gives_another_wiring(rule: str) -> None:
    assert not torch.equal(train(graph(rule, seed=1))[-1], train(graph(rule, seed=2))[-1])


@every_rule
@pytest.mark.parametrize("stop", [STEPS // 2, 13], ids=["at a border of phases", "inside a phase"])
def test_a_resumed_training_is_the_uninterrupted_one(rule: str, stop: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        whole = Training(graph(rule))
        whole.run(stop)
        saved = whole.state()
        expected = whole.run(STEPS - stop)
        resumed = Training(graph(rule))
        torch.manual_seed(2)
        resumed.load(saved)
        found = resumed.run(STEPS - stop)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    first, second = whole.state(), resumed.state()
    for part in ("module", "momenta"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(t, second[part][n]) for n, t in first[part].items())
    assert torch.equal(first["rng"], second["rng"])


@every_rule
@pytest.mark.usefixtures("seeded")
def test_a_scope_that_keeps_all_its_edges_keeps_them(rule: str) -> None:
    module = graph(rule, shape=topology(budget=None))
    for live in train(module):
        assert torch.equal(live, module.scope("all").allowed)


@pytest.mark.parametrize("rule", [n for n in RULES if CLASSES[n].scheduled])
def test_a_rule_with_a_schedule_asks_for_the_length_of_training(rule: str) -> None:
    module = graph(rule)
    with pytest.raises(WiringError, match="follows a schedule: say attach"):
        attach(module, torch.optim.SGD(module.parameters(), lr=0.1))


@pytest.mark.parametrize("rule", [n for n in RULES if phases(n) > 1])
def test_phases_need_more_than_one_step(rule: str) -> None:
    with pytest.raises(WiringError, match="phases, for which one optimiser step is too few"):
        Training(graph(rule), steps=1)


@every_rule
@pytest.mark.usefixtures("seeded")
def test_a_rule_obeys_a_limit_of_cost_or_refuses_it(rule: str) -> None:
    """In the end the live edges cost at most the limit."""
    shape = topology(None)
    limited = shape.replace(
        scopes=[shape.scopes[0].replace(limit={"unit": "energy", "amount": 30.0})]
    )
    spent = float("inf")
    try:
        module = graph(rule, shape=limited)
        if not module.wants_prices:
            module.set_prices({"a": 2.0, "b": 3.0})
        live = train(module)[-1]
        prices = module.scope("all").rule.prices
        assert prices is not None
        spent = float(prices[live].sum())
    except BudgetError as refusal:
        assert rule in {"complete", "set", "snfs", "rigl", "surgery"}, refusal  # noqa: PT017
    else:
        assert 0 < spent <= 30


@every_rule
@pytest.mark.usefixtures("seeded")
def test_unusable_entries_in_the_pool_take_part_or_are_refused(rule: str) -> None:
    shape = topology()
    wasteful = shape.replace(scopes=[shape.scopes[0].replace(unusable=40)])
    if CLASSES[rule].update is not EdgeRule.update:
        with pytest.raises(WiringError, match="cannot have 40 unusable entries"):
            graph(rule, shape=wasteful)
    else:
        live = train(graph(rule, shape=wasteful))[-1]
        assert rule == "complete" or int(live.sum()) <= BUDGET


@pytest.mark.parametrize("rule", ["dnw", "dnw-no-update", "targeted-dropout"])
def test_ties_go_to_the_lower_index(rule: str) -> None:
    allowed = torch.tensor([0, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    scores = torch.tensor([9.0, 1, 2, 9, 1, 1, 1])
    live = EDGE_RULES.get(rule)(3).select(scores, allowed, None)
    assert live.tolist() == [False, True, True, False, True, False, False]


def test_random_wiring_never_changes_and_complete_wiring_is_whole() -> None:
    module = graph("random")
    before = module.scope("all").live.clone()
    assert all(torch.equal(live, before) for live in train(module))
    module = graph("complete")
    assert torch.equal(train(module)[0], module.scope("all").allowed)


@pytest.mark.parametrize("rule", ["random", "set", "snfs", "rigl"])
def test_a_random_wiring_draws_every_usable_edge_equally_often(rule: str) -> None:
    allowed = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1], dtype=torch.bool)
    made = EDGE_RULES.get(rule)(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = torch.stack([made.select(torch.zeros(8), allowed, None) for _ in range(1200)])
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
