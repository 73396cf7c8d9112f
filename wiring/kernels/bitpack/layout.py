"""Words of images: their checks, their order in memory, and every operation's definition."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from wiring.errors import WiringError
from wiring.kernels.backends import threads

BITS = 64
MOST_PLANES = 8


def words(channels: int) -> int:
    """Words that `channels` bits take."""
    return (channels + BITS - 1) // BITS


def check_image(x: Tensor) -> None:
    if x.dim() != 4:
        raise WiringError(f"packing takes [N, channels, H, W], got {list(x.shape)}")


def check_words(packed: Tensor, channels: int) -> None:
    if packed.dim() != 4 or packed.dtype != torch.int64 or packed.shape[3] != words(channels):
        raise WiringError(
            f"{channels} channels unpack from int64 [N, H, W, {words(channels)}], "
            f"got {packed.dtype} {list(packed.shape)}"
        )


def check_bytes(x: Tensor, bits: int) -> None:
    check_image(x)
    if x.dtype != torch.uint8:
        raise WiringError(f"bit planes are cut from uint8, got {x.dtype}")
    if not 1 <= bits <= MOST_PLANES:
        raise WiringError(f"bit planes must be 1..{MOST_PLANES}, got {bits}")


def check_thresholds(x: Tensor, threshold: Tensor, flip: Tensor) -> None:
    check_image(x)
    channels = list(x.shape[1:2])
    if list(threshold.shape) != channels or list(flip.shape) != channels:
        raise WiringError(
            f"thresholds and flips must be {channels}, one per channel, got "
            f"{list(threshold.shape)} and {list(flip.shape)}"
        )
    if flip.dtype != torch.bool:
        raise WiringError(f"flips must be bool, got {flip.dtype}")


def check_flags(flags: Tensor) -> None:
    check_image(flags)
    if flags.dtype != torch.bool:
        raise WiringError(f"flags must be bool, got {flags.dtype}")


def check_kept(x: Tensor, packed: Tensor) -> None:
    check_image(x)
    check_words(packed, x.shape[1])
    if packed.shape[:3] != (x.shape[0], *x.shape[2:]):
        raise WiringError(f"words of {list(packed.shape)} do not fit an image {list(x.shape)}")


def new_words(x: Tensor, *planes: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(*planes, n, h, w, words(c), dtype=torch.int64)


def channels_last(x: Tensor, channels: int) -> Tensor:
    """Room for `channels` floats at every position of the words x [N, H, W, words]."""
    n, h, w, _ = x.shape
    return x.new_empty(n, h, w, channels, dtype=torch.float32).permute(0, 3, 1, 2)


def layout(x: Tensor) -> tuple[Tensor, bool]:
    """x [N, C, H, W] dense in memory, and whether as planes [C, H·W] or as rows [H·W, C]."""
    if x.shape[2] * x.shape[3] > 1 and x.is_contiguous():
        return x, True
    return x.contiguous(memory_format=torch.channels_last), False


def run(name: str, kernel: ModuleType, x: Tensor, packed: Tensor, *arguments: int) -> Tensor:
    """Call kernel.<name> on an image."""
    x, planes = layout(x)
    n, c, h, w = x.shape
    sizes = (n, c, h * w, planes)
    getattr(kernel, name)(x.data_ptr(), *arguments, *sizes, packed.data_ptr(), threads())
    return packed


def pack(flags: Tensor) -> Tensor:
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


def define_unpacked(packed: Tensor, channels: int) -> Tensor:
    """int64 [N, H, W, words] → ±1 float32 [N, C, H, W], channels_last."""
    return (
        unpack_bits(packed, channels)
        .permute(0, 2, 3, 1)
        .float()
        .mul_(2)
        .sub_(1)
        .permute(0, 3, 1, 2)
    )


def define_signs(x: Tensor) -> Tensor:
    check_image(x)
    return pack(x >= 0)


def define_clipped(x: Tensor) -> Tensor:
    check_image(x)
    return torch.stack([pack(x >= 0), pack(~(x.abs() >= 1))])


def define_thresholds(x: Tensor, threshold: Tensor, flip: Tensor) -> Tensor:
    check_thresholds(x, threshold, flip)
    return pack((x >= threshold.view(1, -1, 1, 1)) ^ flip.view(1, -1, 1, 1))


def define_bits(flags: Tensor) -> Tensor:
    check_flags(flags)
    return pack(flags)


def define_planes(x: Tensor, bits: int) -> Tensor:
    check_bytes(x, bits)
    return torch.stack([pack((x & (1 << bit)) != 0) for bit in range(bits)])


def define_kept(x: Tensor, packed: Tensor) -> Tensor:
    check_kept(x, packed)
    kept = torch.where(unpack_bits(packed, x.shape[1]), x, 0)
    return kept.contiguous(memory_format=torch.channels_last)
