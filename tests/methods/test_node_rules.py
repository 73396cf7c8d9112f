"""What every node rule that is registered must keep to, and what each of them computes."""

from __future__ import annotations

import itertools

import pytest
import torch
from rule_cases import graph, scope_of, topology, train
from torch import Tensor

from wiring.errors import ConfigError
from wiring.graph.node_rules import NODE_RULES, NodeRule, Nodes
from wiring.graph.phases import Clock
from wiring.graph.rules import EDGE_RULES
from wiring.methods.dpp import sample

RULES = NODE_RULES.names()
DRAWS = 800
every_rule = pytest.mark.parametrize("rule", RULES)


def nodes(size: int = 6, *, seed: int = 0, outgoing: bool = True) -> Nodes:
    """A group of nodes with two readers' weights 3x3 and 40 samples behind a ReLU."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    leaving = randn(5, size, 3, 3) if outgoing else None
    return Nodes("mid", randn(size, 9), leaving, randn(40, size).relu())


def with_twins(found: Nodes, pairs: dict[int, int]) -> Nodes:
    """The same with nodes (keys) that equal others (values) in all but what leaves them."""
    incoming, values = found.incoming.clone(), found.values.clone()
    for copy, original in pairs.items():
        incoming[copy], values[:, copy] = incoming[original], values[:, original]
    return Nodes(found.name, incoming, found.outgoing, values)


def selected(rule: NodeRule, found: Nodes, seed: int = 0) -> Tensor:
    return rule.select(found, torch.Generator().manual_seed(seed))


# -- every rule ------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("outgoing", [True, False])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_at_least_one_node_stays_and_the_nodes_are_left_alone(
    rule: str, outgoing: bool, size: int
) -> None:
    found = nodes(size, outgoing=outgoing)
    before = [t.clone() for t in (found.incoming, found.values)]
    made = NODE_RULES.get(rule)({})
    kept = selected(made, found)
    transfer = made.transfer(found, kept)
    assert kept.dtype == torch.bool
    assert kept.shape == (size,)
    assert bool(kept.any())
    assert transfer.shape == (size, int(kept.sum()))
    assert transfer.dtype == found.incoming.dtype
    assert all(map(torch.equal, before, (found.incoming, found.values)))


@every_rule
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 0.999])
def test_the_share_that_was_asked_for_goes(rule: str, share: float) -> None:
    kept = selected(NODE_RULES.get(rule)({"share": share}), nodes(20))
    assert int(kept.sum()) == max(1, 20 - round(20 * share))


@every_rule
def test_what_leaves_kept_nodes_stays_with_them(rule: str) -> None:
    made, found = NODE_RULES.get(rule)({"share": 0.5}), nodes(8)
    kept = selected(made, found)
    torch.testing.assert_close(made.transfer(found, kept)[kept], torch.eye(4, dtype=torch.float64))


@every_rule
def test_the_same_generator_gives_the_same_nodes(rule: str) -> None:
    made, found = NODE_RULES.get(rule)({"share": 0.5}), nodes(12)
    assert torch.equal(selected(made, found, 3), selected(made, found, 3))


@every_rule
def test_nodes_of_all_zeros_and_one_sample_are_no_trouble(rule: str) -> None:
    empty = Nodes("mid", torch.zeros(4, 3), torch.zeros(2, 4, 1, 1), torch.zeros(1, 4))
    made = NODE_RULES.get(rule)({})
    kept = selected(made, empty)
    assert bool(kept.any())
    assert bool(made.transfer(empty, kept).isfinite().all())


@every_rule
def test_it_says_what_it_is_and_refuses_options_it_does_not_know(rule: str) -> None:
    cls = NODE_RULES.get(rule)
    assert cls.paper
    assert cls.use
    assert (cls.__doc__ or "").count("\n") == 0
    with pytest.raises(ConfigError, match="unknown key 'no_such_option'"):
        cls({"no_such_option": 1})
    with pytest.raises(ConfigError, match="share"):
        cls({"share": 1.0})


@every_rule
def test_rules_that_train_shrink_and_others_say_that_they_do_not(rule: str) -> None:
    made, weights = NODE_RULES.get(rule)({}), nodes(4).incoming
    before = weights.clone()
    if made.trains:
        made.shrink([weights], 0.1)
        assert bool((weights.norm(dim=1) < before.norm(dim=1)).all())
    else:
        with pytest.raises(NotImplementedError, match="does not train"):
            made.shrink([weights], 0.1)


# -- apoz ------------------------------------------------------------------------------------


def test_nodes_with_more_zeros_than_a_deviation_above_the_mean_go() -> None:
    values = torch.ones(10, 5)
    for node, zeros in enumerate((0, 1, 2, 3, 9)):
        values[:zeros, node] = 0
    found = Nodes("mid", torch.ones(5, 2), None, values)
    # mean 0.3, deviation sqrt(0.1) = 0.316
    assert selected(NODE_RULES.get("apoz")({}), found).tolist() == [True] * 4 + [False]
    strict = NODE_RULES.get("apoz")({"deviations": 0})
    assert selected(strict, found).tolist() == [True] * 4 + [False]
    shared = NODE_RULES.get("apoz")({"share": 0.4})
    assert selected(shared, found).tolist() == [True] * 3 + [False] * 2


def test_nodes_that_are_zero_equally_often_all_stay() -> None:
    found = Nodes("mid", torch.ones(3, 2), None, torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 1, 1]]))
    assert bool(selected(NODE_RULES.get("apoz")({}), found).all())


# -- merge -----------------------------------------------------------------------------------


def obvious_merge(found: Nodes, count: int) -> tuple[list[int], Tensor]:
    """The definition: all pairs anew after every merge; the nodes that stay, and their weights."""
    assert found.outgoing is not None
    weights = {i: found.outgoing[:, i].clone() for i in range(found.size)}
    for _ in range(count):
        _, gone, heir = min(
            (
                float(weights[j].square().mean() * (rows[i] - rows[j]).square().sum()),
                -j,
                i,
            )
            for rows in (found.incoming,)
            for i, j in itertools.permutations(weights, 2)
        )
        weights[heir] += weights.pop(-gone)
    return sorted(weights), torch.stack([weights[i] for i in sorted(weights)], dim=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_merging_is_its_definition_step_by_step(seed: int, share: float) -> None:
    found = with_twins(nodes(10, seed=seed), {7: 2, 5: 2})
    made = NODE_RULES.get("merge")({"share": share})
    stay, expected = obvious_merge(found, round(10 * share))
    kept = selected(made, found)
    assert kept.nonzero().flatten().tolist() == stay
    assert found.outgoing is not None
    handed = torch.einsum("dshw,st->dthw", found.outgoing, made.transfer(found, kept))
    torch.testing.assert_close(handed, expected)


def test_equal_nodes_merge_first_and_the_sum_that_readers_get_is_the_same() -> None:
    found = with_twins(nodes(8), {3: 1, 6: 1, 5: 4, 7: 0})
    made = NODE_RULES.get("merge")({"share": 0.5})
    kept = selected(made, found)
    assert kept.nonzero().flatten().tolist() == [0, 1, 2, 4]
    assert found.outgoing is not None
    weight = found.outgoing.flatten(2).sum(2)
    merged = weight @ made.transfer(found, kept)
    torch.testing.assert_close(found.values[:, kept] @ merged.T, found.values @ weight.T)


# -- dpp -------------------------------------------------------------------------------------


def test_sets_are_drawn_as_often_as_their_determinants_say() -> None:
    found = nodes(5, seed=2)
    kernel = NODE_RULES.get("dpp")({"beta": 0.7, "epsilon": 0.05}).kernel(found)
    distances = (found.values.T[:, None] - found.values.T[None]).square().sum(2)
    by_hand = torch.exp(-0.7 / 40 * distances) + 0.05 * torch.eye(5)
    torch.testing.assert_close(kernel, by_hand)
    for size in (2, 3):
        sets = list(itertools.combinations(range(5), size))
        weights = torch.stack([torch.det(kernel[list(s)][:, list(s)]) for s in sets])
        generator = torch.Generator().manual_seed(size)
        counts = dict.fromkeys(sets, 0)
        for _ in range(DRAWS):
            counts[tuple(sample(kernel, size, generator).nonzero().flatten().tolist())] += 1
        shares = torch.tensor([counts[s] / DRAWS for s in sets], dtype=torch.float64)
        expected = weights / weights.sum()
        # Four deviations of a share of so many draws.
        bound = 4 * (expected * (1 - expected) / DRAWS).sqrt()
        assert bool(((shares - expected).abs() < bound).all())


def test_nodes_in_one_plane_are_never_drawn_all_three() -> None:
    third = 0.5**0.5
    rows = torch.tensor([[1.0, 0, 0], [0, 1, 0], [third, third, 0], [0, 0, 1], [third, 0, third]])
    generator = torch.Generator().manual_seed(0)
    drawn = [sample((rows @ rows.T).double(), 3, generator) for _ in range(100)]
    assert not any(bool(kept[:3].all()) or bool(kept[[0, 3, 4]].all()) for kept in drawn)
    assert bool(torch.stack(drawn).any(dim=0).all())


def test_of_twins_one_stays() -> None:
    found = with_twins(nodes(6), {3: 0, 4: 1, 5: 2})
    made = NODE_RULES.get("dpp")({"epsilon": 1e-9})
    for seed in range(10):
        kept = selected(made, found, seed)
        assert all(kept[twin] != kept[twin + 3] for twin in range(3))


def test_many_nodes_do_not_overflow_the_polynomials() -> None:
    generator = torch.Generator().manual_seed(0)
    kept = sample(50 * torch.eye(600, dtype=torch.float64), 300, generator)
    assert int(kept.sum()) == 300


def test_removed_nodes_are_fused_by_least_squares() -> None:
    found, made = nodes(6), NODE_RULES.get("dpp")({})
    kept = selected(made, found)
    transfer = made.transfer(found, kept)
    solved = torch.linalg.pinv(found.values[:, kept]) @ found.values
    torch.testing.assert_close(transfer.T, solved)


# -- ssl -------------------------------------------------------------------------------------


def test_the_proximal_step_is_that_of_the_group_norm() -> None:
    weights = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    NODE_RULES.get("ssl")({"penalty": 10.0}).shrink([weights], 0.1)
    torch.testing.assert_close(weights, torch.tensor([[2.4, 3.2], [0, 0], [0, 0]]))


def test_nodes_without_weight_go_even_beyond_the_share() -> None:
    found = nodes(6)
    found.incoming[[0, 2, 3, 5]] = 0
    found.incoming[4] *= 9
    for options, stay in (({}, [1, 4]), ({"share": None}, [1, 4]), ({"share": 0.8}, [4])):
        kept = selected(NODE_RULES.get("ssl")(options), found)
        assert kept.nonzero().flatten().tolist() == stay


OVER = {"filter": (1, 2, 3), "channel": (0, 2, 3), "shape": (0,), "layer": (0, 1, 2, 3)}


@pytest.mark.parametrize("groups", OVER)
def test_edge_groups_shrink_by_the_proximal_step(groups: str) -> None:
    made = EDGE_RULES.get("ssl")(3, {"groups": groups, "penalty": 2.0})
    made.clock = Clock(1, 10, 0, 0, 5)
    edges = scope_of(made, [[3.0, -4.0], [0.1, 0.5, -0.2]])
    before = edges.bundles(edges.weights())
    assert made.update(edges) is None
    for old, new in zip(before, edges.bundles(edges.weights()), strict=True):
        norms = torch.linalg.vector_norm(old, dim=OVER[groups], keepdim=True)
        torch.testing.assert_close(new, old * (1 - 0.2 / norms).clamp(min=0))


@pytest.mark.parametrize("groups", OVER)
def test_whole_groups_live_in_the_end(groups: str) -> None:
    module = graph("ssl", groups=groups, penalty=0.02)
    live = train(module)[-1]
    wiring = module.scope("all")
    assert 0 < int(live.sum()) <= (11 if groups != "layer" else 20)
    for part, allowed in zip(
        wiring.split(live).values(), wiring.split(wiring.allowed.clone()).values(), strict=True
    ):
        alive = part.any(dim=OVER[groups], keepdim=True)
        assert torch.equal(part, alive & allowed)


def test_groups_that_the_penalty_emptied_go_though_the_budget_had_room() -> None:
    made = EDGE_RULES.get("ssl")(4, {"groups": "channel"})
    edges = scope_of(made, [[3.0, 0.0], [0.0, 0.5, 1.0]])
    made.clock = Clock(5, 10, 1, 5, 10)
    live = made.update(edges)
    assert live is not None
    assert live.tolist() == [True, False, False, True, True]


def test_a_limit_of_cost_bounds_whole_groups() -> None:
    shape = topology(None)
    limit = {"unit": "energy", "amount": 30.0}
    module = graph("ssl", shape=shape.replace(scopes=[shape.scopes[0].replace(limit=limit)]))
    live = train(module)[-1]
    prices = module.scope("all").rule.prices
    assert prices is not None
    assert 0 < float(prices[live].sum()) <= 30
