"""-Σ |w - x| of bytes: the same integers on every instruction set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from l1_cases import LAYERS, Layer, layers, running, sets

from wiring.errors import WiringError
from wiring.kernels.l1_conv2d import PreparedL1Uint8, l1_conv2d_uint8

every_set = pytest.mark.parametrize("name", sets())
WIDE = [
    Layer(images=1, sources=300, destinations=9, height=9, width=30),
    Layer(images=3, sources=70, destinations=37, height=7, width=7),
    Layer(images=2, sources=33, destinations=40, height=14, width=14, kernel=(5, 5), padding=2),
    Layer(images=1, sources=16, destinations=64, height=5, width=33, kernel=(3, 2), padding=0),
]


def check(layer: Layer, outside: int) -> None:
    x, weight, live = layer.bytes()
    y = l1_conv2d_uint8(x, weight, live, outside, *layer.steps)
    assert y.dtype == torch.int32
    assert torch.equal(y.double(), layer.forward(x, weight, live, outside))
    prepared = PreparedL1Uint8(weight, live, outside, stride=layer.stride, padding=layer.padding)
    assert torch.equal(prepared(x), y)
    assert y.permute(0, 2, 3, 1).is_contiguous()


@every_set
@pytest.mark.parametrize("layer", LAYERS + WIDE, ids=str)
@pytest.mark.parametrize("density", [None, 0.0, 0.4])
def test_sums_of_bytes_are_exact(name: str, layer: Layer, density: float | None) -> None:
    with running(name):
        check(replace(layer, density=density), outside=77)


@settings(max_examples=150, deadline=None)
@given(layers(), st.integers(0, 255))
def test_sums_of_any_layer_are_exact_on_every_instruction_set(layer: Layer, outside: int) -> None:
    for name in sets():
        with running(name):
            check(layer, outside)


@every_set
def test_the_largest_distances_do_not_overflow(name: str) -> None:
    x = torch.full((1, 2000, 4, 4), 255, dtype=torch.uint8)
    weight = torch.zeros(3, 2000, 3, 3, dtype=torch.uint8)
    with running(name):
        y = l1_conv2d_uint8(x, weight, None, 255, 1, 1)
    assert (y == -255 * 18000).all()


@every_set
def test_results_do_not_depend_on_threads_or_layouts(name: str) -> None:
    layer = Layer(sources=20, destinations=40, height=9, width=9)
    x, weight, _ = layer.bytes()
    shifted = torch.zeros(x.numel() + 1, dtype=torch.uint8)[1:].view_as(x).copy_(x)
    expected = layer.forward(x, weight, None, 3).int()
    for threads in (1, 2, 4):
        with running(name, threads=threads):
            for images in (x, x.contiguous(memory_format=torch.channels_last), shifted):
                assert torch.equal(l1_conv2d_uint8(images, weight, None, 3, 1, 1), expected)


def test_bytes_prepared_for_one_instruction_set_run_on_another() -> None:
    layer = Layer(sources=24, destinations=37, density=0.5)
    x, weight, live = layer.bytes()
    prepared = PreparedL1Uint8(weight, live, 5, stride=1, padding=1)
    for name in sets():
        with running(name):
            assert torch.equal(prepared(x).double(), layer.forward(x, weight, live, 5))


def test_the_operation_is_a_good_citizen_of_pytorch() -> None:
    x, weight, live = Layer(density=0.5).bytes()
    torch.library.opcheck(l1_conv2d_uint8, (x, weight, live, 3, 1, 1))


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    x, weight, live = Layer(density=0.5).bytes()
    with pytest.raises(WiringError, match="must be uint8, got"):
        l1_conv2d_uint8(x.float(), weight, live, 0, 1, 1)
    with pytest.raises(WiringError, match=r"in 0\.\.255, got 256"):
        l1_conv2d_uint8(x, weight, live, 256, 1, 1)
    with pytest.raises(WiringError, match="mask"):
        l1_conv2d_uint8(x, weight, live[:1], 0, 1, 1)
    with pytest.raises(WiringError, match="does not fit"):
        l1_conv2d_uint8(x[:, :, :1], weight, live, 0, 1, 0)
    with pytest.raises(WiringError, match="padding value"):
        PreparedL1Uint8(weight, live, -1)
    with pytest.raises(WiringError, match="take"):
        PreparedL1Uint8(weight)(x.float())
