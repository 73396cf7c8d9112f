"""What holds for every edge operator that is registered, at every shape of a bundle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_cases import DEFINITIONS, SETTINGS, SHAPES, Shape, images, label, make, masks

from wiring.cost import Cost
from wiring.errors import ConfigError
from wiring.graph.edges import EDGE_OPS

Setting = tuple[str, dict[str, Any]]
every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=label)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=label)
every_name = pytest.mark.parametrize("name", EDGE_OPS.names())


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s[0] in DEFINITIONS], ids=label)
@every_shape
def test_forward_equals_the_definition(setting: Setting, shape: Shape) -> None:
    op = make(setting[0], shape, **setting[1])
    live, learn = masks(shape)
    x = images(shape)
    y = op(x, live, learn)
    expected = DEFINITIONS[setting[0]](op, x, live).view_as(y)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@every_setting
@every_shape
def test_a_dead_edge_contributes_exactly_nothing(setting: Setting, shape: Shape) -> None:
    op = make(setting[0], shape, **setting[1])
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
        for setting in SETTINGS
        for shape in SHAPES
        if setting[1].get("weight_gradient") != "repo" or shape.sources > 1
    ],
    ids=label,
)
def test_edges_outside_learn_receive_no_gradient(setting: Setting, shape: Shape) -> None:
    op = make(setting[0], shape, **setting[1])
    live, learn = masks(shape)
    op(images(shape), live, learn).square().sum().backward()
    grad = op.weight.grad
    assert grad is not None
    assert not grad[~learn].any()
    assert grad.isfinite().all()
    if live.any():
        assert grad[live].any()


@every_setting
def test_a_dead_edge_that_learns_receives_a_gradient(setting: Setting) -> None:
    op = make(setting[0], Shape("wide", sources=16), **setting[1])
    live, learn = masks(Shape("wide", sources=16))
    op.weight.data.clamp_(-0.9, 0.9)
    y = op(images(Shape("wide", sources=16)), live, learn)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y))
    assert op.weight.grad is not None
    assert op.weight.grad[learn & ~live].all()


@every_setting
@every_shape
def test_the_result_does_not_depend_on_memory_format(setting: Setting, shape: Shape) -> None:
    op = make(setting[0], shape, **setting[1])
    live, learn = masks(shape)
    x = images(shape)
    other = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(op(x, live, learn), op(other, live, learn))


@every_setting
@every_shape
def test_an_image_alone_gives_what_it_gives_in_a_batch(setting: Setting, shape: Shape) -> None:
    op = make(setting[0], shape, **setting[1])
    live, learn = masks(shape)
    x = images(shape)
    torch.testing.assert_close(op(x, live, learn)[:1], op(x[:1], live, learn))


@every_setting
@every_shape
def test_unpacking_gives_the_same_function_bit_for_bit(setting: Setting, shape: Shape) -> None:
    op = make(setting[0], shape, **setting[1]).float()
    twin = make(setting[0], shape, **setting[1]).float()
    live, learn = masks(shape)
    stored = {name: tensor.clone() for name, tensor in op.pack(live).items()}
    twin.unpack(stored, live)
    x = images(shape).float()
    assert torch.equal(op(x, live, learn), twin(x, live, learn))
    assert not twin.weight[~live].any()


@every_setting
@every_shape
def test_packed_bytes_are_what_the_cost_says(setting: Setting, shape: Shape) -> None:
    op = make(setting[0], shape, **setting[1])
    live, _ = masks(shape)
    size = sum(t.numel() * t.element_size() for t in op.pack(live).values())
    assert 0 <= 8 * size - op.cost(live, 1).weight_bits < 8


@every_setting
def test_no_live_edges_cost_nothing(setting: Setting) -> None:
    op = make(setting[0], SHAPES[0], **setting[1])
    assert op.cost(torch.zeros_like(op.weight, dtype=torch.bool), 25) == Cost()


@every_setting
@every_shape
def test_a_projection_moves_only_edges_that_learn(setting: Setting, shape: Shape) -> None:
    op = make(setting[0], shape, **setting[1])
    live, learn = masks(shape)
    before = op.weight.detach().clone()
    op.after_step(live, learn)
    assert torch.equal(op.weight[~learn], before[~learn])


@every_setting
@every_shape
def test_an_unused_source_changes_nothing(setting: Setting, shape: Shape) -> None:
    op = make(setting[0], shape, **setting[1])
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
