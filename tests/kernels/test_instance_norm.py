"""The fused node operations are PyTorch's instance norm, ReLU and depthwise convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wiring.errors import WiringError
from wiring.graph import NodeGroup
from wiring.graph.nodes import NodeOp
from wiring.kernels import backends
from wiring.kernels.instance_norm import instance_norm, instance_norm_depthwise

SETS = backends.instruction_sets()
EPS = 1e-5
SIZES = st.tuples(
    st.integers(1, 3), st.sampled_from([1, 3, 16, 31, 32, 33, 70]), st.integers(1, 7),
    st.integers(2, 7),
)  # fmt: skip


@pytest.fixture(params=SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.use(request.param):
        yield request.param


def parameters(n: int, c: int, h: int, w: int, seed: int = 0) -> list[Tensor]:
    """x [n, c, h, w], not centred, and weight, bias [c], filters [c, 1, 3, 3]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h, w, generator=generator) * 2 + 1
    weight, bias = torch.randn(2, c, generator=generator)
    return [x, weight, bias, torch.randn(c, 1, 3, 3, generator=generator)]


def expected(
    x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor | None, relu: bool, stride: int
) -> Tensor:
    z = F.instance_norm(x, weight=weight, bias=bias, eps=EPS)
    z = z.relu() if relu else z
    return z if filters is None else F.conv2d(z, filters, None, stride, 1, groups=x.shape[1])


def compare(
    ours: Callable[..., Tensor], inputs: list[Tensor], relu: bool, stride: int, window: bool
) -> None:
    """Value and gradients, against float64."""
    given_inputs = inputs if window else inputs[:3]
    leaves = [t.detach().requires_grad_() for t in given_inputs]
    exact = [t.detach().double().requires_grad_() for t in given_inputs]
    y = ours(*leaves)
    reference = expected(*exact[:3], exact[3] if window else None, relu, stride)
    torch.testing.assert_close(y, reference.float(), rtol=1e-3, atol=1e-4)
    pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    for ours_part, part in zip(
        torch.autograd.grad(y, leaves, pull),
        torch.autograd.grad(reference, exact, pull.double()),
        strict=True,
    ):
        # The gradient of x is a difference of larger numbers.
        scale = 1 + part.abs().max().item()
        torch.testing.assert_close(ours_part, part.float(), rtol=1e-3, atol=2e-4 * scale)


@pytest.mark.parametrize("name", SETS)
# The same examples every time: where rounding decides whether a ReLU is open, gradients jump.
@settings(deadline=None, max_examples=30, derandomize=True)
@given(size=SIZES, relu=st.booleans(), last=st.booleans(), seed=st.integers(0, 99))
def test_norm_and_relu_are_pytorchs(
    name: str, size: tuple[int, int, int, int], relu: bool, last: bool, seed: int
) -> None:
    inputs = parameters(*size, seed=seed)
    if last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    with backends.use(name):
        compare(lambda x, w, b: instance_norm(x, w, b, EPS, relu), inputs, relu, 1, False)


@pytest.mark.parametrize("name", SETS)
@settings(deadline=None, max_examples=30, derandomize=True)
@given(size=SIZES, stride=st.integers(1, 3), last=st.booleans(), seed=st.integers(0, 99))
def test_norm_relu_and_filter_are_pytorchs(
    name: str, size: tuple[int, int, int, int], stride: int, last: bool, seed: int
) -> None:
    inputs = parameters(*size, seed=seed)
    if last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    with backends.use(name):
        compare(
            lambda x, w, b, f: instance_norm_depthwise(x, w, b, f, EPS, stride),
            inputs, True, stride, True,
        )  # fmt: skip


@pytest.mark.usefixtures("instruction_set")
def test_large_means_keep_their_small_variance() -> None:
    x = 1000 + torch.randn(1, 5, 40, 40, generator=torch.Generator().manual_seed(0))
    y = instance_norm(x, torch.ones(5), torch.zeros(5), EPS, False)
    reference = F.instance_norm(x.double(), eps=EPS).float()
    torch.testing.assert_close(y, reference, rtol=1e-3, atol=2e-3)


