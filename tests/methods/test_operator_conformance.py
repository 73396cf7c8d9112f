"""What holds for every edge operator that is registered, at every shape of a bundle."""

from __future__ import annotations

import pytest
import torch
from method_cases import (
    DEFINITIONS,
    OWN,
    SETTINGS,
    SHAPES,
    TIED,
    Setting,
    Shape,
    images,
    label,
    make,
    masks,
)
from torch.nn.functional import conv2d

from wiring.cost import Cost
from wiring.errors import ConfigError, WiringError
from wiring.graph.edges import EDGE_OPS, EdgeOp
from wiring.graph.staged import StagedOp
from wiring.graph.tied import TiedOp

every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=label)
# Operators of which each edge has a weight of its own.
own_weights = pytest.mark.parametrize("setting", OWN, ids=label)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=label)
every_name = pytest.mark.parametrize("name", EDGE_OPS.names())


@pytest.mark.parametrize(
    "name", [n for n in EDGE_OPS.names() if "seed" in EDGE_OPS.get(n).Options.model_fields]
)
def test_a_seed_is_a_whole_number_from_0(name: str) -> None:
    with pytest.raises(ConfigError, match="seed"):
        EDGE_OPS.get(name).parse_options({"seed": -1})


@pytest.mark.parametrize(
    "name", [n for n in EDGE_OPS.names() if issubclass(EDGE_OPS.get(n), StagedOp)]
)
def test_share_and_lr_are_those_of_the_last_stage(name: str) -> None:
    op = make(name, SHAPES[0], share=0.25, lr=0.5)
    assert (op.phases()[-1].share, op.phases()[-1].lr) == (0.25, 0.5)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.name in DEFINITIONS], ids=label)
@every_shape
def test_forward_equals_the_definition(setting: Setting, shape: Shape) -> None:
    op = setting.make(shape)
    live, learn = masks(shape)
    x = images(shape)
    y = op(x, live, learn)
    expected = DEFINITIONS[setting.name](op, x, live).view_as(y)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@own_weights
@every_shape
def test_a_dead_edge_contributes_exactly_nothing(setting: Setting, shape: Shape) -> None:
    op = setting.make(shape)
    live, learn = masks(shape)
    x = images(shape).requires_grad_()
    y = op(x, live, learn)
    (before,) = torch.autograd.grad(y.square().sum(), x)
    with torch.no_grad():
        op.weight[~live] = -1e3 * op.weight[~live].sign()
    again = op(x, live, learn)
    (after,) = torch.autograd.grad(again.square().sum(), x)
    assert torch.equal(y, again)
    assert torch.equal(before, after)
    assert not y[:, ~live.flatten(1).any(dim=1)].any()


@pytest.mark.parametrize(
    ("setting", "shape"),
    # The released code's formula is undefined for one source.
    [
        (setting, shape)
        for setting in OWN
        for shape in SHAPES
        if setting.options.get("weight_gradient") != "repo" or shape.sources > 1
    ],
    ids=label,
)
def test_edges_outside_learn_receive_no_gradient(setting: Setting, shape: Shape) -> None:
    op = setting.make(shape)
    live, learn = masks(shape)
    op(images(shape), live, learn).square().sum().backward()
    grad = op.weight.grad
    if grad is None:  # in later stages other parameters may stand for the weights
        assert setting.stage > 0
        return
    assert not grad[~learn].any()
    assert grad.isfinite().all()
    if live.any():
        assert grad[live].any()


@pytest.mark.parametrize("setting", [s for s in OWN if s.stage == 0], ids=label)
def test_a_dead_edge_that_learns_receives_a_gradient(setting: Setting) -> None:
    op = setting.make(Shape("wide", sources=16))
    live, learn = masks(Shape("wide", sources=16))
    op.weight.data.clamp_(-0.9, 0.9)
    y = op(images(Shape("wide", sources=16)), live, learn)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y))
    assert op.weight.grad is not None
    assert op.weight.grad[learn & ~live].all()


