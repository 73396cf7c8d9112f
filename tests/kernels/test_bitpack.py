"""Signs, flags and bit planes as words: every bit in its place, from every layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import SETS, poisoned, shifted, threads
from torch import Tensor
from torch.library import opcheck

from wiring.errors import WiringError
from wiring.kernels import backends, bitpack

IMAGES = st.tuples(
    st.integers(0, 3),
    st.sampled_from([1, 2, 15, 63, 64, 65, 127, 130, 300]),
    st.integers(1, 9),
    st.integers(1, 9),
)


def bits(packed: Tensor, channels: int) -> Tensor:
    """Words [N, H, W, ·] → bool [N, C, H, W], by Python's own integers."""
    rows = [
        [word >> i & 1 for word in row for i in range(64)] for row in packed.flatten(0, 2).tolist()
    ]
    size = (*packed.shape[:3], 64 * packed.shape[3])
    flags = torch.tensor(rows, dtype=torch.bool).view(size)
    assert not flags[..., channels:].any(), "bits behind the last channel"
    return flags[..., :channels].permute(0, 3, 1, 2)


def image(size: tuple[int, ...]) -> Tensor:
    """Normal values around -1, 0, 1 and NaN."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))
    for special in (-1.0, -0.0, 0.0, 1.0, torch.nan):
        x[torch.rand(size, generator=torch.Generator().manual_seed(7)) < 0.05] = special
    return x


def layouts(x: Tensor) -> list[Tensor]:
    """x in memory as planes, as rows, transposed, cut out, and off alignment."""
    wide = torch.nn.functional.pad(x, (1, 2))
    return [
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        wide[..., 1:-2],
        shifted(x),
    ]


@SETS
@given(size=IMAGES)
@settings(deadline=None, max_examples=25)
def test_every_bit_is_the_sign_of_its_channel_in_every_layout(
    instructions: str, size: tuple[int, ...]
) -> None:
    x = image(size)
    with backends.use(instructions), poisoned():
        for view in layouts(x):
            assert torch.equal(bits(bitpack.pack_signs(view), size[1]), x >= 0)


@SETS
@given(size=IMAGES, wanted=st.integers(1, 8))
@settings(deadline=None, max_examples=15)
def test_flags_planes_clips_and_thresholds_have_their_bits(
    instructions: str, size: tuple[int, ...], wanted: int
) -> None:
    x = image(size)
    numbers = (x.nan_to_num() * 77).to(torch.int64).to(torch.uint8)
    channels = size[1]
    threshold, flip = x.new_ones(channels).cumsum(0) / channels, torch.arange(channels) % 3 == 0
    expected = (x >= threshold.view(1, -1, 1, 1)) ^ flip.view(1, -1, 1, 1)
    with backends.use(instructions), poisoned():
        for view, bytes_ in zip(layouts(x), layouts(numbers), strict=True):
            assert torch.equal(bits(bitpack.pack_bits(view > 0.5), channels), x > 0.5)
            clipped = bitpack.pack_clipped_signs(view)
            assert torch.equal(bits(clipped[0], channels), x >= 0)
            assert torch.equal(bits(clipped[1], channels), ~(x.abs() >= 1))
            packed = bitpack.pack_thresholds(view, threshold, flip)
            assert torch.equal(bits(packed, channels), expected)
            for i, plane in enumerate(bitpack.bit_planes(bytes_, wanted)):
                assert torch.equal(bits(plane, channels), (numbers >> i & 1).bool())


@SETS
@given(size=IMAGES)
@settings(deadline=None, max_examples=20)
def test_unpacking_gives_back_signs_and_keeps_what_a_bit_keeps(
    instructions: str, size: tuple[int, ...]
) -> None:
    x = image(size).nan_to_num()
    with backends.use(instructions), poisoned():
        packed = bitpack.pack_signs(x)
        signs = bitpack.unpack_signs(packed, size[1])
        assert torch.equal(signs, torch.where(x >= 0, 1.0, -1.0))
        assert signs.permute(0, 2, 3, 1).is_contiguous()
        for view in layouts(x):
            assert torch.equal(bitpack.keep_bits(view, packed), x.clamp(min=0))


def test_a_gradient_of_nan_and_infinity_is_cut_where_its_bit_is_0() -> None:
    grad = torch.tensor([torch.nan, torch.inf, 2.0]).view(1, 3, 1, 1)
    packed = bitpack.pack_bits(torch.tensor([False, False, True]).view(1, 3, 1, 1))
    for instructions in backends.instruction_sets():
        with backends.use(instructions):
            assert bitpack.keep_bits(grad, packed).flatten().tolist() == [0, 0, 2]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_words_do_not_depend_on_the_number_of_threads(number: int) -> None:
    x = image((3, 130, 40, 33))
    last = x.contiguous(memory_format=torch.channels_last)
    expected = x >= 0
    with threads(number):
        for view in (x, last):
            packed = bitpack.pack_clipped_signs(view)[0]
            assert torch.equal(bitpack.unpack_signs(packed, 130) > 0, expected)


def _calls() -> list[tuple[Any, tuple[Any, ...]]]:
    x = image((2, 70, 4, 3)).nan_to_num()
    packed = bitpack.pack_signs(x)
    return [
        (bitpack.pack_signs, (x,)),
        (bitpack.pack_signs, (x.clone().requires_grad_(),)),
        (bitpack.pack_clipped_signs, (x.double(),)),
        (bitpack.pack_thresholds, (x, torch.rand(70), torch.rand(70) > 0.5)),
        (bitpack.pack_bits, (x > 0,)),
        (bitpack.bit_planes, ((x.abs() * 50).byte(), 5)),
        (bitpack.unpack_signs, (packed, 70)),
        (bitpack.keep_bits, (x, packed)),
    ]


@pytest.mark.parametrize("index", range(8))
def test_pytorchs_own_checks_of_an_operation_pass(index: int) -> None:
    operation, arguments = _calls()[index]
    opcheck(operation, arguments)


def test_vmap_packs_a_stack_of_batches() -> None:
    x = image((3, 2, 70, 4, 3)[1:]).expand(3, 2, 70, 4, 3) * torch.tensor([1, -1, 2]).view(
        3, 1, 1, 1, 1
    )
    packed = torch.vmap(bitpack.pack_signs)(x)
    assert torch.equal(packed, torch.stack([bitpack.pack_signs(part) for part in x]))
    with pytest.raises(WiringError, match="batches its first argument alone"):
        torch.vmap(lambda t: bitpack.pack_thresholds(x[0], t, t > 0))(torch.rand(3, 70))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: bitpack.pack_signs(x[0]), r"takes \[N, channels, H, W\], got \[70, 4, 3\]"),
        (lambda x: bitpack.pack_bits(x), "flags must be bool, got torch.float32"),
        (lambda x: bitpack.bit_planes(x, 2), "cut from uint8, got torch.float32"),
        (lambda x: bitpack.bit_planes(x.byte(), 9), r"must be 1\.\.8, got 9"),
        (lambda x: bitpack.unpack_signs(bitpack.pack_signs(x), 129), r"\[N, H, W, 3\]"),
        (lambda x: bitpack.keep_bits(x, bitpack.pack_signs(x[:1])), "do not fit an image"),
        (lambda x: bitpack.pack_thresholds(x, x[0, :3, 0, 0], x[0, :, 0, 0] > 0), "one per"),
        (lambda x: bitpack.pack_thresholds(x, x[0, :, 0, 0], x[0, :, 0, 0]), "must be bool"),
    ],
)
def test_misuse_is_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(WiringError, match=message):
        call(torch.zeros(2, 70, 4, 3))
