"""Targeted dropout: who is dropped, how often, and that weights keep their sign."""

from __future__ import annotations

import itertools

import torch
from rule_cases import BUDGET, Training, graph

from wiring.graph.rules import EDGE_RULES


def test_an_edge_that_is_not_among_the_strongest_acts_in_one_minus_rho_of_the_steps() -> None:
    rule = EDGE_RULES.get("targeted-dropout")(2, {"rate": 0.7})
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    allowed = torch.tensor([1, 1, 1, 1, 0], dtype=torch.bool)
    live = rule.select(scores, allowed, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        acted = torch.stack([rule.act(scores, live, allowed) for _ in range(3000)]).float()
    expected = torch.tensor([1.0, 0.3, 1.0, 0.3, 0.0])
    torch.testing.assert_close(acted.mean(dim=0), expected, atol=0.03, rtol=0)
    assert torch.equal(acted[:, [0, 2]], torch.ones(3000, 2))


def test_the_rate_is_that_of_the_released_code() -> None:
    assert EDGE_RULES.get("targeted-dropout")(2).options.rate == 0.95


def test_evaluation_and_measurement_use_exactly_the_strongest_edges() -> None:
    module = graph("targeted-dropout", rate=0.5)
    Training(module).run(3)

    def acting() -> int:
        return sum(int(acts.sum()) for acts, _ in module.masks().values())

    assert acting() > BUDGET
    with module.settled():
        assert acting() == BUDGET
    module.eval()
    assert acting() == BUDGET


def test_every_step_draws_anew() -> None:
    module = graph("targeted-dropout", rate=0.5)
    drawn = []
    Training(module).run(4, lambda: drawn.append(module.scope("all").acting.clone()))
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(drawn))


def test_weights_keep_their_sign_in_training() -> None:
    module = graph("targeted-dropout", rate=0.0).train()
    whole = graph("complete").train()
    with torch.no_grad():
        for name in ("a", "b"):
            module.op(name).weight.copy_(-module.op(name).weight.abs())
            whole.op(name).weight.copy_(module.op(name).weight)
    x = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), whole(x))