@pytest.mark.usefixtures("instruction_set")
def test_spread_and_shifted_inputs_give_the_same() -> None:
    inputs = parameters(2, 40, 5, 4)
    plain = instance_norm_depthwise(*inputs, EPS, 1)
    wide = torch.empty(2, 40, 5, 8)[..., ::2].copy_(inputs[0])
    shifted = torch.empty(2 * 40 * 20 + 1)[1:].view(2, 40, 5, 4).copy_(inputs[0])
    filters = torch.empty(80, 1, 3, 3)[::2].copy_(inputs[3])
    for x in (wide, shifted):
        assert torch.equal(instance_norm_depthwise(x, *inputs[1:3], filters, EPS, 1), plain)


@pytest.mark.usefixtures("seeded", "instruction_set")
def test_a_gradient_may_be_a_slice_of_channels() -> None:
    inputs = [t.requires_grad_() for t in parameters(2, 33, 4, 3)]
    wide = torch.randn(2, 80, 4, 3).contiguous(memory_format=torch.channels_last)
    for pull in (wide[:, :33], wide[:, 40:73], wide[:, :66:2], wide[:, :33].contiguous()):
        sliced, plain = (
            torch.autograd.grad(instance_norm_depthwise(*inputs, EPS, 1), inputs, grad)
            for grad in (pull, pull.clone(memory_format=torch.contiguous_format))
        )
        assert all(torch.equal(a, b) for a, b in zip(sliced, plain, strict=True))


@pytest.mark.parametrize("name", SETS[1:])
def test_results_do_not_depend_on_the_threads(name: str) -> None:
    with backends.use(name):
        _same_on_all_threads()


