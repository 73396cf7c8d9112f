"""Operators that share parameters or train in stages: what the graph does for them."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from small_networks import images, mixed_topology, spec, trained
from torch import Tensor, nn

from wiring.compact import compact
from wiring.config import Component
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph.driving import advance, attach
from wiring.graph.edges import EDGE_OPS, EdgeOp, Seen, mask_weight
from wiring.graph.measure import used_nodes
from wiring.graph.phases import Phase
from wiring.graph.staged import StagedOp
from wiring.graph.tied import TiedOp
from wiring.network import Network, build_network


class Rounded(StagedOp):
    """Weights become multiples of the mean input, the second stage long."""

    needs_data = True

    def make_parameters(self) -> None:
        super().make_parameters()
        self.register_buffer("step", torch.ones(()))
        self.seen: list[Seen] = []

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("train", 0.5), Phase("rounded", 0.5, lr=0.1))

    def enter(self, stage: int, live: Tensor, seen: Seen | None = None) -> None:
        super().enter(stage, live, seen)
        assert seen is not None
        self.seen.append(seen)
        self.get_buffer("step").copy_(seen.here.abs().mean().clamp(min=0.1))

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        weight = mask_weight(self.weight, live, learn)
        if self.stage:
            step = self.get_buffer("step")
            weight = weight + ((weight / step).round() * step - weight).detach()
        return nn.functional.conv2d(x, weight, stride=self.stride, padding=self.padding)

    def cost(self, live: Tensor, positions: int) -> Cost:
        return Cost(additions=int(live.sum()) * positions, weight_bits=32 * int(live.sum()))


class Scaled(TiedOp):
    """One weight for all edges."""

    def make_parameters(self) -> None:
        self.one = nn.Parameter(torch.empty(()))

    def reset_parameters(self, fan_in: int) -> None:
        nn.init.uniform_(self.one, -(fan_in**-0.5), fan_in**-0.5)

    def expand(self) -> Tensor:
        return self.one.expand(self.shape)

    def whole_cost(self, positions: int) -> Cost:
        return Cost(positions, positions, weight_bits=32)

    @torch.no_grad()
    def approximate(self, weight: Tensor, seen: object = None) -> None:
        self.one.copy_(weight.mean())


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    EDGE_OPS.names()
    for name, cls in (("rounded", Rounded), ("scaled", Scaled)):
        monkeypatch.setitem(EDGE_OPS._classes, name, cls)


def ops(network: Network) -> list[EdgeOp]:
    return [network.graph.op(bundle.name) for bundle in network.spec.topology.bundles]


def stepped(network: Network, *, steps: int, of: int, begin: int = 0) -> Network:
    """After some steps of a training of `of`."""
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.05)
    attach(network, optimizer, steps=of, data=lambda: [images()])
    for step in range(begin, begin + steps):
        optimizer.zero_grad()
        network(images(seed=step)).square().mean().backward()
        optimizer.step()
    return network


def test_the_stages_follow_the_phases_of_the_rule_and_keep_their_shares() -> None:
    graph = build_network(spec(mixed_topology(), "rounded", "fine-tune")).graph
    assert [(p.name, p.share) for p in graph.phases()] == [
        ("complete", 0.25),
        ("fine-tune", 0.25),
        ("rounded", 0.5),
    ]
    assert [p.name for p in build_network(spec(mixed_topology())).graph.phases()] == ["train"]


def test_a_stage_begins_at_its_step_and_from_then_on_no_edge_moves() -> None:
    network = build_network(spec(mixed_topology(), "rounded"))
    assert stepped(network, steps=3, of=8).graph.stage == 0
    network = build_network(spec(mixed_topology(), "rounded"))
    live = stepped(network, steps=4, of=8).graph.live()
    assert network.graph.stage == 1
    before = {name: mask.clone() for name, mask in live.items()}
    for op in ops(network):
        op.weight.data.normal_()
    network.graph.after_step()
    assert all(torch.equal(mask, before[name]) for name, mask in network.graph.live().items())


def test_dead_edges_learn_until_their_wiring_is_settled() -> None:
    network = stepped(build_network(spec(mixed_topology(), "rounded")), steps=1, of=8)
    assert int(network.graph.learn()["c-out"].sum()) > int(network.graph.live()["c-out"].sum())
    advance(network, [images(2)])
    for learn in (network.graph.learn(), {n: m[1] for n, m in network.graph.masks().items()}):
        assert all(torch.equal(learn[n], live) for n, live in network.graph.live().items())


def test_for_the_rule_its_last_phase_lasts_to_the_end() -> None:
    network = stepped(build_network(spec(mixed_topology(), "rounded", "magnitude")), steps=7, of=8)
    wiring = network.graph.wirings()[0][1]
    assert network.graph.clock.phase == 6
    assert (wiring.rule.clock.phase, wiring.rule.clock.phase_end) == (5, 8)
    # Its last phase had no step of its own, and yet the last round took place.
    assert wiring.rule.clock.phase_begin == network.graph.clock.phase_begin == 4
    assert int(wiring.live.sum()) == wiring.rule.budget


def test_operators_are_shown_what_they_read_before_and_after_earlier_ones_changed() -> None:
    network = build_network(spec(mixed_topology(), "rounded")).eval()
    untouched = deepcopy(network)
    advance(network, [images(2), images(3, seed=7)])
    seen = [op.seen for op in ops(network) if isinstance(op, Rounded)]
    assert [len(one) for one in seen] == [1, 1, 1, 1]
    first, *later = [one[0] for one in seen]
    assert len(first.full) == 5
    torch.testing.assert_close(first.full, first.here)
    assert all(not torch.allclose(one.full, one.here) for one in later)
    assert not torch.allclose(network(images()), untouched(images()))


def test_images_that_are_missing_are_asked_for() -> None:
    network = build_network(spec(mixed_topology(), "rounded"))
    with pytest.raises(WiringError, match="Rounded looks at what layers read: give it images"):
        advance(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(WiringError, match="attach"):
        attach(network, optimizer, steps=4)
    with pytest.raises(WiringError, match="2 stages, for which 1 optimiser steps are too few"):
        attach(network, optimizer, steps=1, data=lambda: [images()])
    with pytest.raises(WiringError, match="Rounded of scope 'early' follows a schedule"):
        attach(network, optimizer, data=lambda: [images()])


def test_a_training_resumed_in_either_stage_ends_like_an_uninterrupted_one() -> None:
    whole = stepped(build_network(spec(mixed_topology(), "rounded")), steps=6, of=6)
    for done in (2, 3, 4):
        part = stepped(build_network(spec(mixed_topology(), "rounded")), steps=done, of=6)
        again = build_network(spec(mixed_topology(), "rounded"), seed=1)
        again.load_state_dict(part.state_dict())
        assert again.graph.stage == part.graph.stage
        stepped(again, steps=6 - done, of=6, begin=done)
        state = again.state_dict()
        assert all(torch.equal(t, state[name]) for name, t in whole.state_dict().items())


def test_a_copy_and_a_compacted_network_are_in_the_same_stage() -> None:
    network = trained(spec(mixed_topology(), "rounded"), steps=4)
    assert network.graph.stage == compact(network).graph.stage == deepcopy(network).graph.stage == 1
    torch.testing.assert_close(compact(network)(images()), network(images()))


def test_operators_of_different_stages_are_refused() -> None:
    class Longer(Rounded):
        def phases(self) -> tuple[Phase, ...]:
            return (*super().phases(), Phase("more"))

    EDGE_OPS._classes["rounded"], longer = Rounded, Longer
    topology = mixed_topology()
    changed = [bundle.to_dict() for bundle in topology.bundles]
    changed[0]["op"] = {"name": "longer"}
    EDGE_OPS._classes["longer"] = longer
    try:
        with pytest.raises(WiringError, match="must have the same stages: Longer, Rounded"):
            build_network(spec(topology.replace(bundles=changed), "rounded"))
    finally:
        del EDGE_OPS._classes["longer"]


@pytest.mark.parametrize("rule", ["set", "rigl", "snfs", "l1-anneal", "energy"])
def test_rules_that_set_single_weights_are_refused_where_edges_share_theirs(rule: str) -> None:
    with pytest.raises(
        WiringError, match="the edges of Scaled in scope 'early' have none of their own"
    ):
        build_network(spec(mixed_topology(), "scaled", rule))


def test_nodes_between_edges_that_share_parameters_stay() -> None:
    network = trained(spec(mixed_topology(budgets=(12, 14, 6)), Component(name="scaled")))
    assert any(not mask.all() for mask in used_nodes(network.graph).values())
    small = compact(network)
    assert small.spec.topology.groups == network.spec.topology.groups
    assert torch.equal(small(images()), network(images()))


def test_a_bundle_whose_edges_all_live_for_good_is_not_looked_up() -> None:
    free = build_network(spec(mixed_topology(), "scaled", "random"))
    assert not any(op.always_whole for op in ops(free) if isinstance(op, TiedOp))
    whole = build_network(spec(mixed_topology(budgets=(106, 270, 24)), "scaled", "random"))
    always = [op.always_whole for op in ops(whole) if isinstance(op, TiedOp)]
    assert always[2:] == [True, True]
