"""Bitwise networks: squashed real numbers first, then ternary weights on signs; and that a cut
training of two phases goes on as if it had not been cut."""

from __future__ import annotations

import pytest
import torch
from low_bit_cases import F64, LAYER, convolved, every, gradients, row, summed
from method_cases import Shape, images, make, masks
from small_networks import check_second_stage, mixed_topology, spec, trained
from small_networks import images as pictures

from wiring.config import Component
from wiring.cost import Cost
from wiring.graph.binary import sign
from wiring.graph.driving import attach
from wiring.network import Network, build_network


def test_the_first_phase_is_a_convolution_of_squashed_numbers() -> None:
    op, (live, learn) = make("bitwise", LAYER), masks(LAYER)
    x = images(LAYER)
    y = op(x, live, learn)
    expected = summed(op, x.tanh(), op.weight.tanh() * live).view_as(y)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    small = Shape("small", sources=3, destinations=2, side=2, density=1)
    tiny, all_live = make("bitwise", small), masks(small)[0]
    x = images(small).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: tiny(v, all_live, all_live), (x,))
    _, _, to_weight = gradients(tiny, x.detach(), all_live, all_live)
    g = torch.linspace(-1, 1, 16, dtype=F64).view(2, 2, 2, 2)
    _, wanted = convolved(tiny, g, x.tanh(), tiny.weight.tanh())
    torch.testing.assert_close(to_weight, wanted * (1 - tiny.weight.tanh().square()))


@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.9])
def test_the_dead_zone_holds_the_wanted_share_of_the_live_edges(sparsity: float) -> None:
    op, (live, learn) = make("bitwise", LAYER, stage=1, sparsity=sparsity), masks(LAYER)
    x, edges = images(LAYER), int(live.sum())
    for _ in range(2):
        weight = op.ternary(live)  # type: ignore[operator]
        kept = weight != 0
        assert int((live & ~kept).sum()) == int(sparsity * edges)
        assert torch.equal(weight[kept], sign(op.weight)[kept])
        if sparsity:
            assert op.weight[kept].abs().min() > op.weight[live & ~kept].abs().max()
        y = op(x, live, learn)
        assert torch.equal(y, summed(op, sign(x), weight).view_as(y))
        op.weight.data.mul_(torch.linspace(0.2, 3, op.weight.numel()).view(op.shape))
        op.after_step(live, learn)


def test_the_second_phase_learns_as_through_tanh_in_the_dead_zone_too() -> None:
    op, (live, learn) = make("bitwise", LAYER, stage=1), masks(LAYER)
    x = images(LAYER)
    weight = op.ternary(live)  # type: ignore[operator]
    g, to_x, to_weight = gradients(op, x, live, learn)
    wanted = convolved(op, g, sign(x), weight)
    torch.testing.assert_close(to_x, wanted[0] * (1 - x.tanh().square()))
    slope = 1 - op.weight.detach().tanh().square()
    torch.testing.assert_close(to_weight, wanted[1] * slope * learn)
    assert to_weight[live & (weight == 0)].any()


def test_bitwise_stores_five_edges_in_a_byte() -> None:
    op = make("bitwise", Shape("row", sources=7, destinations=1), stage=1)
    op.weight.data.copy_(row(1, -1, 0, 0, 1, -1, 1))
    op.border.fill_(0.5)  # type: ignore[operator]
    live = every(op)
    assert op.pack(live)["trits"].tolist() == [2 + 0 + 9 + 27 + 2 * 81, 0 + 2 * 3]
    assert op.cost(live, 10) == Cost(xnors=70, weight_bits=16)
    assert op.input_bits == 1
    first = make("bitwise", Shape("row", sources=7, destinations=1))
    assert first.cost(live, 10) == Cost(70, 70, weight_bits=7 * 32)
    assert first.input_bits == 32


def test_a_training_goes_through_both_phases_and_resumes_in_the_second() -> None:
    op = Component.model_validate({"name": "bitwise", "sparsity": 0.25, "share": 0.5})
    network = trained(spec(mixed_topology(budgets=(40, 100, 20)), op), steps=6)
    check_second_stage(network)
    for name, live in network.graph.live().items():
        weight = network.graph.op(name).ternary(live)  # type: ignore[operator]
        assert set(weight.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert int((live & (weight == 0)).sum()) == int(0.25 * int(live.sum()))


def train(network: Network, begin: int, end: int, steps: int = 8) -> Network:
    """Optimiser steps from `begin` to `end` of a training of `steps`."""
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.1)
    attach(network, optimizer, steps=steps, data=lambda: [pictures()])
    for step in range(begin, end):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(pictures(seed=step)), torch.arange(6) % 3)
        torch.autograd.backward(loss)
        optimizer.step()
    return network


@pytest.mark.parametrize("name", ["bitwise", "bwnh"])
@pytest.mark.parametrize("cut", [2, 7], ids=["first phase", "second phase"])
def test_a_training_that_was_cut_ends_in_the_same_network(name: str, cut: int) -> None:
    model = spec(mixed_topology(budgets=(40, 100, 20)), name)
    whole = train(build_network(model), 0, 8)
    half = train(build_network(model), 0, cut)
    again = build_network(model, seed=9)
    again.load_state_dict(half.state_dict())
    train(again, cut, 8)
    assert again.graph.stage == whole.graph.stage == 1
    found = again.state_dict()
    assert all(torch.equal(tensor, found[key]) for key, tensor in whole.state_dict().items())