@pytest.mark.parametrize("setting", TIED, ids=label)
@every_shape
def test_edges_that_share_parameters_are_a_masked_convolution(
    setting: Setting, shape: Shape
) -> None:
    op = setting.make(shape)
    assert isinstance(op, TiedOp)
    live, learn = masks(shape)
    x, parameters = images(shape), list(op.parameters())
    weight = op.expand()
    assert weight.shape == op.shape
    y = op(x, live, learn)
    expected = conv2d(x, weight * live, stride=op.stride, padding=op.padding)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    if not parameters:
        return
    found = torch.autograd.grad(y.square().sum(), parameters)
    full = (weight * live).detach().requires_grad_()
    again = conv2d(x, full, stride=op.stride, padding=op.padding)
    (to_weight,) = torch.autograd.grad(again.square().sum(), full)
    wanted = torch.autograd.grad(weight, parameters, to_weight * learn)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@every_setting
@every_shape
def test_the_result_does_not_depend_on_memory_format(setting: Setting, shape: Shape) -> None:
    op = setting.make(shape)
    live, learn = masks(shape)
    x = images(shape)
    other = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(op(x, live, learn), op(other, live, learn))


@every_setting
@every_shape
def test_an_image_alone_gives_what_it_gives_in_a_batch(setting: Setting, shape: Shape) -> None:
    op = setting.make(shape)
    live, learn = masks(shape)
    x = images(shape)
    torch.testing.assert_close(op(x, live, learn)[:1], op(x[:1], live, learn))


@every_setting
@every_shape
def test_unpacking_gives_the_same_function_bit_for_bit(setting: Setting, shape: Shape) -> None:
    op = setting.make(shape).float()
    twin = make(setting.name, shape, **setting.options).float()
    live, learn = masks(shape)
    stored = {name: tensor.clone() for name, tensor in op.pack(live).items()}
    twin.unpack(stored, live)
    x = images(shape).float()
    assert torch.equal(op(x, live, learn), twin(x, live, learn))
    assert setting.tied or not twin.weight[~live].any()


@every_setting
@every_shape
def test_packed_bytes_are_what_the_cost_says(setting: Setting, shape: Shape) -> None:
    op = setting.make(shape)
    live, _ = masks(shape)
    size = sum(t.numel() * t.element_size() for t in op.pack(live).values())
    assert 0 <= 8 * size - op.cost(live, 1).weight_bits < 8


@every_setting
def test_no_live_edges_cost_nothing(setting: Setting) -> None:
    op = setting.make(SHAPES[0])
    assert op.cost(torch.zeros(op.shape, dtype=torch.bool), 25) == Cost()


@own_weights
@every_shape
def test_a_projection_moves_only_edges_that_learn(setting: Setting, shape: Shape) -> None:
    op = setting.make(shape)
    live, learn = masks(shape)
    before = op.weight.detach().clone()
    op.after_step(live, learn)
    assert torch.equal(op.weight[~learn], before[~learn])


@every_setting
@every_shape
def test_an_unused_source_changes_nothing(setting: Setting, shape: Shape) -> None:
    op = setting.make(shape)
    live, learn = masks(shape)
    live[:, 0] = False
    used = op.used_sources(live)
    x = images(shape)
    y = op(x, live, learn)
    x[:, ~used] = 1e3
    assert torch.equal(op(x, live, learn), y)


@every_name
def test_an_unknown_option_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown key 'no_such_option'"):
        make(name, SHAPES[0], no_such_option=1)


@every_name
def test_every_operator_tells_its_paper_and_a_line_about_itself(name: str) -> None:
    cls = EDGE_OPS.get(name)
    assert cls.paper
    assert (cls.__doc__ or "").strip()


@pytest.mark.parametrize(
    "setting",
    [s for s in OWN if s.stage and EDGE_OPS.get(s.name).verify is not EdgeOp.verify],
    ids=label,
)
@every_shape
def test_a_broken_promise_is_found(setting: Setting, shape: Shape) -> None:
    op = setting.make(shape)
    live, _ = masks(shape)
    op.verify(live)
    with torch.no_grad():
        op.weight[~live] += 1  # of dead edges nothing is promised
    op.verify(live)
    if live.any():
        with torch.no_grad():
            op.weight[tuple(live.nonzero()[0])] += 1
        with pytest.raises(WiringError, match=r"1 of .* live weights are off it"):
            op.verify(live)
