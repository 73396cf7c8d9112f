"""Circulant, Fastfood and ACDC layers: what they are, what they hold, and how they take over
trained weights; exact fast convolutions as edges, their cost, and their place in compilation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_networks import images, spec, trained
from torch import Tensor

import wiring
from wiring.compiled.forms import EAGER, Form, check_forms
from wiring.cost import Cost
from wiring.errors import ConfigError, WiringError
from wiring.graph import Bundle, NodeGroup, Scope, Topology
from wiring.graph.edges import EDGE_OPS, EdgeOp, Epilogue
from wiring.graph.fast_convolutions import Rounding, fast_forms
from wiring.graph.structured import StructuredOp
from wiring.graph.transforms import cosine, inverse_cosine, walsh_hadamard

STRUCTURED = ("acdc", "circulant", "fastfood")
every_one = pytest.mark.parametrize("name", STRUCTURED)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(
    name: str, sources: int, destinations: int, kernel: int = 1, **options: Any
) -> StructuredOp:
    torch.manual_seed(0)
    op = EDGE_OPS.get(name)(
        sources, destinations, kernel=(kernel, kernel), padding=kernel // 2, options=options
    )
    assert isinstance(op, StructuredOp)
    return op.double()


def matrix(op: StructuredOp) -> Tensor:
    return op.expand().detach().flatten(1)


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_a_walsh_hadamard_transform_is_sylvesters_matrix(n: int) -> None:
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < n:
        h = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), h)
    x = drawn(3, n)
    torch.testing.assert_close(walsh_hadamard(x), x @ h)
    torch.testing.assert_close(walsh_hadamard(walsh_hadamard(x)), n * x)
    assert torch.autograd.gradcheck(walsh_hadamard, x.requires_grad_())
    assert torch.autograd.gradgradcheck(walsh_hadamard, x)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
def test_a_cosine_transform_is_its_orthonormal_matrix(n: int) -> None:
    k, j = torch.meshgrid(*[torch.arange(n, dtype=torch.float64)] * 2, indexing="ij")
    c = torch.cos(math.pi * (2 * j + 1) * k / (2 * n)) * math.sqrt(2 / n)
    c[0] *= math.sqrt(0.5)
    x = drawn(3, n)
    torch.testing.assert_close(cosine(x), x @ c.t())
    torch.testing.assert_close(inverse_cosine(x), x @ c)
    assert torch.autograd.gradcheck(cosine, x.requires_grad_())
    assert torch.autograd.gradcheck(inverse_cosine, x)


def test_a_walsh_hadamard_transform_of_another_length_is_refused() -> None:
    with pytest.raises(WiringError, match="power of two of values, got 6"):
        walsh_hadamard(torch.ones(6))


@every_one
@pytest.mark.parametrize(("sources", "destinations", "kernel"), [(5, 3, 1), (3, 11, 1), (2, 4, 3)])
def test_gradients_of_every_parameter_pass_gradcheck(
    name: str, sources: int, destinations: int, kernel: int
) -> None:
    op = make(name, sources, destinations, kernel)
    x, parameters = drawn(1, sources, 3, 3).requires_grad_(), tuple(op.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: op.whole(x), (x, *parameters))


@every_one
def test_first_weights_have_the_variance_of_pytorchs_own_layers(name: str) -> None:
    for sources, destinations in ((300, 70), (70, 300)):
        weight = matrix(make(name, sources, destinations))
        assert 0.8 < 3 * sources * float(weight.square().mean()) < 1.25


def test_a_circulant_of_a_unit_vector_is_a_shift() -> None:
    op = make("circulant", 6, 6)
    op.signs.fill_(1.0)
    with torch.no_grad():
        op.r.zero_()
        op.r[0, 2] = 1
    x = drawn(4, 6)
    torch.testing.assert_close(op.transform(x), x.roll(2, dims=1))


def test_a_circulant_is_the_matrix_of_its_definition() -> None:
    op = make("circulant", 5, 8)
    rows, columns = torch.arange(8)[:, None], torch.arange(5)
    expected = op.r[rows // 5, (rows - columns) % 5] * op.signs
    torch.testing.assert_close(matrix(op), expected.detach())
    assert set(op.signs.tolist()) == {-1.0, 1.0}


def test_a_circulant_takes_over_the_mean_of_every_wrapped_diagonal() -> None:
    op = make("circulant", 5, 8)
    weight = drawn(8, 5, 1, 1)
    op.approximate(weight)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad((op.expand() - weight).square().sum(), op.r)
    assert slope.abs().max() < 1e-12  # the least squares are nowhere smaller
    difference = (matrix(op) - weight.flatten(1)).norm() / weight.norm()
    assert op.residual == pytest.approx(float(difference))
    op.approximate(op.expand().detach())
    assert op.residual < 1e-14


def test_fastfood_without_diagonals_and_permutation_is_the_identity() -> None:
    op = make("fastfood", 8, 8)
    op.permutation.copy_(torch.arange(8))
    with torch.no_grad():
        for parameter in op.parameters():
            parameter.fill_(1.0)
    torch.testing.assert_close(matrix(op), torch.eye(8, dtype=torch.float64))


def test_fastfood_is_the_product_of_its_factors() -> None:
    op = make("fastfood", 7, 13)
    h = walsh_hadamard(torch.eye(8, dtype=torch.float64))
    order = [torch.eye(8, dtype=torch.float64)[order] for order in op.permutation]
    blocks = [
        h @ g.diag() @ p @ h @ b.diag() for g, p, b in zip(op.gauss, order, op.signs, strict=True)
    ]
    expected = op.scale.diag() @ torch.cat(blocks)[:13, :7] / 8
    torch.testing.assert_close(matrix(op), expected.detach())


@pytest.mark.parametrize(("sources", "destinations"), [(9, 9), (9, 5)])
def test_acdc_without_diagonals_is_the_identity(sources: int, destinations: int) -> None:
    op = make("acdc", sources, destinations, layers=1)
    with torch.no_grad():
        for parameter in op.parameters():
            parameter.fill_(1.0)
    expected = torch.eye(sources, dtype=torch.float64)[:destinations]
    torch.testing.assert_close(matrix(op), expected)


def test_acdc_is_the_product_of_its_factors() -> None:
    op = make("acdc", 6, 4, layers=3)
    c = cosine(torch.eye(6, dtype=torch.float64))  # x @ c is the transform of x
    product = torch.eye(6, dtype=torch.float64)
    for layer in range(3):
        if layer:
            product = product[:, op.permutation[layer - 1]]
        product = product @ op.a[layer].diag() @ c @ op.d[layer].diag() @ c.t()
    torch.testing.assert_close(matrix(op), product.t()[:4].detach())


@pytest.mark.parametrize("name", ["acdc", "fastfood"])
def test_a_fit_comes_nearer_is_the_same_each_time_and_says_how_near_it_is(name: str) -> None:
    weight = drawn(12, 12, 1, 1)
    op, twin = make(name, 12, 12), make(name, 12, 12)
    with torch.no_grad():
        next(twin.parameters()).fill_(3.0)  # where it stood before does not count
    op.approximate(weight)
    twin.approximate(weight)
    assert torch.equal(matrix(op), matrix(twin))
    difference = (matrix(op) - weight.flatten(1)).norm() / weight.norm()
    assert op.residual == pytest.approx(float(difference))
    assert op.residual < 0.9  # 0 parameters: 1
    assert all(p.grad is None and p.requires_grad for p in op.parameters())


def test_acdc_finds_the_weights_of_one_layer_of_its_kind() -> None:
    op = make("acdc", 10, 10, layers=1)
    target = matrix(make("acdc", 10, 10, layers=1, spread=0.4)).view(10, 10, 1, 1)
    op.approximate(target)
    assert op.residual < 1e-4


@every_one
def test_a_seed_draws_what_is_fixed_and_is_not_stored(name: str) -> None:
    fixed = [dict(make(name, 20, 20, seed=s).named_buffers()) for s in (0, 0, 1)]
    (key,) = fixed[0]
    assert torch.equal(fixed[0][key], fixed[1][key])
    assert not torch.equal(fixed[0][key], fixed[2][key])
    assert key not in make(name, 20, 20).state_dict()


def test_parameters_and_operations_grow_with_n_and_n_log_n() -> None:
    ones = torch.ones(1024, 1024, 1, 1, dtype=torch.bool)
    costs = {n: make(n, 1024, 1024).cost(ones, 3) for n in ("circulant", "fastfood")}
    costs["acdc"] = make("acdc", 1024, 1024, layers=2).cost(ones, 3)
    # n log₂ n = 10240 multiplications and 15360 additions a Fourier transform.
    assert costs["circulant"] == Cost(
        3 * (2 * 10240 + 4 * 513), 3 * (2 * 15360 + 2 * 513), weight_bits=32 * 1024, transforms=6
    )
    assert costs["fastfood"] == Cost(
        3 * 3 * 1024, 3 * 2 * 10240, weight_bits=32 * 3 * 1024, transforms=6
    )
    assert costs["acdc"] == Cost(
        3 * 2 * (2 * (10240 + 2048) + 2048),
        3 * 2 * 2 * (15360 + 1024),
        weight_bits=32 * 4 * 1024,
        transforms=12,
    )


def test_twelve_acdc_layers_hold_few_of_the_numbers_of_caffenets_dense_layers() -> None:
    fully_connected = 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    assert fully_connected == 58_621_952  # CaffeNet's 58.7 million with its biases
    op = EDGE_OPS.get("acdc")(9216, 9216, options={"layers": 12})
    diagonals = sum(p.numel() for p in op.parameters())
    assert diagonals == 2 * 12 * 9216 == 221_184
    # With biases and a classifier that reads 9216 values: near the paper's 9.7 million.
    assert diagonals + 12 * 9216 + 9216 * 1000 + 1000 == 9_548_776


def edges(name: str, kernel: int, stride: int = 1, **options: Any) -> EdgeOp:
    torch.manual_seed(0)
    return EDGE_OPS.get(name)(
        4, 6, kernel=(kernel, kernel), stride=stride, padding=kernel // 2, options=options
    )


@pytest.mark.parametrize(("tile", "products", "direct"), [(2, 16, 36), (4, 36, 144)])
def test_winograds_products_a_tile_are_the_papers(tile: int, products: int, direct: int) -> None:
    ones = torch.ones(6, 4, 3, 3, dtype=torch.bool)
    op, one = edges("winograd", 3, tile=tile), tile * tile
    assert edges("dense", 3).cost(ones, one).multiplications == 24 * direct
    constants = {2: 0, 4: 84 * 4 + 30 * 6}[tile]
    sums = {2: 32 * 4 + 24 * 6, 4: 144 * 4 + 100 * 6}[tile]
    assert op.cost(ones, one) == Cost(
        24 * products + constants, 24 * products + sums, weight_bits=32 * 216, transforms=10
    )
    assert op.cost(ones, 100 * one).multiplications == 100 * op.cost(ones, one).multiplications
    assert op.cost(ones, 25).transforms == 10 * math.ceil(5 / tile) ** 2


def test_winograd_counts_no_channels_that_are_dead() -> None:
    live = torch.zeros(6, 4, 3, 3, dtype=torch.bool)
    live[2, 1, 0, 0] = live[3, 1, 0, 0] = True
    cost = edges("winograd", 3, tile=2).cost(live, 4)
    assert (cost.multiplications, cost.transforms, cost.weight_bits) == (2 * 16, 3, 64)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (5, 1), (3, 2)])
def test_winograd_computes_and_costs_directly_where_tiles_do_not_apply(
    kernel: int, stride: int
) -> None:
    op, dense = edges("winograd", kernel, stride), edges("dense", kernel, stride)
    live = torch.rand(op.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    x = drawn(2, 4, 7, 7).float()
    assert torch.equal(op(x, live, live), dense(x, live, live))
    assert op.cost(live, 16) == dense.cost(live, 16)
    assert set(op.candidates(live, Epilogue())) == {"conv", "conv channels_last"}


def test_a_tile_of_three_is_refused() -> None:
    with pytest.raises(ConfigError, match="tile"):
        edges("winograd", 3, tile=3)


def test_fourier_cost_is_its_formula() -> None:
    ones = torch.ones(6, 4, 5, 5, dtype=torch.bool)
    cost = edges("fft", 5).cost(ones, 12 * 12)  # 12 - 1 + 5 = 16 points a side
    products, transform = 16 * 9 * 24, 256 * 8
    assert cost == Cost(
        4 * products + 10 * transform,
        4 * products + 10 * transform * 3 // 2,
        weight_bits=32 * 600,
        transforms=10,
    )


@pytest.mark.parametrize("name", ["fft", "winograd"])
def test_prepared_forms_compute_what_training_does_and_then_the_epilogue(name: str) -> None:
    op = edges(name, 3)
    live = torch.rand(op.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    x = drawn(2, 4, 9, 7).float()
    scale, shift = drawn(6).float(), drawn(6, seed=1).float()
    with torch.no_grad():
        y = op(x, live, live) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    for form in op.candidates(live, Epilogue(scale, shift, relu=True)).values():
        torch.testing.assert_close(form(x), y.relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "density", "expected"),
    [
        (32, 3, 1, 1.0, {"winograd 2", "winograd 4"}),
        (32, 3, 1, 0.3, set()),
        (16, 3, 1, 1.0, set()),
        (32, 3, 2, 1.0, set()),
        (16, 7, 1, 1.0, {"fft", "fft 32"}),
        (16, 17, 1, 1.0, {"fft"}),
        (16, 7, 2, 1.0, set()),
        (16, 7, 1, 0.3, set()),
        (4, 7, 1, 1.0, set()),
    ],
)
def test_dense_edges_offer_fast_forms_only_where_they_may_win(
    channels: int, kernel: int, stride: int, density: float, expected: set[str]
) -> None:
    weight = drawn(channels, channels, kernel, kernel).float()
    live = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < density
    weight = torch.where(live, weight, 0.0)
    forms = fast_forms(weight, live, stride, kernel // 2, Epilogue())
    assert set(forms) == expected
    x = drawn(1, channels, 18, 18).float()
    for form in forms.values():
        direct = torch.nn.functional.conv2d(x, weight, stride=stride, padding=kernel // 2)
        torch.testing.assert_close(form(x), direct, rtol=1e-4, atol=1e-4 * float(direct.max()))


def test_a_form_that_rounds_too_coarsely_is_dropped_and_a_wrong_one_refused() -> None:
    x = torch.ones(1, 1, 2, 2)

    def forms(kernel: Any) -> dict[str, Form]:
        return {name: Form(k, False, x, []) for name, k in ((EAGER, torch.clone), ("new", kernel))}

    coarse = forms(Rounding(lambda x: x + 0.1))
    check_forms(coarse, exact=False, bundle="b", op="dense")
    assert set(coarse) == {EAGER}
    fine = forms(Rounding(lambda x: x + 1e-6))
    check_forms(fine, exact=False, bundle="b", op="dense")
    assert set(fine) == {EAGER, "new"}
    with pytest.raises(WiringError, match="kernel 'new' of operator 'dense'"):
        check_forms(forms(lambda x: x + 0.1), exact=False, bundle="b", op="dense")


def test_a_compiled_network_measures_fast_forms_of_dense_edges_and_computes_the_same() -> None:
    groups = (NodeGroup(name="a", size=16), NodeGroup(name="b", size=16, steps=("norm", "act")))
    bundle = Bundle(name="e", sources=("a",), destination="b", kernel=(7, 7), padding=3)
    scope = Scope(name="e", bundles=("e",), budget=16 * 16 * 49)
    network = trained(spec(Topology(groups=groups, bundles=(bundle,), scopes=(scope,))))
    for form in ("fft", "fft 32"):
        compiled = wiring.compile(network, batch=2, cache=False, kernels={"e": form})
        assert [choice.kernel for choice in compiled.choices()] == [form]
        with torch.no_grad():
            torch.testing.assert_close(
                compiled(images(2)), network(images(2)), rtol=1e-4, atol=1e-4
            )
