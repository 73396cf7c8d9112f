"""Weights on codebooks: what fits, what it weighs, how centroids learn, what survives a file."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_cases import Shape, images, make, masks
from small_networks import images as pictures
from small_networks import mixed_topology, spec, trained
from torch import Tensor

from wiring.compact import compact
from wiring.config import Component
from wiring.cost import Cost
from wiring.errors import ConfigError, WiringError
from wiring.export import export, load_exported
from wiring.graph.codebook import CodebookOp
from wiring.graph.costs import total_cost
from wiring.graph.driving import attach
from wiring.graph.edges import EDGE_OPS, Epilogue
from wiring.graph.vector_codebook import VectorCodebook
from wiring.network import ModelSpec, build_network

CODEBOOKS = ("vq", "product-vq", "residual-vq", "deep-compression")
WIDE = Shape("wide", sources=10, destinations=40, density=1.0)
SPARSE = Shape("sparse", sources=5, destinations=24, kernel=(3, 3), padding=1, density=0.3)
every_codebook = pytest.mark.parametrize("name", CODEBOOKS)


def staged(name: str, shape: Shape, **options: Any) -> CodebookOp:
    op = make(name, shape, stage=1, **options)
    assert isinstance(op, CodebookOp)
    return op


def few(name: str) -> dict[str, Any]:
    """Options that leave fewer centroids than weights."""
    return {"centroids": 6, "stages": 3} if name == "residual-vq" else {"centroids": 6}


def test_numbers_take_a_code_each_and_the_centroids() -> None:
    edges = int(masks(SPARSE)[0].sum())
    for options, bits, centroids in (
        ({"centroids": 6}, 3, 6),
        ({"bits": 4}, 4, 16),
        ({}, 5, 32),
    ):
        op = staged("vq", SPARSE, **options)
        cost = op.cost(masks(SPARSE)[0], 7)
        assert cost == Cost(7 * edges, 7 * edges, weight_bits=edges * bits + 32 * centroids)


@pytest.mark.parametrize(
    ("options", "blocks"), [({"length": 5}, 2), ({"length": 4}, 3), ({"blocks": 10}, 10), ({}, 3)]
)
def test_blocks_take_a_code_a_row_and_their_centroids(options: dict[str, int], blocks: int) -> None:
    op = staged("product-vq", WIDE, centroids=6, **options)
    bits = 6 * 10 * 32 + 40 * blocks * 3
    products, lookups = 6 * 10 * 9, 40 * blocks * 9
    found = op.cost(masks(WIDE)[0], 9)
    assert found in (
        Cost(products, products + lookups, lookups=lookups, weight_bits=bits),
        Cost(400 * 9, 400 * 9, weight_bits=bits),
    )
    assert bool(found.lookups) == (blocks < 10)  # else look-ups cost more than products


def test_residuals_take_as_many_codes_a_row_as_there_are_stages() -> None:
    op = staged("residual-vq", WIDE, centroids=6, stages=3)
    products, lookups, bits = 3 * 6 * 10, 3 * 40, 3 * (40 * 3 + 32 * 6 * 10)
    expected = Cost(products, products + lookups, lookups=lookups, weight_bits=bits)
    assert op.cost(masks(WIDE)[0], 1) == expected


@every_codebook
@pytest.mark.parametrize("shape", [WIDE, SPARSE], ids=lambda shape: shape.name)
def test_centroids_learn_from_the_sum_of_their_cluster(name: str, shape: Shape) -> None:
    op = staged(name, shape, **few(name))
    live, learn = masks(shape)
    x = images(shape)
    full = op.decode().detach().requires_grad_()
    masked = full * live
    y = F.conv2d(x, masked, padding=op.padding)
    (dw,) = torch.autograd.grad(y.square().sum(), full)
    op(x, live, learn).square().sum().backward()
    (trained_parameter,) = (p for n, p in op.named_parameters() if n != "weight")
    expected = torch.zeros_like(trained_parameter)
    if isinstance(op, VectorCodebook):
        for term, row, column in torch.ones_like(op.codes).nonzero().tolist():
            kind = int(op.codes[term, row, column])
            expected[term, kind, column] += dw.flatten(1)[row, column]
    else:
        for place, gradient in enumerate(dw.flatten().tolist()):
            expected[int(op.codes.flatten()[place])] += gradient
    assert trained_parameter.grad is not None
    torch.testing.assert_close(trained_parameter.grad, expected)
    assert op.weight.grad is None


@every_codebook
@pytest.mark.parametrize("gradient", ["mean", "sum"])
def test_a_step_goes_by_the_mean_over_the_weights_that_it_moves(name: str, gradient: str) -> None:
    op = staged(name, WIDE, gradient=gradient, **few(name))
    live, learn = masks(WIDE)
    op(images(WIDE), live, learn).square().sum().backward()
    (numbers,) = (p for n, p in op.named_parameters() if n != "weight")
    assert numbers.grad is not None
    summed = numbers.grad.clone()
    op.scale_gradient(live)
    if gradient == "sum":
        assert torch.equal(numbers.grad, summed)
        return
    moved = torch.zeros_like(summed)
    for place in range(numbers.numel()):
        with torch.no_grad():
            before = op.decode()[live]
            numbers.view(-1)[place] += 1
            moved.view(-1)[place] = (op.decode()[live] != before).sum()
            numbers.view(-1)[place] -= 1
    assert moved.max() > 1
    torch.testing.assert_close(numbers.grad, summed / moved.clamp(min=1))


@every_codebook
def test_centroids_may_stay_as_they_were_fitted(name: str) -> None:
    op = staged(name, WIDE, train_centroids=False, **few(name))
    x = images(WIDE).requires_grad_()
    op(x, *masks(WIDE)).square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in op.parameters())


@every_codebook
def test_as_many_centroids_as_weights_change_nothing(name: str) -> None:
    shape = Shape("small", sources=6, destinations=4, density=1.0)
    live, learn = masks(shape)
    before, after = make(name, shape), staged(name, shape)
    x = images(shape)
    torch.testing.assert_close(after(x, live, learn), before(x, live, learn), rtol=0, atol=1e-14)


@every_codebook
def test_more_centroids_come_nearer(name: str) -> None:
    errors = []
    for centroids in (2, 4, 8, 16):
        op = staged(name, WIDE, centroids=centroids)
        errors.append(float((op.decode() - make(name, WIDE).weight).detach().square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_every_stage_of_residuals_comes_nearer() -> None:
    errors = []
    for stages in range(1, 6):
        op = staged("residual-vq", WIDE, centroids=8, stages=stages)
        errors.append(float((op.decode() - make("vq", WIDE).weight).detach().square().sum()))
    assert errors == sorted(errors, reverse=True)


@every_codebook
def test_live_weights_follow_their_centroids_and_dead_ones_stay(name: str) -> None:
    op = staged(name, SPARSE, **few(name))
    live, learn = masks(SPARSE)
    dead = op.weight[~live].clone()
    with torch.no_grad():
        for parameter in op.parameters():
            if parameter is not op.weight:
                parameter.mul_(2).add_(0.1)
    with pytest.raises(WiringError, match=r"keeps weights on its codebook; \d+ of \d+"):
        op.verify(live)
    op.after_step(live, learn)
    op.verify(live)
    assert torch.equal(op.weight[~live], dead)
    op.approximate(torch.ones_like(op.weight))
    assert op.stage == 0


def blocks_of(live: Tensor, length: int) -> Tensor:
    """Whole blocks of `length` columns where one of their edges lives."""
    rows = live.flatten(1)
    whole = [part.any(1, keepdim=True).expand_as(part) for part in rows.split(length, dim=1)]
    return torch.cat(whole, dim=1).view(live.shape)


@pytest.mark.parametrize("name", ["product-vq", "residual-vq"])
@pytest.mark.parametrize(
    "shape",
    [WIDE, SPARSE, Shape("strided", sources=4, destinations=9, stride=2, padding=1, density=0.5)],
    ids=lambda shape: shape.name,
)
def test_tables_compute_the_same(name: str, shape: Shape) -> None:
    live = masks(shape)[0]
    length = 4 if name == "product-vq" else live[0].numel()
    live = blocks_of(live, length)
    if shape is not WIDE:
        assert not live.all()
    op = make(name, shape, centroids=5)
    assert isinstance(op, CodebookOp)
    op.enter(1, live)
    epilogue = Epilogue(torch.rand(shape.destinations), torch.rand(shape.destinations), relu=True)
    tables = op.float().candidates(live, epilogue)["tables"]
    x = images(shape).float()
    expected = epilogue.after(lambda x: op(x, live, live))(x)
    torch.testing.assert_close(tables(x), expected, rtol=1e-4, atol=1e-5)


def test_no_tables_are_offered_where_blocks_are_torn() -> None:
    live = masks(SPARSE)[0]
    op = staged("product-vq", SPARSE, centroids=2, length=15).float()
    edges = int(live.sum())
    assert "tables" not in op.candidates(live, Epilogue())
    cost = op.cost(live, 3)
    assert (cost.multiplications, cost.additions, cost.lookups) == (3 * edges, 3 * edges, 0)


@every_codebook
def test_a_part_has_the_weights_of_the_whole_and_fits_a_file(name: str) -> None:
    live = masks(SPARSE)[0]
    op = staged(name, SPARSE, **few(name)).float()
    rows, columns = torch.tensor([3, 7, 9, 20]), torch.tensor([0, 2, 4])
    before = torch.random.get_rng_state()
    part, mask = op.part(rows, columns), live[rows][:, columns]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(part, CodebookOp)
    assert torch.equal(part.decode(), op.decode()[rows][:, columns])
    part.verify(mask)
    stored = part.pack(mask)
    # Sources 0, 2 and 4 of 3x3 pixels: blocks of four columns no longer begin where they did.
    assert ("starts" in stored) == (name == "product-vq")
    assert 0 <= 8 * sum(t.nbytes for t in stored.values()) - part.cost(mask, 1).weight_bits < 8
    again = EDGE_OPS.get(name)(3, 4, kernel=(3, 3), padding=1, options=few(name))
    again.unpack(stored, mask)
    assert torch.equal(again.weight, torch.where(mask, part.decode(), 0.0))
    for key, tensor in again.pack(mask).items():
        assert torch.equal(tensor, stored[key])


def small(name: str, budgets: tuple[int, int, int] = (60, 200, 20)) -> ModelSpec:
    return spec(mixed_topology(budgets=budgets), Component(name=name, centroids=4), "dnw")


def steps(network: torch.nn.Module, optimizer: torch.optim.Optimizer, *numbers: int) -> None:
    for number in numbers:
        optimizer.zero_grad()
        scores = network(pictures(seed=number))
        F.cross_entropy(scores, torch.arange(6) % 3).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@every_codebook
@pytest.mark.parametrize("done", [4, 8])
def test_training_goes_on_in_either_stage_as_if_it_had_never_stopped(name: str, done: int) -> None:
    def start() -> tuple[Any, torch.optim.Optimizer]:
        network = build_network(small(name)).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        attach(network, optimizer, steps=10)
        return network, optimizer

    whole, optimizer = start()
    steps(whole, optimizer, *range(done))
    assert whole.graph.stage == int(done > 7)
    again, other = start()
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(whole, optimizer, *range(done, 10))
    steps(again, other, *range(done, 10))
    assert again.graph.stage == 1
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key])
    for bundle, live in whole.graph.live().items():
        whole.graph.op(bundle).verify(live)


@every_codebook
@pytest.mark.parametrize("stage", [0, 1])
def test_networks_are_compacted_and_exported_in_either_stage(
    name: str, stage: int, tmp_path: Any
) -> None:
    model = small(name, (12, 14, 6))
    network = trained(model) if stage else build_network(model).eval()
    assert network.graph.stage == stage
    less = compact(network)
    assert less.graph.stage == stage
    assert any(less.graph.op(bundle).shape != op.shape for bundle, op in network.graph.ops.items())
    torch.testing.assert_close(less(pictures()), network(pictures()), rtol=1e-4, atol=1e-5)
    assert total_cost(network) == total_cost(less)
    export(network, tmp_path / "net.safetensors")
    again = load_exported(tmp_path / "net.safetensors")
    assert again.graph.stage == stage
    torch.testing.assert_close(again(pictures()), less(pictures()), rtol=1e-4, atol=1e-5)


def test_options_that_say_a_thing_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match="given twice: 8, and 3 bits"):
        make("vq", WIDE, centroids=8, bits=3)
    with pytest.raises(ConfigError, match="given twice: 3 of them, and of 2 weights"):
        make("product-vq", WIDE, blocks=3, length=2)
