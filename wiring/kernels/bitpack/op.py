"""Signs and flags of channels as 64-bit words: 1 bit where a float takes 32.

Bit i % 64 of word i // 64 belongs to channel i; the bits behind the last channel are 0. Weights
[D, S, kh, kw] pack like images, one word row per filter position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import has_triton, native, threads
from wiring.kernels.bitpack.layout import (
    channels_last,
    check_bytes,
    check_flags,
    check_image,
    check_kept,
    check_thresholds,
    check_words,
    define_bits,
    define_clipped,
    define_kept,
    define_planes,
    define_signs,
    define_thresholds,
    define_unpacked,
    new_words,
    run,
)

_native = native("bitpack")


@custom_op("wiring::pack_signs", mutates_args=())
def pack_signs(x: Tensor) -> Tensor:
    """Bit 1 where x >= 0 (0 counts as +, NaN as -).

    x float [N, C, H, W]; returns int64 [N, H, W, ⌈C/64⌉]. Raises WiringError for another shape.
    """
    return define_signs(x)


@pack_signs.register_fake
def _(x: Tensor) -> Tensor:
    return new_words(x)


@pack_signs.register_kernel("cpu")
def _(x: Tensor) -> Tensor:
    check_image(x)
    kernel = _native()
    if kernel is None or x.dtype != torch.float32:
        return define_signs(x)
    return run("pack_signs", kernel, x, new_words(x))


@custom_op("wiring::pack_clipped_signs", mutates_args=())
def pack_clipped_signs(x: Tensor) -> Tensor:
    """What the gradient of a clipped sign needs: the words of x >= 0 and of not |x| >= 1.

    x float [N, C, H, W]; returns int64 [2, N, H, W, ⌈C/64⌉]. Raises WiringError for another
    shape.
    """
    return define_clipped(x)


@pack_clipped_signs.register_fake
def _(x: Tensor) -> Tensor:
    return new_words(x, 2)


@pack_clipped_signs.register_kernel("cpu")
def _(x: Tensor) -> Tensor:
    check_image(x)
    kernel = _native()
    if kernel is None or x.dtype != torch.float32:
        return define_clipped(x)
    return run("pack_clipped", kernel, x, new_words(x, 2))


@custom_op("wiring::pack_thresholds", mutates_args=())
def pack_thresholds(x: Tensor, threshold: Tensor, flip: Tensor) -> Tensor:
    """Bit 1 where x >= threshold, inverted where flip: a norm and a sign in one comparison.

    x float [N, C, H, W]; threshold [C] of its type; flip bool [C]; returns int64
    [N, H, W, ⌈C/64⌉]. Raises WiringError for other shapes or a flip that is not bool.
    """
    return define_thresholds(x, threshold, flip)


@pack_thresholds.register_fake
def _(x: Tensor, threshold: Tensor, flip: Tensor) -> Tensor:
    return new_words(x)


@pack_thresholds.register_kernel("cpu")
def _(x: Tensor, threshold: Tensor, flip: Tensor) -> Tensor:
    check_thresholds(x, threshold, flip)
    kernel = _native()
    if kernel is None or x.dtype != torch.float32 or threshold.dtype != torch.float32:
        return define_thresholds(x, threshold, flip)
    flips = run("pack_bits", kernel, flip.view(1, -1, 1, 1), new_words(flip.view(1, -1, 1, 1)))
    threshold = threshold.contiguous()
    addresses = (threshold.data_ptr(), flips.data_ptr())
    return run("pack_thresholds", kernel, x, new_words(x), *addresses)


@custom_op("wiring::pack_bits", mutates_args=())
def pack_bits(flags: Tensor) -> Tensor:
    """Bit 1 where a flag is set.

    flags bool [N, C, H, W]; returns int64 [N, H, W, ⌈C/64⌉]. Raises WiringError for another shape
    or type.
    """
    return define_bits(flags)


@pack_bits.register_fake
def _(flags: Tensor) -> Tensor:
    return new_words(flags)


@pack_bits.register_kernel("cpu")
def _(flags: Tensor) -> Tensor:
    check_flags(flags)
    kernel = _native()
    return (
        define_bits(flags) if kernel is None else run("pack_bits", kernel, flags, new_words(flags))
    )


@custom_op("wiring::bit_planes", mutates_args=())
def bit_planes(x: Tensor, bits: int) -> Tensor:
    """The lowest `bits` bits of every number, one plane of words for each.

    x uint8 [N, C, H, W]; returns int64 [bits, N, H, W, ⌈C/64⌉], lowest bit first. Raises
    WiringError for another shape or type, or unless 1 <= bits <= 8.
    """
    return define_planes(x, bits)


@bit_planes.register_fake
def _(x: Tensor, bits: int) -> Tensor:
    return new_words(x, bits)


@bit_planes.register_kernel("cpu")
def _(x: Tensor, bits: int) -> Tensor:
    check_bytes(x, bits)
    kernel = _native()
    if kernel is None:
        return define_planes(x, bits)
    return run("bit_planes", kernel, x, new_words(x, bits), bits)


@custom_op("wiring::unpack_signs", mutates_args=())
def unpack_signs(packed: Tensor, channels: int) -> Tensor:
    """+1 where the bit is 1, else -1.

    packed int64 [N, H, W, ⌈C/64⌉]; returns float32 [N, C, H, W], channels_last. Raises
    WiringError for words of another number of channels.
    """
    return define_unpacked(packed, channels)


@unpack_signs.register_fake
def _(packed: Tensor, channels: int) -> Tensor:
    return channels_last(packed, channels)


@unpack_signs.register_kernel("cpu")
def _(packed: Tensor, channels: int) -> Tensor:
    check_words(packed, channels)
    kernel = _native()
    if kernel is None:
        return define_unpacked(packed, channels)
    packed = packed.contiguous()
    result = channels_last(packed, channels)
    rows = result.numel() // max(1, channels)
    kernel.unpack_signs(packed.data_ptr(), rows, channels, result.data_ptr(), threads())
    return result


@custom_op("wiring::keep_bits", mutates_args=())
def keep_bits(x: Tensor, packed: Tensor) -> Tensor:
    """x where its bit is 1, else 0.

    x float [N, C, H, W]; packed int64 [N, H, W, ⌈C/64⌉]; returns x's shape and type,
    channels_last. Raises WiringError for other shapes.
    """
    return define_kept(x, packed)


@keep_bits.register_fake
def _(x: Tensor, packed: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n, h, w, c).permute(0, 3, 1, 2)


@keep_bits.register_kernel("cpu")
def _(x: Tensor, packed: Tensor) -> Tensor:
    check_kept(x, packed)
    kernel = _native()
    if kernel is None or x.dtype != torch.float32:
        return define_kept(x, packed)
    x, packed = x.contiguous(memory_format=torch.channels_last), packed.contiguous()
    n, c, h, w = x.shape
    result = channels_last(packed, c)
    addresses = (x.data_ptr(), packed.data_ptr())
    kernel.keep_bits(*addresses, n * h * w, c, result.data_ptr(), threads())
    return result


def _on_cuda(operation: Any, name: str, definition: Callable[..., Tensor]) -> None:
    """On a GPU, the Triton kernel of that name; the definition where Triton is missing."""

    def launch(*arguments: Any) -> Any:
        if not has_triton():
            return definition(*arguments)
        from wiring.kernels.bitpack import gpu

        return getattr(gpu, name)(*arguments)

    operation.register_kernel("cuda")(launch)


def _fold(operation: Any) -> None:
    """Under vmap, more images: only the first argument may be batched."""

    def batched(info: Any, in_dims: Any, x: Tensor, *others: Any) -> tuple[Tensor, int]:
        if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
            raise WiringError("vmap over packing batches its first argument alone")
        x = x.movedim(in_dims[0], 0)
        y = operation(x.flatten(0, 1), *others)
        return y.unflatten(0, (info.batch_size, -1)), 0

    operation.register_vmap(batched)


_on_cuda(pack_signs, "pack_signs", define_signs)
_on_cuda(pack_clipped_signs, "pack_clipped_signs", define_clipped)
_on_cuda(pack_thresholds, "pack_thresholds", define_thresholds)
_on_cuda(pack_bits, "pack_bits", define_bits)
_on_cuda(bit_planes, "bit_planes", define_planes)
_on_cuda(unpack_signs, "unpack_signs", define_unpacked)
_on_cuda(keep_bits, "keep_bits", define_kept)
for _operation in (pack_signs, pack_bits, pack_thresholds, unpack_signs):
    _fold(_operation)
