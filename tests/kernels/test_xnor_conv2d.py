"""The packed convolution of signs: exact at every border, under every mask, on every path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from packed_cases import SETS, Layer, exact_sums, layers, poisoned, shifted, tensors, threads
from torch import Tensor
from torch.library import opcheck

from wiring.errors import WiringError
from wiring.kernels import backends
from wiring.kernels.bitpack import pack_bits, pack_signs
from wiring.kernels.xnor_conv2d import PreparedXnor, xnor_conv2d, xnor_linear

# One of every path: few and many words a pixel, full and partial panels, few and many pixels.
LAYERS = (
    Layer(),
    Layer(density=0.4),
    Layer(channels=256, destinations=64, height=14, width=14),
    Layer(channels=128, destinations=100, height=9, width=11, stride=2),
    Layer(channels=512, destinations=48, height=7, width=7, density=0.9),
    Layer(channels=4800, destinations=16, kernel=(1, 1), padding=0),
    Layer(channels=2500, destinations=64, height=5, width=5, padding=2),
    Layer(channels=64, destinations=64, kernel=(1, 1), padding=2),
    Layer(images=1, channels=65, destinations=1, kernel=(5, 5), padding=5),
    Layer(density=0.0),
)


def result(layer: Layer, case: Any, scale: Tensor | None = None) -> Tensor:
    y: Tensor = xnor_conv2d(
        pack_signs(case.x), *case.words, scale, layer.channels, layer.stride, layer.padding
    )
    return y


def expected(layer: Layer, case: Any, scale: Tensor | None = None) -> Tensor:
    """As the operator does it in PyTorch: the exact sum, rounded once by each factor."""
    y = exact_sums(case, layer).float() * case.alpha.view(1, -1, 1, 1)
    return y if scale is None else y * scale


@SETS
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_path_is_bit_equal_to_the_float64_sum_with_its_scales(
    instructions: str, layer: Layer
) -> None:
    case = tensors(layer)
    with backends.use(instructions), poisoned():
        assert torch.equal(result(layer, case), expected(layer, case))
        assert torch.equal(result(layer, case, case.scale), expected(layer, case, case.scale))


@SETS
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("channels", "kernel"),
    [(256, (3, 3)), (1500, (1, 1)), (1023 * 64, (1, 1)), (1030 * 64, (1, 1)), (130, (11, 11))],
)
def test_counters_hold_the_largest_counts(
    instructions: str, channels: int, kernel: tuple[int, int], masked: bool
) -> None:
    side = kernel[0] + 3
    x = -torch.ones(1, channels, side, side)
    weight = torch.ones(64, channels, *kernel)
    weight[::2] = -1
    live = torch.ones(weight.shape, dtype=torch.bool)
    live[:, -1] = False
    words = pack_signs(weight), pack_bits(live) if masked else None, torch.ones(64)
    with backends.use(instructions):
        y = xnor_conv2d(pack_signs(x), *words, None, channels, 1, 0)
    edges = (channels - masked) * kernel[0] * kernel[1]
    assert y[:, ::2].unique().tolist() == [edges]
    assert y[:, 1::2].unique().tolist() == [-edges]


@SETS
@given(layer=layers())
@settings(deadline=None, max_examples=30)
def test_random_layers_are_bit_equal_to_the_float64_sum(instructions: str, layer: Layer) -> None:
    case = tensors(layer)
    with backends.use(instructions), poisoned():
        assert torch.equal(result(layer, case), expected(layer, case))


@SETS
@given(layer=layers())
@settings(deadline=None, max_examples=20)
def test_a_prepared_layer_is_the_operation_from_every_layout(
    instructions: str, layer: Layer
) -> None:
    case = tensors(layer)
    wanted = expected(layer, case, case.scale)
    with backends.use(instructions), poisoned():
        prepared = PreparedXnor(
            *case.words, layer.channels, stride=layer.stride, padding=layer.padding
        )
        for x in (
            case.x,
            case.x.contiguous(memory_format=torch.channels_last),
            case.x.transpose(2, 3).contiguous().transpose(2, 3),
            shifted(case.x),
        ):
            assert torch.equal(prepared(x, case.scale), wanted)
        assert torch.equal(prepared.packed(pack_signs(case.x), case.scale), wanted)
        assert prepared(case.x).permute(0, 2, 3, 1).is_contiguous()


def test_a_prepared_layer_works_on_an_instruction_set_it_was_not_made_on() -> None:
    layer = LAYERS[2]
    case = tensors(layer)
    for first in backends.instruction_sets():
        with backends.use(first):
            prepared = PreparedXnor(*case.words, layer.channels, padding=1)
        for second in backends.instruction_sets():
            with backends.use(second):
                assert torch.equal(prepared(case.x), expected(layer, case)), (first, second)


def test_a_prepared_layer_keeps_one_bit_a_weight_and_its_scales() -> None:
    layer = Layer(channels=256, destinations=64)
    prepared = PreparedXnor(*tensors(layer).words, 256, padding=1)
    kept = {
        part.data_ptr(): part.untyped_storage().nbytes()
        for value in vars(prepared).values()
        for part in (value if isinstance(value, tuple) else getattr(value, "__dict__", {}).values())
        if isinstance(part, Tensor)
    }
    assert sum(kept.values()) == 64 * 256 * 9 // 8 + 4 * 64


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("layer", LAYERS[:5], ids=str)
def test_the_result_does_not_depend_on_the_number_of_threads(number: int, layer: Layer) -> None:
    case = tensors(layer)
    for instructions in backends.instruction_sets():
        with threads(number), backends.use(instructions):
            assert torch.equal(result(layer, case), expected(layer, case))


def test_words_may_be_views_and_off_alignment() -> None:
    layer = Layer(density=0.5)
    case = tensors(layer)
    weight, live, alpha = case.words
    assert live is not None
    x = pack_signs(case.x)
    stepped = torch.stack([x, x], dim=1)[:, 0]
    settings = (layer.channels, layer.stride, layer.padding)
    y = xnor_conv2d(stepped, shifted(weight), shifted(live), shifted(alpha), None, *settings)
    assert torch.equal(y, expected(layer, case))


def test_a_dead_edge_adds_nothing_whatever_its_sign() -> None:
    layer = Layer(density=0.5)
    case = tensors(layer)
    assert case.live is not None
    turned = replace(case, weight=torch.where(case.live, case.weight, -case.weight))
    assert torch.equal(result(layer, case), result(layer, turned))


def test_the_linear_form_is_a_matrix_product_of_signs() -> None:
    case = tensors(Layer(images=5, height=1, width=1, kernel=(1, 1), padding=0, density=0.5))
    weight, live, alpha = case.words
    assert live is not None
    words = pack_signs(case.x).flatten(1)
    y = xnor_linear(words, weight.flatten(1), live.flatten(1), alpha, case.scale.flatten(1), 70)
    layer = Layer(images=5, height=1, width=1, kernel=(1, 1), padding=0)
    assert torch.equal(y, expected(layer, case, case.scale).flatten(1))
    with pytest.raises(WiringError, match="must be a matrix"):
        xnor_linear(words[0], weight.flatten(1), None, alpha, None, 70)


@pytest.mark.parametrize("density", [None, 0.5])
@pytest.mark.parametrize("scaled", [False, True])
def test_pytorchs_own_checks_of_the_operation_pass(density: float | None, scaled: bool) -> None:
    case = tensors(Layer(density=density, stride=2))
    scale = torch.rand(2, 1, 3, 3) if scaled else None
    opcheck(xnor_conv2d, (pack_signs(case.x), *case.words, scale, 70, 2, 1))


def test_it_compiles_without_graph_breaks() -> None:
    layer = Layer(density=0.5)
    case = tensors(layer)
    compiled = torch.compile(lambda x: result(layer, replace(case, x=x)), fullgraph=True)
    assert torch.equal(compiled(case.x), expected(layer, case))


def test_vmap_takes_a_stack_of_batches_and_scales() -> None:
    layer = Layer()
    case = tensors(layer)
    x, words = torch.stack([pack_signs(case.x), pack_signs(-case.x)]), case.words
    scales = torch.stack([case.scale, case.scale * 2])

    def one(x: Tensor, scale: Tensor) -> Tensor:
        y: Tensor = xnor_conv2d(x, *words, scale, 70, 1, 1)
        return y

    y = torch.vmap(one)(x, scales)
    assert torch.equal(y, torch.stack([one(x[0], scales[0]), one(x[1], scales[1])]))
    y = torch.vmap(one, in_dims=(0, None))(x, case.scale)
    assert torch.equal(y[1], one(x[1], case.scale))


MISUSE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"channels": 0}, "channels must be at least 1, got 0"),
    ({"channels": 129}, "must be int64"),
    ({"x": torch.zeros(2, 6, 5, 2)}, "input words of 70 channels must be int64"),
    ({"x": torch.zeros(2, 6, 5, 3, dtype=torch.int64)}, "input words of 70 channels"),
    ({"weight": torch.zeros(19, 3, 3, 1, dtype=torch.int64)}, "weight words of 70 channels"),
    ({"live": torch.zeros(19, 3, 1, 2, dtype=torch.int64)}, "live words must be"),
    ({"alpha": torch.ones(18)}, "alpha must be float32"),
    ({"alpha": torch.ones(19, dtype=torch.float64)}, "alpha must be float32"),
    ({"scale": torch.ones(2, 1, 6, 4)}, "scale must be float32"),
    ({"stride": 0}, "stride must be at least 1"),
    ({"padding": -1}, "padding at least 0"),
    ({"x": torch.zeros(2, 2, 2, 2, dtype=torch.int64), "padding": 0}, "a kernel must have"),
)


@pytest.mark.parametrize(("change", "message"), MISUSE, ids=[m for _, m in MISUSE])
def test_misuse_is_a_sentence(change: dict[str, Any], message: str) -> None:
    weight, live, alpha = tensors(Layer(density=0.5)).words
    arguments = {
        "x": torch.zeros(2, 6, 5, 2, dtype=torch.int64),
        "weight": weight,
        "live": live,
        "alpha": alpha,
        "scale": None,
        "channels": 70,
        "stride": 1,
        "padding": 1,
    } | change
    with pytest.raises(WiringError, match=message):
        xnor_conv2d(**arguments)


def test_a_prepared_layer_refuses_other_images_by_a_sentence() -> None:
    prepared = PreparedXnor(*tensors(Layer()).words, 70, padding=1)
    with pytest.raises(WiringError, match=r"takes \[N, 70, H, W\], got \[2, 71, 6, 5\]"):
        prepared(torch.zeros(2, 71, 6, 5))
    with pytest.raises(WiringError, match="scale must be"):
        prepared(torch.zeros(2, 70, 6, 5), torch.ones(1))
    with pytest.raises(WiringError, match="input words"):
        prepared.packed(pack_bits(torch.ones(2, 129, 6, 5, dtype=torch.bool)))
