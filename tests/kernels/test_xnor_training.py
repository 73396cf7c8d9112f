"""The xnor operator on packed signs: forward and gradients of the float path, 2 bits saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from packed_cases import SETS
from torch import Tensor

from wiring.errors import WiringError
from wiring.graph.binary import binary_weight
from wiring.graph.edges import EDGE_OPS, EdgeOp
from wiring.kernels import backends
from wiring.kernels.xnor_conv2d import binary_filters, binary_gradient, row_scales

MODES = ("exact", "paper", "repo")
OPTIONS: tuple[dict[str, Any], ...] = (
    *({"weight_gradient": mode} for mode in MODES),
    {"input_scale": True},
)
SHAPES = ((64, 32, 3, 1, 1), (70, 19, 1, 1, 0), (65, 20, 3, 2, 1))


def make(sources: int, rows: int, side: int, stride: int, padding: int, **options: Any) -> EdgeOp:
    op = EDGE_OPS.get("xnor")(
        sources, rows, kernel=(side, side), stride=stride, padding=padding, options=options
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        op.weight.copy_(torch.randn(op.weight.shape, generator=generator))
    return op


def masks(op: EdgeOp, density: float = 0.6) -> tuple[Tensor, Tensor]:
    """(live, learn), a row without live edges among them."""
    drawn = torch.rand(op.weight.shape, generator=torch.Generator().manual_seed(2))
    live = drawn < density
    if density < 1:
        live[0] = False
    return live, live | (drawn > 0.8)


def image(op: EdgeOp, images: int = 2, side: int = 7) -> Tensor:
    """Around the borders of the clip, with zeros and ones."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(images, op.weight.shape[1], side, side, generator=generator)
    x[x.abs() < 0.1] = 0.0
    x[(x - 1).abs() < 0.1] = 1.0
    return x


def run(op: EdgeOp, x: Tensor, live: Tensor, learn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y, dx, dw) of a loss that weighs every output otherwise."""
    x = x.clone().requires_grad_()
    op.weight.grad = None
    y = op(x, live, learn)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    assert x.grad is not None
    assert op.weight.grad is not None
    return y.detach(), x.grad, op.weight.grad


def near(result: Tensor, wanted: Tensor) -> None:
    """Equal but for the order in which a convolution's gradients are summed."""
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))


@SETS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [0.6, 1.0])
def test_the_packed_path_has_the_float_paths_results_and_gradients(
    instructions: str, options: dict[str, Any], shape: tuple[int, ...], density: float
) -> None:
    op = make(*shape, **options)
    live, learn = masks(op, density)
    x = image(op)
    for layout in (x, x.contiguous(memory_format=torch.channels_last)):
        with backends.use("definition"):
            y, dx, dw = run(op, layout, live, learn)
        with backends.use(instructions):
            ours = run(op, layout, live, learn)
            with torch.no_grad():
                assert torch.equal(op(layout, live, learn), y)
        assert torch.equal(ours[0], y)
        near(ours[1], dx)
        near(ours[2], dw)


def test_a_first_layers_images_need_no_gradient() -> None:
    op = make(*SHAPES[0])
    live, learn = masks(op)
    op(image(op), live, learn).sum().backward()
    alone = op.weight.grad
    assert alone is not None
    op.weight.grad = None
    op(image(op).requires_grad_(), live, learn).sum().backward()
    torch.testing.assert_close(alone, op.weight.grad)


@contextmanager
def counted(op: EdgeOp, *masks: Tensor) -> Iterator[list[int]]:
    """Bytes of the tensors that are saved for backward and that nobody else keeps."""
    known = {t.untyped_storage().data_ptr() for t in (op.weight, *masks)}
    seen: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            seen.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield seen


@pytest.mark.parametrize(("options", "most"), [({}, 2), ({"input_scale": True}, 4)])
def test_two_bits_of_an_activation_are_kept_for_backward(
    options: dict[str, Any], most: int
) -> None:
    if backends.native("xnor_conv2d")() is None:
        pytest.skip("without a compiled kernel the definition runs, on floats")
    op = make(128, 16, 3, 1, 1, **options)
    live, learn = masks(op)
    x = image(op, images=8, side=16).requires_grad_()
    with counted(op, live, learn) as seen:
        op(x * 1.0, live, learn)
    saved = 8 * sum(seen) / x.numel()
    # Beside them lie a scale per row, and with K one float per pixel, for three of its steps.
    beside = 32 * 16 / x.numel() + (3 * 32 / 128 if options else 0)
    assert most <= saved <= most + beside


@pytest.mark.parametrize("options", [{}, {"input_scale": True}], ids=str)
def test_the_operator_compiles_forward_and_backward_without_graph_breaks(
    options: dict[str, Any],
) -> None:
    op = make(*SHAPES[0], **options)
    live, learn = masks(op)
    x = image(op)
    eager = run(op, x, live, learn)
    compiled = torch.compile(op, fullgraph=True)
    again = x.clone().requires_grad_()
    op.weight.grad = None
    y = compiled(again, live, learn)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    torch.testing.assert_close(y, eager[0])
    assert again.grad is not None
    assert op.weight.grad is not None
    near(again.grad, eager[1])
    near(op.weight.grad, eager[2])


@SETS
@pytest.mark.parametrize("mode", MODES)
def test_scales_filters_and_gradients_of_weights_are_the_definitions(
    instructions: str, mode: Any
) -> None:
    op = make(70, 19, 3, 1, 1)
    live, learn = masks(op, 0.3)
    weight = op.weight.detach()
    weight[1] = 0.37
    weight[2, 0] = 0.0
    grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    double = weight.double()
    alpha = row_scales(double, live)
    with backends.use(instructions):
        ours = row_scales(weight, live)
        assert torch.equal(ours, alpha.float())
        filters = binary_filters(weight, live, ours)
        assert torch.equal(filters, binary_filters(double, live, ours.double()).float())
        slope = binary_gradient(grad, weight, live, learn, ours, mode)
    wanted = binary_gradient(grad.double(), double, live, learn, alpha, mode)
    torch.testing.assert_close(slope.double(), wanted, rtol=1e-5, atol=1e-5)
    assert not slope[~learn].any()


def test_masks_may_be_views_into_a_scopes_flat_mask() -> None:
    op = make(7, 3, 3, 1, 1)
    flat = torch.rand(1 + op.weight.numel(), generator=torch.Generator().manual_seed(4)) < 0.5
    live = flat[1:].view(op.weight.shape)
    y = binary_weight(op.weight, live, live, "exact")
    assert torch.equal(y, binary_weight(op.weight, live.clone(), live.clone(), "exact"))


def test_misuse_is_a_sentence() -> None:
    weight = torch.randn(3, 4, 1, 1)
    live = weight > 0
    alpha = row_scales(weight, live)
    with pytest.raises(WiringError, match="weights must be float"):
        row_scales(weight[0], live[0])
    with pytest.raises(WiringError, match=r"torch\.bool"):
        row_scales(weight, live.float())
    with pytest.raises(WiringError, match="of that shape"):
        binary_filters(weight, live[:2], alpha)
    with pytest.raises(WiringError, match="one per destination"):
        binary_filters(weight, live, alpha[:2])
    with pytest.raises(WiringError, match="must be one of exact, paper, repo, got 'none'"):
        binary_gradient(weight, weight, live, live, alpha, "none")
