"""Products of k-bit numbers from their planes are exact integers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import SETS, Layer, layers, poisoned, threads
from torch import Tensor
from torch.library import opcheck

from wiring.errors import WiringError
from wiring.kernels import backends
from wiring.kernels.bitpack import bit_planes
from wiring.kernels.xnor_conv2d import bitplane_conv2d


def numbers(layer: Layer, x_bits: int, w_bits: int) -> tuple[Tensor, Tensor]:
    """uint8 images and weights, the largest number among them."""
    generator = torch.Generator().manual_seed(layer.channels)
    sizes = (layer.images, layer.channels, layer.height, layer.width)
    x = torch.randint(0, 2**x_bits, sizes, generator=generator, dtype=torch.uint8)
    sizes = (layer.destinations, layer.channels, *layer.kernel)
    w = torch.randint(0, 2**w_bits, sizes, generator=generator, dtype=torch.uint8)
    x[:1], w[:1] = 2**x_bits - 1, 2**w_bits - 1
    return x, w


@SETS
@given(layer=layers(), x_bits=st.integers(1, 8), w_bits=st.integers(1, 8))
@settings(deadline=None, max_examples=15)
def test_planes_give_the_exact_convolution(
    instructions: str, layer: Layer, x_bits: int, w_bits: int
) -> None:
    x, w = numbers(layer, x_bits, w_bits)
    planes = bit_planes(x, x_bits), bit_planes(w, w_bits)
    with backends.use(instructions), poisoned():
        y = bitplane_conv2d(*planes, layer.stride, layer.padding)
    wanted = F.conv2d(x.double(), w.double(), stride=layer.stride, padding=layer.padding)
    assert y.dtype == torch.int32
    assert torch.equal(y.double(), wanted)


@pytest.mark.parametrize("number", [2, 4])
def test_the_result_does_not_depend_on_the_number_of_threads(number: int) -> None:
    x, w = numbers(Layer(), 3, 2)
    planes = bit_planes(x, 3), bit_planes(w, 2)
    with threads(number):
        y = bitplane_conv2d(*planes, 1, 1)
    assert torch.equal(y.double(), F.conv2d(x.double(), w.double(), padding=1))


def test_pytorchs_own_checks_of_the_operation_pass() -> None:
    x, w = numbers(Layer(), 3, 2)
    opcheck(bitplane_conv2d, (bit_planes(x, 3), bit_planes(w, 2), 2, 1))


def test_vmap_takes_a_stack_of_batches() -> None:
    x, w = numbers(Layer(), 3, 2)
    planes, weight = bit_planes(x, 3), bit_planes(w, 2)
    y = torch.vmap(lambda x: bitplane_conv2d(x, weight, 1, 1))(
        torch.stack([planes, planes ^ planes])
    )
    assert torch.equal(y[0], bitplane_conv2d(planes, weight, 1, 1))
    assert not y[1].any()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 2, 6, 5, 2), "input planes must be int64"),
        (torch.zeros(9, 2, 6, 5, 2, dtype=torch.int64), r"must be 1\.\.8, got 9"),
        (torch.zeros(3, 2, 6, 5, 1, dtype=torch.int64), "as many words, got 1 and 2"),
    ],
)
def test_misuse_is_a_sentence(x: Tensor, message: str) -> None:
    with pytest.raises(WiringError, match=message):
        bitplane_conv2d(x, torch.zeros(2, 19, 3, 3, 2, dtype=torch.int64), 1, 1)
