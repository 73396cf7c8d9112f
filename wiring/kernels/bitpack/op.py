"""Signs and flags of channels as 64-bit words: 1 bit where a float takes 32.

Bit i % 64 of word i // 64 belongs to channel i; the bits behind the last channel are 0. Weights
[D, S, kh, kw] pack like images, one word row per filter position.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch.library import custom_op

from wiring.errors import WiringError
from wiring.kernels.backends import native, threads

BITS = 64
MOST_PLANES = 8
_native = native("bitpack")


def words(channels: int) -> int:
    """Words that `channels` bits take."""
    return (channels + BITS - 1) // BITS


def _check_image(x: Tensor) -> None:
    if x.dim() != 4:
        raise WiringError(f"packing takes [N, channels, H, W], got {list(x.shape)}")


def _check_words(packed: Tensor, channels: int) -> None:
    if packed.dim() != 4 or packed.dtype != torch.int64 or packed.shape[3] != words(channels):
        raise WiringError(
            f"{channels} channels unpack from int64 [N, H, W, {words(channels)}], "
            f"got {packed.dtype} {list(packed.shape)}"
        )


def _check_bytes(x: Tensor, bits: int) -> None:
    _check_image(x)
    if x.dtype != torch.uint8:
        raise WiringError(f"bit planes are cut from uint8, got {x.dtype}")
    if not 1 <= bits <= MOST_PLANES:
        raise WiringError(f"bit planes must be 1..{MOST_PLANES}, got {bits}")


def _check_thresholds(x: Tensor, threshold: Tensor, flip: Tensor) -> None:
    _check_image(x)
    channels = list(x.shape[1:2])
    if list(threshold.shape) != channels or list(flip.shape) != channels:
        raise WiringError(
            f"thresholds and flips must be {channels}, one per channel, got "
            f"{list(threshold.shape)} and {list(flip.shape)}"
        )
    if flip.dtype != torch.bool:
        raise WiringError(f"flips must be bool, got {flip.dtype}")


def _pack(flags: Tensor) -> Tensor:
    """bool [N, C, H, W] → int64 [N, H, W, words]."""
    n, c, h, w = flags.shape
    rows = torch.zeros(n, h, w, words(c) * BITS, dtype=torch.int64, device=flags.device)
    rows[..., :c] = flags.permute(0, 2, 3, 1)
    place = torch.arange(BITS, device=flags.device)
    # A sum of distinct powers of two wraps to the word with those bits.
    return (rows.view(n, h, w, words(c), BITS) << place).sum(dim=-1)


def unpack_bits(packed: Tensor, channels: int) -> Tensor:
    """int64 [N, H, W, words] → bool [N, C, H, W]."""
    place = torch.arange(BITS, device=packed.device)
    flags = ((packed[..., None] >> place) & 1).flatten(3)[..., :channels]
    return flags.bool().permute(0, 3, 1, 2)


def _signs(packed: Tensor, channels: int) -> Tensor:
    """int64 [N, H, W, words] → ±1 float32 [N, C, H, W], channels_last."""
    return (
        unpack_bits(packed, channels)
        .permute(0, 2, 3, 1)
        .float()
        .mul_(2)
        .sub_(1)
        .permute(0, 3, 1, 2)
    )


def _new_words(x: Tensor, *planes: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(*planes, n, h, w, words(c), dtype=torch.int64)


def _channels_last(x: Tensor, channels: int) -> Tensor:
    """Room for `channels` floats at every position of the words x [N, H, W, words]."""
    n, h, w, _ = x.shape
    return x.new_empty(n, h, w, channels, dtype=torch.float32).permute(0, 3, 1, 2)


def layout(x: Tensor) -> tuple[Tensor, bool]:
    """x [N, C, H, W] dense in memory, and whether as planes [C, H·W] or as rows [H·W, C]."""
    if x.shape[2] * x.shape[3] > 1 and x.is_contiguous():
        return x, True
    return x.contiguous(memory_format=torch.channels_last), False


def _run(name: str, kernel: ModuleType, x: Tensor, packed: Tensor, *arguments: int) -> Tensor:
    """Call kernel.<name> on an image."""
    x, planes = layout(x)
    n, c, h, w = x.shape
    sizes = (n, c, h * w, planes)
    getattr(kernel, name)(x.data_ptr(), *arguments, *sizes, packed.data_ptr(), threads())
    return packed


@custom_op("wiring::pack_signs", mutates_args=())
def pack_signs(x: Tensor) -> Tensor:
    """Bit 1 where x >= 0 (0 counts as +, NaN as -).

    x float [N, C, H, W]; returns int64 [N, H, W, ⌈C/64⌉]. Raises WiringError for another shape.
    """
    _check_image(x)
    return _pack(x >= 0)


@pack_signs.register_fake
def _(x: Tensor) -> Tensor:
    return _new_words(x)


@pack_signs.register_kernel("cpu")
def _(x: Tensor) -> Tensor:
    _check_image(x)
    kernel = _native()
    if kernel is None or x.dtype != torch.float32:
        return _pack(x >= 0)
    return _run("pack_signs", kernel, x, _new_words(x))


@custom_op("wiring::pack_clipped_signs", mutates_args=())
def pack_clipped_signs(x: Tensor) -> Tensor:
    """What the gradient of a clipped sign needs: the words of x >= 0 and of not |x| >= 1.

    x float [N, C, H, W]; returns int64 [2, N, H, W, ⌈C/64⌉]. Raises WiringError for another
    shape.
    """
    _check_image(x)
    return torch.stack([_pack(x >= 0), _pack(~(x.abs() >= 1))])


@pack_clipped_signs.register_fake
def _(x: Tensor) -> Tensor:
    return _new_words(x, 2)


@pack_clipped_signs.register_kernel("cpu")
def _(x: Tensor) -> Tensor:
    _check_image(x)
    kernel = _native()
    if kernel is None or x.dtype != torch.float32:
        return torch.stack([_pack(x >= 0), _pack(~(x.abs() >= 1))])
    return _run("pack_clipped", kernel, x, _new_words(x, 2))


def _pack_thresholds(x: Tensor, threshold: Tensor, flip: Tensor) -> Tensor:
    return _pack((x >= threshold.view(1, -1, 1, 1)) ^ flip.view(1, -1, 1, 1))


@custom_op("wiring::pack_thresholds", mutates_args=())
def pack_thresholds(x: Tensor, threshold: Tensor, flip: Tensor) -> Tensor:
    """Bit 1 where x >= threshold, inverted where flip: a norm and a sign in one comparison.

    x float [N, C, H, W]; threshold [C] of its type; flip bool [C]; returns int64
    [N, H, W, ⌈C/64⌉]. Raises WiringError for other shapes or a flip that is not bool.
    """
    _check_thresholds(x, threshold, flip)
    return _pack_thresholds(x, threshold, flip)


@pack_thresholds.register_fake
def _(x: Tensor, threshold: Tensor, flip: Tensor) -> Tensor:
    return _new_words(x)


@pack_thresholds.register_kernel("cpu")
def _(x: Tensor, threshold: Tensor, flip: Tensor) -> Tensor:
    _check_thresholds(x, threshold, flip)
    kernel = _native()
    if kernel is None or x.dtype != torch.float32 or threshold.dtype != torch.float32:
        return _pack_thresholds(x, threshold, flip)
    flips = _run("pack_bits", kernel, flip.view(1, -1, 1, 1), _new_words(flip.view(1, -1, 1, 1)))
    threshold = threshold.contiguous()
    addresses = (threshold.data_ptr(), flips.data_ptr())
    return _run("pack_thresholds", kernel, x, _new_words(x), *addresses)


@custom_op("wiring::pack_bits", mutates_args=())
def pack_bits(flags: Tensor) -> Tensor:
    """Bit 1 where a flag is set.

    flags bool [N, C, H, W]; returns int64 [N, H, W, ⌈C/64⌉]. Raises WiringError for another shape
    or type.
    """
    _check_flags(flags)
    return _pack(flags)


def _check_flags(flags: Tensor) -> None:
    _check_image(flags)
    if flags.dtype != torch.bool:
        raise WiringError(f"flags must be bool, got {flags.dtype}")


@pack_bits.register_fake
def _(flags: Tensor) -> Tensor:
    return _new_words(flags)


@pack_bits.register_kernel("cpu")
def _(flags: Tensor) -> Tensor:
    _check_flags(flags)
    kernel = _native()
    return _pack(flags) if kernel is None else _run("pack_bits", kernel, flags, _new_words(flags))


@custom_op("wiring::bit_planes", mutates_args=())
def bit_planes(x: Tensor, bits: int) -> Tensor:
    """The lowest `bits` bits of every number, one plane of words for each.

    x uint8 [N, C, H, W]; returns int64 [bits, N, H, W, ⌈C/64⌉], lowest bit first. Raises
    WiringError for another shape or type, or unless 1 <= bits <= 8.
    """
    _check_bytes(x, bits)
    return torch.stack([_pack((x & (1 << bit)) != 0) for bit in range(bits)])


@bit_planes.register_fake
def _(x: Tensor, bits: int) -> Tensor:
    return _new_words(x, bits)


@bit_planes.register_kernel("cpu")
def _(x: Tensor, bits: int) -> Tensor:
    _check_bytes(x, bits)
    kernel = _native()
    if kernel is None:
        return torch.stack([_pack((x & (1 << bit)) != 0) for bit in range(bits)])
    return _run("bit_planes", kernel, x, _new_words(x, bits), bits)


@custom_op("wiring::unpack_signs", mutates_args=())
def unpack_signs(packed: Tensor, channels: int) -> Tensor:
    """+1 where the bit is 1, else -1.

    packed int64 [N, H, W, ⌈C/64⌉]; returns float32 [N, C, H, W], channels_last. Raises
    WiringError for words of another number of channels.
    """
    _check_words(packed, channels)
    return _signs(packed, channels)


@unpack_signs.register_fake
def _(packed: Tensor, channels: int) -> Tensor:
    return _channels_last(packed, channels)


@unpack_signs.register_kernel("cpu")
def _(packed: Tensor, channels: int) -> Tensor:
    _check_words(packed, channels)
    kernel = _native()
    if kernel is None:
        return _signs(packed, channels)
    packed = packed.contiguous()
    result = _channels_last(packed, channels)
    rows = result.numel() // max(1, channels)
    kernel.unpack_signs(packed.data_ptr(), rows, channels, result.data_ptr(), threads())
    return result


def _check_kept(x: Tensor, packed: Tensor) -> None:
    _check_image(x)
    _check_words(packed, x.shape[1])
    if packed.shape[:3] != (x.shape[0], *x.shape[2:]):
        raise WiringError(f"words of {list(packed.shape)} do not fit an image {list(x.shape)}")


def _keep(x: Tensor, packed: Tensor) -> Tensor:
    kept = torch.where(unpack_bits(packed, x.shape[1]), x, 0)
    return kept.contiguous(memory_format=torch.channels_last)


@custom_op("wiring::keep_bits", mutates_args=())
def keep_bits(x: Tensor, packed: Tensor) -> Tensor:
    """x where its bit is 1, else 0.

    x float [N, C, H, W]; packed int64 [N, H, W, ⌈C/64⌉]; returns x's shape and type,
    channels_last. Raises WiringError for other shapes.
    """
    _check_kept(x, packed)
    return _keep(x, packed)


@keep_bits.register_fake
def _(x: Tensor, packed: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n, h, w, c).permute(0, 3, 1, 2)


@keep_bits.register_kernel("cpu")
def _(x: Tensor, packed: Tensor) -> Tensor:
    _check_kept(x, packed)
    kernel = _native()
    if kernel is None or x.dtype != torch.float32:
        return _keep(x, packed)
    x, packed = x.contiguous(memory_format=torch.channels_last), packed.contiguous()
    n, c, h, w = x.shape
    result = _channels_last(packed, c)
    addresses = (x.data_ptr(), packed.data_ptr())
    kernel.keep_bits(*addresses, n * h * w, c, result.data_ptr(), threads())
    return result


def _cuda(name: str) -> Any:
    """The Triton kernel of that name, or None where there is none."""
    try:
        from wiring.kernels.bitpack import gpu
    except ImportError:
        return None
    return getattr(gpu, name, None)


@pack_signs.register_kernel("cuda")
def _(x: Tensor) -> Tensor:
    kernel = _cuda("pack_signs")
    _check_image(x)
    return _pack(x >= 0) if kernel is None else cast(Tensor, kernel(x))


@unpack_signs.register_kernel("cuda")
def _(packed: Tensor, channels: int) -> Tensor:
    kernel = _cuda("unpack_signs")
    _check_words(packed, channels)
    return _signs(packed, channels) if kernel is None else cast(Tensor, kernel(packed, channels))


@pack_bits.register_kernel("cuda")
def _(flags: Tensor) -> Tensor:
    kernel = _cuda("pack_bits")
    _check_flags(flags)
    return _pack(flags) if kernel is None else cast(Tensor, kernel(flags))


def _fold(operation: Any) -> None:
    """Under vmap, more images: only the first argument may be batched."""

    def batched(info: Any, in_dims: Any, x: Tensor, *others: Any) -> tuple[Tensor, int]:
        if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
            raise WiringError("vmap over packing batches its first argument alone")
        x = x.movedim(in_dims[0], 0)
        y = operation(x.flatten(0, 1), *others)
        return y.unflatten(0, (info.batch_size, -1)), 0

    operation.register_vmap(batched)


for _operation in (pack_signs, pack_bits, pack_thresholds, unpack_signs):
    _fold(_operation)
