"""Binary weights by hashing: the search for bits, its special cases, its stages."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from method_cases import Shape, images, make, masks
from small_networks import check_second_stage, mixed_topology, spec, trained
from torch import Tensor

from wiring.config import Component
from wiring.cost import Cost
from wiring.errors import WiringError
from wiring.graph import binary_hashing
from wiring.graph.binary import binary_weight, row_scale, sign
from wiring.graph.binary_hashing import Moments, hash_weights, moments, sampled_patches
from wiring.graph.edges import EDGE_OPS, EdgeOp, Seen
from wiring.network import Network

F64 = torch.float64
WIDE = Shape("wide", batch=12, sources=6, destinations=5, kernel=(3, 3), padding=1, density=0.7)


def reading(shape: Shape, *, noise: float = 0.5) -> Seen:
    """What a layer reads: correlated channels, and the same with noise once others changed."""
    x = images(shape, seed=7)
    x = (x + x.roll(1, dims=1) + 0.5 * x.roll(1, dims=3)).relu()
    return Seen(x, (x + noise * images(shape, seed=8)).relu())


def squared_error(weight: Tensor, bits: Tensor, scales: Tensor, found: Moments) -> Tensor:
    """‖XᵀW - αX̃ᵀB‖² [D] by the moments, bits with their scales [D, R]."""
    values = bits * scales
    crossed = (values * found.cross.T).sum(dim=1)
    return found.energy - 2 * crossed + torch.einsum("dr,rs,ds->d", values, found.gram, values)


def problem(
    rows: int = 12, filters: int = 4, seed: int = 0, count: int = 40
) -> tuple[Tensor, Tensor, Tensor, Moments]:
    """(weight [D, R], X, X̃, moments) of correlated columns."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(rows, rows, generator=generator, dtype=F64)
    full = torch.randn(count, rows, generator=generator, dtype=F64) @ mix
    here = full + 0.4 * torch.randn(count, rows, generator=generator, dtype=F64)
    weight = torch.randn(filters, rows, generator=generator, dtype=F64)
    return weight, full, here, moments(iter([(full, here)]), weight)


def one_group(rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.int64)


def test_the_objective_is_the_squared_error_of_what_the_layer_computes() -> None:
    weight, full, here, found = problem()
    live = torch.ones_like(weight, dtype=torch.bool)
    hashed = hash_weights(weight, live, found, one_group(12), sweeps=3)
    error = (full @ weight.T - here @ (hashed.bits * hashed.scales).T).square().sum(dim=0)
    torch.testing.assert_close(hashed.objectives[-1], error)
    start = sign(weight) * weight.abs().mean(dim=1, keepdim=True)
    error = (full @ weight.T - here @ start.T).square().sum(dim=0)
    torch.testing.assert_close(hashed.objectives[0], error)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_the_objective_of_no_filter_ever_rises_and_bits_move(groups: int, density: float) -> None:
    rows = binary_hashing.BLOCK + 20  # more than one block
    weight, full, here, _ = problem(rows, 6, seed=1, count=200)
    live = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < density
    target = weight * live
    found = moments(iter([(full, here)]), target)
    members = torch.arange(rows) * groups // rows
    hashed = hash_weights(target, live, found, members, sweeps=8)
    steps = hashed.objectives
    assert (steps[1:] <= steps[:-1] * (1 + 1e-9)).all()
    assert steps[-1].sum() < 0.7 * steps[0].sum()
    assert (hashed.bits[live] != sign(weight)[live]).any()
    assert torch.equal(hashed.bits != 0, live)
    assert (hashed.scales >= 0).all()


def test_a_turn_that_made_a_filter_worse_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, _, found = problem()
    live = torch.ones_like(weight, dtype=torch.bool)
    monkeypatch.setattr(binary_hashing, "_best_scales", lambda scales, *_: 3 * scales)
    with pytest.raises(AssertionError, match="made a filter worse"):
        hash_weights(weight, live, found, one_group(12), sweeps=2)


