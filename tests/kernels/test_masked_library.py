"""masked_conv2d inside PyTorch: autograd, opcheck, compile, autocast and vmap."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from masked_cases import Problem, always
from torch import Tensor

from wiring.kernels.masked_conv2d import (
    masked_conv2d,
    masked_conv2d_input_gradient,
    masked_conv2d_weight_gradient,
)

STEPS = pytest.mark.parametrize(
    "problem",
    [
        Problem(2, 3, 4, 5, 4, stride=2, padding=1),
        Problem(1, 4, 3, 3, 3, (1, 1), padding=0, channels_last=True),
    ],
    ids=["3x3", "1x1"],
)


def finite(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """(x, weight, live) with finite dead weights."""
    x, weight, live, _ = problem.tensors()
    return x, weight.nan_to_num(1.0, 1.0, 1.0), live


@STEPS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_check_of_torch_library_passes(problem: Problem, dtype: torch.dtype) -> None:
    x, weight, live = finite(problem)
    x, weight = x.to(dtype), weight.to(dtype)
    step = (problem.stride, problem.padding)
    y = masked_conv2d(x, weight, live, live, *step)
    learning = (x.clone().requires_grad_(), weight.clone().requires_grad_())
    with always(sparse=True):
        torch.library.opcheck(masked_conv2d, (*learning, live, live, *step))
        torch.library.opcheck(masked_conv2d_input_gradient, (y, weight, live, *x.shape[2:], *step))
        torch.library.opcheck(masked_conv2d_weight_gradient, (y, x, live, *step))


@STEPS
def test_gradients_are_those_of_the_function(problem: Problem) -> None:
    x, weight, live = finite(problem)
    arguments = (x.double().requires_grad_(), weight.double().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda a, b: masked_conv2d(a, b, live, live, problem.stride, problem.padding), arguments
    )


@pytest.mark.parametrize("sparse", [True, False])
def test_edges_that_learn_receive_a_gradient_though_dead(sparse: bool) -> None:
    problem = Problem()
    x, weight, live, grad = problem.tensors()
    learn = live.clone()
    learn[:2] = True
    weight.requires_grad_()
    with always(sparse):
        masked_conv2d(x, weight, live, learn, 1, 1).backward(grad)
    twin = torch.zeros_like(weight).requires_grad_()
    F.conv2d(x, twin, padding=1).backward(grad)
    assert weight.grad is not None
    assert twin.grad is not None
    torch.testing.assert_close(weight.grad, torch.where(learn, twin.grad, 0.0))
    assert weight.grad[learn].all()


@STEPS
def test_compile_sees_one_graph(problem: Problem) -> None:
    x, weight, live = finite(problem)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        y = masked_conv2d(a.relu(), b, live, live, problem.stride, problem.padding)
        return y.square().sum()

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        value = function(a, b)
        value.backward()
        found.append((value.detach(), a.grad, b.grad))
    torch.testing.assert_close(found[0], found[1])


def test_autocast_computes_in_float32() -> None:
    x, weight, live = finite(Problem())
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_conv2d(x.bfloat16(), weight, live, live, 1, 1)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, masked_conv2d(x.bfloat16().float(), weight, live, live, 1, 1))


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (1, 0)])
def test_vmap_is_a_loop(mapped: tuple[int | None, int | None]) -> None:
    x, weight, live = finite(Problem())
    xs, ws = torch.stack([x, x + 1, x * 2]), torch.stack([weight, weight - 1, weight * 2])
    a = x if mapped[0] is None else xs.movedim(0, mapped[0])
    b = weight if mapped[1] is None else ws

    def run(a: Tensor, b: Tensor) -> Tensor:
        return masked_conv2d(a, b, live, live, 1, 1)

    rows = [
        run(x if mapped[0] is None else xs[i], b if mapped[1] is None else b[i]) for i in range(3)
    ]
    torch.testing.assert_close(torch.vmap(run, in_dims=mapped)(a, b), torch.stack(rows))


@pytest.mark.parametrize("mapped", [(0, None), (0, 0)])
def test_vmap_of_the_gradients_is_a_loop(mapped: tuple[int, int | None]) -> None:
    x, weight, live = finite(Problem())
    grads = torch.stack([masked_conv2d(x + i, weight, live, live, 1, 1) for i in range(3)])
    flags = torch.stack([live, ~live, live])

    def to_x(grad: Tensor, mask: Tensor) -> Tensor:
        return masked_conv2d_input_gradient(grad, weight, mask, 6, 5, 1, 1)

    def to_weight(grad: Tensor, mask: Tensor) -> Tensor:
        return masked_conv2d_weight_gradient(grad, x, mask, 1, 1)

    for run in (to_x, to_weight):
        rows = [run(grads[i], live if mapped[1] is None else flags[i]) for i in range(3)]
        found = torch.vmap(run, in_dims=mapped)(grads, live if mapped[1] is None else flags)
        torch.testing.assert_close(found, torch.stack(rows))