def _same_on_all_threads() -> None:
    inputs = [t.requires_grad_() for t in parameters(3, 70, 6, 5)]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        y = instance_norm_depthwise(*inputs, EPS, 2)
        z = instance_norm(*inputs[:3], EPS, True)
        results.append([y, z, *torch.autograd.grad(y.sum() + z.square().sum(), inputs)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("instruction_set")
def test_every_number_of_the_results_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [t.requires_grad_() for t in parameters(2, 37, 3, 4)]
    like, new = torch.empty_like, Tensor.new_empty
    nan = float("nan")
    monkeypatch.setattr(torch, "empty_like", lambda t, **how: like(t, **how).fill_(nan))
    monkeypatch.setattr(
        Tensor, "new_empty", lambda t, *size, **how: new(t, *size, **how).fill_(nan)
    )
    y = instance_norm_depthwise(*inputs, EPS, 1)
    z = instance_norm(*inputs[:3], EPS, False)
    for part in (y, z, *torch.autograd.grad(y.sum() + z.square().sum(), inputs)):
        assert part.isfinite().all()


@pytest.mark.usefixtures("instruction_set")
def test_a_nan_is_not_hidden_by_the_relu() -> None:
    x, weight, bias, filters = parameters(1, 2, 3, 3)
    x[0, 1, 1, 1] = float("nan")
    assert instance_norm(x, weight, bias, EPS, True)[0, 1].isnan().all()
    assert instance_norm(x, weight, bias, EPS, True)[0, 0].isfinite().all()
    assert instance_norm_depthwise(x, weight, bias, filters, EPS, 1)[0, 1].isnan().all()


@pytest.mark.filterwarnings("ignore:var_mean")
@pytest.mark.usefixtures("instruction_set")
def test_a_batch_of_no_image_is_none() -> None:
    inputs = [t.requires_grad_() for t in parameters(0, 4, 3, 3)]
    y = instance_norm_depthwise(*inputs, EPS, 1)
    assert y.shape == (0, 4, 3, 3)
    dx, *others = torch.autograd.grad(y.sum(), inputs)
    assert dx.shape == (0, 4, 3, 3)
    assert not any(part.any() for part in others)


@pytest.mark.parametrize("relu", [True, False])
def test_gradients_are_those_of_the_formula(relu: bool) -> None:
    leaves = [t.double().requires_grad_() for t in parameters(2, 3, 4, 3)]
    assert torch.autograd.gradcheck(lambda x, w, b: instance_norm(x, w, b, EPS, relu), leaves[:3])
    assert torch.autograd.gradcheck(
        lambda x, w, b, f: instance_norm_depthwise(x, w, b, f, EPS, 2), leaves
    )


@pytest.mark.usefixtures("instruction_set")
def test_they_keep_what_pytorch_asks_of_an_operator() -> None:
    inputs = [t.requires_grad_() for t in parameters(2, 5, 4, 3)]
    ops = torch.ops.wiring
    torch.library.opcheck(ops.instance_norm.default, (*inputs[:3], EPS, True))
    torch.library.opcheck(ops.instance_norm_depthwise.default, (*inputs, EPS, 2))
    frozen = [t.detach() for t in inputs]
    grad = torch.randn(2, 5, 4, 3)
    torch.library.opcheck(ops.instance_norm_gradients.default, (grad, *frozen[:3], EPS, True))
    torch.library.opcheck(ops.instance_norm_depthwise_gradients.default, (grad, *frozen, EPS, 1))


def test_vmap_maps_images_and_parameters() -> None:
    x, weight, bias, filters = parameters(2, 3, 4, 4)
    xs = torch.stack([x, x + 1, x * 2])
    mapped = torch.vmap(lambda x: instance_norm(x, weight, bias, EPS, True))(xs)
    assert torch.equal(mapped, torch.stack([instance_norm(x, weight, bias, EPS, True) for x in xs]))
    many = torch.stack([filters, -filters])
    mapped = torch.vmap(lambda f: instance_norm_depthwise(x, weight, bias, f, EPS, 1))(many)
    one = [instance_norm_depthwise(x, weight, bias, f, EPS, 1) for f in many]
    assert torch.equal(mapped, torch.stack(one))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.ones(2, 3, 4)}, r"takes \[N, C, H, W\], got \[2, 3, 4\]"),
        ({"x": torch.ones(2, 3, 1, 1)}, "at least 2 pixels an image, got 1x1"),
        ({"weight": torch.ones(4)}, r"3 channels takes .* got \[4\] and \[3\]"),
        ({"filters": torch.ones(3, 1, 5, 5)}, r"must be \[3, 1, 3, 3\], got \[3, 1, 5, 5\]"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], sentence: str) -> None:
    x, weight, bias, filters = parameters(2, 3, 4, 4)
    arguments = {
        "x": x, "weight": weight, "bias": bias, "filters": filters, "eps": EPS, "stride": 1,
    }  # fmt: skip
    with pytest.raises(WiringError, match=sentence):
        instance_norm_depthwise(**(arguments | change))


@pytest.mark.parametrize(
    "steps",
    [("norm", "act", "depthwise"), ("norm", "act"), ("norm",), ("act", "depthwise", "norm"),
     ("norm", "depthwise", "act"), ("norm", "act", "pool")],
)  # fmt: skip
def test_a_node_is_its_steps_one_after_another(steps: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    group = NodeGroup(name="g", size=6, steps=steps, norm="instance", stride=2)
    node = NodeOp(group, group.steps)
    x = torch.randn(2, 6, 5, 5).contiguous(memory_format=torch.channels_last)
    y = x
    for step in node:
        y = step(y)
    torch.testing.assert_close(node(x), y, rtol=1e-4, atol=1e-5)
    assert node(x).is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_node_computes_and_learns_the_same() -> None:
    torch.manual_seed(0)
    group = NodeGroup(name="g", size=6, steps=("norm", "act", "depthwise"), norm="instance")
    node = NodeOp(group, group.steps)
    x, pull = torch.randn(2, 2, 6, 5, 5)
    compiled = torch.compile(node, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), node(x))
    for one, other in zip(
        torch.autograd.grad(compiled(x), list(node.parameters()), pull),
        torch.autograd.grad(node(x), list(node.parameters()), pull),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