def test_a_turn_of_bits_is_cyclic_coordinate_descent_written_out() -> None:
    weight, _, _, found = problem(rows=binary_hashing.BLOCK + 5, filters=3, seed=4)
    rows = weight.shape[1]
    bits = sign(weight)
    scale = weight.abs().mean(dim=1)
    for filter_, row in itertools.product(range(len(weight)), range(rows)):
        others = (found.gram[row] * bits[filter_]).sum() - found.gram[row, row] * bits[filter_, row]
        wanted = scale[filter_] * (found.cross[row, filter_] - scale[filter_] * others)
        if wanted != 0:
            bits[filter_, row] = wanted.sign()
    live = torch.ones_like(weight, dtype=torch.bool)
    hashed = hash_weights(weight, live, found, one_group(rows), sweeps=1)
    assert torch.equal(hashed.bits, bits)
    best = torch.einsum("dr,rd->d", bits, found.cross) / torch.einsum(
        "dr,rs,ds->d", bits, found.gram, bits
    )
    torch.testing.assert_close(hashed.scales[:, 0], best)


def test_a_converged_solution_cannot_be_bettered_by_any_single_bit() -> None:
    weight, _, _, found = problem(rows=10, filters=4, seed=3)
    live = torch.ones_like(weight, dtype=torch.bool)
    hashed = hash_weights(weight, live, found, one_group(10), sweeps=50)
    for row in range(10):
        turned = hashed.bits.clone()
        turned[:, row] *= -1
        error = squared_error(weight, turned, hashed.scales, found)
        assert (error >= hashed.objectives[-1] * (1 - 1e-9)).all()


def test_scales_of_groups_solve_the_normal_equations_and_are_none_of_them_negative() -> None:
    # Here a least-squares scale comes out negative: its group's bits are turned instead.
    weight, full, here, found = problem(rows=12, filters=3, seed=1)
    live = torch.ones_like(weight, dtype=torch.bool)
    groups = torch.arange(12) // 2
    hashed = hash_weights(weight, live, found, groups, sweeps=4)
    assert (hashed.scales >= 0).all()
    for filter_ in range(3):
        columns = [
            (here * hashed.bits[filter_] * (groups == group)).sum(dim=1) for group in range(6)
        ]
        z = torch.stack(columns, dim=1)
        target = (full @ weight[filter_])[:, None]
        best = torch.linalg.lstsq(z, target).solution.flatten()
        torch.testing.assert_close(hashed.scales[filter_], best)


def test_a_bit_that_the_data_say_nothing_about_stays_as_it_was() -> None:
    weight, full, here, _ = problem(rows=10, filters=8)
    here[:, 3] = 0.0
    live = torch.ones_like(weight, dtype=torch.bool)
    hashed = hash_weights(
        weight, live, moments(iter([(full, here)]), weight), one_group(10), sweeps=3
    )
    assert torch.equal(hashed.bits[:, 3], sign(weight)[:, 3])
    assert set(hashed.bits[:, 3].tolist()) == {-1.0, 1.0}


def test_a_layer_that_reads_nothing_keeps_its_signs_and_scales() -> None:
    weight, full, here, _ = problem()
    live = torch.ones_like(weight, dtype=torch.bool)
    nothing = moments(iter([(full * 0, here * 0)]), weight)
    hashed = hash_weights(weight, live, nothing, one_group(12), sweeps=3)
    assert torch.equal(hashed.bits, sign(weight))
    torch.testing.assert_close(hashed.scales[:, 0], weight.abs().mean(dim=1))


def test_dead_weights_are_no_part_of_the_target() -> None:
    op, other = make("bwnh", WIDE), make("bwnh", WIDE)
    live, _ = masks(WIDE)
    other.weight.data[~live] = 100.0
    found = [one.hashed(live, reading(WIDE)) for one in (op, other)]
    assert torch.equal(found[0].bits, found[1].bits)
    assert torch.equal(found[0].scales, found[1].scales)


def test_more_groups_fit_better() -> None:
    weight, _, _, found = problem(rows=24, filters=8, seed=6, count=100)
    live = torch.ones_like(weight, dtype=torch.bool)
    errors = [
        float(
            hash_weights(weight, live, found, torch.arange(24) * g // 24, sweeps=10)
            .objectives[-1]
            .sum()
        )
        for g in (1, 4, 24)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("density", [1.0, 0.6])
def test_with_inputs_of_the_identity_it_is_a_binary_weight_network(density: float) -> None:
    shape = Shape("identity", batch=16, sources=16, destinations=7, side=1, density=density)
    op = make("bwnh", shape)
    live, learn = masks(shape)
    op.weight.data[1, :3] = 0.0  # a bit of weight 0 stays at sign(0)
    weight = op.weight.detach().clone()
    one_hot = torch.eye(16, dtype=F64).view(16, 16, 1, 1)
    enter(op, live, Seen(one_hot, one_hot))
    x = images(shape)
    expected = F.conv2d(x, binary_weight(weight, live, learn, "exact"))
    torch.testing.assert_close(op(x, live, learn), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(sign(op.weight)[live], sign(weight)[live])
    torch.testing.assert_close(row_scale(op.weight, live), row_scale(weight, live))


def enter(op: EdgeOp, live: Tensor, seen: Seen | None) -> None:
    op.enter(1, live, seen)  # type: ignore[operator]


@pytest.mark.parametrize("groups", [1, 2])
def test_the_network_keeps_the_bits_and_scales_that_were_found(groups: int) -> None:
    op = make("bwnh", WIDE, groups=groups)
    live, learn = masks(WIDE)
    seen = reading(WIDE)
    hashed = op.hashed(live, seen)  # type: ignore[operator]
    dead = op.weight.detach()[~live].clone()
    enter(op, live, seen)
    split = torch.arange(6).repeat_interleave(9) * groups // 6
    values = (hashed.bits * hashed.scales[:, split]).view(op.shape)
    x = images(WIDE, seed=9)
    expected = F.conv2d(x, values, padding=1)
    torch.testing.assert_close(op(x, live, learn), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(op.weight[~live], dead)


def test_it_comes_nearer_to_the_trained_layer_than_a_binary_weight_network() -> None:
    shape = Shape("layer", batch=12, sources=6, destinations=5, kernel=(3, 3), padding=1, density=1)
    op, seen = make("bwnh", shape), reading(shape)
    live, _ = masks(shape)
    target = op(seen.full, live, live)
    plain = F.conv2d(seen.here, binary_weight(op.weight, live, live, "exact"), padding=1)
    enter(op, live, seen)
    errors = [(y - target).square().sum() for y in (op(seen.here, live, live), plain)]
    assert errors[0] < 0.9 * errors[1]


def test_a_weight_of_nothing_keeps_the_bit_that_was_found() -> None:
    shape = Shape("flat", batch=16, sources=4, destinations=2, side=3, density=1)
    op, (live, _) = make("bwnh", shape), masks(Shape("flat", sources=4, destinations=2, density=1))
    op.weight.data[:, 0] = 0.0
    seen = reading(shape)
    bits = op.hashed(live, seen).bits  # type: ignore[operator]
    enter(op, live, seen)
    assert torch.equal(sign(op.weight).flatten(1), bits)


def test_the_gradient_in_every_group_is_that_of_a_binary_weight_network() -> None:
    op = make("bwnh", WIDE, stage=1, groups=2)
    live, learn = masks(WIDE)
    x = images(WIDE)
    y = op(x, live, learn)
    g = torch.linspace(-1, 1, y.numel(), dtype=F64).view_as(y)
    y.backward(g)
    found = op.weight.grad
    assert found is not None
    _, to_filters, _ = torch.ops.aten.convolution_backward(
        g, x, op.weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
    )
    weight = op.weight.detach().clone().requires_grad_()
    for one in (slice(0, 3), slice(3, 6)):
        part = binary_weight(weight[:, one], live[:, one], learn[:, one], "exact")
        part.backward(to_filters[:, one])
    torch.testing.assert_close(found, weight.grad)


def test_patches_are_the_windows_of_both_networks_at_the_same_places() -> None:
    shape = Shape("windows", batch=3, sources=2, side=6, kernel=(3, 2))
    seen = Seen(images(shape, seed=1), images(shape, seed=2))
    pairs = list(sampled_patches(seen, (3, 2), 2, 1, 10**6, torch.Generator().manual_seed(0)))
    full, here = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    for x, rows in ((seen.full, full), (seen.here, here)):
        expected = F.unfold(x, (3, 2), padding=1, stride=2).transpose(1, 2).flatten(0, 1)
        assert sorted(rows.tolist()) == sorted(expected.tolist())
    both = F.unfold(torch.cat([seen.full, seen.here], dim=1), (3, 2), padding=1, stride=2)
    together = both.transpose(1, 2).flatten(0, 1)
    assert sorted(torch.cat([full, here], dim=1).tolist()) == sorted(together.tolist())
    few = list(sampled_patches(seen, (3, 2), 2, 1, 7, torch.Generator().manual_seed(0)))
    assert sum(len(one) for one, _ in few) == 7


def test_moments_do_not_depend_on_how_patches_are_cut_into_chunks() -> None:
    weight, full, here, found = problem()
    pieces = zip(full.split(7), here.split(7), strict=True)
    again = moments(iter(pieces), weight)
    torch.testing.assert_close(again.gram, found.gram)
    torch.testing.assert_close(again.cross, found.cross)
    torch.testing.assert_close(again.energy, found.energy)


def test_without_images_or_with_images_of_two_shapes_it_refuses() -> None:
    op, (live, _) = make("bwnh", WIDE), masks(WIDE)
    with pytest.raises(WiringError, match="looks at what a layer reads: give it images"):
        enter(op, live, None)
    x = images(WIDE)
    with pytest.raises(WiringError, match="inputs of one shape before and after"):
        enter(op, live, Seen(x, x[:3]))


def test_costs_are_floats_first_then_a_bit_an_edge_and_g_floats_a_row() -> None:
    shape = Shape("cost", sources=4, destinations=3)
    live = torch.zeros(3, 4, 1, 1, dtype=torch.bool)
    live[0, :3] = live[2, 1] = True
    assert make("bwnh", shape).cost(live, 10) == Cost(40, 40, weight_bits=4 * 32)
    assert make("bwnh", shape, stage=1).cost(live, 10) == Cost(20, 40, weight_bits=4 + 2 * 32)
    split = make("bwnh", shape, stage=1, groups=2)
    assert split.cost(live, 10) == Cost(40, 40, weight_bits=4 + 2 * 2 * 32 + 32)
    assert split.cost(live & False, 10) == Cost()


@pytest.mark.parametrize("groups", [3, 8])
def test_groups_come_back_from_a_file_bit_for_bit_though_sources_are_cut(groups: int) -> None:
    op = make("bwnh", WIDE, stage=1, groups=groups).float()
    live, learn = masks(WIDE)
    rows, columns = torch.tensor([1, 2, 4]), torch.tensor([0, 3, 5])
    live[rows[:, None], torch.tensor([1, 2, 4])] = False
    small = EDGE_OPS.get("bwnh")(3, 3, kernel=(3, 3), padding=1, options={"groups": groups})
    small.load_state_dict(op.restrict(rows, columns))
    cut = live[rows][:, columns]
    x = images(WIDE).float()
    torch.testing.assert_close(small(x[:, columns], cut, cut), op(x, live, learn)[:, rows])
    again = EDGE_OPS.get("bwnh")(3, 3, kernel=(3, 3), padding=1, options={"groups": groups})
    stored = small.pack(cut)
    again.unpack(stored, cut)
    assert torch.equal(again(x[:, columns], cut, cut), small(x[:, columns], cut, cut))
    size = 8 * sum(t.numel() * t.element_size() for t in stored.values())
    assert 0 <= size - small.cost(cut, 1).weight_bits < 8


def two_phases(groups: int = 1) -> Network:
    op = Component.model_validate({"name": "bwnh", "groups": groups, "sweeps": 3})
    return trained(spec(mixed_topology(budgets=(40, 100, 20)), op), steps=5)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_training_ends_in_bits_and_resumes_there(groups: int) -> None:
    network = two_phases(groups)
    check_second_stage(network)
    for name, live in network.graph.live().items():
        filters = network.graph.op(name).filters(live, live)  # type: ignore[operator]
        for row, mask in zip(filters, live, strict=True):
            assert len(row[mask].abs().unique()) <= groups
